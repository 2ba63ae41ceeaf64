// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Attention, `softmax(scale q k^T + mask) v` for every head, whose scores never leave the caches.
///
/// A task takes a block of one head's queries and goes over the keys in blocks: the scores of a block are a
/// product, generated code turns them into weights (`AttentionRowKernel`), and a second product adds the
/// weighted values up (Dao et al. 2022, "FlashAttention"). Keys and values are brought into the order that
/// products read once for each head. Memory grows with the number of keys, not with its square, and what is
/// computed does not depend on who computes it.
package final class AttentionPlan: Sendable {
  /// Scratch memory that a run needs.
  package let workspaceByteCount: Int
  private let shape: AttentionShape
  private let blocks: Blocks
  private let sides: AttentionSides
  private let scratch: AttentionScratch
  private let lanes: Int
  /// Whether a lane prepares the keys and values of its own heads, which then are in its cache.
  private let lanesHaveHeads: Bool
  private let rows: AttentionRowKernel
  private let results: AttentionResultKernel
  /// For blocks of queries of the full size and for the last: products with the first block of keys, one in
  /// the middle, and the last.
  private let products: [[Products]]

  /// How queries and keys are divided.
  private struct Blocks {
    let queries: Int
    let keys: Int
    let queryCount: Int
    let keyCount: Int
  }

  private struct Products {
    let scores: GemmPlan
    let sums: GemmPlan
  }

  /// Blocks of more keys would be cut by the second product, between whose parts sums wait in memory that
  /// holds earlier ones.
  package static let keyLimit = 512

  /// Plans it for blocks of `queries` x `keys` and at most `threads` threads.
  ///
  /// - Throws: `not-yet-supported` when there is no such kernel.
  package init(
    _ shape: AttentionShape, queries: Int, keys: Int, threads: Int, isa: ISA = .current
  ) throws(ApusError) {
    if let refusal = shape.refusal(isa) { throw ApusError(.notYetSupported, refusal) }
    let interleave = shape.kind.interleave
    let queries = max(1, min(queries, shape.queries))
    let scoreTile = GemmTile.choose(
      run: queries, n: min(keys, shape.keys), stride: shape.query.place / interleave, isa: isa)
    // Blocks of keys are whole panels.
    let width = scoreTile.columns(isa)
    let most = max(width, min(keys, Self.keyLimit) / width * width)
    let blocks = Blocks(
      queries: queries, keys: min(most, shape.keys),
      queryCount: (shape.queries + queries - 1) / queries,
      keyCount: (shape.keys + most - 1) / most)
    guard blocks.keys <= Self.keyLimit else {
      throw ApusError(.notYetSupported, "blocks of \(blocks.keys) keys")
    }
    let scratch = AttentionScratch(queries: queries, keys: blocks.keys, columns: shape.valueWidth, isa: isa)
    let sumTile = GemmTile.choose(run: queries, n: shape.valueWidth, stride: scratch.scorePitch, isa: isa)
    sides = try AttentionSides(
      shape, keys: blocks.keys, keyPanel: width, valuePanel: sumTile.columns(isa), isa: isa)
    rows = try AttentionRowKernel(
      AttentionRowKernel.Shape(
        scale: shape.scale, hasMask: shape.mask != nil,
        weightType: interleave == 2 ? .bfloat16 : .float32, scorePitch: scratch.scorePitch,
        sumPitch: scratch.sumPitch, isa: isa))
    results = try AttentionResultKernel(
      AttentionResultKernel.Shape(
        columns: shape.valueWidth, sumPitch: scratch.sumPitch,
        resultStride: shape.result.place * ElementAccess.byteCount(shape.resultType),
        resultType: shape.resultType, keepsNaN: shape.keepsNaN, isa: isa))
    var products: [[Products]] = []
    let lastQueries = shape.queries - (blocks.queryCount - 1) * queries
    for rows in queries == lastQueries ? [queries] : [queries, lastQueries] {
      var kinds: [Products] = []
      // The first block, one in the middle, the last; the first alone when there are no others.
      for index in 0..<min(3, blocks.keyCount) {
        let isLast = index == min(3, blocks.keyCount) - 1
        let count = isLast ? shape.keys - (blocks.keyCount - 1) * blocks.keys : blocks.keys
        let scores = try GemmPlan(
          m: rows, n: count, k: shape.width, lda: shape.query.place, ldc: scratch.scorePitch,
          tile: scoreTile, isa: isa, types: ProductTypes(shape.kind))
        let sums = try GemmPlan(
          m: rows, n: shape.valueWidth, k: AttentionSides.depth(count, shape.kind),
          lda: scratch.scorePitch * interleave, ldc: scratch.sumPitch, tile: sumTile, isa: isa,
          epilogue: index == 0 ? .input(0) : .input(0) + .input(1),
          operands: index == 0 ? [] : [.full], types: ProductTypes(shape.kind))
        kinds.append(Products(scores: scores, sums: sums))
      }
      products.append(kinds)
    }
    self.products = products
    self.shape = shape
    self.blocks = blocks
    self.scratch = scratch
    let heads = shape.batch * shape.keyHeads
    let tasks = shape.batch * shape.heads * blocks.queryCount
    // More lanes than threads, so that a thread that is held up can be helped.
    lanes = threads == 1 ? 1 : min(tasks, 4 * threads)
    lanesHaveHeads = threads == 1 || heads >= lanes
    workspaceByteCount =
      lanes * scratch.byteCount + (lanesHaveHeads ? lanes : heads) * sides.byteCount
  }

  /// Where a run finds everything.
  package struct Operands {
    package var query: UnsafeRawPointer
    package var key: UnsafeRawPointer
    package var value: UnsafeRawPointer
    package var mask: UnsafeRawPointer?
    package var result: UnsafeMutableRawPointer

    /// Names the addresses; there is a mask exactly where the plan's shape has one.
    package init(
      query: UnsafeRawPointer, key: UnsafeRawPointer, value: UnsafeRawPointer,
      mask: UnsafeRawPointer?, result: UnsafeMutableRawPointer
    ) {
      self.query = query
      self.key = key
      self.value = value
      self.mask = mask
      self.result = result
    }
  }

  /// Computes all heads; `workspace` has `workspaceByteCount` bytes.
  package func run(_ operands: Operands, workspace: UnsafeMutableRawPointer, pool: ThreadPool) {
    let run = Run(operands: operands, scratch: workspace, packed: workspace + lanes * scratch.byteCount)
    let heads = shape.batch * shape.keyHeads
    if lanesHaveHeads {
      return pool.parallelFor(lanes, (self, run, pool, heads)) { context, lane in
        let (plan, run, pool, heads) = context
        let packed = run.packed + lane * plan.sides.byteCount
        for head in heads * lane / plan.lanes..<heads * (lane + 1) / plan.lanes {
          plan.prepare(head, run, packed)
          for task in 0..<plan.tasksPerKeyHead {
            plan.attend(head, task, run, packed, lane: lane, pool)
          }
        }
      }
    }
    pool.parallelFor(heads, (self, run)) { context, head in
      let (plan, run) = context
      plan.prepare(head, run, run.packed + head * plan.sides.byteCount)
    }
    pool.parallelFor(lanes, (self, run, pool, heads * tasksPerKeyHead)) { context, lane in
      let (plan, run, pool, tasks) = context
      for task in tasks * lane / plan.lanes..<tasks * (lane + 1) / plan.lanes {
        let (head, part) = task.quotientAndRemainder(dividingBy: plan.tasksPerKeyHead)
        plan.attend(head, part, run, run.packed + head * plan.sides.byteCount, lane: lane, pool)
      }
    }
  }

  private struct Run {
    let operands: Operands
    let scratch: UnsafeMutableRawPointer
    let packed: UnsafeMutableRawPointer
  }

  private var tasksPerKeyHead: Int { shape.heads / shape.keyHeads * blocks.queryCount }

  private func prepare(_ head: Int, _ run: Run, _ packed: UnsafeMutableRawPointer) {
    let (batch, keyHead) = head.quotientAndRemainder(dividingBy: shape.keyHeads)
    let bytes = shape.kind.elementBytes
    sides.prepare(
      keys: run.operands.key + shape.key.offset(batch, keyHead, 0) * bytes,
      values: run.operands.value + shape.value.offset(batch, keyHead, 0) * bytes, into: packed)
  }

  /// One block of queries of one of the heads that share key head `keyHead` of all batch members.
  private func attend(
    _ keyHead: Int, _ task: Int, _ run: Run, _ packed: UnsafeMutableRawPointer, lane: Int,
    _ pool: ThreadPool
  ) {
    let (part, block) = task.quotientAndRemainder(dividingBy: blocks.queryCount)
    let (batch, group) = keyHead.quotientAndRemainder(dividingBy: shape.keyHeads)
    let head = group * (shape.heads / shape.keyHeads) + part
    let first = block * blocks.queries
    let count = min(blocks.queries, shape.queries - first)
    let kinds = products[count == blocks.queries ? 0 : products.count - 1]
    let memory = run.scratch + lane * scratch.byteCount
    let query =
      run.operands.query + shape.query.offset(batch, head, first) * shape.kind.elementBytes
    let sums = memory + scratch.sums
    scratch.begin(memory, rows: count)
    for index in 0..<blocks.keyCount {
      let key = index * blocks.keys
      // No query of the block sees what comes behind its last one.
      if shape.isCausal && key >= first + count { break }
      let kind = kinds[index == 0 ? 0 : index == blocks.keyCount - 1 ? kinds.count - 1 : 1]
      kind.scores.run(
        a: query, b: UnsafeRawPointer(packed + sides.keyOffset(key)), c: memory, pool: pool)
      weigh(batch, head, queries: first..<first + count, key: key, index > 0, memory, run)
      withUnsafePointer(to: UnsafeRawPointer(sums)) { earlier in
        kind.sums.run(
          a: memory, b: UnsafeRawPointer(packed + sides.valueOffset(key)), c: sums,
          operands: earlier, pool: pool)
      }
    }
    let place = shape.result.offset(batch, head, first) * ElementAccess.byteCount(shape.resultType)
    results.run(
      sums: Int(bitPattern: sums), state: Int(bitPattern: memory + scratch.state),
      result: Int(bitPattern: run.operands.result + place), rows: count)
  }

  /// Turns the scores of a block of keys into weights. Queries that see as many keys of it go together.
  private func weigh(
    _ batch: Int, _ head: Int, queries: Range<Int>, key: Int, _ isLater: Bool,
    _ memory: UnsafeMutableRawPointer, _ run: Run
  ) {
    typealias Argument = AttentionRowKernel.Argument
    let keys = min(blocks.keys, shape.keys - key)
    withUnsafeTemporaryAllocation(of: Int.self, capacity: Argument.count) { arguments in
      guard let arguments = arguments.baseAddress else { return }
      arguments[Argument.maskStride] = (shape.mask?.place ?? 0) * 4
      var query = queries.lowerBound
      while query < queries.upperBound {
        let seen = shape.isCausal ? max(0, min(keys, query + 1 - key)) : keys
        let rows = seen == keys ? queries.upperBound - query : 1
        let row = query - queries.lowerBound
        arguments[Argument.scores] = Int(bitPattern: memory + row * scratch.scorePitch * 4)
        if let mask = shape.mask, let base = run.operands.mask {
          arguments[Argument.mask] = Int(
            bitPattern: base + (mask.offset(batch, head, query) + key) * 4)
        }
        arguments[Argument.state] = Int(bitPattern: memory + scratch.state + row * 8)
        arguments[Argument.sums] =
          isLater ? Int(bitPattern: memory + scratch.sums + row * scratch.sumPitch * 4) : 0
        arguments[Argument.rows] = rows
        arguments[Argument.vectors] = seen / scratch.lanes
        arguments[Argument.rest] = seen % scratch.lanes
        arguments[Argument.hidden] = scratch.vectors(keys) - scratch.vectors(seen)
        self.rows.code(arguments)
        query += rows
      }
    }
  }
}

