// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor
import Testing

@Suite struct MovementTests {
  private func vector(_ values: [Int]) throws -> RuntimeValue { .tensor(try .vector(values)) }
  private func sequence(_ shape: [Int]) throws -> RuntimeValue {
    try f((0..<shape.reduce(1, *)).map(Float.init), shape)
  }

  @Test func transposes() throws {
    let x = try sequence([2, 3])
    #expect(try run(Transpose(), [x])[0].floats() == [0, 3, 1, 4, 2, 5])
    let cube = try run(Transpose(permutation: [1, 2, 0]), [sequence([2, 1, 3])])[0]
    #expect(cube.shape == [1, 3, 2] && cube.floats() == [0, 3, 1, 4, 2, 5])
    #expect(refuses(Transpose(permutation: [0, 0]), [x]))
    #expect(refuses(Transpose(permutation: [0]), [x]))
    let packed = try Tensor([1, 2, 3, -4, 5, 6] as [Int64], .int4, shape: [2, 3])
    #expect(try run(Transpose(), [.tensor(packed)])[0].ints() == [1, -4, 2, 5, 3, 6])
    let text: RuntimeValue = .tensor(try Tensor(strings: ["a", "b"], shape: [1, 2]))
    #expect(try run(Transpose(), [text])[0].strings == ["a", "b"])
  }

