// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// How an extra operand of an epilogue is indexed; operand `n` is input `n + 1` of the expression.
package enum EpilogueOperand: Hashable, Sendable {
  /// One element.
  case scalar
  /// One element for every column of the result.
  case perColumn
  /// One element for every element of the result.
  case full
}

/// The arithmetic of a product. Elements of K are taken in words of 32 bits, as many as fit, so that
/// loops and addresses are the same for all.
package enum ProductKind: Hashable, Sendable {
  /// Single precision, one element a word.
  case float32
  /// Single precision in A; B is stored in half precision and widened on the way into registers.
  case float16Weights
  /// BF16 operands, two elements a word, sums in single precision.
  case bfloat16
  /// Unsigned bytes in A, signed ones in B, four elements a word, sums in 32-bit integers.
  case int8
  /// The same where no instruction multiplies bytes exactly: A has been widened to 16 bits, B is on its way into
  /// registers; two elements a word.
  case widenedInt8
  /// Signed 16-bit integers, two elements a word. Sums of a block of K are 32-bit integers, which the
  /// operands must not overflow; those of several blocks are added in single precision.
  case int16

  /// Elements of K in a word.
  package var interleave: Int {
    switch self {
    case .float32, .float16Weights: 1
    case .bfloat16, .int16, .widenedInt8: 2
    case .int8: 4
    }
  }
  /// Bytes of an element of A as kernels of products read it.
  package var elementBytes: Int { 4 / interleave }
  /// Whether bytes of A are widened before.
  package var widens: Bool { self == .widenedInt8 }
  /// Bytes of an element of A as it lies in tensors.
  package var storedBytes: Int { widens ? 1 : elementBytes }
  /// Bytes of a word of K in a column of B.
  package var columnBytes: Int { self == .float16Weights || widens ? 2 : 4 }
  /// Whether it multiplies unsigned bytes with signed ones.
  package var isOfBytes: Bool { self == .int8 || self == .widenedInt8 }
  /// The type of a sum.
  package var sumType: DataType { isOfBytes ? .int32 : .float32 }

  /// Whether products take a register and an instruction of their own to be added to sums.
  func addsApart(_ isa: ISA) -> Bool {
    switch self {
    case .int16, .widenedInt8: isa != .avx512 || !CPUFeatures.host.avx512VNNI
    default: false
    }
  }

  /// How products of bytes are computed with an instruction set of this machine.
  package static func bytes(_ isa: ISA) -> ProductKind {
    switch isa {
    case .avx512: CPUFeatures.host.avx512VNNI ? .int8 : .widenedInt8
    case .avx2VNNI: .int8
    case .avx2, .portable: .widenedInt8
    }
  }
}

/// What one generated tile computes: `C[rows x columns] (+)= sum over the batch of A_b * B_b`.
///
/// Row `i` of `A_b` starts `rowOffsets[i]` bytes behind its first, so the rows of a tile may be rows of
/// a matrix or the pixels a convolution reads. B lies in a panel: for each `k` a row of columns side by
/// side, rows `panelBytes` apart; the `B_b` follow each other.
package struct MicrokernelShape: Hashable, Sendable {
  /// Where the rows of A start, in bytes.
  package var rowOffsets: [Int]
  /// Vectors of columns computed.
  package var vectors: Int
  /// Bytes from the columns of B for one word of `k` to those for the next: the width of a packed panel, or
  /// the row stride of a matrix that is used as it is.
  package var panelBytes: Int
  /// Whether columns of B that do not exist must not be read (they are padded in packed panels).
  package var masksB: Bool
  /// Columns of the last vector that exist.
  package var lastColumns: Int
  /// Where the rows of C start, in elements, and those of full operands.
  package var rowsOfC: [Int]
  package var rowsOfOperands: [Int]
  /// What happens to each element before it is stored for the last time.
  package var epilogue: ScalarExpr
  package var operands: [EpilogueOperand]
  /// The element types of the operands.
  package var operandTypes: [DataType]
  /// The element type of C; only sums may be accumulated in it.
  package var resultType: DataType
  /// Whether what is rounded to bytes fits 32-bit integers.
  package var stepsFit = false
  package var kind: ProductKind
  package var isa: ISA
  /// Whether a call computes a run of tiles; else it is a single one.
  package var runs = false
  /// Cache lines that every word of K fetches from where the caller says B goes on.
  package var linesAhead = 0
  /// Integers to be added to the sums of each row, and of each column.
  package var terms = SumTerms()
  /// How epilogues run beside sums, if they do.
  package var overlap: TileOverlap?
  /// The last words of K, of which every row may be summed up for itself (`TileDrain`); zero where sums have
  /// several parts, or too few words.
  package var lastWords = 0
}

