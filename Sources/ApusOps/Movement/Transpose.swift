// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The axes in another order: axis `i` of the result is axis `permutation[i]` of the operand;
/// reversed when no permutation is given.
public struct Transpose: MovementOperator {
  public static let name = "Transpose"
  public var permutation: [Int]?

  public init(permutation: [Int]? = nil) { self.permutation = permutation }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    permutation = try attributes.optionalInts("permutation")
  }

  public var attributes: Attributes { permutation.map { ["permutation": .ints($0)] } ?? [:] }

  /// The permutation for an operand of this rank.
  ///
  /// - Throws: `type-mismatch` when the permutation is not one of that rank.
  public func order(rank: Int) throws(ApusError) -> [Int] {
    guard let permutation else { return (0..<rank).reversed() }
    guard Axis.isPermutation(permutation, rank: rank) else {
      throw ApusError(.typeMismatch, "\(permutation) does not reorder the axes of rank \(rank)")
    }
    return permutation
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    guard let dims = type.dims else {
      let count = permutation?.count
      return [typed(type.dataType, count.map { (0..<$0).map { inputs.freshDim("d\($0)") } })]
    }
    return [typed(type.dataType, try order(rank: dims.count).map { dims[$0] })]
  }

  public func copyPlan(_ inputs: [Tensor?], shapes: [[Int]?]) throws(ApusError) -> CopyPlan {
    let shape = try shapes.required(0)
    let order = try order(rank: shape.count)
    let result = order.map { shape[$0] }
    let strides = CopyPlan.rowMajorStrides(shape)
    return CopyPlan(
      outputShapes: [result],
      copies: [
        CopyPlan.Copy(
          input: 0, sizes: result, sourceStrides: order.map { strides[$0] },
          targetStrides: CopyPlan.rowMajorStrides(result))
      ])
  }
}

/// Blocks of the channel axis moved into the two spatial axes of `[N, C, H, W]`.
public struct DepthToSpace: MovementOperator {
  public static let name = "DepthToSpace"
  /// Whether channels are ordered depth-column-row or column-row-depth.
  public enum Mode: String, Sendable { case dcr, crd }
  public var blockSize: Int
  public var mode: Mode

  public init(blockSize: Int, mode: Mode = .dcr) {
    self.blockSize = blockSize
    self.mode = mode
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    blockSize = try attributes.int("blockSize")
    mode = try attributes.choice("mode", .dcr)
    guard blockSize > 0, blockSize < 1 << 16 else {
      throw ApusError(.invalidAttribute, "the block size \(blockSize) is out of range")
    }
  }

  public var attributes: Attributes {
    ["blockSize": .int(blockSize), "mode": .string(mode.rawValue)]
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    guard let dims = type.dims else { return [typed(type.dataType, nil)] }
    guard dims.count == 4, blockSize > 0, blockSize < 1 << 16 else {
      throw ApusError(.typeMismatch, "DepthToSpace takes [N, C, H, W], not \(type)")
    }
    let b = Dim(blockSize)
    return [
      typed(type.dataType, [dims[0], dims[1].floorDivided(by: b * b), dims[2] * b, dims[3] * b])
    ]
  }

  public func copyPlan(_ inputs: [Tensor?], shapes: [[Int]?]) throws(ApusError) -> CopyPlan {
    let x = try shapes.required(0)
    let b = blockSize
    guard x.count == 4, b > 0, b < 1 << 16, x[1] % (b * b) == 0 else {
      throw ApusError(.typeMismatch, "\(x) has no channels in blocks of \(b) x \(b)")
    }
    let depth = x[1] / (b * b)
    let plane = x[2] * x[3]
    // Result axes [N, depth, H, by, W, bx] over the operand's strides.
    let block = mode == .dcr ? (b * depth * plane, depth * plane) : (b * plane, plane)
    let depthStride = mode == .dcr ? plane : b * b * plane
    let result = [x[0], depth, x[2] * b, x[3] * b]
    let sizes = [x[0], depth, x[2], b, x[3], b]
    return CopyPlan(
      outputShapes: [result],
      copies: [
        CopyPlan.Copy(
          input: 0, sizes: sizes,
          sourceStrides: [x[1] * plane, depthStride, x[3], block.0, 1, block.1],
          targetStrides: CopyPlan.rowMajorStrides(sizes))
      ])
  }
}

/// Blocks of the two spatial axes of `[N, C, H, W]` moved into the channel axis.
public struct SpaceToDepth: MovementOperator {
  public static let name = "SpaceToDepth"
  public var blockSize: Int
  public var mode: DepthToSpace.Mode

  public init(blockSize: Int, mode: DepthToSpace.Mode = .dcr) {
    self.blockSize = blockSize
    self.mode = mode
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    blockSize = try attributes.int("blockSize")
    mode = try attributes.choice("mode", DepthToSpace.Mode.dcr)
    guard blockSize > 0, blockSize < 1 << 16 else {
      throw ApusError(.invalidAttribute, "the block size \(blockSize) is out of range")
    }
  }

  public var attributes: Attributes { ["blockSize": .int(blockSize), "mode": .string(mode.rawValue)] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let type = try inputs.tensor(0)
    guard let dims = type.dims else { return [typed(type.dataType, nil)] }
    guard dims.count == 4, blockSize > 0, blockSize < 1 << 16 else {
      throw ApusError(.typeMismatch, "SpaceToDepth takes [N, C, H, W], not \(type)")
    }
    let b = Dim(blockSize)
    return [
      typed(
        type.dataType,
        [dims[0], dims[1] * b * b, dims[2].floorDivided(by: b), dims[3].floorDivided(by: b)])
    ]
  }

  public func copyPlan(_ inputs: [Tensor?], shapes: [[Int]?]) throws(ApusError) -> CopyPlan {
    let x = try shapes.required(0)
    let b = blockSize
    guard x.count == 4, b > 0, b < 1 << 16, x[2] % b == 0, x[3] % b == 0 else {
      throw ApusError(.typeMismatch, "\(x) has no blocks of \(b) x \(b)")
    }
    // Result axes [N, by, bx, C, H', W'] or [N, C, by, bx, H', W'] over the operand's strides.
    let plane = x[2] * x[3]
    let isDepthFirst = mode == .crd
    let sizes =
      isDepthFirst
      ? [x[0], x[1], b, b, x[2] / b, x[3] / b] : [x[0], b, b, x[1], x[2] / b, x[3] / b]
    let strides =
      isDepthFirst
      ? [x[1] * plane, plane, x[3], 1, b * x[3], b] : [x[1] * plane, x[3], 1, plane, b * x[3], b]
    return CopyPlan(
      outputShapes: [[x[0], x[1] * b * b, x[2] / b, x[3] / b]],
      copies: [
        CopyPlan.Copy(
          input: 0, sizes: sizes, sourceStrides: strides,
          targetStrides: CopyPlan.rowMajorStrides(sizes))
      ])
  }
}

extension Transpose: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.onlyFirstIsBatched && permutation?.first == 0
  }
}