  @Test func reshapes() throws {
    let x = try sequence([2, 3, 4])
    #expect(try run(Reshape(), [x, vector([0, -1])])[0].shape == [2, 12])
    #expect(try run(Reshape(), [x, vector([4, 3, 2])])[0].shape == [4, 3, 2])
    #expect(
      try run(Reshape(allowZero: true), [f([], [0, 3]), vector([3, 0])])[0].shape == [3, 0])
    for bad in [[-1, -1], [5, -1], [2, 3], [-2, 12], [0, 0, 0, 0], [Int.max, Int.max]] {
      #expect(refuses(Reshape(), [x, try vector(bad)]), "\(bad)")
    }
    #expect(try run(Flatten(axis: 0), [x])[0].shape == [1, 24])
    #expect(try run(Flatten(axis: -1), [x])[0].shape == [6, 4])
    #expect(refuses(Flatten(axis: 4), [x]))
  }

  @Test func symbolicReshape() throws {
    let n = Dim.symbol("N")
    let x = ValueType.tensor(TensorType(.float32, [n, 8, 64]))
    let shape = ValueType.tensor(TensorType(.int64, shape: [4]))
    let types = try Reshape().infer(
      InferenceInputs(types: [x, shape], constants: [nil, try .vector([0, -1, 8, 8])]))
    #expect(types[0].tensor?.dims == [n, 8, 8, 8])
    let open = try Reshape().infer(
      InferenceInputs(types: [x, shape], symbolic: [nil, [-1, 4, 4, 4]]))
    #expect(open[0].tensor?.dims == [n * 8, 4, 4, 4])
  }

  @Test func squeezesAndUnsqueezes() throws {
    let x = try sequence([1, 3, 1])
    #expect(try run(Squeeze(), [x])[0].shape == [3])
    #expect(try run(Squeeze(), [x, vector([-1])])[0].shape == [1, 3])
    #expect(refuses(Squeeze(), [x, try vector([1])]))
    #expect(try run(Unsqueeze(), [f([1], []), vector([0, 1])])[0].shape == [1, 1])
    #expect(try run(Unsqueeze(), [x, vector([0, -1])])[0].shape == [1, 1, 3, 1, 1])
    #expect(refuses(Unsqueeze(), [x, try vector([0, 0])]))
    #expect(refuses(Unsqueeze(), [x, try vector([9])]))
  }

  @Test func concatenatesAndSplits() throws {
    let joined = try run(Concat(axis: -1), [f([1, 2], [2, 1]), f([3, 4, 5, 6], [2, 2])])[0]
    #expect(joined.shape == [2, 3] && joined.floats() == [1, 3, 4, 2, 5, 6])
    #expect(refuses(Concat(axis: 0), [try f([1], [1, 1]), try f([1, 2], [1, 2])]))
    #expect(refuses(Concat(axis: 0), [try f([1], [1]), try i([1], [1])]))
    #expect(refuses(Concat(axis: 0), []))
    let parts = try run(Split(axis: 1, numOutputs: 2), [sequence([2, 3])], outputs: 2)
    #expect(parts.map(\.shape) == [[2, 2], [2, 1]] && parts[1].floats() == [2, 5])
    let given = try run(Split(), [sequence([3]), vector([0, 3])], outputs: 2)
    #expect(given.map(\.shape) == [[0], [3]])
    #expect(refuses(Split(), [try sequence([3]), try vector([1, 1])]))
    #expect(refuses(Split(), [try sequence([3]), try vector([-1, 4])]))
    #expect(refuses(Split(), [try sequence([3])]))
  }

  @Test func slices() throws {
    let x = try sequence([4, 3])
    let part = try run(Slice(), [x, vector([1]), vector([-1]), vector([0]), vector([1])])[0]
    #expect(part.shape == [2, 3] && part.floats() == [3, 4, 5, 6, 7, 8])
    let back = try run(
      Slice(), [x, vector([-1]), vector([Int.min]), vector([1]), vector([-2])])[0]
    #expect(back.shape == [4, 2] && back.floats() == [2, 0, 5, 3, 8, 6, 11, 9])
    #expect(try run(Slice(), [x, vector([5]), vector([Int.max])])[0].shape == [0, 3])
    #expect(
      try run(Slice(), [f([], [0]), vector([-1]), vector([-9]), nil, vector([-1])])[0].shape == [0])
    let far = try run(Slice(), [x, vector([0]), vector([Int.max]), nil, vector([Int.max])])[0]
    #expect(far.floats() == [0, 1, 2])
    #expect(
      try run(Slice(), [x, vector([3]), vector([Int.min]), nil, vector([Int.min])])[0].shape == [
        1, 3,
      ])
    #expect(refuses(Slice(), [x, try vector([0]), try vector([1]), nil, try vector([0])]))
    #expect(refuses(Slice(), [x, try vector([0]), try vector([1, 2])]))
    #expect(refuses(Slice(), [x, try vector([0]), try vector([1]), try vector([2])]))
  }

  @Test func pads() throws {
    let x = try f([1, 2, 3], [3])
    let pads = try vector([2, 1])
    #expect(try run(Pad(), [x, pads])[0].floats() == [0, 0, 1, 2, 3, 0])
    #expect(try run(Pad(), [x, pads, f([9], [])])[0].floats() == [9, 9, 1, 2, 3, 9])
    #expect(try run(Pad(mode: .reflect), [x, pads])[0].floats() == [3, 2, 1, 2, 3, 2])
    #expect(try run(Pad(mode: .edge), [x, pads])[0].floats() == [1, 1, 1, 2, 3, 3])
    #expect(try run(Pad(mode: .wrap), [x, pads])[0].floats() == [2, 3, 1, 2, 3, 1])
    #expect(
      try run(Pad(mode: .reflect), [x, vector([5, 0])])[0].floats() == [2, 1, 2, 3, 2, 1, 2, 3])
    #expect(try run(Pad(), [x, vector([-1, -1])])[0].floats() == [2])
    #expect(try run(Pad(), [x, vector([-2, 2])])[0].floats() == [3, 0, 0])
    #expect(try run(Pad(), [x, vector([-3, 4])])[0].floats() == [0, 0, 0, 0])
    #expect(refuses(Pad(), [x, try vector([-2, -2])]))
    #expect(refuses(Pad(), [x, try vector([Int.max, 1])]))
    #expect(refuses(Pad(), [x, try vector([Int.min, 1])]))
    #expect(refuses(Pad(mode: .edge), [try f([], [0]), pads]))
    #expect(refuses(Pad(), [x, try vector([1])]))
    let matrix = try run(
      Pad(mode: .edge), [sequence([2, 2]), vector([1, 1]), nil, vector([-1])])[0]
    #expect(matrix.floats() == [0, 0, 1, 1, 2, 2, 3, 3])
  }

  @Test func repeats() throws {
    #expect(
      try run(Expand(), [f([1, 2], [2, 1]), vector([1, 3])])[0].floats() == [1, 1, 1, 2, 2, 2])
    #expect(try run(Expand(), [f([1, 2], [2]), vector([2, 1])])[0].shape == [2, 2])
    #expect(refuses(Expand(), [try f([1, 2], [2]), try vector([3])]))
    #expect(refuses(Expand(), [try f([1, 2], [2]), try vector([Int.max, 2])]))
    let tiled = try run(Tile(), [sequence([2, 2]), vector([2, 2])])[0]
    #expect(tiled.floats() == [0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1, 2, 3, 2, 3])
    #expect(refuses(Tile(), [try sequence([2]), try vector([-1])]))
    #expect(refuses(Tile(), [try sequence([2]), try vector([Int.max])]))
  }

  @Test func blocks() throws {
    let x = try sequence([1, 4, 1, 2])
    let wide = try run(DepthToSpace(blockSize: 2), [x])[0]
    #expect(wide.shape == [1, 1, 2, 4] && wide.floats() == [0, 2, 1, 3, 4, 6, 5, 7])
    #expect(
      try run(SpaceToDepth(blockSize: 2), [.tensor(wide)])[0].floats() == (0..<8).map(Float.init))
    let two = try run(DepthToSpace(blockSize: 2, mode: .crd), [sequence([1, 8, 1, 1])])[0]
    #expect(two.floats() == [0, 1, 2, 3, 4, 5, 6, 7])
    #expect(refuses(DepthToSpace(blockSize: 3), [x]))
    #expect(refuses(SpaceToDepth(blockSize: 0), [x]))
  }

  /// `op(transpose(x))` with the permuted form equals `transpose(op(x))`.
  @Test func permutedFormsAgree() throws {
    let order = [2, 0, 1]
    let x = try sequence([2, 3, 4])
    let cases: [(any PermutableOperator, [RuntimeValue?])] = [
      (Add(), [x, x]), (Relu(), [x]), (Add(), [x, try f([1], [])]), (Concat(axis: 1), [x, x]),
      (Split(axis: -1, numOutputs: 2), [x]),
      (Pad(mode: .edge), [x, try vector([1, 0, 0, 2]), nil, try vector([0, 2])]),
      (Slice(), [x, try vector([1]), try vector([9]), try vector([2]), try vector([2])]),
      (Reduce(function: .max, axes: [1]), [x]),
    ]
    for (op, inputs) in cases {
      let facts = InferenceInputs(
        types: inputs.map { $0?.type }, constants: inputs.map { $0?.tensor })
      guard let form = op.permuted(by: order, inputs: facts) else {
        Issue.record("\(op.name) has no permuted form")
        continue
      }
      var operands = inputs
      for index in operands.indices {
        if let constant = form.replacedInputs[index] { operands[index] = .tensor(constant) }
        if form.permutesInput[index] {
          operands[index] = try Transpose(permutation: order).evaluate([operands[index]])[0]
        }
      }
      let got = try form.op.evaluate(operands).compactMap(\.tensor)
      for (index, want) in try op.evaluate(inputs).enumerated() {
        let moved = try run(Transpose(permutation: order), [want])[0]
        #expect(
          got[index].shape == moved.shape && got[index].floats() == moved.floats(), "\(op.name)")
      }
    }
    let lower = InferenceInputs(types: [x.type, try f([1, 2, 3, 4], [4]).type])
    #expect(Add().permuted(by: order, inputs: lower)?.op.name == nil)
  }
}