/// Which 32-bit integers are added to the sums: what zero points other than zero add up to.
package struct SumTerms: Hashable, Sendable {
  package var perRow = false
  package var perColumn = false
}

/// The generated code of a tile.
package final class Microkernel: Sendable {
  /// Words of the argument block; operand addresses follow `operands`.
  package enum Argument {
    package static let a = 0
    package static let b = 1
    package static let c = 2
    /// Words of K in each member of the batch.
    package static let k = 3
    package static let batchCount = 4
    /// Address of the byte offsets of the members of the batch from `a`.
    package static let batchOffsets = 5
    /// `accumulate` and `finish`.
    package static let flags = 6
    /// Addresses of the terms of the tile's rows and columns; the latter fill whole vectors.
    package static let rowTerms = 7
    package static let columnTerms = 8
    /// Where the lines lie that will be needed after this call.
    package static let ahead = 9
    /// Those of a whole run end here, and after them come these.
    package static let aheadEnd = 10
    package static let aheadStart = 11
    /// Tiles of a run, and bytes from one to the next in A, in C and in the terms of rows; those in operands, one for
    /// each, follow the operands.
    package static let tiles = 12
    package static let stepInA = 13
    package static let stepInC = 14
    package static let stepInTerms = 15
    package static let operands = 16
  }
  /// Start from what C holds instead of zero.
  package static let accumulate = 1
  /// Apply the epilogue.
  package static let finish = 2

  private let memory: ExecutableMemory
  /// The entry point, taking the address of the argument block.
  package let code: @convention(c) (UnsafeMutablePointer<Int>) -> Void

  /// Generates the code.
  package init(_ shape: MicrokernelShape) throws(ApusError) {
    memory = try ExecutableMemory(
      MicrokernelGenerator(shape).generate(),
      name: "product \(shape.rowOffsets.count)x\(shape.vectors) \(shape.isa.rawValue)")
    code = memory.function(as: (@convention(c) (UnsafeMutablePointer<Int>) -> Void).self)
  }
}

/// Writes the code of one tile.
struct MicrokernelGenerator {
  let shape: MicrokernelShape
  let a = Assembler()
  let width: VectorWidth
  let rows: Int
  let accumulators: [[Vec]]
  let free: [Vec]
  let tail: TailMask?
  let isa: ISA
  /// The epilogue, without what the sums start from: the extra operand of this number.
  let epilogue: ScalarExpr
  let startingOperand: Int?
  /// Where products wait to be added, if they do.
  private let products: Vec?

  init(_ shape: MicrokernelShape) throws(ApusError) {
    self.shape = shape
    (epilogue, startingOperand) = Self.start(
      shape.epilogue, shape.operands,
      ProductTypes(shape.kind, result: shape.resultType, operands: shape.operandTypes))
    isa = shape.isa
    width = isa.width
    rows = shape.rowOffsets.count
    let count = (shape.overlap?.places ?? rows) * shape.vectors
    let masksLanes =
      shape.masksB && shape.isa != .avx512 && shape.lastColumns != shape.isa.lanes
    let needed = count + shape.vectors + 1 + (masksLanes ? 1 : 0) + (shape.kind.addsApart(shape.isa) ? 1 : 0)
    guard isa != .portable, rows > 0, shape.vectors > 0, needed <= isa.registerCount,
      !shape.kind.isOfBytes || ElementAccess.supports(.int8, isa),
      !shape.masksB || shape.kind.columnBytes == 4
    else {
      throw ApusError(
        .notYetSupported, "a tile of \(rows) x \(shape.vectors) vectors does not fit the registers")
    }
    let width = shape.isa.width
    let all = (0..<shape.isa.registerCount).map { Vec($0, width) }
    accumulators = (0..<shape.rowOffsets.count).map { row in
      let first = (shape.overlap?.place(of: row) ?? row) * shape.vectors
      return Array(all[first..<first + shape.vectors])
    }
    var rest = Array(all[count...])
    if shape.lastColumns == isa.lanes {
      tail = nil
    } else if isa == .avx512 {
      tail = .mask(Mask(7))
    } else {
      tail = .lanes(rest.removeLast(), count: shape.lastColumns)
    }
    free = rest
    guard shape.kind.addsApart(shape.isa) else {
      products = nil
      return
    }
    // Until the tail is stored, nothing else is where its lanes will be.
    if case .lanes(let lanes, _) = tail, !shape.masksB { products = lanes } else { products = rest.last }
  }

