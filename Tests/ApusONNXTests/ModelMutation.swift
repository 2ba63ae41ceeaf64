// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusEngine
import ApusProto

/// Damage to what a model says, in a file that is still well formed: it gets past the decoder.
enum ModelMutation {
  static func mutate(_ model: ONNXModelProto, using generator: inout SeededGenerator)
    -> ONNXModelProto
  {
    var model = model
    for _ in 0..<Int.random(in: 1...2, using: &generator) {
      guard let node = model.graph.node.indices.randomElement(using: &generator) else { break }
      switch Int.random(in: 0..<8, using: &generator) {
      case 0, 1: mutateAttribute(&model.graph.node[node], &generator)
      case 2: mutateInput(&model.graph, &generator)
      case 3: mutateTensor(&model.graph, &generator)
      case 4: model.graph.node[node].input.shuffle(using: &generator)
      case 5:
        if let index = model.graph.node[node].input.indices.randomElement(using: &generator) {
          let other = model.graph.node.randomElement(using: &generator)?.output.first
          model.graph.node[node].input[index] =
            Bool.random(using: &generator) ? "" : other ?? ""
        }
      case 6:
        if !model.graph.node[node].input.isEmpty { model.graph.node[node].input.removeLast() }
      default:
        if let other = model.graph.node.randomElement(using: &generator) {
          model.graph.node[node].opType = other.opType
        }
      }
    }
    return model
  }

  private static func number(_ old: Int64, _ generator: inout SeededGenerator) -> Int64 {
    switch Int.random(in: 0..<6, using: &generator) {
    case 0: old &+ 1
    case 1: old &- 1
    case 2: 0 &- old
    case 3: Int64.random(in: -4...8, using: &generator)
    case 4: [0, .max, .min, 1 << 31, 1 << 40, 1 << 62].randomElement(using: &generator) ?? 0
    default: old &* 2
    }
  }

  private static func mutateAttribute(
    _ node: inout ONNXNodeProto, _ generator: inout SeededGenerator
  ) {
    guard let index = node.attribute.indices.randomElement(using: &generator) else { return }
    if Int.random(in: 0..<8, using: &generator) == 0 {
      node.attribute.remove(at: index)
      return
    }
    var attribute = node.attribute[index]
    attribute.i = number(attribute.i, &generator)
    attribute.f = [0, -1, .nan, .infinity, 1e30].randomElement(using: &generator) ?? 0
    switch Int.random(in: 0..<4, using: &generator) {
    case 0: attribute.ints.append(1)
    case 1: if !attribute.ints.isEmpty { attribute.ints.removeLast() }
    default:
      if let place = attribute.ints.indices.randomElement(using: &generator) {
        attribute.ints[place] = number(attribute.ints[place], &generator)
      }
    }
    node.attribute[index] = attribute
  }

  private static func mutateInput(
    _ graph: inout ONNXGraphProto, _ generator: inout SeededGenerator
  ) {
    guard let index = graph.input.indices.randomElement(using: &generator) else { return }
    if Int.random(in: 0..<4, using: &generator) == 0 {
      graph.input[index].type.tensorType.elemType = Int32.random(in: 0...27, using: &generator)
      return
    }
    var dims = graph.input[index].type.tensorType.shape.dim
    switch Int.random(in: 0..<4, using: &generator) {
    case 0: dims.append(ONNXTensorShapeProto.Dimension())
    case 1: if !dims.isEmpty { dims.removeLast() }
    default:
      if let place = dims.indices.randomElement(using: &generator) {
        dims[place].dimValue = number(dims[place].dimValue, &generator)
      }
    }
    graph.input[index].type.tensorType.shape.dim = dims
  }

  private static func mutateTensor(
    _ graph: inout ONNXGraphProto, _ generator: inout SeededGenerator
  ) {
    guard let index = graph.initializer.indices.randomElement(using: &generator) else { return }
    var tensor = graph.initializer[index]
    switch Int.random(in: 0..<4, using: &generator) {
    case 0: tensor.dataType = Int32.random(in: 0...27, using: &generator)
    case 1: tensor.dims.reverse()
    case 2:
      if let place = tensor.dims.indices.randomElement(using: &generator) {
        tensor.dims[place] = number(tensor.dims[place], &generator)
      }
    default:
      if let place = tensor.int64Data.indices.randomElement(using: &generator) {
        tensor.int64Data[place] = number(tensor.int64Data[place], &generator)
      }
    }
    graph.initializer[index] = tensor
  }
}
