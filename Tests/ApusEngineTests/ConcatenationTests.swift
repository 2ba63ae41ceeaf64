// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusBase
import ApusCPU
import ApusEngine
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor
import ApusTestSupport
import Testing

/// Concatenations whose operands are made in place.
@Suite struct ConcatenationTests {
  private static let image = [9, 10]

  /// A network on images of 17 channels.
  private func network(_ build: (inout GraphBuilder, ValueID) throws -> [ValueID]) throws -> Graph {
    var b = GraphBuilder("concatenations")
    let x = b.input("x", .float32, [.symbol("N"), 17, Dim(Self.image[0]), Dim(Self.image[1])])
    let results = try build(&b, x)
    return try b.finish(outputs: results.enumerated().map { ("y\($0)", $1) })
  }

  private func convolution(
    _ b: inout GraphBuilder, _ x: ValueID, _ inputs: Int, _ outputs: Int, kernel: Int = 1,
    groups: Int = 1
  ) throws -> ValueID {
    let seed = UInt64(inputs * 1000 + outputs * 10 + kernel)
    let w = b.constant(
      "w\(b.graph.nodeCount)",
      try SmallNetworks.weights([outputs, inputs / groups, kernel, kernel], seed: seed, scale: 0.3))
    let pad = kernel / 2
    let y = try b.apply(
      Conv(strides: [1, 1], pads: [pad, pad, pad, pad], group: groups), [x, w])
    return try b.apply(Relu(), [y])
  }

  private func scaled(_ b: inout GraphBuilder, _ x: ValueID, _ channels: Int) throws -> ValueID {
    let factor = b.constant(
      "f\(b.graph.nodeCount)", try SmallNetworks.weights([channels, 1, 1], seed: UInt64(channels)))
    return try b.apply(Relu(), [try b.apply(Add(), [try b.apply(Mul(), [x, factor]), factor])])
  }

  private func engine(_ graph: Graph, level: Int = 0, threads: Int = 1, splits: Bool = false) throws
    -> Engine
  {
    var configuration = BuilderConfiguration()
    configuration.level = level
    configuration.threadCount = threads
    let built = try Builder(configuration).build(graph)
    return Engine(
      graph: built.graph, library: built.library, report: built.report, isReference: false,
      splitsBatch: splits)
  }

  private func copies(_ engine: Engine) throws -> Int {
    try engine.kernels().filter { $0.problem.hasPrefix("Concat") }.count
  }

