// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusBase
import ApusEngine
import ApusGraph
import ApusKernel
import ApusOps
import ApusOptimize
import ApusTensor
import ApusTestSupport
import CMallocCounter
import Foundation
import Testing

/// Branches of a network that run side by side.
@Suite struct ForkTests {
  private static let shape = [1, 8, 6, 5]

  private func convolution(_ b: inout GraphBuilder, _ x: ValueID, inputs: Int, seed: UInt64) throws -> ValueID {
    let outputs = Self.shape[1]
    let w = b.constant(
      "w\(b.graph.nodeCount)", try SmallNetworks.weights([outputs, inputs, 3, 3], seed: seed, scale: 0.2))
    return try b.apply(Relu(), [try b.apply(Conv(strides: [1, 1], pads: [1, 1, 1, 1]), [x, w])])
  }

  /// Towers of some convolutions each on one input, whose sum is the result, or the next towers' input.
  private func towers(_ count: Int, depth: Int, stages: Int = 1) throws -> Graph {
    var b = GraphBuilder("towers")
    var x = b.input("x", .float32, Self.shape.map { Dim($0) })
    for _ in 0..<stages {
      var ends: [ValueID] = []
      for tower in 0..<count {
        var y = x
        for layer in 0..<depth {
          y = try convolution(&b, y, inputs: Self.shape[1], seed: UInt64(10 * tower + layer))
        }
        ends.append(y)
      }
      x = try ends.dropFirst().reduce(ends[0]) { try b.apply(Add(), [$0, $1]) }
    }
    return try b.finish(outputs: [("y", x)])
  }

  /// Any tensor may be read by any operator behind it.
  private func random(_ seed: UInt64) throws -> Graph {
    var generator = SeededGenerator(seed: seed)
    var b = GraphBuilder("random")
    var values = (0..<2).map { b.input("x\($0)", .float32, Self.shape.map { Dim($0) }) }
    func any() -> ValueID { values[Int.random(in: max(0, values.count - 5)..<values.count, using: &generator)] }
    for layer in 0..<14 {
      switch Int.random(in: 0..<5, using: &generator) {
      case 0: values.append(try b.apply(Add(), [any(), any()]))
      case 1:
        let both = try b.apply(Concat(axis: 1), [any(), any()])
        values.append(try convolution(&b, both, inputs: 2 * Self.shape[1], seed: UInt64(layer)))
      case 2:
        values.append(
          try b.apply(MaxPool(PoolAttributes(kernel: [3, 3], strides: [1, 1], pads: [1, 1, 1, 1])), [any()]))
      default: values.append(try convolution(&b, any(), inputs: Self.shape[1], seed: UInt64(layer)))
      }
    }
    let results = values.suffix(3)
    return try b.finish(outputs: results.enumerated().map { ("y\($0)", $1) })
  }

  private func engine(_ graph: Graph, threads: Int, level: Int = 0, cache: String? = nil) throws -> Engine {
    var configuration = BuilderConfiguration()
    configuration.level = level
    configuration.threadCount = threads
    configuration.timingCachePath = cache
    return try Builder(configuration).build(graph)
  }

  /// Lets all forks of an engine run side by side; gives them.
  @discardableResult private func fork(_ engine: Engine) throws -> [Fork] {
    let graph = try Specializer().specialize(engine.graph, types: engine.inputs.map(\.type))
    let plan = try StaticPlanner(library: engine.library, forks: .all).plan(graph)
    for fork in plan.forks {
      engine.library.selections.record(
        TimingCache.Entry(winner: Fork.sideBySide, version: Fork.version, measurements: []),
        problem: fork.key { plan.steps[$0].problem }, device: engine.library.selectionDevice)
    }
    return plan.forks
  }

  private func inputs(_ engine: Engine) throws -> [String: Tensor] {
    var generator = SeededGenerator(seed: 8)
    var result: [String: Tensor] = [:]
    for input in engine.inputs { result[input.name] = try generator.tensor(.float32, shape: Self.shape) }
    return result
  }

