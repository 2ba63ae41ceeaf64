// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusKernel
import ApusTensor
import ApusX86

/// Measures what this CPU reaches with all threads of a pool: loops of nothing but multiply-adds, and of nothing but
/// loads.
struct CPURoofline {
  let pool: ThreadPool
  let isa: ISA
  /// How long each of it is measured, over and over: a moment in which the machine is someone else's, or its clock is
  /// low, must not become the bound.
  let seconds: Double

  /// Footprints whose traffic is measured, and what each stands for.
  private static let footprints = [(16 << 10, 32 << 10), (256 << 10, 512 << 10), (4 << 20, 8 << 20), (64 << 20, Int.max)]

  /// Nil without generated code.
  func measure() throws(ApusError) -> Roofline? {
    guard let operations = try operations() else { return nil }
    return Roofline(operations: operations, traffic: try traffic())
  }

  /// Operations in a second; nil without generated code.
  func operations() throws(ApusError) -> [DataType: Double]? {
    guard isa != .portable else { return nil }
    var operations: [DataType: Double] = [:]
    for type in [DataType.float32, .bfloat16, .int8] where CPUDescription.fastTypes.contains(type) {
      operations[type] = try peak(type)
    }
    return operations
  }

  // MARK: Products

  /// Enough independent sums to cover the latency of two multiply-adds at a time.
  private var sumCount: Int { isa == .avx512 ? 24 : 12 }
  private static let rounds = 50_000

  private func peak(_ type: DataType) throws(ApusError) -> Double {
    let code = try ExecutableMemory(products(type), name: "peak \(type)")
    let seconds = withExtendedLifetime(code) {
      let run = code.function(as: (@convention(c) (Int) -> Void).self)
      return typical { pool.parallelFor(pool.threadCount, run) { run, _ in run(Self.rounds) } }
    }
    let perLane =
      switch type {
      case .float32: 2
      case .bfloat16: 4
      default: 2 * ProductKind.bytes(isa).interleave
      }
    return Double(pool.threadCount * Self.rounds * sumCount * isa.lanes * perLane) / seconds
  }

  /// rdi rounds.
  private func products(_ type: DataType) throws(ApusError) -> [UInt8] {
    let a = Assembler()
    let sums = (0..<sumCount).map { Vec($0, isa.width) }
    let factor = Vec(sumCount, isa.width)
    let product = Vec(sumCount + 1, isa.width)
    for register in sums + [factor] { a.vxorps(register, register, register) }
    a.align(32)
    let loop = a.here()
    for sum in sums {
      switch (type, isa) {
      case (.bfloat16, _): a.vdpbf16ps(sum, factor, factor)
      case (.int8, _) where ProductKind.bytes(isa).widens:
        a.vpmaddwd(product, factor, factor)
        a.vpaddd(sum, sum, product)
      case (.int8, .avx512): a.vpdpbusd(sum, factor, factor)
      case (.int8, _): a.vexVpdpbusd(sum, factor, factor)
      default: a.vfmadd231ps(sum, factor, factor)
      }
    }
    a.dec(.rdi)
    a.j(.notEqual, loop)
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  // MARK: Memory

  private func traffic() throws(ApusError) -> [Roofline.Traffic] {
    let code = try ExecutableMemory(loads(), name: "traffic")
    let largest = Self.footprints[Self.footprints.count - 1].0
    let memory = try AlignedMemory(byteCount: largest)
    // Pages that nobody has written are all one.
    memory.base.initializeMemory(as: UInt8.self, repeating: 1, count: largest)
    return withExtendedLifetime((code, memory)) {
      let run = code.function(as: (@convention(c) (UnsafeRawPointer, Int) -> Void).self)
      return Self.footprints.map { footprint, upTo in
        // Every thread has a part of its own, read so often that starting does not count.
        let share = max(Self.step, footprint / pool.threadCount / Self.step * Self.step)
        let repeats = max(1, (4 << 20) / share)
        let context = (run, UnsafeRawPointer(memory.base), share, repeats)
        let seconds = typical {
          pool.parallelFor(pool.threadCount, context) { context, task in
            let (run, base, share, repeats) = context
            for _ in 0..<repeats { run(base + task * share, share / Self.step) }
          }
        }
        return Roofline.Traffic(footprint: upTo, rate: Double(pool.threadCount * share * repeats) / seconds)
      }
    }
  }

  /// Bytes that a round of the loop reads.
  private static let step = 512

  /// rdi address, rsi rounds.
  private func loads() throws(ApusError) -> [UInt8] {
    let a = Assembler()
    a.align(32)
    let loop = a.here()
    for place in 0..<Self.step / isa.width.bytes {
      a.vmovups(Vec(place % 8, isa.width), Address(.rdi, place * isa.width.bytes))
    }
    a.add(.rdi, Self.step)
    a.dec(.rsi)
    a.j(.notEqual, loop)
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  /// The seconds of a try: of the median one, since kernels run at the clock of most moments and not at that of the
  /// best.
  private func typical(_ work: () -> Void) -> Double {
    var tries: [Double] = []
    let end = Clock.seconds + seconds
    var start = Clock.seconds
    repeat {
      work()
      let now = Clock.seconds
      tries.append(now - start)
      start = now
    } while start < end
    return max(tries.sorted()[tries.count / 2], 1e-9)
  }
}
