// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Matrix product with NumPy's rules (ONNX `MatMul`): leading axes are batches that broadcast, a
/// vector on the left is a row, one on the right a column, and is removed from the result.
public struct MatMul: AnchorOperator, CostedOperator, TolerantOperator, SampledOperator {
  public static let name = "MatMul"
  /// The type of the sums and the result, when it is not that of the operands; these may then differ.
  public var sumType: DataType?
  /// The integers that stand for zero in each operand: `sum((a - leftZero) * (b - rightZero))`. Only
  /// where integers are summed in others.
  public var leftZero: Int
  public var rightZero: Int
  /// Whether the last two axes of the right side are exchanged before it is used.
  public var transposesRight: Bool

  /// Creates the operator.
  public init(
    sumType: DataType? = nil, leftZero: Int = 0, rightZero: Int = 0, transposesRight: Bool = false
  ) {
    self.sumType = sumType
    self.leftZero = leftZero
    self.rightZero = rightZero
    self.transposesRight = transposesRight
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    sumType = try SumType.read(&attributes)
    leftZero = try attributes.int("left_zero", 0)
    rightZero = try attributes.int("right_zero", 0)
    transposesRight = try attributes.bool("transposes_right", false)
    guard (leftZero == 0 && rightZero == 0) || sumType == .int32, abs(leftZero) <= 255,
      abs(rightZero) <= 255
    else {
      throw ApusError(
        .invalidAttribute, "zero points \(leftZero) and \(rightZero) are not those of bytes")
    }
  }

  public var attributes: Attributes {
    var result: Attributes = sumType.map { ["sum_type": .type($0)] } ?? [:]
    if leftZero != 0 { result["left_zero"] = .int(leftZero) }
    if rightZero != 0 { result["right_zero"] = .int(rightZero) }
    if transposesRight { result["transposes_right"] = .bool(true) }
    return result
  }

  /// Whether it is the product of its operands as they are.
  public var isPlain: Bool { leftZero == 0 && rightZero == 0 && !transposesRight }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let a = try inputs.tensor(0)
    let b = try inputs.tensor(1)
    try inputs.requireNumbers(0)
    let type = try SumType.check(a.dataType, b.dataType, sumType)
    guard let left = a.dims, let right = b.dims else { return [typed(type, nil)] }
    return [typed(type, try Self.resultDims(left, transposesRight ? Self.exchanged(right) : right))]
  }

  /// The last two of a list in the other order; vectors have no others.
  static func exchanged<Element>(_ list: [Element]) -> [Element] {
    guard list.count > 1 else { return list }
    var result = list
    result.swapAt(list.count - 2, list.count - 1)
    return result
  }

  static func resultDims(_ left: [Dim], _ right: [Dim]) throws(ApusError) -> [Dim] {
    guard !left.isEmpty, !right.isEmpty else {
      throw ApusError(.typeMismatch, "a scalar is no operand of a matrix product")
    }
    let a = left.count == 1 ? [1] + left : left
    let b = right.count == 1 ? right + [1] : right
    let (depth, other) = (a[a.count - 1], b[b.count - 2])
    if let p = depth.value, let q = other.value, p != q {
      throw ApusError(
        .typeMismatch,
        "the left side has \(p) columns but the right side \(q) rows",
        hint: "the operands are \(left) and \(right)")
    }
    var dims = try Broadcasting.dims([Array(a.dropLast(2)), Array(b.dropLast(2))])
    if left.count > 1 { dims.append(a[a.count - 2]) }
    if right.count > 1 { dims.append(b[b.count - 1]) }
    return dims
  }

  public func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double {
    guard let depth = inputs.first??.shape?.last, let y = outputs.first?.shape else { return 0 }
    return 2 * Double(depth) * y.reduce(1.0) { $0 * Double($1) }
  }

  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    type == .float64 ? 1e-12 : (type == .float32 ? 4e-6 : 4e-3)
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let product = try ReferenceProduct(try inputs.required(0), try inputs.required(1), self)
    return [.tensor(try product.evaluate())]
  }

  public func evaluateSamples(_ inputs: [Tensor?], at linearIndices: [Int]) throws(ApusError)
    -> [Double]
  {
    let values = inputs.map { $0.map { RuntimeValue.tensor($0) } }
    let product = try ReferenceProduct(try values.required(0), try values.required(1), self)
    return try product.samples(at: linearIndices)
  }
}

/// The arithmetic of a matrix product: double precision for floats, wrapping 64-bit for integers.
struct ReferenceProduct {
  private let type: DataType
  private let m: Int
  private let n: Int
  private let k: Int
  private let batch: [Int]
  private let aStrides: [Int]
  private let bStrides: [Int]
  /// Elements from one number of a column to the next, and from one column to the next.
  private let down: Int
  private let across: Int
  private let zeros: (left: Int, right: Int)
  private let shape: [Int]
  private let a: Tensor
  private let b: Tensor