  func argument(_ index: Int) -> Address { Address(.rdi, 8 * index) }

  /// The tail of vector `column`, if it is the last one and partial.
  func tail(_ column: Int) -> TailMask? {
    column == shape.vectors - 1 ? tail : nil
  }

  func generate() throws(ApusError) -> [UInt8] {
    if let overlap = shape.overlap { return try generate(overlap) }
    a.push(.rbx)
    let tile = a.here()
    a.mov(.rcx, argument(Microkernel.Argument.c))
    a.mov(.rbx, argument(Microkernel.Argument.b))
    a.mov(.rsi, argument(Microkernel.Argument.batchCount))
    a.mov(.r8, argument(Microkernel.Argument.batchOffsets))
    a.mov(.r11, argument(Microkernel.Argument.flags))
    if let tail, shape.masksB {
      a.prepareTail(tail, count: shape.lastColumns, scratch: .rax)
    }
    if shape.linesAhead > 0 { a.mov(.r9, argument(Microkernel.Argument.ahead)) }
    if let startingOperand {
      a.mov(.rax, argument(Microkernel.Argument.operands + startingOperand))
      if let tail { a.prepareTail(tail, count: shape.lastColumns, scratch: .rdx) }
    }
    startSums(of: 0..<rows, from: .rax)
    let drain = try TileDrain(self)
    if drain != nil { prepareBytes() }
    let batch = a.here()
    a.mov(.rax, argument(Microkernel.Argument.a))
    a.add(.rax, Address(.r8))
    a.mov(.rdx, argument(Microkernel.Argument.k))
    if let drain { leaveWords(to: drain) }
    reduce()
    a.add(.r8, 8)
    a.dec(.rsi)
    a.j(.notEqual, batch)
    if let drain {
      try store(drain)
      leaveLinesAhead(.r9, behind: drain.words)
    } else {
      leaveLinesAhead(.r9)
      try store()
    }
    goOn(to: tile)
    a.pop(.rbx)
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  /// Keeps where the lines of the next tile of a run are: so many words of K further on.
  func leaveLinesAhead(_ place: R64, behind words: Int = 0) {
    guard shape.runs, shape.linesAhead > 0 else { return }
    if words > 0 { a.add(place, 64 * words * shape.linesAhead) }
    let within = a.label()
    a.cmp(place, argument(Microkernel.Argument.aheadEnd))
    a.j(.below, within)
    a.mov(place, argument(Microkernel.Argument.aheadStart))
    a.bind(within)
    a.mov(argument(Microkernel.Argument.ahead), place)
  }

  /// The code behind a tile: goes on with the next one of a run.
  func goOn(to tile: Label) {
    guard shape.runs else { return }
    typealias Argument = Microkernel.Argument
    func move(_ index: Int, by step: Int) {
      a.mov(.rax, argument(index))
      a.add(.rax, argument(step))
      a.mov(argument(index), .rax)
    }
    move(Argument.a, by: Argument.stepInA)
    move(Argument.c, by: Argument.stepInC)
    if shape.terms.perRow { move(Argument.rowTerms, by: Argument.stepInTerms) }
    for (index, kind) in shape.operands.enumerated() where kind == .full {
      move(Argument.operands + index, by: Argument.operands + shape.operands.count + index)
    }
    a.mov(.rax, argument(Argument.tiles))
    a.dec(.rax)
    a.mov(argument(Argument.tiles), .rax)
    a.j(.notEqual, tile)
  }

  /// Integers to add to each column of sums of bytes are what the sums start from, when nothing else is
  /// done with the sums and no earlier part of them waits in C.
  static func start(
    _ epilogue: ScalarExpr, _ operands: [EpilogueOperand], _ types: ProductTypes
  ) -> (ScalarExpr, Int?) {
    let found = operands.indices.first { index in
      let sum = ScalarExpr.input(0) + .input(index + 1)
      return operands[index] == .perColumn && types.operands[index] == .int32
        && epilogue.contains { $0 == sum }
        && epilogue.replacing(sum, with: .const(0)).useCounts()[0] == nil
    }
    guard let found, types.kind.sumType == .int32, types.result != .int32 else { return (epilogue, nil) }
    let sum = ScalarExpr.input(0) + .input(found + 1)
    return (epilogue.replacing(sum, with: .input(0)), found)
  }

  /// Zeros, or what the epilogue would add, which lies at `place`; what C holds is added behind the loop,
  /// when its lines have arrived.
  func startSums(of rows: Range<Int>, from place: R64) {
    for row in rows {
      a.prefetcht0(addressOfC(row, 0))
      for (column, register) in accumulators[row].enumerated() {
        if startingOperand != nil {
          a.loadTail(register, Address(place, column * width.bytes), tail(column))
        } else {
          a.vxorps(register, register, register)
        }
      }
    }
  }

  /// The loop over K: four steps at a time, then single steps. rax walks A, rbx walks B, r9 what comes
  /// behind it.
  private func reduce() {
    let unroll = 4
    let single = a.label()
    let done = a.label()
    let panelBytes = shape.panelBytes
    a.sub(.rdx, unroll)
    a.j(.less, single)
    a.align(32)
    let loop = a.here()
    for step in 0..<unroll { self.step(step) }
    a.add(.rax, 4 * unroll)
    a.add(.rbx, panelBytes * unroll)
    if shape.linesAhead > 0 { a.add(.r9, 64 * shape.linesAhead * unroll) }
    a.sub(.rdx, unroll)
    a.j(.greaterOrEqual, loop)
    a.bind(single)
    a.add(.rdx, unroll)
    a.j(.lessOrEqual, done)
    let remainder = a.here()
    self.step(0)
    a.add(.rax, 4)
    a.add(.rbx, panelBytes)
    if shape.linesAhead > 0 { a.add(.r9, 64 * shape.linesAhead) }
    a.dec(.rdx)
    a.j(.notEqual, remainder)
    a.bind(done)
  }

  /// One word of K: every accumulator gets one multiply-add.
  private func step(_ k: Int) {
    var spare = Array(free.dropFirst(shape.vectors))
    if case .lanes(let lanes, _) = tail, !shape.masksB { spare.append(lanes) }
    // What is read next comes from beyond the caches, across pages, where the hardware does not look.
    for line in 0..<shape.linesAhead {
      a.prefetcht1(Address(.r9, 64 * (k * shape.linesAhead + line)))
    }
    spare.removeAll { $0 == products }
    step(0..<rows, offsetInA: 4 * k, offsetInB: k * shape.panelBytes, factors: spare)
  }

  /// One multiply-add for every accumulator of some rows, by way of the registers `factors`.
  func step(_ rows: Range<Int>, offsetInA: Int, offsetInB: Int, factors: [Vec]) {
    let columns = free.prefix(shape.vectors)
    for (index, column) in columns.enumerated() {
      let vectorBytes = isa.lanes * shape.kind.columnBytes
      let place = Address(.rbx, offsetInB + index * vectorBytes)
      switch shape.kind {
      case .float16Weights: a.vcvtph2ps(column, place)
      case .widenedInt8: a.vpmovsxbw(column, place)
      default: a.loadTail(column, place, shape.masksB ? tail(index) : nil)
      }
    }
    for row in rows {
      let element = Address(.rax, shape.rowOffsets[row] + offsetInA)
      // An operand that is broadcast in each multiply-add would take as many loads as there are of these.
      let factor = factors[row % factors.count]
      a.vbroadcastss(factor, element)
      for (index, column) in columns.enumerated() {
        multiplyAdd(accumulators[row][index], column, factor)
      }
    }
  }

  func multiplyAdd(_ sum: Vec, _ column: some VectorOperand, _ factor: Vec) {
    switch shape.kind {
    case .float32, .float16Weights: a.vfmadd231ps(sum, factor, column)
    case .bfloat16: a.vdpbf16ps(sum, factor, column)
    case .int8 where isa == .avx2VNNI: a.vexVpdpbusd(sum, factor, column)
    case .int8: a.vpdpbusd(sum, factor, column)
    case .int16, .widenedInt8:
      guard let products else { return a.vpdpwssd(sum, factor, column) }
      a.vpmaddwd(products, factor, column)
      a.vpaddd(sum, sum, products)
    }
  }
}