  /// Compares an engine in all forms with the reference, and counts the concatenations that are copies.
  private func check(_ graph: Graph, copies expected: Int, _ comment: Comment? = nil) throws {
    var generator = SeededGenerator(seed: 3)
    let engines = [
      try engine(graph), try engine(graph, level: 1), try engine(graph, threads: 2),
      try engine(graph, splits: true), try engine(graph, threads: 2, splits: true),
    ]
    if ISA.current != .portable {
      for engine in engines { #expect(try copies(engine) == expected, comment) }
    }
    let bytes = try engines[1].serialized()
    let memory = try AlignedMemory(byteCount: bytes.count)
    bytes.withUnsafeBytes { memory.base.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
    let loaded = try Engine.load(
      UnsafeRawBufferPointer(start: memory.base, count: bytes.count), owner: memory, threadCount: 1)
    let contexts = try engines.map { try $0.makeContext() }
    let again = try loaded.makeContext()
    for batch in [1, 3, 2] {
      let x = try generator.tensor(.float32, shape: [batch, 17] + Self.image)
      let want = try ReferenceInterpreter.run(graph, inputs: [.tensor(x)])
      var results: [[[UInt8]]] = []
      for context in contexts {
        let got = try context.run(["x": x])
        results.append(
          try want.indices.map { index in
            let result = try #require(got["y\(index)"])
            let difference = TensorDifference(result, try #require(want[index].tensor))
            #expect(difference.relativeL2 <= 1e-5, "\(difference) \(batch)")
            return Array(result.bytes)
          })
      }
      #expect(results[0] == results[2], "one thread or two, \(batch)")
      #expect(results[3] == results[4], "one thread or two, member by member, \(batch)")
      let reloaded = try again.run(["x": x])
      for index in want.indices {
        #expect(try #require(reloaded["y\(index)"]).bytes.elementsEqual(results[1][index]))
      }
    }
  }

  @Test func producersWriteIntoTheConcatenation() throws {
    let graph = try network { b, x in
      let two = try b.apply(
        Concat(axis: 1),
        [try convolution(&b, x, 17, 3), try convolution(&b, x, 17, 33, kernel: 3)])
      let narrow = try convolution(&b, two, 36, 17)
      let pool = PoolAttributes(kernel: [3, 3], strides: [1, 1], pads: [1, 1, 1, 1])
      let four = try b.apply(
        Concat(axis: 1),
        [
          try convolution(&b, narrow, 17, 16), try b.apply(MaxPool(pool), [narrow]),
          try convolution(&b, narrow, 17, 17, kernel: 3, groups: 17),
          try convolution(&b, narrow, 17, 64, kernel: 3),
        ])
      return [try convolution(&b, four, 114, 8)]
    }
    try check(graph, copies: 0)
  }

  /// As in DenseNet: every layer reads all that was made so far.
  @Test func nestedConcatenationsShareTheOutermost() throws {
    let graph = try network { b, x in
      var (all, channels) = (try convolution(&b, x, 17, 24), 24)
      for _ in 0..<3 {
        let inner = try convolution(&b, try scaled(&b, all, channels), channels, 20)
        let new = try convolution(&b, inner, 20, 12, kernel: 3)
        all = try b.apply(Concat(axis: 1), [all, new])
        channels += 12
      }
      return [try convolution(&b, try scaled(&b, all, channels), channels, 5)]
    }
    try check(graph, copies: 0)
  }

  /// As DenseNet is written where lists of tensors are handed on.
  @Test func longerConcatenationsHoldShorterOnes() throws {
    let graph = try network { b, x in
      var parts = [try convolution(&b, x, 17, 24), try convolution(&b, x, 17, 7, kernel: 3)]
      var channels = 31
      for _ in 0..<3 {
        let all = try b.apply(Concat(axis: 1), parts)
        let inner = try convolution(&b, try scaled(&b, all, channels), channels, 20)
        parts.append(try convolution(&b, inner, 20, 12, kernel: 3))
        channels += 12
      }
      let last = try b.apply(Concat(axis: 1), Array(parts[1...3]))
      let all = try b.apply(Concat(axis: 1), parts)
      return [
        try convolution(&b, try scaled(&b, all, channels), channels, 5),
        try convolution(&b, last, 31, 3, kernel: 3),
      ]
    }
    try check(graph, copies: 0)
  }

  @Test func resultsMayHostAndBeRead() throws {
    let graph = try network { b, x in
      let first = try convolution(&b, x, 17, 8)
      let inner = try b.apply(Concat(axis: 1), [first, try convolution(&b, x, 17, 9)])
      let outer = try b.apply(Concat(axis: 1), [try convolution(&b, inner, 17, 16), first])
      return [inner, outer]
    }
    let engine = try engine(graph)
    var generator = SeededGenerator(seed: 3)
    for batch in [1, 2] {
      let x = try generator.tensor(.float32, shape: [batch, 17] + Self.image)
      let want = try ReferenceInterpreter.run(graph, inputs: [.tensor(x)])
      let got = try engine.makeContext().run(["x": x])
      for index in want.indices {
        let result = try #require(got["y\(index)"])
        #expect(TensorDifference(result, try #require(want[index].tensor)).relativeL2 <= 1e-5)
      }
    }
  }

  /// Channels-last results are bound as they are, so that the caller's memory hosts the operands.
  @Test func theCallersMemoryHostsOperands() throws {
    var b = GraphBuilder("result")
    let x = b.input("x", .float32, [.symbol("N"), 6, 7, 16])
    func conv(_ outputs: Int, _ kernel: Int) throws -> ValueID {
      let w = b.constant(
        "w\(outputs)", try SmallNetworks.weights([kernel, kernel, 16, outputs], seed: UInt64(outputs)))
      let pad = kernel / 2
      return try b.apply(
        Conv(strides: [1, 1], pads: [pad, pad, pad, pad], channelsLast: true), [x, w])
    }
    let left = try conv(5, 1)
    let y = try b.apply(Concat(axis: -1), [left, try conv(32, 3)])
    let z = try b.apply(Sigmoid(), [left])
    let graph = try b.finish(outputs: [("y", y), ("z", z)])
    var generator = SeededGenerator(seed: 9)
    for splits in [false, true] {
      let engine = try engine(graph, threads: 2, splits: splits)
      if ISA.current != .portable { #expect(try copies(engine) == 0) }
      let context = try engine.makeContext()
      for batch in [2, 1, 2] {
        let x = try generator.tensor(.float32, shape: [batch, 6, 7, 16])
        let want = try ReferenceInterpreter.run(graph, inputs: [.tensor(x)])
        let (first, second) = (try context.run(["x": x]), try context.run(["x": x]))
        for (index, name) in ["y", "z"].enumerated() {
          for got in [first, second] {
            let difference = TensorDifference(
              try #require(got[name]), try #require(want[index].tensor))
            #expect(difference.relativeL2 <= 1e-5, "\(difference)")
          }
        }
      }
    }
  }

  /// What others read between gaps must be able to, or it is copied.
  @Test func otherReadersDecide() throws {
    let read = try network { b, x in
      let left = try convolution(&b, x, 17, 16)
      let both = try b.apply(Concat(axis: 1), [left, try convolution(&b, x, 17, 8, kernel: 3)])
      return [
        try convolution(&b, try b.apply(Sigmoid(), [left]), 16, 3), try convolution(&b, both, 24, 4),
      ]
    }
    try check(read, copies: 0, "read elementwise")
    let convolved = try network { b, x in
      let left = try convolution(&b, x, 17, 16)
      let pool = PoolAttributes(kernel: [3, 3], strides: [1, 1], pads: [1, 1, 1, 1])
      let right = try convolution(&b, left, 16, 8, kernel: 3)
      let above = try convolution(&b, right, 8, 12, kernel: 3, groups: 4)
      let pooled = try b.apply(MaxPool(pool), [right])
      let single = try convolution(&b, pooled, 8, 5)
      let parts = [left, right, above, single, pooled]
      return [try convolution(&b, try b.apply(Concat(axis: 1), parts), 49, 4)]
    }
    try check(convolved, copies: 0, "read by windows")
    let normalized = try network { b, x in
      let left = try convolution(&b, x, 17, 16)
      let right = try convolution(&b, try b.apply(Softmax(axis: 1), [left]), 16, 8)
      return [try convolution(&b, try b.apply(Concat(axis: 1), [left, right]), 24, 4)]
    }
    try check(normalized, copies: 1, "read by a tactic that takes no gaps")
    let twice = try network { b, x in
      let left = try convolution(&b, x, 17, 16)
      let all = try b.apply(Concat(axis: 1), [left, try convolution(&b, x, 17, 8), left])
      return [try convolution(&b, all, 40, 4)]
    }
    try check(twice, copies: 1, "twice an operand")
    let given = try network { b, x in
      let all = try b.apply(Concat(axis: 1), [x, try convolution(&b, x, 17, 8)])
      return [try convolution(&b, all, 25, 4)]
    }
    try check(given, copies: 1, "an input")
  }

  /// A value in two concatenations is made in the later one and copied into the other.
  @Test func oneOfTwoConcatenationsHosts() throws {
    let graph = try network { b, x in
      let left = try convolution(&b, x, 17, 16)
      let one = try b.apply(Concat(axis: 1), [left, try convolution(&b, x, 17, 8)])
      let right = try convolution(&b, one, 24, 12, kernel: 3)
      return [try convolution(&b, try b.apply(Concat(axis: 1), [left, right]), 28, 4)]
    }
    try check(graph, copies: 1)
  }

  /// Along a first axis operands are pieces of the result. One that is read again must not be overwritten
  /// by a result in place of the concatenation.
  @Test func piecesOfTheResultOutliveIt() throws {
    for backend in [FakeDeviceBackend() as any Backend, nil] {
      var b = GraphBuilder("pieces")
      let x = b.input("x", .float32, [1, 24])
      let w = b.constant("w", try SmallNetworks.weights([24, 24], seed: 1))
      let first = try b.apply(MatMul(), [x, w])
      let second = try b.apply(Tanh(), [try b.apply(MatMul(), [first, w])])
      let both = try b.apply(Concat(axis: 0), [first, second])
      let graph = try b.finish(outputs: [("y", try b.apply(Sub(), [both, first]))])
      let engine = try Builder(backend: backend).build(graph)
      #expect(try copies(engine) == 0)
      var generator = SeededGenerator(seed: 5)
      let tensor = try generator.tensor(.float32, shape: [1, 24])
      let want = try ReferenceInterpreter.run(graph, inputs: [.tensor(tensor)])
      let got = try #require(try engine.makeContext().run(["x": tensor])["y"])
      #expect(TensorDifference(got, try #require(want[0].tensor)).relativeL2 <= 1e-5)
    }
  }

  /// A result written over the concatenation it is made from.
  @Test func concatenationsAreOverwrittenWhenTheyDie() throws {
    let graph = try network { b, x in
      let both = try b.apply(
        Concat(axis: 1), [try convolution(&b, x, 17, 8), try convolution(&b, x, 17, 8, kernel: 3)])
      let y = try b.apply(Sigmoid(), [both])
      return [try convolution(&b, y, 16, 4), try convolution(&b, y, 16, 5, kernel: 3)]
    }
    try check(graph, copies: 0)
  }

  /// Elements of one narrow type from convolutions and pooling to the concatenation's reader.
  @Test(arguments: [DataType.uint8, .bfloat16]) func narrowElements(type: DataType) throws {
    var b = GraphBuilder("narrow")
    let x = b.input("x", type, [.symbol("N"), 7, 9, 16])
    func conv(_ x: ValueID, _ inputs: Int, _ outputs: Int, _ kernel: Int) throws -> ValueID {
      var generator = SeededGenerator(seed: UInt64(outputs))
      let weights = try generator.tensor(
        type == .uint8 ? .int8 : type, shape: [kernel, kernel, inputs, outputs])
      let pad = kernel / 2
      let anchor = Conv(
        strides: [1, 1], pads: [pad, pad, pad, pad], channelsLast: true,
        sumType: type == .uint8 ? .int32 : .float32)
      let steps = ScalarExpr.cast(.input(0), .float32) * .const(0.6e-3)
      let expression =
        type == .uint8
        ? ScalarQuantization(steps: steps, zeroPoint: 90, type: .uint8).expression
        : .cast(.max(.input(0), .const(0)), type)
      return try b.apply(
        Fused(anchor: anchor, anchorInputCount: 2, epilogue: Epilogue(expression, extraCount: 0)),
        [x, b.constant("w\(outputs)", weights)])
    }
    let pool = PoolAttributes(
      kernel: [3, 3], strides: [1, 1], pads: [1, 1, 1, 1], channelsLast: true)
    let all = try b.apply(
      Concat(axis: 3),
      [
        try conv(x, 16, 3, 1), try conv(x, 16, 40, 3), try b.apply(MaxPool(pool), [x]),
        try conv(x, 16, 17, 1),
      ])
    let graph = try b.finish(outputs: [("y", try conv(all, 76, 6, 1))])
    let engine = try engine(graph, threads: 2)
    let isFast =
      CPUDescription.fastTypes.contains(type == .uint8 ? .int8 : .bfloat16)
    if isFast { #expect(try copies(engine) == 0) }
    var generator = SeededGenerator(seed: 2)
    let context = try engine.makeContext()
    for batch in [1, 2] {
      let tensor = try generator.tensor(type, shape: [batch, 7, 9, 16])
      let want = try ReferenceInterpreter.run(graph, inputs: [.tensor(tensor)])[0].tensor
      let got = try #require(try context.run(["x": tensor])["y"])
      if type == .uint8 {
        let steps = zip(got.doubles(), try #require(want).doubles()).map { abs($0 - $1) }
        #expect(steps.max() ?? 9 <= 1)
        #expect(steps.filter { $0 > 0 }.count <= steps.count / 10)
      } else {
        #expect(TensorDifference(got, try #require(want)).relativeL2 <= 1e-2)
      }
    }
  }

  @Test func runsOfTheFakeDeviceAgree() throws {
    let backend = FakeDeviceBackend()
    let graph = try network { b, x in
      let both = try b.apply(
        Concat(axis: 1), [try convolution(&b, x, 17, 3), try convolution(&b, x, 17, 5, kernel: 3)])
      return [try convolution(&b, both, 8, 2)]
    }
    var generator = SeededGenerator(seed: 1)
    let x = try generator.tensor(.float32, shape: [2, 17] + Self.image)
    let want = try ReferenceInterpreter.run(graph, inputs: [.tensor(x)])
    let got = try #require(
      try Builder(backend: backend).build(graph).makeContext().run(["x": x])["y0"])
    #expect(TensorDifference(got, try #require(want[0].tensor)).relativeL2 <= 1e-5)
  }

  /// A kernel that writes past a row is found before it damages what another one made.
  @Test func kernelsThatWriteBetweenRowsAreRefused() throws {
    let graph = try network { b, x in
      let both = try b.apply(
        Concat(axis: 1), [try convolution(&b, x, 17, 3), try convolution(&b, x, 17, 5, kernel: 3)])
      return [try convolution(&b, both, 8, 2)]
    }
    let engine = try Builder(
      backend: SpillingBackend(inner: try CPUBackend.shared(threadCount: 1))
    ).build(graph)
    let refusals = engine.report.tuned.flatMap(\.refusals).filter { $0.id.contains("spilling") }
    #expect(refusals.contains { $0.reason.contains("written between its rows") })
    #expect(try copies(engine) == 0)
    var generator = SeededGenerator(seed: 1)
    let x = try generator.tensor(.float32, shape: [2, 17] + Self.image)
    let want = try ReferenceInterpreter.run(graph, inputs: [.tensor(x)])
    let got = try #require(try engine.makeContext().run(["x": x])["y0"])
    #expect(TensorDifference(got, try #require(want[0].tensor)).relativeL2 <= 1e-5)
  }
}

/// The CPU with one more tactic, which is right but for an element behind each row.
private struct SpillingBackend: Backend {
  let inner: CPUBackend
  var traits: DeviceTraits { inner.traits }
  var tactics: [any Tactic] {
    inner.tactics.last.map { [SpillingTactic(inner: $0)] + inner.tactics } ?? []
  }

  func allocate(byteCount: Int) throws(ApusError) -> DeviceMemory {
    try inner.allocate(byteCount: byteCount)
  }
  func importConstant(_ tensor: Tensor) throws(ApusError) -> DeviceMemory {
    try inner.importConstant(tensor)
  }
  func makeStream() throws(ApusError) -> any ExecutionStream { try inner.makeStream() }
}

private struct SpillingTactic: Tactic {
  let inner: any Tactic
  let name = "test.spilling"
  let source = "native"
  let pitches: PitchSupport = .results

  func support(_ problem: Problem) -> Support {
    (problem.op as? Fused)?.anchor is Conv ? .yes : .no(because: "no convolution")
  }
  func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double { 0 }
  func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
    -> any Kernel
  { SpillingKernel(inner: try inner.compile(problem, configuration), problem: problem) }
}

private struct SpillingKernel: Kernel {
  let inner: any Kernel
  let problem: Problem
  var workspaceByteCount: Int { inner.workspaceByteCount }

  func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
    throws(ApusError)
  {
    try inner.launch(arguments, on: stream)
    let result = problem.outputs[0]
    guard result.pitch != nil,
      let floats = UnsafeMutablePointer<Float>(
        bitPattern: UInt(arguments[problem.inputs.count].bits))
    else { return }
    for row in 0..<result.rowCount { floats[row * result.rowStride + result.rowWidth] = 0 }
  }
}
