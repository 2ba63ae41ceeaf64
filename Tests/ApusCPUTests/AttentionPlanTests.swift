// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusEngine
import ApusOps
import ApusTensor
import ApusTestSupport
import Testing

/// Attention in blocks against the operator, around the edges of tiles, blocks, vectors and words.
@Suite struct AttentionPlanTests {
  private static let pools = [ThreadPool(threadCount: 1), ThreadPool(threadCount: 3)]

  /// Sizes of one case, and how its operands lie.
  struct Case: Sendable, CustomStringConvertible {
    var batch = 1
    var heads = 2
    var keyHeads = 2
    var queries: Int
    var keys: Int
    var width: Int
    var valueWidth: Int
    var blocks = (queries: 32, keys: 512)
    var isSideBySide = true
    var mask: [Int]?
    var isCausal = false
    var keepsNaN = false

    var description: String {
      "\(batch)x\(heads)/\(keyHeads) \(queries)x\(keys)x\(width)x\(valueWidth) \(blocks) \(mask ?? []) \(isSideBySide) \(isCausal)"
    }

    func dims(_ heads: Int, _ places: Int, _ width: Int) -> [Int] {
      isSideBySide ? [batch, places, heads * width] : [batch, heads, places, width]
    }

    func strides(_ heads: Int, _ places: Int, _ width: Int) -> AttentionShape.Strides {
      isSideBySide
        ? .init(batch: places * heads * width, head: width, place: heads * width)
        : .init(batch: places * heads * width, head: places * width, place: width)
    }
  }

  private func random(_ type: DataType, _ shape: [Int], _ seed: UInt64, scale: Double = 1) throws
    -> Tensor
  {
    var generator = SeededGenerator(seed: seed)
    let count = shape.reduce(1, *)
    return try Tensor(
      (0..<count).map { _ in scale * Double.random(in: -1..<1, using: &generator) }, type, shape: shape)
  }

