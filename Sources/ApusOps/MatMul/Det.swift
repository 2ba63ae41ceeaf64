// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Determinants of the matrices in the last two axes (ONNX `Det`).
public struct Det: PlainOperator {
  public static let name = "Det"

  /// Creates the operator.
  public init() {}

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    guard x.dataType.isFloat else { throw ApusError(.typeMismatch, "the determinant of \(x)") }
    guard let dims = x.dims else { return [.tensor(x)] }
    guard dims.count >= 2 else { throw ApusError(.typeMismatch, "\(x) holds no matrices") }
    let (rows, columns) = (dims[dims.count - 2], dims[dims.count - 1])
    if let m = rows.value, let n = columns.value, m != n {
      throw ApusError(.typeMismatch, "the matrices in \(x) are not square")
    }
    return [typed(x.dataType, Array(dims.dropLast(2)))]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let size = x.shape[x.rank - 1]
    let shape = Array(x.shape.dropLast(2))
    var values = x.doubles()
    let result = (0..<(try Tensor.checkedCount(shape))).map {
      Self.determinant(&values, at: $0 * size * size, size)
    }
    return [.tensor(try Tensor(result, x.dataType, shape: shape))]
  }

  /// Gaussian elimination with row exchange, in place.
  private static func determinant(_ a: inout [Double], at base: Int, _ n: Int) -> Double {
    var product = 1.0
    for k in 0..<n {
      var pivot = k
      for row in k..<n where abs(a[base + row * n + k]) > abs(a[base + pivot * n + k]) {
        pivot = row
      }
      let head = a[base + pivot * n + k]
      if head == 0 { return 0 }
      if pivot != k {
        product = -product
        for column in 0..<n { a.swapAt(base + k * n + column, base + pivot * n + column) }
      }
      product *= head
      for row in (k + 1)..<max(n, k + 1) {
        let factor = a[base + row * n + k] / head
        for column in k..<n { a[base + row * n + column] -= factor * a[base + k * n + column] }
      }
    }
    return product
  }
}
