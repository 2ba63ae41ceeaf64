// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusTestSupport
import Testing

/// Recurrent layers in generated code against the reference.
@Suite struct RecurrentTests {
  private enum Cell: CaseIterable, Sendable { case lstm, gru, resettingGRU }

  private struct Case: CustomStringConvertible, Sendable {
    var cell: Cell
    var isLSTM: Bool { cell == .lstm }
    var steps = 3
    var batch = 2
    var inputs = 5
    var hidden = 7
    var direction = RecurrentAttributes.Direction.forward
    var hasBias = true
    var hasStates = true
    var activations: [String] = []
    var description: String {
      "\(cell) \(steps)x\(batch)x\(inputs) -> \(hidden) \(direction) \(hasBias) \(hasStates)"
    }
  }

  private static let cases: [Case] = Cell.allCases.flatMap { cell -> [Case] in
    [
      Case(cell: cell), Case(cell: cell, steps: 1, batch: 1, inputs: 257, hidden: 128),
      Case(cell: cell, steps: 9, batch: 1, hidden: 16, direction: .reverse),
      Case(cell: cell, direction: .bidirectional), Case(cell: cell, hasBias: false),
      Case(cell: cell, hasStates: false),
      Case(cell: cell, steps: 4, batch: 17, inputs: 33, hidden: 65, direction: .bidirectional),
      Case(cell: cell, steps: 2, batch: 1, inputs: 1, hidden: 1),
      Case(
        cell: cell, direction: .bidirectional,
        activations: cell == .lstm
          ? ["Sigmoid", "Tanh", "Tanh", "sigmoid", "tanh", "tanh"]
          : ["Sigmoid", "Tanh", "sigmoid", "tanh"]),
    ]
  }

  private func graph(_ c: Case) throws -> (graph: Graph, inputs: [RuntimeValue?]) {
    var generator = SeededGenerator(seed: 3)
    let directions = c.direction == .bidirectional ? 2 : 1
    let gates = c.isLSTM ? 4 : 3
    var b = GraphBuilder("recurrent")
    func constant(_ name: String, _ shape: [Int]) throws -> ValueID {
      b.constant(name, try generator.tensor(.float32, shape: shape))
    }
    var inputs: [RuntimeValue?] = []
    func input(_ name: String, _ shape: [Int]) throws -> ValueID {
      inputs.append(.tensor(try generator.tensor(.float32, shape: shape)))
      return b.input(name, .float32, shape.map { Dim($0) })
    }
    let x = try input("x", [c.steps, c.batch, c.inputs])
    let w = try constant("w", [directions, gates * c.hidden, c.inputs])
    let r = try constant("r", [directions, gates * c.hidden, c.hidden])
    let bias = c.hasBias ? try constant("b", [directions, 2 * gates * c.hidden]) : nil
    let state = [directions, c.batch, c.hidden]
    let h = c.hasStates ? try input("h", state) : nil
    let attributes = RecurrentAttributes(
      hiddenSize: c.hidden, direction: c.direction, activations: c.activations)
    let results: [ValueID]
    if c.isLSTM {
      let cell = c.hasStates ? try input("c", state) : nil
      results = try b.apply(LSTM(attributes), [x, w, r, bias, nil, h, cell], outputCount: 3)
    } else {
      results = try b.apply(
        GRU(attributes, linearBeforeReset: c.cell == .gru), [x, w, r, bias, nil, h], outputCount: 2)
    }
    let graph = try b.finish(outputs: results.enumerated().map { ("y\($0)", $1) })
    return (graph, inputs)
  }

  @Test(arguments: cases) private func layersEqualTheReference(c: Case) throws {
    let (graph, inputs) = try graph(c)
    let expected = try ReferenceInterpreter.run(graph, inputs: inputs)
    for threads in [1, 2] {
      var configuration = BuilderConfiguration()
      configuration.threadCount = threads
      let engine = try Builder(configuration).build(graph)
      let op = try #require(engine.graph.nodes.compactMap { engine.graph[$0].op as? LSTM }.first?.recurrent
        ?? engine.graph.nodes.compactMap { engine.graph[$0].op as? GRU }.first?.recurrent)
      #expect(op.readsWeightsByInput)
      try compare(try engine.makeContext().run(inputs), expected, c)
      let bytes = try engine.serialized()
      try bytes.withUnsafeBytes { bytes in
        let loaded = try Engine.load(bytes, owner: engine, threadCount: threads)
        try compare(try loaded.makeContext().run(inputs), expected, c)
      }
    }
  }

  private func compare(_ got: [RuntimeValue], _ expected: [RuntimeValue], _ c: Case) throws {
    for (a, b) in zip(got, expected) {
      let difference = TensorDifference(try #require(a.tensor), try #require(b.tensor))
      #expect(difference.relativeL2 < 1e-5, "\(c): \(difference)")
    }
  }

  @Test func cellsWithoutCodeRunAsTheyAre() throws {
    var generator = SeededGenerator(seed: 3)
    var b = GraphBuilder("plain")
    let x = b.input("x", .float32, [3, 1, 4])
    let w = b.constant("w", try generator.tensor(.float32, shape: [1, 15, 4]))
    let r = b.constant("r", try generator.tensor(.float32, shape: [1, 15, 5]))
    let y = try b.apply(GRU(RecurrentAttributes(hiddenSize: 5, activations: ["Sigmoid", "Relu"])), [x, w, r], outputCount: 2)
    let graph = try b.finish(outputs: [("y", y[0])])
    let input = try generator.tensor(.float32, shape: [3, 1, 4])
    let want = try ReferenceInterpreter.run(graph, inputs: [.tensor(input)])[0].tensor?.doubles()
    let got = try Builder().build(graph).makeContext().run(["x": input])["y"]?.doubles()
    #expect(got == want)
  }
}