/// The scratch memory of one block of queries: scores, which become weights, weighted sums and the state of
/// each row.
struct AttentionScratch: Sendable {
  let lanes: Int
  /// Floats from one row of scores, and of sums, to the next.
  let scorePitch: Int
  let sumPitch: Int
  /// Bytes before the sums and before the state; scores come first.
  let sums: Int
  let state: Int
  let byteCount: Int

  init(queries: Int, keys: Int, columns: Int, isa: ISA) {
    let lanes = isa.lanes
    func whole(_ count: Int) -> Int { (count + lanes - 1) / lanes * lanes }
    self.lanes = lanes
    // An odd number of cache lines, so that rows fall into different sets of the first-level cache.
    scorePitch = ((keys + 15) / 16 | 1) * 16
    sumPitch = whole(columns)
    sums = queries * scorePitch * 4
    state = sums + queries * sumPitch * 4
    byteCount = (state + queries * 8 + 63) / 64 * 64
  }

  func vectors(_ count: Int) -> Int { (count + lanes - 1) / lanes }

  /// Makes rows that have seen nothing.
  func begin(_ memory: UnsafeMutableRawPointer, rows: Int) {
    let state = (memory + state).assumingMemoryBound(to: Float.self)
    for row in 0..<rows {
      state[2 * row] = AttentionRowKernel.lowest
      state[2 * row + 1] = 0
    }
  }
}
