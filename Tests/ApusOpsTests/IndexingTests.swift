// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor
import Testing

@Suite struct IndexingTests {
  @Test func gathers() throws {
    let x = try f([0, 1, 2, 3, 4, 5], [2, 3])
    let columns = try run(Gather(axis: 1), [x, i([-1, 0], [2])])[0]
    #expect(columns.shape == [2, 2] && columns.floats() == [2, 0, 5, 3])
    #expect(try run(Gather(), [x, i([1], [])])[0].shape == [3])
    #expect(refuses(Gather(), [x, try i([2], [1])]))
    #expect(refuses(Gather(axis: 2), [x, try i([0], [1])]))
    #expect(try run(Gather(), [f([], [0, 2]), i([], [0])])[0].shape == [0, 2])
    let words: RuntimeValue = .tensor(try Tensor(strings: ["a", "b"], shape: [2]))
    #expect(try run(Gather(), [words, i([1, 1], [2])])[0].strings == ["b", "b"])
    #expect(
      try run(GatherElements(axis: 1), [x, i([2, 0, 1, 1], [2, 2])])[0].floats() == [2, 0, 4, 4])
    #expect(refuses(GatherElements(), [x, try i([0], [1])]))
    #expect(try run(GatherND(), [x, i([0, 1, 1, 2], [2, 2])])[0].floats() == [1, 5])
    #expect(try run(GatherND(batchDims: 1), [x, i([1, 2], [2, 1])])[0].floats() == [1, 5])
    #expect(refuses(GatherND(), [x, try i([0, 0, 0], [1, 3])]))
    #expect(refuses(GatherND(), [x, try i([0], [])]))
  }

  @Test func scatters() throws {
    let x = try f([1, 2, 3], [3])
    #expect(
      try run(ScatterElements(), [x, i([2, 0], [2]), f([9, 8], [2])])[0].floats() == [8, 2, 9])
    let twice = try run(ScatterElements(reduction: .add), [x, i([1, 1], [2]), f([10, 100], [2])])
    #expect(twice[0].floats() == [1, 112, 3])
    #expect(try run(ScatterND(), [x, i([1], [1, 1]), f([7], [1])])[0].floats() == [1, 7, 3])
    let rows = try run(
      ScatterND(reduction: .max), [f([1, 5, 3, 4], [2, 2]), i([0], [1, 1]), f([2, 2], [1, 2])])[0]
    #expect(rows.floats() == [2, 5, 3, 4])
    #expect(refuses(ScatterND(), [x, try i([3], [1, 1]), try f([7], [1])]))
    #expect(refuses(ScatterND(), [x, try i([0], [1, 1]), try f([7, 8], [2])]))
    #expect(refuses(ScatterElements(), [x, try i([0], [1]), try i([7], [1])]))
  }

  @Test func selects() throws {
    let x = try f([1, 0, 0, 2], [2, 2])
    #expect(try run(NonZero(), [x])[0].ints() == [0, 1, 0, 1])
    #expect(try run(NonZero(), [f([0], [1])])[0].shape == [1, 0])
    #expect(try run(NonZero(), [f([3], [])])[0].shape == [0, 1])
    #expect(try run(Compress(axis: 1), [x, i([0, 1], [2], .bool)])[0].floats() == [0, 2])
    #expect(try run(Compress(), [x, i([1, 0, 0, 1], [4], .bool)])[0].floats() == [1, 2])
    #expect(refuses(Compress(axis: 0), [x, try i([0, 0, 1], [3], .bool)]))
    #expect(try run(Trilu(), [f([1, 2, 3, 4], [2, 2])])[0].floats() == [1, 2, 0, 4])
    #expect(
      try run(Trilu(upper: false), [f([1, 2, 3, 4], [2, 2]), i([.min], [])])[0].floats() == [
        0, 0, 0, 0,
      ])
    let hot = try run(OneHot(), [i([1, -1, 5], [3]), i([3], []), f([0, 1], [2])])[0]
    #expect(hot.floats() == [0, 1, 0, 0, 0, 1, 0, 0, 0])
    let first = try run(OneHot(axis: 0), [i([1, 0], [2]), i([2], []), f([0, 1], [2])])[0]
    #expect(first.floats() == [0, 1, 1, 0])
    #expect(refuses(OneHot(), [try i([1], [1]), try i([-1], []), try f([0, 1], [2])]))
  }

  @Test func orders() throws {
    let x = try f([3, 1, 3, 2], [4])
    let top = try run(TopK(), [x, i([3], [1])], outputs: 2)
    #expect(top[0].floats() == [3, 3, 2] && top[1].ints() == [0, 2, 3])
    #expect(try run(TopK(largest: false), [x, i([1], [1])], outputs: 2)[1].ints() == [1])
    #expect(refuses(TopK(), [x, try i([5], [1])]))
    #expect(try run(ArgMax(), [x])[0].ints() == [0])
    #expect(try run(ArgMax(keepDims: false, selectLastIndex: true), [x])[0].ints() == [2])
    #expect(try run(ArgMin(), [x])[0].ints() == [1])
    #expect(refuses(ArgMax(), [try f([], [0])]))
    let unique = try run(Unique(), [f([2, 1, 1, 3], [4])], outputs: 4)
    #expect(unique[0].floats() == [1, 2, 3] && unique[1].ints() == [1, 0, 3])
    #expect(unique[2].ints() == [1, 0, 0, 2] && unique[3].ints() == [2, 1, 1])
    #expect(
      try run(Unique(sorted: false), [f([2, 1, 1, 3], [4])], outputs: 4)[0].floats() == [2, 1, 3])
    let rows = try run(Unique(axis: 0), [f([1, 0, 1, 0, 0, 9], [3, 2])], outputs: 4)
    #expect(rows[0].floats() == [0, 9, 1, 0] && rows[2].ints() == [1, 1, 0])
  }

  @Test func generates() throws {
    #expect(try run(NumberRange(), [i([5], []), i([0], []), i([-2], [])])[0].ints() == [5, 3, 1])
    #expect(try run(NumberRange(), [f([0], []), f([1], []), f([0.25], [])])[0].count == 4)
    #expect(refuses(NumberRange(), [try i([0], []), try i([5], []), try i([0], [])]))
    #expect(refuses(NumberRange(), [try i([.min], []), try i([.max], []), try i([1], [])]))
    let ones = ConstantOfShape(value: try Tensor([1] as [Int64], .int64, shape: [1]))
    #expect(try run(ones, [i([2, 2], [2])])[0].ints() == [1, 1, 1, 1])
    #expect(try run(ones, [i([], [0])])[0].shape == [])
    #expect(refuses(ones, [try i([-1], [1])]))
    #expect(refuses(ones, [try i([1 << 40, 1 << 40], [2])]))
    let x = try f([0, 0, 0, 0, 0, 0], [2, 3])
    #expect(try run(Shape(), [x])[0].ints() == [2, 3])
    #expect(try run(Shape(start: -1), [x])[0].ints() == [3])
    #expect(try run(Shape(start: 2, end: 1), [x])[0].ints() == [])
    #expect(try run(Size(), [x])[0].ints() == [6])
    #expect(try run(EyeLike(diagonal: 1), [x])[0].floats() == [0, 1, 0, 0, 0, 1])
    #expect(try run(EyeLike(diagonal: .max), [x])[0].floats() == [0, 0, 0, 0, 0, 0])
  }

  @Test func scans() throws {
    let x = try f([1, 2, 3], [3])
    let axis = try i([0], [])
    #expect(try run(CumSum(), [x, axis])[0].floats() == [1, 3, 6])
    #expect(try run(CumSum(exclusive: true, reverse: true), [x, axis])[0].floats() == [5, 3, 0])
    #expect(refuses(CumSum(), [x, try i([1], [])]))
    let reversed = try run(ReverseSequence(), [f([0, 1, 2, 3, 4, 5], [3, 2]), i([3, 1], [2])])[0]
    #expect(reversed.floats() == [4, 1, 2, 3, 0, 5])
    #expect(refuses(ReverseSequence(), [try f([0, 1], [2, 1]), try i([3], [1])]))
  }

  @Test func reduces() throws {
    let x = try f([1, 2, 3, 4], [2, 2])
    func reduce(_ function: Reduce.Function) throws -> [Float] {
      try run(Reduce(function: function, axes: [-1], keepDims: false), [x])[0].floats()
    }
    #expect(try reduce(.sum) == [3, 7])
    #expect(try reduce(.mean) == [1.5, 3.5])
    #expect(try reduce(.max) == [2, 4])
    #expect(try reduce(.min) == [1, 3])
    #expect(try reduce(.prod) == [2, 12])
    #expect(try reduce(.l1) == [3, 7])
    #expect(try reduce(.l2)[1] == 5)
    #expect(try reduce(.sumSquare) == [5, 25])
    #expect(abs(try reduce(.logSumExp)[0] - 2.3132617) < 1e-5)
    #expect(try run(Reduce(function: .sum), [x])[0].shape == [1, 1])
    #expect(
      try run(Reduce(function: .sum, noopWithEmptyAxes: true), [x])[0].floats() == [1, 2, 3, 4])
    #expect(try run(Reduce(function: .sum), [x, i([0], [1])])[0].floats() == [4, 6])
    #expect(try run(Reduce(function: .prod), [f([], [0])])[0].floats() == [1])
    #expect(try run(Reduce(function: .max), [i([-3, -2], [2])])[0].ints() == [-2])
    #expect(try run(Reduce(function: .min), [i([1, 0], [2], .bool)])[0].ints() == [0])
    let bytes = try i([250, 255, 1, 2], [2, 2], .uint8)
    let mean = Reduce(function: .mean, axes: [0], sumType: .float32)
    #expect(try run(mean, [bytes])[0].floats() == [125.5, 128.5])
    #expect(try run(Reduce(function: .max, axes: [0], sumType: .float32), [bytes])[0].floats() == [250, 255])
    #expect(refuses(Reduce(function: .sum, sumType: .int32), [bytes]))
    #expect(refuses(Reduce(function: .sum, sumType: .bfloat16), [x]))
    #expect(refuses(Reduce(function: .sum, axes: [2]), [x]))
    #expect(refuses(Reduce(function: .sum, axes: [0, -2]), [x]))
  }

  @Test func interpretsGraphs() throws {
    var graph = Graph(name: "g")
    let x = graph.addInput("x", .tensor(TensorType(.float32, [.symbol("N"), 2])))
    let two = graph.addConstant("two", try .scalar(2, .float32))
    let doubled = try graph.add(Mul(), [x, two])[0]
    let shape = try graph.add(Shape(), [doubled])[0]
    graph.addOutput(try graph.add(Transpose(), [doubled])[0])
    graph.addOutput(shape)
    graph.addOutput(two)
    let results = try ReferenceInterpreter.run(graph, inputs: [f([1, 2, 3, 4], [2, 2])])
    #expect(results[0].tensor?.floats() == [2, 6, 4, 8])
    #expect(results[1].tensor?.ints() == [2, 2])
    #expect(results[2].tensor?.floats() == [2])
    #expect(try ReferenceInterpreter.runAll(graph, inputs: [f([1, 2], [1, 2])]).count >= 4)
    #expect(throws: ApusError.self) { try ReferenceInterpreter.run(graph, inputs: []) }
    do {
      _ = try ReferenceInterpreter.run(graph, inputs: [i([1], [1])])
      Issue.record("operands of two types were accepted")
    } catch {
      #expect("\(error)".contains("Mul"))
    }
  }

  @Test func everyOperatorReadsItsAttributesBack() throws {
    let samples: [any Operator] = [
      Mod(fmod: true), BitShift(direction: .right), LeakyRelu(alpha: 0.2), Selu(), Gelu(),
      IsInf(detectNegative: false), Cast(to: .float16, saturate: false), Shrink(),
      Transpose(permutation: [1, 0]), Reshape(allowZero: true), Split(axis: 1, numOutputs: 3),
      Pad(mode: .wrap), DepthToSpace(blockSize: 2, mode: .crd), Compress(axis: 1),
      PlanesToPixels(channels: 4, to: .bfloat16),
      MatMul(sumType: .int32, leftZero: 3, rightZero: 130, transposesRight: true),
      Conv(
        strides: [2, 1], pads: [1, 0, 1, 0], group: 2, channelsLast: true, sumType: .int32,
        padValue: 7),
      ScatterND(reduction: .min), Unique(axis: 0, sorted: false), Shape(start: 1, end: 2),
      EyeLike(dataType: .int8, diagonal: 1), TopK(), ArgMin(), CumSum(), ReverseSequence(),
      Reduce(function: .l2, axes: [0], keepDims: false, noopWithEmptyAxes: true),
      Pointwise(expression: .input(0) * .const(2), resultType: .float32),
    ]
    for op in samples {
      let again = try OperatorRegistry.standard.make(op.name, op.attributes)
      #expect("\(again.attributes.entries)" == "\(op.attributes.entries)", "\(op.name)")
    }
    #expect(throws: ApusError.self) {
      try OperatorRegistry.standard.make("Pad", ["mode": .string("sideways")])
    }
    #expect(throws: ApusError.self) { try OperatorRegistry.standard.make("Add", ["x": .int(1)]) }
  }
}
