// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor
import Testing

private let scalar = ValueType.tensor(TensorType(.float32, shape: []))
private let count = ValueType.tensor(TensorType(.int64, shape: []))
private let flag = ValueType.tensor(TensorType(.bool, shape: []))

/// A body of one elementwise operator over its two inputs.
private func binary(_ op: any Operator, _ type: ValueType = scalar) throws -> Graph {
  var graph = Graph(name: "body")
  let a = graph.addInput("a", type)
  let b = graph.addInput("b", type)
  graph.addOutput(try graph.add(op, [a, b])[0])
  return graph
}

@Suite struct ControlFlowTests {
  @Test func branches() throws {
    let op = If(thenBranch: try binary(Add()), elseBranch: try binary(Sub()))
    let operands = [try f([5], []), try f([2], [])]
    #expect(try run(op, [i([1], [], .bool)] + operands)[0].floats() == [7])
    #expect(try run(op, [i([0], [], .bool)] + operands)[0].floats() == [3])
    #expect(refuses(op, [try i([1, 1], [2], .bool)] + operands))
    #expect(refuses(op, [nil]))
  }

  /// Adds `step` to the sum while the new sum is below `limit`, and stacks the sums.
  private func loop() throws -> Loop {
    var body = Graph(name: "body")
    _ = body.addInput("iteration", count)
    _ = body.addInput("condition", flag)
    let sum = body.addInput("sum", scalar)
    let step = body.addInput("step", scalar)
    let limit = body.addInput("limit", scalar)
    let next = try body.add(Add(), [sum, step])[0]
    body.addOutput(try body.add(Less(), [next, limit])[0])
    body.addOutput(next)
    body.addOutput(next)
    return Loop(body: body, carriedCount: 1)
  }

  @Test func loops() throws {
    let op = try loop()
    let captured = [try f([2], []), try f([5], [])]
    let start = try f([0], [])
    let open = try run(op, [nil, nil, start] + captured, outputs: 2)
    #expect(open[0].floats() == [6] && open[1].floats() == [2, 4, 6])
    let limited = try run(op, [i([2], []), nil, start] + captured, outputs: 2)
    #expect(limited[0].floats() == [4] && limited[1].shape == [2])
    for operands in [
      [try i([0], []), nil], [nil, try i([0], [], .bool)], [try i([-3], []), nil],
    ] {
      let none = try run(op, operands + [start] + captured, outputs: 2)
      #expect(none[0].floats() == [0] && none[1].shape == [0])
    }
    #expect(refuses(op, [nil, nil]))
  }

  @Test func loopsCarrySequences() throws {
    var body = Graph(name: "body")
    let iteration = body.addInput("iteration", count)
    let condition = body.addInput("condition", flag)
    let list = body.addInput("list", .sequence(.tensor(TensorType(.int64, nil))))
    body.addOutput(condition)
    body.addOutput(try body.add(SequenceInsert(), [list, iteration])[0])
    let empty = try SequenceEmpty(dataType: .int64).evaluate([])[0]
    let result = try Loop(body: body, carriedCount: 1).evaluate([i([3], []), nil, empty])[0]
    guard case .sequence(let items, _) = result else {
      Issue.record("no sequence")
      return
    }
    #expect(items.compactMap { $0.tensor?.integers().first } == [0, 1, 2])
  }

  @Test func scans() throws {
    var body = Graph(name: "body")
    let sum = body.addInput("sum", scalar)
    let x = body.addInput("x", scalar)
    let next = try body.add(Add(), [sum, x])[0]
    body.addOutput(next)
    body.addOutput(next)
    let operands = [try f([0], []), try f([1, 2, 3], [3])]
    let op = Scan(body: body, scanCount: 1)
    let forward = try run(op, operands, outputs: 2)
    #expect(forward[0].floats() == [6] && forward[1].floats() == [1, 3, 6])
    let backward = Scan(body: body, scanCount: 1, inputDirections: [1], outputDirections: [1])
    #expect(try run(backward, operands, outputs: 2)[1].floats() == [6, 5, 3])
    #expect(refuses(op, [operands[0]]))
    #expect(refuses(op, [operands[0], try f([1], [])]))
  }

  @Test func recurrentNetworks() throws {
    let attributes = RecurrentAttributes(hiddenSize: 1)
    // X [2, 1, 1]; every weight is one, no bias.
    let x = try f([1, 2], [2, 1, 1])
    let rnn = try run(RNN(attributes), [x, f([1], [1, 1, 1]), f([1], [1, 1, 1])], outputs: 2)
    #expect(rnn[0].shape == [2, 1, 1, 1] && rnn[1].shape == [1, 1, 1])
    #expect(abs(rnn[0].doubles()[0] - 0.761594) < 1e-6)
    #expect(abs(rnn[1].doubles()[0] - 0.992045) < 1e-5)
    let four = Array(repeating: Float(1), count: 4)
    let lstm = try run(LSTM(attributes), [x, f(four, [1, 4, 1]), f(four, [1, 4, 1])], outputs: 3)
    // i = o = f = sigmoid(1), c = i * tanh(1), h = o * tanh(c)
    #expect(abs(lstm[0].doubles()[0] - 0.369579) < 1e-4)
    let three = Array(repeating: Float(1), count: 3)
    let gru = try run(GRU(attributes), [x, f(three, [1, 3, 1]), f(three, [1, 3, 1])], outputs: 2)
    // z = sigmoid(1), h = (1 - z) * tanh(1)
    #expect(abs(gru[0].doubles()[0] - 0.204821) < 1e-4)
    let short = try run(
      RNN(attributes), [x, f([1], [1, 1, 1]), f([1], [1, 1, 1]), nil, i([1], [1], .int32)],
      outputs: 2)
    #expect(short[0].doubles()[1] == 0 && abs(short[1].doubles()[0] - 0.761594) < 1e-6)
    let leaky = RecurrentAttributes(
      hiddenSize: 1, activations: ["LeakyRelu"], activationAlpha: [0.5])
    let negative = try run(
      RNN(leaky), [f([-4], [1, 1, 1]), f([1], [1, 1, 1]), f([1], [1, 1, 1])])[0]
    #expect(negative.floats() == [-2])
    // Parameters go to the functions that take some: none to the sigmoid.
    let mixed = RecurrentAttributes(
      hiddenSize: 1, activations: ["Sigmoid", "LeakyRelu"], activationAlpha: [0.5])
    let gated = try run(
      GRU(mixed), [f([-4], [1, 1, 1]), f([0, 0, 1], [1, 3, 1]), f(three, [1, 3, 1])])[0]
    #expect(gated.floats() == [-1])
    #expect(
      refuses(
        RNN(RecurrentAttributes(hiddenSize: 1, layout: 2)),
        [x, try f([1], [1, 1, 1]), try f([1], [1, 1, 1])]))
    #expect(
      refuses(
        RNN(RecurrentAttributes(hiddenSize: 1, activations: ["Nope"])),
        [x, try f([1], [1, 1, 1]), try f([1], [1, 1, 1])]))
    #expect(refuses(RNN(attributes), [x, try f([1, 1], [1, 2, 1]), try f([1], [1, 1, 1])]))
    #expect(
      refuses(
        RNN(attributes),
        [x, try f([1], [1, 1, 1]), try f([1], [1, 1, 1]), nil, try i([3], [1], .int32)]))
  }
}