  @Test func branchesAreFoundBetweenTheirBeginAndTheirJoint() throws {
    let engine = try engine(towers(3, depth: 2), threads: 2)
    let forks = try fork(engine)
    let one = try #require(forks.first)
    #expect(forks.count == 1 && one.branches.count == 3)
    // The last tower's last convolution adds the others, and so comes behind them.
    #expect(one.branches.joined().sorted() == Array(one.steps))
    // On one thread there is nothing to gain.
    #expect(try fork(self.engine(towers(3, depth: 2), threads: 1)).isEmpty)
    // Nor in a chain.
    #expect(try fork(self.engine(towers(1, depth: 6), threads: 2)).isEmpty)
  }

  @Test(arguments: [2, 3]) func sideBySideNothingChanges(threads: Int) throws {
    var found = 0
    for seed in 0..<30 {
      let graph = try random(UInt64(seed))
      let engine = try engine(graph, threads: threads)
      let x = try inputs(engine)
      let expected = try ReferenceInterpreter.run(graph, inputs: engine.inputs.map { x[$0.name].map { .tensor($0) } })
      let inTurn = try engine.makeContext().run(x)
      let other = try self.engine(graph, threads: threads)
      found += try fork(other).count
      let context = try other.makeContext()
      for _ in 0..<20 {
        let got = try context.run(x)
        for (index, name) in graph.outputNames.enumerated() {
          let tensor = try #require(got[name])
          #expect(tensor.bytes.elementsEqual(try #require(inTurn[name]).bytes), "seed \(seed), \(name)")
          let difference = TensorDifference(tensor, try #require(expected[index].tensor))
          #expect(difference.relativeL2 <= 1e-5, "seed \(seed), \(name): \(difference)")
        }
      }
    }
    #expect(found > 15, "\(found) forks")
  }

  /// A number of threads that no other test has, so that the pool is free from the first run on.
  @Test func runsAllocateNothing() throws {
    let engine = try engine(towers(4, depth: 3), threads: 6)
    #expect(try !fork(engine).isEmpty)
    let context = try engine.makeContext()
    for (name, tensor) in try inputs(engine) { try context.bindInput(name, tensor) }
    try context.execute()
    try context.execute()
    let before = apus_malloc_count()
    try context.execute()
    #expect(apus_malloc_count() == before)
  }

  @Test func theChoiceIsMeasuredOnceAndKept() throws {
    let cache = FileManager.default.temporaryDirectory.path + "/apus-forks-\(UInt64.random(in: 0 ... .max)).cache"
    defer { try? FileManager.default.removeItem(atPath: cache) }
    // Both stages' forks are one choice.
    let graph = try towers(4, depth: 3, stages: 2)
    let first = try engine(graph, threads: 2, level: 1, cache: cache)
    #expect(first.report.notes.contains { $0.contains("forks run their branches side by side") })
    #expect(try String(contentsOfFile: cache, encoding: .utf8).contains("\tfork[4, "))
    let (second, third) = (
      try engine(graph, threads: 2, level: 1, cache: cache), try engine(graph, threads: 2, level: 1, cache: cache)
    )
    #expect(try second.serialized() == third.serialized())
    #expect(first.report.notes == second.report.notes)
    try fork(second)
    let path = cache + ".plan"
    defer { try? FileManager.default.removeItem(atPath: path) }
    try second.save(path: path)
    let loaded = try Engine.load(path: path, threadCount: 2)
    let stage = try loaded.program.stage(for: inputs(loaded).values.map { RuntimeValue.tensor($0) })
    #expect(stage.plan?.forks.count == 2)
    let alone = try Engine.load(path: path, threadCount: 1)
    let results = try [loaded, alone].map { try $0.makeContext().run(inputs($0))["y"]?.doubles() }
    #expect(results[0] != nil && results[0] == results[1])
  }
}
