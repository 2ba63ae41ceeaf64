// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusX86

/// Generated code that puts the elements of a few planes side by side, as channels of pixels: what becomes
/// of an image with its channels apart.
package final class InterleaveKernel: Sendable {
  /// What the elements are and become.
  package enum Form: Sendable {
    case bytes
    /// Of 32 bits.
    case words
    /// Single precision, rounded to `bfloat16`; an odd number of channels is filled up with zeros.
    case bfloat16

    var sourceBytes: Int { self == .bytes ? 1 : 4 }

    /// Bytes of a pixel in the result.
    func pixelBytes(planes: Int) -> Int {
      switch self {
      case .bytes: planes
      case .words: 4 * planes
      case .bfloat16: 4 * ((planes + 1) / 2)
      }
    }
  }

  /// `(planes, pixels, number of pixels)`
  private typealias Code = @convention(c) (UnsafeRawPointer, UnsafeMutableRawPointer, Int) -> Void

  private let memory: ExecutableMemory
  private let count: Int
  private let sourceBytes: Int
  private let pixelBytes: Int

  /// Whether there are kernels for so many planes of so many elements on this machine.
  package static func takes(planes: Int, count: Int = .max, _ form: Form) -> Bool {
    if form == .bfloat16 {
      return (1...4).contains(planes) && ISA.current == .avx512 && CPUFeatures.host.avx512BF16
    }
    guard (2...4).contains(planes), ISA.current != .portable, count > 0 else { return false }
    return usesMasks(form) || count >= EightPixelsGenerator.pixels
  }

  private static func usesMasks(_ form: Form) -> Bool {
    ISA.current == .avx512 && (form != .bytes || CPUFeatures.host.avx512VBMI)
  }

  /// Pixels that one task moves.
  private static let taskPixels = 16384

  /// Generates the code for planes of `count` elements that start `planeStride` elements apart.
  package init(planes: Int, planeStride: Int, count: Int, _ form: Form) throws(ApusError) {
    guard Self.takes(planes: planes, count: count, form), planeStride > 0, planeStride < 1 << 26 else {
      throw ApusError(.notYetSupported, "\(planes) planes have no interleaving kernel")
    }
    sourceBytes = form.sourceBytes
    pixelBytes = form.pixelBytes(planes: planes)
    let planeBytes = planeStride * sourceBytes
    memory = try ExecutableMemory(
      Self.usesMasks(form)
        ? InterleaveGenerator(planes: planes, planeBytes: planeBytes, form: form).generate()
        : EightPixelsGenerator(planes: planes, planeBytes: planeBytes, form: form).generate(),
      name: "interleave \(planes)")
    self.count = count
  }

  /// Moves all pixels.
  package func run(_ source: UnsafeRawPointer, _ target: UnsafeMutableRawPointer, pool: ThreadPool) {
    let tasks = max(1, count / Self.taskPixels)
    pool.parallelFor(tasks, (self, source, target)) { context, task in
      context.0.run(task, context.1, context.2)
    }
  }

  private func run(_ task: Int, _ source: UnsafeRawPointer, _ target: UnsafeMutableRawPointer) {
    // The last task takes the rest, too: a few pixels alone may be too few.
    let first = task * Self.taskPixels
    let isLast = first + 2 * Self.taskPixels > count
    memory.function(as: Code.self)(
      source + first * sourceBytes, target + first * pixelBytes, isLast ? count - first : Self.taskPixels)
  }
}

/// Writes the loop: 16 pixels at a time.
private struct InterleaveGenerator {
  let a = Assembler()
  let planes: Int
  let planeBytes: Int
  let form: InterleaveKernel.Form
  /// The lanes of the pixels that exist.
  private let some = Mask(1)
  private let stored = Mask(2)

  init(planes: Int, planeBytes: Int, form: InterleaveKernel.Form) {
    self.planes = planes
    self.planeBytes = planeBytes
    self.form = form
  }

  private func z(_ number: Int) -> Vec { Vec(number, .zmm) }
  private func plane(_ index: Int) -> Address { Address(.rdi, index * planeBytes) }

