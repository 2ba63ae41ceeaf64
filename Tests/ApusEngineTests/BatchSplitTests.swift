// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusEngine
import ApusGraph
import ApusOps
import ApusTensor
import ApusTestSupport
import CMallocCounter
import Testing

/// Batches whose members run one by one.
@Suite struct BatchSplitTests {
  private func engine(_ graph: Graph, threads: Int) throws -> Engine {
    var configuration = BuilderConfiguration()
    configuration.threadCount = threads
    let built = try Builder(configuration).build(graph)
    return Engine(
      graph: built.graph, library: built.library, report: built.report, isReference: false,
      splitsBatch: true)
  }

  @Test(arguments: [1, 2, 3]) func membersGiveTheResultsOfTheBatch(threads: Int) throws {
    let graph = try SmallNetworks.residual()
    let context = try engine(graph, threads: threads).makeContext()
    var generator = SeededGenerator(seed: 5)
    for batch in [1, 2, 7, 3] {
      let x = try generator.tensor(.float32, shape: [batch, 3, 13, 11])
      let expected = try ReferenceInterpreter.run(graph, inputs: [.tensor(x)])
      let got = try #require(try context.run(["x": x])["y"])
      let difference = TensorDifference(got, try #require(expected[0].tensor))
      #expect(got.shape == expected[0].tensor?.shape && difference.relativeL2 <= 1e-5, "\(difference)")
      // The same through bindings, which are patched for every member.
      try context.bindInput("x", x)
      try context.execute()
      try context.execute()
      #expect(try #require(context.results[0].tensor).bytes.elementsEqual(got.bytes))
    }
  }

  @Test func theChoiceIsKeptInTheFile() throws {
    let engine = try engine(SmallNetworks.residual(), threads: 1)
    let bytes = try engine.serialized()
    let loaded = try bytes.withUnsafeBytes { bytes in
      try Engine.load(bytes, owner: engine, threadCount: 1)
    }
    #expect(loaded.splitsBatch)
    #expect(loaded.program.splitsBatch)
  }

  @Test func builtForABatchItIsMeasured() throws {
    var configuration = BuilderConfiguration()
    configuration.batch = 4
    configuration.level = 1
    let engine = try Builder(configuration).build(try SmallNetworks.residual())
    #expect(engine.report.notes.contains { $0.contains("member by member") })
  }

  /// Numbers of threads that no other test has, so that their pool is free from the first run on.
  @Test(arguments: [1, 5]) func runsAllocateNothing(threads: Int) throws {
    let context = try engine(SmallNetworks.residual(), threads: threads).makeContext()
    var generator = SeededGenerator(seed: 6)
    try context.bindInput("x", try generator.tensor(.float32, shape: [4, 3, 13, 11]))
    try context.execute()
    try context.execute()
    let before = apus_malloc_count()
    try context.execute()
    #expect(apus_malloc_count() == before)
  }

  /// What vision transformers do with the token of the class: repeat it as often as the batch has members.
  @Test func sizesMayShapeWhatIsRepeated() throws {
    let graph = try network { b, x in
      let zero = b.constant("zero", try Tensor([0], .int64, shape: [1]))
      let one = b.constant("one", try Tensor([1], .int64, shape: [1]))
      let size = try b.apply(Slice(), [try b.apply(Shape(), [x]), zero, one, zero])
      let rest = b.constant("rest", try Tensor([2, 4], .int64, shape: [2]))
      let shape = try b.apply(Concat(axis: 0), [size, rest])
      let token = b.constant("token", try SmallNetworks.weights([1, 2, 4], seed: 1))
      let y = try b.apply(Concat(axis: 1), [try b.apply(Expand(), [token, shape]), x])
      let flat = b.constant("flat", try Tensor([-1], .int64, shape: [1]))
      return try b.apply(Reshape(), [y, try b.apply(Concat(axis: 0), [size, flat])])
    }
    #expect(BatchSplit.isPossible(graph))
    let context = try engine(graph, threads: 2).makeContext()
    var generator = SeededGenerator(seed: 5)
    for batch in [1, 5] {
      let x = try generator.tensor(.float32, shape: [batch, 4, 4])
      let expected = try ReferenceInterpreter.run(graph, inputs: [.tensor(x)])
      let got = try #require(try context.run(["x": x])["y"])
      #expect(got.shape == [batch, 24] && got.doubles() == expected[0].tensor?.doubles())
    }
  }

  @Test func sizesThatAreNumbersOfResultsAreNotSplit() throws {
    let graph = try network { b, x in
      let size = try b.apply(Cast(to: .float32), [try b.apply(Size(), [x])])
      return try b.apply(Div(), [x, size])
    }
    #expect(!BatchSplit.isPossible(graph))
  }

  private func network(_ build: (inout GraphBuilder, ValueID) throws -> ValueID) throws -> Graph {
    var builder = GraphBuilder("test")
    let x = builder.input("x", .float32, [.symbol("N"), 4, 4])
    let y = try build(&builder, x)
    return try builder.finish(outputs: [("y", y)])
  }

  @Test func whatMixesMembersIsNotSplit() throws {
    #expect(BatchSplit.isPossible(try network { try $0.apply(Softmax(axis: -1), [$1]) }))
    #expect(!BatchSplit.isPossible(try network { try $0.apply(Softmax(axis: 0), [$1]) }))
    #expect(!BatchSplit.isPossible(try network { try $0.apply(Softmax(axis: -3), [$1]) }))
    #expect(BatchSplit.isPossible(try network { try $0.apply(Transpose(permutation: [0, 2, 1]), [$1]) }))
    #expect(
      !BatchSplit.isPossible(
        try network {
          let mean = try $0.apply(Reduce(function: .mean, axes: [0]), [$1])
          return try $0.apply(Sub(), [$1, mean])
        }))
    #expect(
      BatchSplit.isPossible(
        try network {
          let mean = try $0.apply(Reduce(function: .mean, axes: [1]), [$1])
          return try $0.apply(Sub(), [$1, mean])
        }))
    #expect(!BatchSplit.isPossible(try network { try $0.apply(Concat(axis: 0), [$1, $1]) }))
    for axis in [0, -3, 1] {
      let graph = try network {
        let first = $0.constant("first", try Tensor([0, 2], .int64, shape: [2]))
        return try $0.apply(Gather(axis: axis), [$1, first])
      }
      #expect(BatchSplit.isPossible(graph) == (axis == 1))
    }
  }
}
