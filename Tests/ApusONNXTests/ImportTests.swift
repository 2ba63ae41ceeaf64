// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusONNX
import ApusProto
import ApusTensor
import Testing

@Suite struct ImportTests {
  private func load(_ bytes: [UInt8]) throws -> Graph {
    try ONNXImporter(table: TestTable.table).importModel(bytes: bytes)
  }

  @Test func picksTheNewestDefinition() throws {
    for (opset, kind) in [(7, 0), (12, 0), (13, 100), (99, 100)] as [(Int64, Int)] {
      let graph = try load(
        Make.model(
          Make.graph(
            [Make.node("Mix", ["x"], ["y"])], inputs: [Make.input("x", [2])], outputs: ["y"]),
          opset: opset))
      let node = graph[graph.nodes[0]]
      #expect((node.op as? Mix)?.kind == kind)
      #expect(node.name == "Mix_0")
      #expect(graph.outputNames == ["y"])
    }
  }

  @Test func mapsLargeWeights() throws {
    let values = (0..<1000).map { Float($0) }
    let graph = try load(
      Make.model(
        Make.graph(
          [Make.node("Mix", ["w", "x"], ["y"])], inputs: [Make.input("x", [2])], outputs: ["y"],
          tensors: [Make.tensor("w", [10, 100], values, raw: true)])))
    let weights = graph.value(named: "w").flatMap { graph[$0].constant }
    #expect(weights?.floats() == values)
    #expect(weights?.shape == [10, 100])
  }

  @Test func oldModelsListInitializersAsInputs() throws {
    let graph = try load(
      Make.model(
        Make.graph(
          [Make.node("Mix", ["x", "w"], ["y"])],
          inputs: [Make.input("x", [-1, 2]), Make.input("w", [2])], outputs: ["y"],
          tensors: [Make.tensor("w", [2], [1, 2])]), ir: 3))
    #expect(graph.inputs.map { graph[$0].name } == ["x"])
    #expect(graph[graph.inputs[0]].type.tensor?.dims?[0] == .symbol("N"))
  }

  @Test func ordersNodes() throws {
    let graph = try load(
      Make.model(
        Make.graph(
          [Make.node("Mix", ["a", ""], ["b"]), Make.node("Mix", ["x"], ["a"])],
          inputs: [Make.input("x", [2])], outputs: ["b"])))
    #expect(graph.nodes.map { graph[$0].outputs.map { graph[$0].name } } == [["a"], ["b"]])
  }

  @Test func subgraphsTakeTheirCapturesAsOperands() throws {
    let inner = Make.graph([Make.node("Mix", ["h", "w"], ["t"])], inputs: [], outputs: ["t"])
    let other = Make.graph([Make.node("Mix", ["x"], ["e"])], inputs: [], outputs: ["e"])
    let graph = try load(
      Make.model(
        Make.graph(
          [
            Make.node("Mix", ["x"], ["h"]),
            Make.node(
              "Branch", ["c"], ["y"],
              [Make.attribute("then", inner), Make.attribute("else", other)]),
          ], inputs: [Make.input("x", [2]), Make.input("c", [], type: 9)], outputs: ["y"],
          tensors: [Make.tensor("w", [2], [1, 2])])))
    let node = graph[graph.nodes[1]]
    #expect(node.inputs.map { $0.map { graph[$0].name } } == ["c", "h", "x"])
    let bodies = (node.op as? Mix)?.bodies ?? []
    #expect(bodies.count == 2)
    for body in bodies { #expect(body.inputs.map { body[$0].name } == ["h", "x"]) }
    #expect(bodies[0].value(named: "w").flatMap { bodies[0][$0].constant }?.floats() == [1, 2])
  }

  @Test func inlinesFunctions() throws {
    let inner = Make.function(
      "local", "Inner", ["p", "q"], ["r"],
      [Make.node("Mix", ["p", "q"], ["r"], [Make.attribute("kind", reference: "k")])],
      attributes: ["k"])
    let outer = Make.function(
      "local", "Outer", ["p"], ["r"],
      [
        Make.node("Inner", ["p"], ["t"], domain: "local", [Make.attribute("k", 5)]),
        Make.node("Inner", ["t", "p"], ["r"], domain: "local"),
      ], domains: ["local"])
    let graph = try load(
      Make.model(
        Make.graph(
          [Make.node("Outer", ["x"], ["y"], name: "call", domain: "local")],
          inputs: [Make.input("x", [2])], outputs: ["y"]), functions: [inner, outer],
        domains: ["local"]))
    let kinds = graph.nodes.compactMap { (graph[$0].op as? Mix)?.kind }
    #expect(kinds == [105, 100])
    #expect(graph[graph.nodes[0]].name == "call/Inner_0/Mix_0")
    #expect(graph[graph.nodes[0]].inputs.count == 1)
  }

  @Test func decodesEveryElementType() throws {
    for type in DataType.allCases {
      var proto = Make.tensor("w", [3], [])
      proto.dataType = Int32(type.rawValue)
      switch type {
      case .float32: proto.floatData = [0, 1, 1]
      case .complex64: proto.floatData = [0, 0, 1, 0, 1, 0]
      case .float64: proto.doubleData = [0, 1, 1]
      case .complex128: proto.doubleData = [0, 0, 1, 0, 1, 0]
      case .int64: proto.int64Data = [0, 1, 1]
      case .uint64, .uint32: proto.uint64Data = [0, 1, 1]
      case .string: proto.stringData = ["0", "1", "1"].map { .init($0.utf8) }
      case .int4, .uint4: proto.int32Data = [0x10, 0x01]
      case .float4e2m1: proto.int32Data = [0x20, 0x02]
      case .int2, .uint2: proto.int32Data = [0b010100]
      default:
        // The pattern of one; exact for every format here.
        let one = try Tensor([1.0], type, shape: [1])
        let bits = (0..<type.bitWidth / 8).reduce(0) { $0 | Int32(one.bytes[$1]) << Int32($1 * 8) }
        let zero = type == .float8e8m0 ? Int32(126) : 0
        proto.int32Data = [zero, bits, bits]
      }
      let graph = try load(
        Make.model(
          Make.graph(
            [Make.node("Mix", ["w"], ["y"])], inputs: [], outputs: ["y"], tensors: [proto])))
      let tensor = try #require(graph.value(named: "w").flatMap { graph[$0].constant })
      #expect(tensor.dataType == type)
      switch type {
      case .string: #expect(tensor.strings == ["0", "1", "1"])
      case .float8e8m0: #expect(tensor.doubles() == [0.5, 1, 1])
      case .complex64, .complex128: #expect(tensor.doubles() == [0, 0, 1, 0, 1, 0])
      default: #expect(tensor.doubles() == [0, 1, 1], "\(type)")
      }
    }
  }
}