  func generate() throws(ApusError) -> [UInt8] {
    prepare()
    let tail = a.label()
    let done = a.label()
    a.sub(.rdx, 16)
    a.j(.less, tail)
    let loop = a.here()
    for index in 0..<planes {
      a.prefetcht0(plane(index).offset(Self.distance))
    }
    move(masked: false)
    a.add(.rdi, 16 * form.sourceBytes)
    a.add(.rsi, 16 * form.pixelBytes(planes: planes))
    a.sub(.rdx, 16)
    a.j(.greaterOrEqual, loop)
    a.bind(tail)
    a.add(.rdx, 16)
    a.j(.equal, done)
    a.mov(.rcx, -1)
    a.bzhi(.r8, .rcx, .rdx)
    a.kmovw(some, .r8)
    // The bytes or lanes of the result that exist.
    a.imul(.rdx, .rdx, form == .bytes ? planes : lanesPerPixel)
    a.bzhi(.r8, .rcx, .rdx)
    move(masked: true)
    a.bind(done)
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  /// Bytes of a plane that are fetched ahead of their use.
  private static let distance = 1024

  /// 16 pixels, or those that exist of them.
  private func move(masked: Bool) {
    switch form {
    case .bytes: moveBytes(masked)
    case .words:
      for index in 0..<planes { load(z(index), plane(index), masked) }
      storeInterleaved(masked)
    case .bfloat16:
      roundPairs(masked)
      storeInterleaved(masked)
    }
  }

  private func load(_ to: Vec, _ from: Address, _ masked: Bool) {
    if masked { a.vmovups(to, from, mask: some, zeroing: true) } else { a.vmovups(to, from) }
  }

  /// Lanes of 32 bits of a pixel in the result.
  private var lanesPerPixel: Int { form.pixelBytes(planes: planes) / 4 }

  /// The order of step `step` in which lanes of the vector so far, and those of vector `step`, become
  /// vector `result`.
  private func order(_ result: Int, _ step: Int) -> Vec {
    z(8 + result * (lanesPerPixel - 1) + step - 1)
  }

  private func prepare() {
    if form == .bytes {
      let kept = (0..<64).map { $0 < 16 * planes ? UInt32($0 / planes * 4 + $0 % planes) : 0 }
      let words = stride(from: 0, to: 64, by: 4).map { place -> UInt32 in
        kept[place..<place + 4].reversed().reduce(0) { $0 << 8 | $1 }
      }
      return a.vmovups(z(2), a.constant(words: words))
    }
    let count = lanesPerPixel
    for result in 0..<count {
      for step in 1..<max(1, count) {
        let words = (0..<16).map { lane -> UInt32 in
          let (pixel, part) = (16 * result + lane).quotientAndRemainder(dividingBy: count)
          if part == step { return UInt32(16 + pixel) }
          return UInt32(step == 1 && part == 0 ? pixel : lane)
        }
        a.vmovups(order(result, step), a.constant(words: words))
      }
    }
  }

  /// A lane for each pixel, one byte after the other, then the lanes closed up.
  private func moveBytes(_ masked: Bool) {
    let (pixels, next, order) = (z(0), z(1), z(2))
    for index in 0..<planes {
      let lanes = index == 0 ? pixels : next
      a.vpmovzxbd(lanes, plane(index), mask: masked ? some : nil)
      if index > 0 {
        a.vpslld(next, next, UInt8(8 * index))
        a.vorps(pixels, pixels, next)
      }
    }
    a.vpermb(pixels, order, pixels)
    if !masked { a.mov(.r8, planes == 4 ? -1 : (1 << (16 * planes)) - 1) }
    a.kmovq(stored, .r8)
    a.vmovdqu8(Address(.rsi), pixels, mask: stored)
  }

  /// Rounds the planes and puts two at a time into lanes, in the first registers.
  private func roundPairs(_ masked: Bool) {
    let next = z(7)
    for index in 0..<planes {
      let lanes = index % 2 == 0 ? z(index / 2) : next
      load(lanes, plane(index), masked)
      a.vcvtneps2bf16(lanes.at(.ymm), lanes)
      a.vpmovzxwd(lanes, lanes.at(.ymm))
      if index % 2 == 1 {
        a.vpslld(next, next, 16)
        a.vorps(z(index / 2), z(index / 2), next)
      }
    }
  }

  /// Stores the lanes of the first registers side by side.
  private func storeInterleaved(_ masked: Bool) {
    for result in 0..<lanesPerPixel {
      let target = z(4 + result)
      a.vmovups(target, z(0))
      for step in 1..<max(1, lanesPerPixel) { a.vpermt2d(target, order(result, step), z(step)) }
      guard masked else {
        a.vmovups(Address(.rsi, 64 * result), target)
        continue
      }
      a.kmovw(stored, .r8)
      a.shr(.r8, 16)
      a.vmovups(Address(.rsi, 64 * result), target, mask: stored)
    }
  }
}