  init(_ a: Tensor, _ b: Tensor, _ op: MatMul = MatMul()) throws(ApusError) {
    guard a.dataType != .string, !a.dataType.isComplex else {
      throw ApusError(.typeMismatch, "no matrix product of \(a.type) and \(b.type)")
    }
    type = try SumType.check(a.dataType, b.dataType, op.sumType)
    zeros = (op.leftZero, op.rightZero)
    let columns = op.transposesRight ? MatMul.exchanged(b.shape) : b.shape
    let dims = try MatMul.resultDims(a.shape.map { Dim($0) }, columns.map { Dim($0) })
    shape = dims.compactMap(\.value)
    let left = a.rank == 1 ? [1] + a.shape : a.shape
    let right = b.rank == 1 ? b.shape + [1] : columns
    m = left[left.count - 2]
    k = left[left.count - 1]
    n = right[right.count - 1]
    (down, across) = op.transposesRight && b.rank > 1 ? (1, k) : (n, 1)
    let rank = max(left.count, right.count) - 2
    let p = Array(repeating: 1, count: rank + 2 - left.count) + left.dropLast(2)
    let q = Array(repeating: 1, count: rank + 2 - right.count) + right.dropLast(2)
    batch = zip(p, q).map { $0 == 1 ? $1 : $0 }
    func strides(_ dims: [Int], _ size: Int) -> [Int] {
      let dense = CopyPlan.rowMajorStrides(dims)
      return dims.indices.map { dims[$0] == 1 ? 0 : dense[$0] * size }
    }
    aStrides = strides(p, m * k)
    bStrides = strides(q, k * n)
    self.a = a
    self.b = b
  }

  private func offsets(_ index: Int) -> (a: Int, b: Int) {
    var rest = index
    var result = (a: 0, b: 0)
    for axis in batch.indices.reversed() {
      let position = rest % max(1, batch[axis])
      rest /= max(1, batch[axis])
      result.a += position * aStrides[axis]
      result.b += position * bStrides[axis]
    }
    return result
  }

  /// The whole result.
  func evaluate() throws(ApusError) -> Tensor {
    if type.isFloat {
      return try Tensor(
        try product(a.doubles(), b.doubles(), zero: 0) { $0 + $1 * $2 }, type, shape: shape)
    }
    return try Tensor(
      try product(centred(a, zeros.left), centred(b, zeros.right), zero: 0) { $0 &+ $1 &* $2 }, type,
      shape: shape)
  }

  private func centred(_ tensor: Tensor, _ zero: Int) -> [Int64] {
    let numbers = tensor.integers()
    return zero == 0 ? numbers : numbers.map { $0 &- Int64(zero) }
  }

  @inline(__always)
  private func product<Number>(
    _ a: [Number], _ b: [Number], zero: Number, _ add: (Number, Number, Number) -> Number
  ) throws(ApusError) -> [Number] {
    let count = batch.reduce(1, &*)
    var result = [Number](repeating: zero, count: try Tensor.checkedCount([count, m, n]))
    a.withUnsafeBufferPointer { a in
      b.withUnsafeBufferPointer { b in
        result.withUnsafeMutableBufferPointer { result in
          for index in 0..<count {
            let offset = offsets(index)
            for row in 0..<m {
              let target = (index * m + row) * n
              for depth in 0..<k {
                let factor = a[offset.a + row * k + depth]
                let source = offset.b + depth * down
                for column in 0..<n {
                  result[target + column] = add(result[target + column], factor, b[source + column * across])
                }
              }
            }
          }
        }
      }
    }
    return result
  }

  /// Single elements by their row-major positions.
  func samples(at indices: [Int]) throws(ApusError) -> [Double] {
    let count = batch.reduce(1, &*) * m * n
    guard indices.allSatisfy({ $0 >= 0 && $0 < count }) else {
      throw ApusError(.invalidArgument, "a sampled position is outside the result")
    }
    return indices.map { index in
      let offset = offsets(index / (m * n))
      let (row, column) = (index / n % m, index % n)
      let left = a.doubles(from: offset.a + row * k, by: 1, count: k)
      let right = b.doubles(from: offset.b + column * across, by: down, count: k)
      return zip(left, right).reduce(0.0) {
        $0 + ($1.0 - Double(zeros.left)) * ($1.1 - Double(zeros.right))
      }
    }
  }
}

extension MatMul: BatchwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    guard operands.count == 2, let a = operands[0], let b = operands[1], a.isBatched, a.rank >= 2 else {
      return false
    }
    return b.isBatched ? a.rank >= 3 && b.rank == a.rank : b.rank <= a.rank
  }
}
