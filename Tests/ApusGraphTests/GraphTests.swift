// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusTestSupport
import Testing

@Suite struct GraphTests {
  @Test func dimensionsAreCanonical() {
    let n = Dim.symbol("N")
    #expect((n * 3).floorDivided(by: 3) == n)
    #expect(n + n == n * 2)
    #expect((n + 1) * (n - 1) == n * n - 1)
    #expect((n - n).value == 0)
    #expect((n * 6).substituting(["N": 7]).value == 42)
    #expect(Dim(7).floorDivided(by: 2).value == 3)
    #expect(Dim(-7).floorDivided(by: 2).value == -4)
  }

  @Test func cyclesAreFound() throws {
    var graph = Graph(name: "cycle")
    let x = graph.addInput("x", .tensor(TensorType(.float32, shape: [1])))
    let a = graph.addNode(Add(), [x, x], types: [.tensor(TensorType(.float32, shape: [1]))])
    let b = graph.addNode(
      Add(), [graph[a].outputs[0], x], types: [.tensor(TensorType(.float32, shape: [1]))])
    graph.setInput(a, 1, to: graph[b].outputs[0])
    #expect(throws: ApusError.self) { try GraphVerifier.verify(graph) }
  }

  @Test func patchesKeepTypesAndSources() throws {
    var graph = try SmallNetworks.residual()
    let relu = try #require(graph.nodes.first { graph[$0].op is Relu })
    let node = graph[relu]
    var wrong = GraphPatch(rule: "wrong", replacing: [relu])
    wrong.replace(node.outputs[0], with: wrong.add(Cast(to: .int32), [.existing(node.inputs[0]!)]))
    #expect(throws: ApusError.self) { try wrong.apply(to: &graph) }
    var right = GraphPatch(rule: "right", replacing: [relu])
    right.replace(node.outputs[0], with: right.add(Abs(), [.existing(node.inputs[0]!)]))
    try right.apply(to: &graph)
    let added = try #require(graph.nodes.first { graph[$0].op is Abs })
    #expect(graph[added].sources == node.sources)
    try GraphVerifier.verify(graph)
  }

  @Test func contradictionsNameTheNode() throws {
    var b = GraphBuilder("wrong")
    let x = b.input("x", .float32, [2, 3])
    let y = b.input("y", .float32, [4, 5])
    do {
      _ = try b.apply(MatMul(), [x, y], name: "product")
      Issue.record("a product of 2x3 and 4x5 was accepted")
    } catch {
      #expect(error.code == .typeMismatch)
      #expect(error.description.contains("product"))
      #expect(error.description.contains("3 columns"))
    }
  }
}
