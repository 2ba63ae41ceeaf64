// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Triangles over frequencies, spaced evenly on the mel scale (ONNX `MelWeightMatrix`): operands the
/// number of triangles, the transform's length, the sample rate, the lowest and the highest frequency.
public struct MelWeightMatrix: DataDependentShape {
  public static let name = "MelWeightMatrix"
  public var dataType: DataType

  /// Creates the operator.
  public init(dataType: DataType = .float32) { self.dataType = dataType }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    dataType = try attributes.type("type", .float32)
  }

  public var attributes: Attributes { ["type": .type(dataType)] }

  public func shapeDecidingInputs(count: Int) -> [Int] { [0, 1] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let bins = inputs.ints(0)?.first.map { Dim($0) } ?? inputs.freshDim("bins")
    let rows = inputs.ints(1)?.first.map { Dim($0 / 2 + 1) } ?? inputs.freshDim("frequencies")
    return [typed(dataType, [rows, bins])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    var numbers: [Double] = []
    for index in 0..<5 {
      guard let number = try inputs.required(index).doubles().first, number.isFinite else {
        throw ApusError(.typeMismatch, "operand \(index) is not a number")
      }
      numbers.append(number)
    }
    let (bins, length, rate) = (numbers[0], numbers[1], numbers[2])
    guard bins >= 1, bins < 1e6, length >= 1, length < 1e8, rate > 0, numbers[3] > -700,
      numbers[4] > -700
    else { throw ApusError(.execution, "a mel matrix of \(numbers) is not possible") }
    let count = Int(bins)
    let rows = Int(length) / 2 + 1
    func mel(_ hertz: Double) -> Double { 2595 * log1p(hertz / 700) / log(10) }
    let low = mel(numbers[3])
    let step = (mel(numbers[4]) - low) / (bins + 2)
    let edges = (0..<(count + 2)).map { index in
      let hertz = 700 * expm1((Double(index) * step + low) / 2595 * log(10))
      return Int((((Double(Int(length)) + 1) * hertz) / Double(Int(rate))).rounded(.down))
    }
    guard edges.allSatisfy({ $0 >= 0 && $0 < rows }) else {
      throw ApusError(.execution, "frequencies up to \(numbers[4]) are beyond half the sample rate")
    }
    var result = [Double](repeating: 0, count: try Tensor.checkedCount([rows, count]))
    for bin in 0..<count {
      let (left, centre, right) = (edges[bin], edges[bin + 1], edges[bin + 2])
      if left == centre {
        result[centre * count + bin] = 1
      } else {
        for row in left...centre {
          result[row * count + bin] = Double(row - left) / Double(centre - left)
        }
      }
      for row in centre..<max(centre, right) {
        result[row * count + bin] = Double(right - row) / Double(right - centre)
      }
    }
    return [.tensor(try Tensor(result, dataType, shape: [rows, count]))]
  }
}
