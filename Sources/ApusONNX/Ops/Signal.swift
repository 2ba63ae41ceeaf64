// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Signals, bits and running products.
  mutating func addSignal() {
    on("DFT", since: 17) { (node) throws(ApusError) in
      let op = DFT(
        isInverse: try node.attributes.flag("inverse", false),
        isOneSided: try node.attributes.flag("onesided", false),
        axis: try node.attributes.int("axis", 1))
      return try node.result(op, [try node.operand(0), node.optional(1)])
    }
    op("DFT", since: 20) { (node) throws(ApusError) in
      DFT(
        isInverse: try node.attributes.flag("inverse", false),
        isOneSided: try node.attributes.flag("onesided", false))
    }
    op("BitCast", since: 26) { (node) throws(ApusError) in
      guard let type = try node.attributes.dataType("to") else {
        throw ApusError(.invalidAttribute, "attribute 'to' is missing")
      }
      return BitCast(to: type)
    }
    op("CumProd", since: 26) { (node) throws(ApusError) in
      CumSum(
        exclusive: try node.attributes.flag("exclusive", false),
        reverse: try node.attributes.flag("reverse", false), multiplies: true)
    }
    op("STFT", since: 17) { (node) throws(ApusError) in
      STFT(isOneSided: try node.attributes.flag("onesided", true))
    }
    op("MelWeightMatrix", since: 17) { (node) throws(ApusError) in
      MelWeightMatrix(dataType: try node.attributes.dataType("output_datatype") ?? .float32)
    }
    // a + b cos(2 pi n / N) + c cos(4 pi n / N)
    addWindow("HannWindow", [0.5, -0.5])
    addWindow("HammingWindow", [25.0 / 46, -21.0 / 46])
    addWindow("BlackmanWindow", [0.42, -0.5, 0.08])
    op("CenterCropPad", since: 18) { (node) throws(ApusError) in
      CenterCropPad(axes: try node.attributes.optionalInts("axes"))
    }
  }

  private mutating func addWindow(_ name: String, _ coefficients: [Double]) {
    on(name, since: 17) { (node) throws(ApusError) in try node.cosineWindow(coefficients) }
  }
}

extension NodeImport {
  /// A window function as a sum of cosines of multiples of the angle.
  fileprivate func cosineWindow(_ coefficients: [Double]) throws(ApusError) -> [ValueID] {
    let type = try attributes.dataType("output_datatype") ?? .float32
    let isPeriodic = try attributes.flag("periodic", true)
    let wide = DataType.float64
    let size = try emit(Cast(to: wide), [try operand(0)])
    let last = isPeriodic ? size : try emit(Sub(), [size, try scalar(1, wide)])
    let steps = try emit(NumberRange(), [try scalar(0, wide), size, try scalar(1, wide)])
    let turns = try emit(Div(), [steps, last])
    var sum = try scalar(coefficients[0], wide)
    for (order, factor) in coefficients.enumerated().dropFirst() {
      let angle = try emit(Mul(), [turns, try scalar(2 * .pi * Double(order), wide)])
      let wave = try emit(Mul(), [try emit(Cos(), [angle]), try scalar(factor, wide)])
      sum = try emit(Add(), [sum, wave])
    }
    return try result(Cast(to: type), [sum])
  }
}
