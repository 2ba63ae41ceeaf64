// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Elementwise functions of one operand.
  mutating func addUnary() {
    op("Abs", since: 6) { _ in Abs() }
    op("Acos", since: 7) { _ in Acos() }
    op("Acosh", since: 9) { _ in Acosh() }
    op("Asin", since: 7) { _ in Asin() }
    op("Asinh", since: 9) { _ in Asinh() }
    op("Atan", since: 7) { _ in Atan() }
    op("Atanh", since: 9) { _ in Atanh() }
    op("BitwiseNot", since: 18) { _ in BitwiseNot() }
    op("Ceil", since: 6) { _ in Ceil() }
    op("Cos", since: 7) { _ in Cos() }
    op("Cosh", since: 9) { _ in Cosh() }
    op("Erf", since: 9) { _ in Erf() }
    op("Exp", since: 6) { _ in Exp() }
    op("Floor", since: 6) { _ in Floor() }
    op("HardSwish", since: 14) { _ in HardSwish() }
    op("IsNaN", since: 9) { _ in IsNaN() }
    op("Log", since: 6) { _ in Log() }
    op("Mish", since: 18) { _ in Mish() }
    op("Neg", since: 6) { _ in Neg() }
    op("Not", since: 1) { _ in Not() }
    op("Reciprocal", since: 6) { _ in Reciprocal() }
    op("Relu", since: 6) { _ in Relu() }
    op("Round", since: 11) { _ in Round() }
    op("Sigmoid", since: 6) { _ in Sigmoid() }
    op("Sign", since: 9) { _ in Sign() }
    op("Sin", since: 7) { _ in Sin() }
    op("Sinh", since: 9) { _ in Sinh() }
    op("Softplus", since: 1) { _ in Softplus() }
    op("Softsign", since: 1) { _ in Softsign() }
    op("Sqrt", since: 6) { _ in Sqrt() }
    op("Tan", since: 7) { _ in Tan() }
    op("Tanh", since: 6) { _ in Tanh() }
    op("IsInf", since: 10) { (node) throws(ApusError) in
      IsInf(
        detectNegative: try node.attributes.flag("detect_negative", true),
        detectPositive: try node.attributes.flag("detect_positive", true))
    }
  }

  /// Activation functions with parameters.
  mutating func addActivations() {
    op("LeakyRelu", since: 6) { (node) throws(ApusError) in
      LeakyRelu(alpha: try node.attributes.float("alpha", 0.01))
    }
    op("Elu", since: 6) { (node) throws(ApusError) in
      Elu(alpha: try node.attributes.float("alpha", 1))
    }
    op("Selu", since: 6) { (node) throws(ApusError) in
      Selu(
        alpha: try node.attributes.float("alpha", 1.6732632423543772),
        gamma: try node.attributes.float("gamma", 1.0507009873554805))
    }
    op("Celu", since: 12) { (node) throws(ApusError) in
      Celu(alpha: try node.attributes.float("alpha", 1))
    }
    op("ThresholdedRelu", since: 10) { (node) throws(ApusError) in
      ThresholdedRelu(alpha: try node.attributes.float("alpha", 1))
    }
    op("HardSigmoid", since: 6) { (node) throws(ApusError) in
      HardSigmoid(
        alpha: try node.attributes.float("alpha", 0.2),
        beta: try node.attributes.float("beta", 0.5))
    }
    op("Gelu", since: 20) { (node) throws(ApusError) in
      Gelu(approximate: try node.attributes.string("approximate", "none") == "tanh")
    }
    op("Gelu", since: 1, domain: "com.microsoft") { _ in Gelu() }
    op("Swish", since: 24) { (node) throws(ApusError) in
      Swish(alpha: try node.attributes.float("alpha", 1))
    }
    op("Shrink", since: 9) { (node) throws(ApusError) in
      Shrink(
        bias: try node.attributes.float("bias", 0), lambd: try node.attributes.float("lambd", 0.5))
    }
    op("PRelu", since: 7) { _ in PRelu() }
    on("Clip", since: 6) { (node) throws(ApusError) in
      let x = try node.operand(0)
      let type = try node.tensorType(0).dataType
      // Before version 11 the bounds are attributes, the largest floats when left out.
      var bounds: [ValueID?] = []
      for (name, open) in [("min", -3.402823e+38), ("max", 3.402823e+38)] {
        let bound = try node.attributes.float(name, open)
        let isOpen = name == "min" ? bound <= open : bound >= open
        bounds.append(isOpen ? nil : try node.scalar(bound, type))
      }
      return try node.result(Clip(), [x] + bounds)
    }
    op("Clip", since: 11) { _ in Clip() }
  }

  /// Elementwise functions of two operands, comparisons, and their chains.
  mutating func addBinary() {
    op("Add", since: 7) { _ in Add() }
    op("Sub", since: 7) { _ in Sub() }
    op("Mul", since: 7) { _ in Mul() }
    op("Div", since: 7) { _ in Div() }
    op("Pow", since: 7) { _ in Pow() }
    op("And", since: 7) { _ in And() }
    op("Or", since: 7) { _ in Or() }
    op("Xor", since: 7) { _ in Xor() }
    op("BitwiseAnd", since: 18) { _ in BitwiseAnd() }
    op("BitwiseOr", since: 18) { _ in BitwiseOr() }
    op("BitwiseXor", since: 18) { _ in BitwiseXor() }
    op("Equal", since: 7) { _ in Equal() }
    op("Less", since: 7) { _ in Less() }
    op("LessOrEqual", since: 12) { _ in LessOrEqual() }
    op("Greater", since: 7) { _ in Greater() }
    op("GreaterOrEqual", since: 12) { _ in GreaterOrEqual() }
    op("Where", since: 9) { _ in Where() }
    op("Mod", since: 10) { (node) throws(ApusError) in
      Mod(fmod: try node.attributes.flag("fmod", false))
    }
    op("BitShift", since: 11) { (node) throws(ApusError) in
      switch try node.attributes.string("direction") {
      case "LEFT": return BitShift(direction: .left)
      case "RIGHT": return BitShift(direction: .right)
      case let other:
        throw ApusError(.invalidAttribute, "'direction' is '\(other)', not LEFT or RIGHT")
      }
    }
    on("Max", since: 6) { (node) throws(ApusError) in try node.chain(Max()) }
    on("Min", since: 6) { (node) throws(ApusError) in try node.chain(Min()) }
    on("Sum", since: 6) { (node) throws(ApusError) in try node.chain(Add()) }
    on("Mean", since: 6) { (node) throws(ApusError) in
      let count = node.inputs.count
      if count == 1 { return try node.chain(Add()) }
      let type = try node.tensorType(0).dataType
      var sum = try node.operand(0)
      for index in 1..<max(1, count) { sum = try node.emit(Add(), [sum, try node.operand(index)]) }
      return try node.result(Div(), [sum, try node.scalar(Double(count), type)])
    }
  }
}

extension NodeImport {
  /// A function of two operands applied along any number of them.
  func chain(_ op: any Operator) throws(ApusError) -> [ValueID] {
    var value = try operand(0)
    if inputs.count == 1 { return try result(Identity(), [value]) }
    for index in 1..<(inputs.count - 1) { value = try emit(op, [value, try operand(index)]) }
    return try result(op, [value, try operand(inputs.count - 1)])
  }
}
