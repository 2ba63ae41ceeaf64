// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusProto

/// Small valid models of every kind the importer knows: convolutions, products, quantised arithmetic,
/// shape arithmetic, recurrence and branches.
enum FuzzModels {
  static func all() throws -> [ONNXModelProto] {
    [convolution(), product(), quantized(), shapes(), recurrent(), branches()].map { graph in
      var model = ONNXModelProto()
      model.irVersion = 8
      model.graph = graph
      model.opsetImport = [Make.opset("", 17)]
      return model
    }
  }

  static func ints(_ name: String, _ values: [Int64]) -> ONNXAttributeProto {
    var attribute = ONNXAttributeProto()
    attribute.name = name
    attribute.type = .ints
    attribute.ints = values
    return attribute
  }

  static func indices(_ name: String, _ values: [Int64]) -> ONNXTensorProto {
    var tensor = ONNXTensorProto()
    tensor.name = name
    tensor.dims = [Int64(values.count)]
    tensor.dataType = 7
    tensor.int64Data = values
    return tensor
  }

  static func ramp(_ name: String, _ dims: [Int64]) -> ONNXTensorProto {
    let count = dims.reduce(1, *)
    return Make.tensor(name, dims, (0..<count).map { Float($0 % 7) / 8 - 0.3 })
  }

  private static func convolution() -> ONNXGraphProto {
    Make.graph(
      [
        Make.node(
          "Conv", ["x", "w", "b"], ["c"],
          [ints("kernel_shape", [3, 3]), ints("pads", [1, 1, 1, 1]), ints("strides", [1, 1])]),
        Make.node("BatchNormalization", ["c", "s", "b", "b", "s"], ["n"]),
        Make.node("Relu", ["n"], ["r"]),
        Make.node(
          "MaxPool", ["r"], ["p"], [ints("kernel_shape", [2, 2]), ints("strides", [2, 2])]),
        Make.node("Conv", ["p", "d"], ["q"], [Make.attribute("group", 4)]),
        Make.node("Add", ["p", "q"], ["a"]),
        Make.node("GlobalAveragePool", ["a"], ["g"]),
        Make.node("Flatten", ["g"], ["f"]),
        Make.node("Softmax", ["f"], ["y"]),
      ], inputs: [Make.input("x", [-1, 3, 6, 6])], outputs: ["y"],
      tensors: [
        ramp("w", [4, 3, 3, 3]), ramp("b", [4]), Make.tensor("s", [4], [1, 1, 1, 1]),
        ramp("d", [4, 1, 1, 1]),
      ])
  }

  private static func product() -> ONNXGraphProto {
    Make.graph(
      [
        Make.node("Gemm", ["x", "w", "b"], ["h"], [Make.attribute("transB", 1)]),
        Make.node("Sigmoid", ["h"], ["s"]),
        Make.node("Mul", ["h", "s"], ["m"]),
        Make.node("LayerNormalization", ["m", "b", "b"], ["l"]),
        Make.node("MatMul", ["l", "v"], ["z"]),
        Make.node("ReduceMean", ["z"], ["e"], [ints("axes", [1])]),
        Make.node("Sub", ["z", "e"], ["y"]),
      ], inputs: [Make.input("x", [-1, 8])], outputs: ["y"],
      tensors: [ramp("w", [5, 8]), ramp("b", [5]), ramp("v", [5, 6])])
  }

  private static func quantized() -> ONNXGraphProto {
    var zero = ONNXTensorProto()
    zero.name = "zero"
    zero.dataType = 2
    zero.int32Data = [128]
    var weights = ONNXTensorProto()
    weights.name = "w"
    weights.dataType = 3
    weights.dims = [4, 3]
    weights.int32Data = (0..<12).map { $0 - 6 }
    let scale = Make.tensor("scale", [], [0.1])
    return Make.graph(
      [
        Make.node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        Make.node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        Make.node("DequantizeLinear", ["w", "scales"], ["v"], [Make.attribute("axis", 1)]),
        Make.node("MatMul", ["d", "v"], ["m"]),
        Make.node("DynamicQuantizeLinear", ["m"], ["a", "as", "az"]),
        Make.node("Cast", ["a"], ["y"], [Make.attribute("to", 1)]),
      ], inputs: [Make.input("x", [2, 4])], outputs: ["y"],
      tensors: [scale, zero, weights, Make.tensor("scales", [3], [0.1, 0.2, 0.3])])
  }

  private static func shapes() -> ONNXGraphProto {
    Make.graph(
      [
        Make.node("Shape", ["x"], ["shape"]),
        Make.node("Gather", ["shape", "zero"], ["n"]),
        Make.node("Concat", ["n", "rest"], ["target"], [Make.attribute("axis", 0)]),
        Make.node("Reshape", ["x", "target"], ["r"]),
        Make.node("Transpose", ["r"], ["t"], [ints("perm", [0, 2, 1])]),
        Make.node("Slice", ["t", "zero", "two", "one"], ["s"]),
        Make.node("Split", ["s"], ["a", "b"], [Make.attribute("axis", 1)]),
        Make.node("Concat", ["b", "a"], ["c"], [Make.attribute("axis", 2)]),
        Make.node("Pad", ["c", "pads"], ["p"]),
        Make.node("Unsqueeze", ["p", "zero"], ["u"]),
        Make.node("Expand", ["u", "wide"], ["e"]),
        Make.node("Where", ["flag", "e", "half"], ["y"]),
      ], inputs: [Make.input("x", [-1, 12]), Make.input("flag", [1], type: 9)], outputs: ["y"],
      tensors: [
        indices("zero", [0]), indices("one", [1]), indices("two", [2]), indices("rest", [4, 3]),
        indices("pads", [0, 0, 1, 0, 0, 1]), indices("wide", [2, 1, 1, 1]),
        Make.tensor("half", [], [0.5]),
      ])
  }

  private static func recurrent() -> ONNXGraphProto {
    Make.graph(
      [
        Make.node("LSTM", ["x", "w", "r"], ["", "h"], [Make.attribute("hidden_size", 3)]),
        Make.node("Squeeze", ["h", "zero"], ["y"]),
      ], inputs: [Make.input("x", [4, 1, 2])], outputs: ["y"],
      tensors: [ramp("w", [1, 12, 2]), ramp("r", [1, 12, 3]), indices("zero", [0])])
  }

  private static func branches() -> ONNXGraphProto {
    let then = Make.graph([Make.node("Add", ["x", "h"], ["t"])], inputs: [], outputs: ["t"])
    let other = Make.graph([Make.node("Mul", ["x", "w"], ["e"])], inputs: [], outputs: ["e"])
    return Make.graph(
      [
        Make.node("Neg", ["x"], ["h"]),
        Make.node(
          "If", ["c"], ["y"],
          [Make.attribute("then_branch", then), Make.attribute("else_branch", other)]),
      ], inputs: [Make.input("x", [-1, 2]), Make.input("c", [1], type: 9)], outputs: ["y"],
      tensors: [Make.tensor("w", [2], [1, 2])])
  }
}
