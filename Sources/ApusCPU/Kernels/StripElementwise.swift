// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// An elementwise operator as the first stage of strips: over the pixels of one tensor, with other operands that
/// are the same for all pixels of an image.
package struct StripElementwise: Sendable {
  /// How an operand besides the pixels is read.
  package enum Operand: Hashable, Sendable {
    /// One element for everything.
    case scalar
    /// An element for every channel, the same in all images or each image's own.
    case perChannel(ofEachImage: Bool)
  }

  /// What an element of the result is; operand 0 is that of the pixels.
  package var expression: ScalarExpr
  /// The operands behind operand 0.
  package var operands: [Operand]
  /// The types of all operands and of the result.
  package var types: PointwiseKernel.Types

  /// Describes an operator.
  package init(_ expression: ScalarExpr, operands: [Operand], types: PointwiseKernel.Types) {
    self.expression = expression
    self.operands = operands
    self.types = types
  }

  /// Generated code for it.
  final class Code: Sendable {
    private let kernel: PointwiseKernel
    private let shape: ConvShape
    /// Bytes from an image's elements of each operand to the next image's, operand 0 excepted.
    private let imageSteps: [Int]
    private let inputBytes: Int
    private let resultBytes: Int

    init(_ stage: StripElementwise, _ shape: ConvShape, isa: ISA) throws(ApusError) {
      let channels = shape.outChannels
      guard stage.types.operands.count == stage.operands.count + 1 else {
        throw ApusError(.internalError, "operands of an elementwise stage without types")
      }
      self.shape = shape
      inputBytes = ElementAccess.byteCount(stage.types.operands[0])
      resultBytes = ElementAccess.byteCount(stage.types.result)
      imageSteps = zip(stage.operands, stage.types.operands.dropFirst()).map { operand, type in
        operand == .perChannel(ofEachImage: true) ? channels * ElementAccess.byteCount(type) : 0
      }
      let kinds = stage.operands.map { operand -> PointwiseKernel.OperandKind in
        operand == .scalar ? .scalar : .period(channels)
      }
      kernel = try PointwiseKernel(
        stage.expression, operands: [.contiguous] + kinds, types: stage.types, isa: isa)
      rowLength = kinds.contains(.period(channels)) ? 1 : channels
    }

    /// What the kernel counts in for a pixel: one row of a period, or its elements.
    private let rowLength: Int

    /// Computes some rows of one image on the calling thread.
    func run(image: Int, rows: Range<Int>, _ addresses: WindowAddresses) {
      let pixel = (image * shape.outHeight + rows.lowerBound) * shape.outWidth
      withUnsafeTemporaryAllocation(
        of: UnsafeRawPointer.self, capacity: imageSteps.count + 1
      ) { operands in
        guard let base = operands.baseAddress,
          let source = UnsafeRawPointer(
            bitPattern: addresses.input &+ pixel * shape.inChannels * inputBytes),
          let target = UnsafeMutableRawPointer(
            bitPattern: addresses.output &+ pixel * shape.outChannels * resultBytes)
        else { return }
        base.initialize(to: source)
        for (index, step) in imageSteps.enumerated() {
          guard let operand = addresses.operands?[index] else { return }
          (base + index + 1).initialize(to: operand + image * step)
        }
        kernel.run(base, target, from: 0, count: rows.count * shape.outWidth * rowLength)
      }
    }
  }
}