  /// Runs a case and compares with the reference; `hide` makes elements of the mask minus infinity.
  private func check(
    _ c: Case, isa: ISA, _ type: DataType = .float32, result: DataType = .float32,
    hide: (Int) -> Bool = { _ in false }, sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let q = try random(type, c.dims(c.heads, c.queries, c.width), 1, scale: 3)
    let k = try random(type, c.dims(c.keyHeads, c.keys, c.width), 2, scale: 3)
    let v = try random(type, c.dims(c.keyHeads, c.keys, c.valueWidth), 3)
    let mask = try c.mask.map { dims in
      let values = try random(.float32, dims, 4, scale: 2).doubles()
      return try Tensor(
        values.enumerated().map { hide($0.offset) ? -.infinity : $0.element }, .float32, shape: dims)
    }
    let op = Attention(
      isCausal: c.isCausal, queryHeads: c.heads, keyHeads: c.keyHeads, scale: 0.37, sumType: result,
      keepsNaN: c.keepsNaN)
    let want = try #require(
      try op.evaluate([.tensor(q), .tensor(k), .tensor(v), mask.map { .tensor($0) }])[0].tensor
    ).doubles()
    var shape = AttentionShape(
      batch: c.batch, heads: c.heads, keyHeads: c.keyHeads, queries: c.queries, keys: c.keys,
      width: c.width, valueWidth: c.valueWidth, scale: 0.37,
      query: c.strides(c.heads, c.queries, c.width), key: c.strides(c.keyHeads, c.keys, c.width),
      value: c.strides(c.keyHeads, c.keys, c.valueWidth),
      result: c.strides(c.heads, c.queries, c.valueWidth))
    shape.isCausal = c.isCausal
    shape.keepsNaN = c.keepsNaN
    shape.kind = type == .float32 ? .float32 : .bfloat16
    shape.resultType = result
    if let dims = c.mask {
      let heads = dims[2] * dims[3]
      shape.mask = .init(
        batch: dims[0] == 1 ? 0 : dims[1] * heads, head: dims[1] == 1 ? 0 : heads,
        place: dims[2] == 1 ? 0 : dims[3])
    }
    let guarded = try [q, k, v, mask ?? q].map { try GuardedTensor($0) }
    // Scores reach some ten: their last places are what weights are off by.
    let tolerance = type == .float32 && result == .float32 ? 1e-5 : 1e-2
    var first: [Double]?
    for pool in Self.pools {
      let plan = try AttentionPlan(
        shape, queries: c.blocks.queries, keys: c.blocks.keys, threads: pool.threadCount, isa: isa)
      let y = try GuardedTensor(
        Tensor(Array(repeating: 77, count: want.count), result, shape: c.dims(c.heads, c.queries, c.valueWidth)))
      // What lies in the workspace before must not matter.
      let scratch = GuardedBuffer(count: (plan.workspaceByteCount + 3) / 4) { _ in .nan }
      plan.run(
        AttentionPlan.Operands(
          query: guarded[0].raw, key: guarded[1].raw, value: guarded[2].raw,
          mask: mask == nil ? nil : UnsafeRawPointer(guarded[3].raw), result: y.raw),
        workspace: scratch.raw, pool: pool)
      let got = y.tensor.doubles()
      var worst = 0.0
      for (a, b) in zip(got, want) where !(a.isNaN && b.isNaN) {
        worst = (a - b).isNaN ? .infinity : max(worst, abs(a - b))
      }
      #expect(worst <= tolerance, "\(isa) \(type) \(c): off by \(worst)", sourceLocation: sourceLocation)
      // Who computes what does not change a bit.
      if let first {
        #expect(zip(first, got).allSatisfy { $0 == $1 || $0.isNaN && $1.isNaN }, "\(c)")
      }
      first = got
    }
  }

  static let sizes: [Case] = [
    Case(queries: 1, keys: 1, width: 8, valueWidth: 8),
    Case(queries: 1, keys: 130, width: 64, valueWidth: 64),
    Case(queries: 5, keys: 7, width: 33, valueWidth: 33),
    Case(batch: 2, heads: 3, keyHeads: 3, queries: 33, keys: 65, width: 80, valueWidth: 80),
    Case(queries: 32, keys: 64, width: 64, valueWidth: 64),
    Case(queries: 31, keys: 197, width: 64, valueWidth: 70, isSideBySide: false),
    Case(heads: 4, keyHeads: 1, queries: 40, keys: 31, width: 16, valueWidth: 5),
    Case(batch: 2, heads: 4, keyHeads: 2, queries: 65, keys: 129, width: 64, valueWidth: 64, isSideBySide: false),
    // Several blocks of keys: whole ones, one that is not, two of them alone.
    Case(queries: 37, keys: 300, width: 64, valueWidth: 64, blocks: (16, 64)),
    Case(queries: 20, keys: 129, width: 8, valueWidth: 17, blocks: (64, 128)),
    Case(queries: 70, keys: 384, width: 33, valueWidth: 64, blocks: (32, 128), isSideBySide: false),
    Case(queries: 3, keys: 1100, width: 64, valueWidth: 64),
  ]

  @Test(arguments: testedISAs, AttentionPlanTests.sizes) func sizesAtEdges(isa: ISA, sizes: Case) throws {
    try check(sizes, isa: isa)
    var causal = sizes
    causal.isCausal = true
    try check(causal, isa: isa)
  }

  @Test(arguments: testedISAs) func masksAreBroadcast(isa: ISA) throws {
    for (keys, blocks) in [(45, (32, 512)), (300, (16, 64))] {
      for mask in [
        [1, 1, 1, keys], [2, 1, 1, keys], [1, 3, 1, keys], [1, 1, 37, keys], [2, 1, 37, keys],
        [2, 3, 37, keys],
      ] {
        var c = Case(
          batch: 2, heads: 3, keyHeads: 3, queries: 37, keys: keys, width: 16, valueWidth: 24,
          blocks: blocks)
        c.mask = mask
        try check(c, isa: isa)
        // Scattered keys are hidden; then the first blocks are, as in padding on the left.
        try check(c, isa: isa) { $0 % 3 == 1 }
        try check(c, isa: isa) { $0 % keys < keys / 2 }
      }
    }
  }

  @Test(arguments: testedISAs) func rowsWithoutAKeyAreZeroOrNaN(isa: ISA) throws {
    for keepsNaN in [false, true] {
      for (keys, blocks) in [(45, (32, 512)), (200, (8, 64))] {
        var c = Case(queries: 9, keys: keys, width: 16, valueWidth: 20, blocks: blocks)
        c.mask = [1, 1, 9, keys]
        c.keepsNaN = keepsNaN
        try check(c, isa: isa) { $0 / keys % 4 == 1 || $0 % 5 == 2 }
      }
    }
  }

  @Test(
    .enabled(if: CPUFeatures.host.avx512BF16 && ISA.current == .avx512),
    arguments: AttentionPlanTests.sizes)
  func shortFloats(sizes: Case) throws {
    var c = sizes
    c.width += c.width % 2
    try check(c, isa: .avx512, .bfloat16)
    try check(c, isa: .avx512, .bfloat16, result: .bfloat16)
    c.isCausal = true
    c.mask = [1, 1, c.queries, c.keys]
    try check(c, isa: .avx512, .bfloat16) { $0 % 7 == 3 }
  }

  @Test(arguments: testedISAs) func largeScoresNeitherOverflowNorVanish(isa: ISA) throws {
    // The largest score of a row rises from block to block by more than exp can hold.
    let keys = 256
    let q = GuardedBuffer(count: 1) { _ in 1 }
    let k = GuardedBuffer(count: keys) { Float($0 / 64) * 1000 }
    let v = GuardedBuffer(count: keys) { Float($0) }
    let strides = AttentionShape.Strides(batch: keys, head: keys, place: 1)
    let shape = AttentionShape(
      batch: 1, heads: 1, keyHeads: 1, queries: 1, keys: keys, width: 1, valueWidth: 1, scale: 1,
      query: strides, key: strides, value: strides, result: strides)
    let plan = try AttentionPlan(shape, queries: 16, keys: 64, threads: 1, isa: isa)
    let y = GuardedBuffer(count: 1)
    let scratch = GuardedBuffer(count: plan.workspaceByteCount / 4)
    plan.run(
      AttentionPlan.Operands(query: q.raw, key: k.raw, value: v.raw, mask: nil, result: y.raw),
      workspace: scratch.raw, pool: Self.pools[0])
    #expect(abs(y[0] - (192 + 255) / 2) < 1e-3)
  }

  @Test func memoryGrowsWithTheKeysOnly() throws {
    func bytes(_ places: Int) throws -> Int {
      let strides = AttentionShape.Strides(batch: places * 768, head: 64, place: 768)
      let shape = AttentionShape(
        batch: 1, heads: 12, keyHeads: 12, queries: places, keys: places, width: 64, valueWidth: 64,
        scale: 1, query: strides, key: strides, value: strides, result: strides)
      return try AttentionPlan(shape, queries: 64, keys: 512, threads: 2).workspaceByteCount
    }
    guard ISA.current != .portable else { return }
    #expect(try bytes(8192) < 5 * bytes(2048))
  }
}
