// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// The element types of a product.
package struct ProductTypes: Hashable, Sendable {
  package var kind: ProductKind
  /// C's.
  package var result: DataType
  /// Those of the epilogue's extra operands.
  package var operands: [DataType]
  /// Whether what is rounded to bytes fits 32-bit integers, whatever the operands hold.
  package var stepsFit = false

  /// Names the types; operands are single precision where nothing else is said.
  package init(
    _ kind: ProductKind = .float32, result: DataType? = nil, operands: [DataType] = []
  ) {
    self.kind = kind
    self.result = result ?? kind.sumType
    self.operands = operands
  }

  /// The same with a type for each of `count` operands.
  func filled(_ count: Int) -> ProductTypes {
    var copy = self
    copy.operands += Array(repeating: .float32, count: max(0, count - operands.count))
    return copy
  }
}

/// A product of matrices cut into register tiles: what matrix multiplication and convolution share.
///
/// The rows of the result are given as a list of tiles, each with the place its rows of A start at; K
/// as batch members with an offset into A each. All tables are made in advance, so a run only calls
/// generated code.
package final class TiledMultiply: Sendable {
  /// Consecutive rows of C that one call of generated code computes.
  package struct Tile: Sendable, BitwiseCopyable {
    /// Bytes from the start of A to the tile's first row.
    package var offsetInA: Int
    /// Its first row of C.
    package var row: Int
    /// Which of the row patterns it has.
    package var pattern: Int
    /// Elements from the start of C to that row, where rows of C are not simply one behind the other.
    package var placeInC: Int?

    /// Names the parts.
    package init(offsetInA: Int, row: Int, pattern: Int, placeInC: Int? = nil) {
      self.offsetInA = offsetInA
      self.row = row
      self.pattern = pattern
      self.placeInC = placeInC
    }
  }

  /// A stretch of K that is finished for a whole block of rows before the next one starts.
  package struct KBlock: Sendable {
    /// Members of the batch: offsets `first..<first + count` of the plan.
    package var first: Int
    package var count: Int
    /// Words of K in each member.
    package var k: Int
    /// Words of K before this block.
    package var start: Int
  }

  /// Everything that shapes the code and the tables.
  package struct Plan: Sendable {
    package var isa: ISA
    package var tiles: [Tile]
    /// Byte offsets of a tile's rows in A, for each pattern.
    package var patterns: [[Int]]
    /// Where the rows of C of each pattern start, in elements; without it, they are `ldc` apart.
    package var patternsOfC: [[Int]]?
    package var offsets: [Int]
    package var blocks: [KBlock]
    /// Words of K in all.
    package var k: Int
    package var n: Int
    /// Panel width of packed B in vectors; also what one call computes at most.
    package var vectors: Int
    /// Row stride of B in elements when it is not packed.
    package var ldb: Int?
    package var ldc: Int
    /// Row stride of operands with an element for every element of C, in elements.
    package var ldo: Int
    package var epilogue: ScalarExpr
    package var operands: [EpilogueOperand]
    package var types: ProductTypes
    /// Independent products of the same sizes: groups of a convolution, members of a batch.
    package var groups = [Group()]
    /// Whether the groups read the same part of A, which then stays in cache from one to the next.
    package var groupsShareRows = false
    /// Terms lie one after the other for the rows, and the columns of whole panels, of all groups.
    package var terms = SumTerms()
    /// Accumulators that grow while the epilogue empties as many others; nil where it runs behind all sums.
    package var sumsTogether: Int?

    /// Columns of a panel.
    var nr: Int { vectors * isa.lanes }
  }

  /// Where the terms of a run start.
  package struct Terms {
    package var rows = 0
    package var columns = 0
  }

  /// Where one of several products lies.
  package struct Group: Sendable {
    /// Bytes from the start of A.
    package var a = 0
    /// Bytes from the start of B.
    package var b = 0
    /// Elements from the start of C.
    package var c = 0
    /// Columns to skip in operands that have one element per column.
    package var column = 0
  }

  private let plan: Plan
  /// One kernel for each pattern, then one for each pattern's last panel.
  private let kernels: [Microkernel]
  private let panels: Int
  private let tasks: Tasks
  /// Bytes of a word of K in a panel, and lines fetched ahead for each.
  private let panelBytes: Int
  private let linesAhead: Int
  private let offsets: StableTable<Int>
  private let operandBytes: [Int]
  // What the innermost loop reads is in tables of its own, where nothing is retained.
  private let tileTable: StableTable<Tile>
  private let steps: StableTable<TileStep>
  private let codes: StableTable<Code>
  private let fullOperands: StableTable<FullOperand>

  private typealias Code = @convention(c) (UnsafeMutablePointer<Int>) -> Void

  /// An operand of the epilogue that has an element for every element of C.
  private struct FullOperand: BitwiseCopyable {
    var index: Int
    var byteCount: Int
  }

  package init(_ plan: Plan) throws(ApusError) {
    self.plan = plan
    guard plan.blocks.count == 1 || plan.types.result == plan.types.kind.sumType else {
      throw ApusError(.internalError, "sums cannot be kept in \(plan.types.result)")
    }
    panels = (plan.n + plan.nr - 1) / plan.nr
    tasks = Tasks(plan, panels: panels)
    offsets = StableTable(plan.offsets)
    tileTable = StableTable(plan.tiles)
    steps = StableTable(TileStep.all(plan.tiles, ldc: plan.ldc, ldo: plan.ldo))
    let operandBytes = plan.types.operands.map(ElementAccess.byteCount)
    self.operandBytes = operandBytes
    fullOperands = StableTable(
      plan.operands.indices.filter { plan.operands[$0] == .full }.map {
        FullOperand(index: $0, byteCount: operandBytes[$0])
      })
    panelBytes = plan.types.kind.columnBytes * (plan.ldb ?? plan.nr)
    let lines = (panelBytes + 63) / 64
    linesAhead = plan.ldb != nil ? 0 : (lines + tasks.tilesPerBlock - 1) / tasks.tilesPerBlock
    let lanes = plan.isa.lanes
    let lastColumns = plan.n - (panels - 1) * plan.nr
    let words = try Self.words(plan)
    var kernels: [Microkernel] = []
    for last in [false, true] {
      if !last && panels == 1 { continue }
      for (index, pattern) in plan.patterns.enumerated() {
        let columns = last ? lastColumns : plan.nr
        let vectors = (columns + lanes - 1) / lanes
        kernels.append(
          try Microkernel(
            MicrokernelShape(
              rowOffsets: pattern, vectors: vectors,
              panelBytes: panelBytes, masksB: plan.ldb != nil,
              lastColumns: (columns - 1) % lanes + 1,
              rowsOfC: plan.patternsOfC?[index] ?? pattern.indices.map { $0 * plan.ldc },
              rowsOfOperands: plan.patternsOfC?[index] ?? pattern.indices.map { $0 * plan.ldo },
              epilogue: plan.epilogue, operands: plan.operands,
              operandTypes: plan.types.operands, resultType: plan.types.result, stepsFit: plan.types.stepsFit,
              kind: plan.types.kind, isa: plan.isa, runs: true, linesAhead: linesAhead, terms: plan.terms,
              overlap: plan.sumsTogether.map {
                TileOverlap(rows: min(pattern.count, max(1, $0 / vectors)), words: words)
              }, lastWords: TileDrain.words(plan))))
      }
    }
    self.kernels = kernels
    codes = StableTable(kernels.map(\.code))
  }

  /// Where the words of K lie from the start of a row of A, where code depends on it.
  private static func words(_ plan: Plan) throws(ApusError) -> [Int] {
    guard plan.sumsTogether != nil else { return [] }
    guard plan.blocks.count == 1, let block = plan.blocks.first, plan.ldb == nil else {
      throw ApusError(.notYetSupported, "sums in several parts have no epilogue beside them")
    }
    return (0..<block.count).flatMap { member in
      (0..<block.k).map { plan.offsets[block.first + member] + 4 * $0 }
    }
  }

  /// How the work is divided into tasks.
  private struct Tasks: Sendable {
    let tilesPerBlock: Int
    let blocksOfRows: Int
    let panelsPerTask: Int
    let panelTasks: Int

    /// Operations (of words: four products of bytes are one) that are worth a task where it evens out what
    /// threads get, some 7 us, and where a thread would have nothing to do without, some 2 us: opening and closing a
    /// job costs about 1 us.
    private static let evenWork = 1e6
    private static let leastWork = 3e5

    /// A block of rows keeps its part of A in the second-level cache while panels of B pass by. Among
    /// the divisions that give enough tasks to share out, the one that reads least from beyond that
    /// cache: B once for each block of rows, A once for each group of panels.
    init(_ plan: Plan, panels: Int) {
      let rows = plan.patterns.first?.count ?? 1
      let kc = plan.blocks.map { $0.k * $0.count }.max() ?? 1
      let tiles = plan.tiles.count
      let fitting = max(1, min(tiles, TiledMultiply.blockBytes / max(1, rows * kc * 4)))
      let groups = plan.groups.count
      let total = 2.0 * Double(rows * tiles * groups) * Double(plan.n) * Double(plan.k)
      let processors = ThreadPool.availableProcessors()
      let wanted = max(
        1, min(8 * processors, Int(total / Self.evenWork)), min(processors, Int(total / Self.leastWork)))
      let bytesOfA = Double(rows * tiles * plan.k)
      let bytesOfB = Double(plan.k * plan.n)
      var best = (cost: Double.infinity, perBlock: 1, panelsPerTask: panels)
      var blocks = (tiles + fitting - 1) / fitting
      while blocks <= tiles {
        let perBlock = (tiles + blocks - 1) / blocks
        let used = (tiles + perBlock - 1) / perBlock
        let columnTasks = max(1, min(panels, (wanted - 1) / (used * groups) + 1))
        let perTask = (panels + columnTasks - 1) / columnTasks
        let missing = max(1, Double(wanted) / Double(used * columnTasks * groups))
        let cost = (Double(used) * bytesOfB + Double(columnTasks) * bytesOfA) * missing
        if cost < best.cost { best = (cost, perBlock, perTask) }
        blocks = blocks < 16 ? blocks + 1 : blocks * 2
      }
      tilesPerBlock = best.perBlock
      blocksOfRows = (tiles + tilesPerBlock - 1) / tilesPerBlock
      panelsPerTask = best.panelsPerTask
      panelTasks = (panels + panelsPerTask - 1) / panelsPerTask
    }
  }

  /// How much of A a block of rows may cover: somewhat less than half of the second-level cache.
  private static let blockBytes = CPUCaches.host.second / 16 * 7

  /// Words of K that are summed before others are read, where sums may wait in C.
  ///
  /// The part of a panel that is gone through for every tile of rows stays in the first-level cache with that of A, if
  /// vectors are short. With long ones a part of this length would be too small: each tile reads it from the second-level
  /// cache, whose lines come as fast as they are used.
  static func wordsPerBlock(_ tile: GemmTile, _ isa: ISA) -> Int {
    if isa == .avx512 { return 512 }
    return max(64, CPUCaches.host.first / 5 / (tile.columns(isa) + tile.rows) / 4 * 4)
  }

  /// Multiplies. `operands` holds the addresses of the epilogue's extra operands.
  package func run(
    a: UnsafeRawPointer, b: UnsafeRawPointer, c: UnsafeMutableRawPointer,
    operands: UnsafePointer<UnsafeRawPointer>?, terms: Terms = Terms(), pool: ThreadPool
  ) {
    pool.parallelFor(
      plan.groups.count * tasks.blocksOfRows * tasks.panelTasks, (self, a, b, c, operands, terms)
    ) { context, task in
      let (multiply, a, b, c, operands, terms) = context
      multiply.run(
        task, a: Int(bitPattern: a), b: Int(bitPattern: b), c: Int(bitPattern: c), operands, terms)
    }
  }

  private func run(
    _ task: Int, a: Int, b: Int, c: Int, _ operands: UnsafePointer<UnsafeRawPointer>?,
    _ terms: Terms
  ) {
    let columnTask = task % tasks.panelTasks
    let (slow, fast) = (task / tasks.panelTasks).quotientAndRemainder(
      dividingBy: plan.groupsShareRows ? plan.groups.count : tasks.blocksOfRows)
    let (group, block) = plan.groupsShareRows ? (fast, slow) : (slow, fast)
    let words = Microkernel.Argument.operands + 2 * plan.operands.count
    withUnsafeTemporaryAllocation(of: Int.self, capacity: words) { arguments in
      guard let arguments = arguments.baseAddress else { return }
      let firstPanel = columnTask * tasks.panelsPerTask
      let lastTile = min(plan.tiles.count, (block + 1) * tasks.tilesPerBlock)
      let rows = (plan.tiles.last?.row ?? 0) + (plan.patterns[plan.tiles.last?.pattern ?? 0].count)
      let terms = Terms(
        rows: terms.rows + group * rows * 4,
        columns: terms.columns + group * panels * plan.nr * 4)
      compute(
        group: plan.groups[group], tiles: block * tasks.tilesPerBlock..<lastTile,
        panels: firstPanel..<min(panels, firstPanel + tasks.panelsPerTask), a: a, b: b, c: c, operands,
        terms, arguments)
    }
  }

  /// Computes some of the tiles on the calling thread, all columns of them. The addresses are those that A
  /// and C would have if they were there as a whole; `firstRow` is added to the tiles' rows of C and of full
  /// operands. Only for products of one group without terms.
  func run(
    tiles: Range<Int>, firstRow: Int, a: Int, b: Int, c: Int,
    operands: UnsafePointer<UnsafeRawPointer>
  ) {
    let words = Microkernel.Argument.operands + 2 * plan.operands.count
    withUnsafeTemporaryAllocation(of: Int.self, capacity: words) { arguments in
      guard let arguments = arguments.baseAddress else { return }
      compute(
        group: plan.groups[0], tiles: tiles, firstRow: firstRow, panels: 0..<panels, a: a, b: b, c: c,
        operands, Terms(), arguments)
    }
  }

  private func compute(
    group: Group, tiles: Range<Int>, firstRow: Int = 0, panels range: Range<Int>, a: Int, b: Int,
    c: Int, _ operands: UnsafePointer<UnsafeRawPointer>?, _ terms: Terms,
    _ arguments: UnsafeMutablePointer<Int>
  ) {
    typealias Argument = Microkernel.Argument
    let nr = plan.nr
    let a = a + group.a
    let b = b + group.b
    let patterns = plan.patterns.count
    let bytesOfC = ElementAccess.byteCount(plan.types.result)
    for panel in range {
      let codes = self.codes.base + (panel == panels - 1 ? kernels.count - patterns : 0)
      let column = panel * nr
      if let operands { setOperands(operands, column: column + group.column, arguments) }
      for (index, block) in plan.blocks.enumerated() {
        arguments[Argument.b] =
          plan.ldb.map { b + (block.start * $0 + panel * nr) * 4 }
          ?? b + (panel * plan.k + block.start) * nr * plan.types.kind.columnBytes
        arguments[Argument.k] = block.k
        arguments[Argument.columnTerms] = terms.columns + column * 4
        arguments[Argument.batchCount] = block.count
        arguments[Argument.batchOffsets] = Int(bitPattern: offsets.base + block.first)
        arguments[Argument.flags] =
          (index > 0 ? Microkernel.accumulate : 0)
          | (index == plan.blocks.count - 1 ? Microkernel.finish : 0)
        let ahead = Ahead(
          of: arguments[Argument.b], words: block.k * block.count, panelBytes: panelBytes)
        arguments[Argument.ahead] = ahead.place
        arguments[Argument.aheadEnd] = ahead.end
        arguments[Argument.aheadStart] = arguments[Argument.b]
        var number = tiles.lowerBound
        while number < tiles.upperBound {
          let tile = tileTable.base[number]
          let step = steps.base[number]
          let row = firstRow + tile.row
          let place = column + group.c
          arguments[Argument.a] = a &+ tile.offsetInA
          arguments[Argument.stepInA] = step.inA
          arguments[Argument.c] = c &+ ((tile.placeInC ?? row * plan.ldc) + place) * bytesOfC
          arguments[Argument.stepInC] = step.inC * bytesOfC
          arguments[Argument.rowTerms] = terms.rows + tile.row * 4
          arguments[Argument.stepInTerms] = step.rows * 4
          if let operands {
            for position in 0..<fullOperands.count {
              let operand = fullOperands.base[position]
              arguments[Argument.operands + operand.index] =
                Int(bitPattern: operands[operand.index])
                + ((tile.placeInC ?? row * plan.ldo) + place) * operand.byteCount
              arguments[Argument.operands + plan.operands.count + operand.index] = step.inOperands * operand.byteCount
            }
          }
          let count = min(step.tiles, tiles.upperBound - number)
          arguments[Argument.tiles] = count
          codes[tile.pattern](arguments)
          number += count
        }
      }
    }
  }

  /// The addresses of operands that are the same for all tiles of a panel.
  private func setOperands(
    _ operands: UnsafePointer<UnsafeRawPointer>, column: Int, _ arguments: UnsafeMutablePointer<Int>
  ) {
    for (index, kind) in plan.operands.enumerated() where kind != .full {
      arguments[Microkernel.Argument.operands + index] =
        Int(bitPattern: operands[index]) + (kind == .perColumn ? column * operandBytes[index] : 0)
    }
  }

  /// What the lines of B to come are: behind a block of K lies the next one, of the same panel or of the next,
  /// and each tile fetches its share of it into the second-level cache. With nothing left, tiles fetch lines that are
  /// there already.
  private struct Ahead {
    let place: Int
    let end: Int

    /// Blocks of B of more bytes than this are not fetched as a whole, but a little ahead of their use.
    private static let largest = 384 << 10
    private static let distance = 16 << 10

    init(of block: Int, words: Int, panelBytes: Int) {
      let bytes = words * panelBytes
      place = block + (bytes <= Self.largest ? bytes : Self.distance)
      end = place + (bytes <= Self.largest ? bytes : 1)
    }
  }

  /// Sizes of tiles for `count` rows of at most `rows` each, as even as possible, the larger ones first.
  package static func split(_ count: Int, rows: Int) -> [Int] {
    let tiles = (count + rows - 1) / rows
    return (0..<tiles).map { count / tiles + ($0 < count % tiles ? 1 : 0) }
  }
}

/// Elements at an address that stays.
private final class StableTable<Element>: @unchecked Sendable {
  let base: UnsafeMutablePointer<Element>
  let count: Int

  init(_ elements: [Element]) {
    count = elements.count
    base = .allocate(capacity: max(1, count))
    for (index, element) in elements.enumerated() { (base + index).initialize(to: element) }
  }

  deinit {
    base.deinitialize(count: count)
    base.deallocate()
  }
}
