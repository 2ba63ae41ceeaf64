// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusX86

/// Generated code that puts the bytes of a few planes side by side, as channels of pixels: what becomes
/// of an image with its channels apart.
package final class InterleaveKernel: Sendable {
  /// `(planes, pixels, number of pixels)`
  private typealias Code = @convention(c) (UnsafeRawPointer, UnsafeMutableRawPointer, Int) -> Void

  private let memory: ExecutableMemory
  private let count: Int
  private let planes: Int

  /// Whether there are kernels for so many planes on this machine.
  package static func takes(planes: Int) -> Bool {
    (2...4).contains(planes) && ISA.current == .avx512 && CPUFeatures.host.avx512VBMI
  }

  /// Pixels that one task moves.
  private static let taskPixels = 16384

  /// Generates the code for planes of `count` bytes that start `planeBytes` apart.
  package init(planes: Int, planeBytes: Int, count: Int) throws(ApusError) {
    guard Self.takes(planes: planes), count > 0, planeBytes > 0, planeBytes < 1 << 28 else {
      throw ApusError(.notYetSupported, "\(planes) planes have no interleaving kernel")
    }
    memory = try ExecutableMemory(Self.generate(planes, planeBytes), name: "interleave \(planes)")
    self.count = count
    self.planes = planes
  }

  /// Moves all pixels.
  package func run(_ source: UnsafeRawPointer, _ target: UnsafeMutableRawPointer, pool: ThreadPool) {
    let tasks = (count + Self.taskPixels - 1) / Self.taskPixels
    pool.parallelFor(tasks, (self, source, target)) { context, task in
      context.0.run(task, context.1, context.2)
    }
  }

  private func run(_ task: Int, _ source: UnsafeRawPointer, _ target: UnsafeMutableRawPointer) {
    let first = task * Self.taskPixels
    memory.function(as: Code.self)(
      source + first, target + first * planes, min(Self.taskPixels, count - first))
  }

  /// 16 pixels at a time: a lane for each, one byte after the other, then the lanes closed up.
  private static func generate(_ planes: Int, _ planeBytes: Int) throws(ApusError) -> [UInt8] {
    let a = Assembler()
    let (pixels, next, order) = (Vec(0, .zmm), Vec(1, .zmm), Vec(2, .zmm))
    let (some, stored) = (Mask(1), Mask(2))
    let kept = (0..<64).map { $0 < 16 * planes ? UInt32($0 / planes * 4 + $0 % planes) : 0 }
    let words = stride(from: 0, to: 64, by: 4).map { place -> UInt32 in
      kept[place..<place + 4].reversed().reduce(0) { $0 << 8 | $1 }
    }
    a.vmovups(order, a.constant(words: words))
    let loop = a.here()
    let whole = a.label()
    // Lanes and bytes that exist.
    a.mov(.rax, 16)
    a.cmp(.rdx, 16)
    a.j(.greaterOrEqual, whole)
    a.mov(.rax, .rdx)
    a.bind(whole)
    a.mov(.rcx, -1)
    a.bzhi(.r8, .rcx, .rax)
    a.kmovw(some, .r8)
    a.imul(.rax, .rax, planes)
    a.bzhi(.r8, .rcx, .rax)
    a.kmovq(stored, .r8)
    for plane in 0..<planes {
      let lanes = plane == 0 ? pixels : next
      a.vpmovzxbd(lanes, Address(.rdi, plane * planeBytes), mask: some)
      if plane > 0 {
        a.vpslld(next, next, UInt8(8 * plane))
        a.vorps(pixels, pixels, next)
      }
    }
    a.vpermb(pixels, order, pixels)
    a.vmovdqu8(Address(.rsi), pixels, mask: stored)
    a.add(.rdi, 16)
    a.add(.rsi, 16 * planes)
    a.sub(.rdx, 16)
    a.j(.greater, loop)
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }
}
