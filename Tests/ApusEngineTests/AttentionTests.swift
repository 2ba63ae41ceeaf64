// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusBase
import ApusCPU
import ApusEngine
import ApusGraph
import ApusOps
import ApusTensor
import ApusTestSupport
import CMallocCounter
import Testing

/// Attention that networks write out: products of two computed matrices of bytes, or one kernel.
@Suite(
  .enabled(
    if: CPUFeatures.host.avx512VNNI && CPUFeatures.host.avx512BF16 && ISA.current == .avx512))
struct AttentionTests {
  private static let (heads, length, depth) = (3, 19, 8)

  /// Attention over `[N, length, heads * depth]`, its tensors quantised when `zeroPoints` are given.
  private func network(zeroPoints: [Int]? = nil, type: DataType = .uint8) throws -> Graph {
    var builder = GraphBuilder("attention")
    func quantised(_ value: ValueID, _ index: Int, scale: Double) throws -> ValueID {
      guard let zero = zeroPoints?[index] else { return value }
      let scale = builder.constant("scale\(index)", try Tensor([scale], .float32, shape: []))
      let zeroPoint = builder.constant("zero\(index)", try Tensor([Int64(zero)], type, shape: []))
      return try builder.apply(
        DequantizeLinear(),
        [try builder.apply(QuantizeLinear(), [value, scale, zeroPoint]), scale, zeroPoint])
    }
    func headed(_ name: String, _ permutation: [Int]) throws -> ValueID {
      let x = builder.input(
        name, .float32, [.symbol("N"), Dim(Self.length), Dim(Self.heads * Self.depth)])
      let shape = builder.constant(
        "\(name).shape", try Tensor(
        [0, Int64(Self.length), Int64(Self.heads), Int64(Self.depth)], .int64, shape: [4]))
      return try builder.apply(
        Transpose(permutation: permutation), [try builder.apply(Reshape(), [x, shape])])
    }
    let q = try quantised(headed("q", [0, 2, 1, 3]), 0, scale: 0.02)
    let k = try quantised(headed("k", [0, 2, 3, 1]), 1, scale: 0.015)
    let v = try quantised(headed("v", [0, 2, 1, 3]), 2, scale: 0.01)
    let root = builder.constant("root", try Tensor([Double(8).squareRoot()], .float32, shape: []))
    let scores = try builder.apply(Div(), [try builder.apply(MatMul(), [q, k]), root])
    let shares = try quantised(builder.apply(Softmax(axis: -1), [scores]), 3, scale: 1.0 / 255)
    let mixed = try builder.apply(MatMul(), [shares, v])
    return try builder.finish(outputs: [("y", mixed)])
  }

  private func compare(
    _ graph: Graph, _ precision: BuilderConfiguration.Precision, kernel: String, count: Int,
    tolerance: Double
  ) throws {
    var configuration = BuilderConfiguration()
    configuration.precision = precision
    let engine = try Builder(configuration).build(graph)
    let winners = engine.report.tuned.map(\.winner)
    #expect(winners.filter { $0.contains(kernel) }.count == count, "\(winners)")
    var generator = SeededGenerator(seed: 11)
    for batch in [1, 3] {
      var inputs: [String: Tensor] = [:]
      for name in ["q", "k", "v"] {
        inputs[name] = try generator.tensor(
          .float32, shape: [batch, Self.length, Self.heads * Self.depth])
      }
      let want = try ReferenceInterpreter.run(
        graph, inputs: ["q", "k", "v"].map { inputs[$0].map { .tensor($0) } })
      let got = try #require(try engine.makeContext().run(inputs)["y"])
      let difference = TensorDifference(got, try #require(want[0].tensor))
      #expect(difference.relativeL2 <= tolerance, "\(difference)")
    }
  }

  @Test(arguments: [[0, 0, 0, 0], [128, 128, 128, 0], [117, 140, 90, 3]])
  func ofUnsignedBytes(zeroPoints: [Int]) throws {
    // A rounding that falls to the other side changes one step of 255.
    try compare(network(zeroPoints: zeroPoints), .int8, kernel: "narrow", count: 2, tolerance: 2e-3)
  }

  @Test func ofSignedBytes() throws {
    try compare(network(zeroPoints: [0, -7, 12, -128], type: .int8), .int8, kernel: "narrow", count: 2, tolerance: 2e-3)
  }

  @Test func ofShortFloats() throws {
    try compare(network(), .bf16, kernel: "attention", count: 1, tolerance: 1e-2)
  }

  @Test func ofSinglePrecision() throws {
    try compare(network(), .fp32, kernel: "attention", count: 1, tolerance: 1e-5)
  }

  /// The operator as models have it, with a mask for each key.
  @Test(arguments: [BuilderConfiguration.Precision.fp32, .bf16])
  func asAnOperator(precision: BuilderConfiguration.Precision) throws {
    var builder = GraphBuilder("operator")
    let rows: [Dim] = [.symbol("N"), Dim(Self.length), Dim(Self.heads * Self.depth)]
    let sides = ["q", "k", "v"].map { builder.input($0, .float32, rows) }
    var generator = SeededGenerator(seed: 3)
    let mask = builder.constant("mask", try generator.tensor(.float32, shape: [1, 1, 1, Self.length]))
    let op = Attention(isCausal: true, queryHeads: Self.heads, keyHeads: Self.heads)
    let y = try builder.apply(op, sides + [mask])
    try compare(
      try builder.finish(outputs: [("y", y)]), precision, kernel: "attention", count: 1,
      tolerance: precision == .fp32 ? 1e-5 : 1e-2)
  }

  /// Numbers of threads that no other test has, so that their pool is free from the first run on.
  @Test(arguments: [1, 7]) func runsAllocateNothing(threads: Int) throws {
    for precision in [BuilderConfiguration.Precision.fp32, .bf16] {
      var configuration = BuilderConfiguration()
      configuration.precision = precision
      configuration.threadCount = threads
      let context = try Builder(configuration).build(network()).makeContext()
      var generator = SeededGenerator(seed: 6)
      for name in ["q", "k", "v"] {
        let shape = [2, Self.length, Self.heads * Self.depth]
        try context.bindInput(name, try generator.tensor(.float32, shape: shape))
      }
      try context.execute()
      try context.execute()
      let before = apus_malloc_count()
      try context.execute()
      #expect(apus_malloc_count() == before)
    }
  }

  @Test func membersOfABatchMayRunOneByOne() throws {
    let engine = try Builder().build(network())
    #expect(engine.graph.nodes.contains { engine.graph[$0].op is Attention })
    #expect(BatchSplit.isPossible(engine.graph))
  }
}
