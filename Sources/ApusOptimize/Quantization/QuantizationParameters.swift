// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Scale and zero point of a `QuantizeLinear` or `DequantizeLinear` that has one of each, constant, for
/// the whole tensor.
struct QuantizationParameters: Equatable {
  /// The step, as single precision.
  let scale: Double
  /// The integer that stands for zero.
  let zeroPoint: Int
  /// The integers' type.
  let type: DataType

  /// Reads a node; nil when its parameters are vectors or computed, or it is another node.
  init?(_ node: Node, _ graph: Graph) {
    guard node.op is QuantizeLinear || node.op is DequantizeLinear, node.inputs.count >= 2,
      let scaleID = node.inputs[1], let scale = graph[scaleID].constant, scale.count == 1,
      scale.dataType == .float32, scale.doubles()[0] > 0, scale.doubles()[0].isFinite,
      let quantized = node.op is QuantizeLinear ? node.outputs.first : node.inputs[0],
      let type = graph[quantized].type.tensor?.dataType, type.isInteger, type.bitWidth <= 16
    else { return nil }
    self.scale = scale.doubles()[0]
    self.type = type
    guard node.inputs.count > 2, let zeroID = node.inputs[2] else {
      zeroPoint = 0
      return
    }
    guard let zero = graph[zeroID].constant, zero.count == 1 else { return nil }
    zeroPoint = zero.ints()[0]
  }

  /// `quantize(x)`, x being operand 0.
  var quantization: ScalarExpr {
    ScalarQuantization(steps: .input(0) / .const(scale), zeroPoint: zeroPoint, type: type).expression
  }

  /// `dequantize(q)`, q being operand 0.
  var dequantization: ScalarExpr {
    let number = ScalarExpr.cast(.input(0), .float32)
    return (zeroPoint == 0 ? number : number - .const(Double(zeroPoint))) * .const(scale)
  }
}
