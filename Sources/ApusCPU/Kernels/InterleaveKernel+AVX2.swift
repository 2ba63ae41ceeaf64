// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusX86

/// Writes the loop of an `InterleaveKernel` without masks: eight pixels at a time, and then the last eight, some of
/// them for the second time.
struct EightPixelsGenerator {
  let planes: Int
  let planeBytes: Int
  let form: InterleaveKernel.Form
  private let a = Assembler()

  /// Pixels that are moved together, and how many there must be.
  static let pixels = 8

  init(planes: Int, planeBytes: Int, form: InterleaveKernel.Form) {
    self.planes = planes
    self.planeBytes = planeBytes
    self.form = form
  }

  private func y(_ number: Int) -> Vec { Vec(number, .ymm) }
  private func plane(_ index: Int) -> Address { Address(.rdi, index * planeBytes) }

  /// rdi planes, rsi pixels, rdx how many.
  func generate() throws(ApusError) -> [UInt8] {
    let last = a.label()
    let done = a.label()
    let loop = a.here()
    a.cmp(.rdx, Self.pixels)
    a.j(.less, last)
    move()
    a.add(.rdi, Self.pixels * form.sourceBytes)
    a.add(.rsi, Self.pixels * form.pixelBytes(planes: planes))
    a.sub(.rdx, Self.pixels)
    a.jmp(loop)
    a.bind(last)
    a.test(.rdx, .rdx)
    a.j(.equal, done)
    // Back by what the rest lacks of eight.
    a.sub(.rdx, Self.pixels)
    a.imul(.rcx, .rdx, form.sourceBytes)
    a.add(.rdi, .rcx)
    a.imul(.rcx, .rdx, form.pixelBytes(planes: planes))
    a.add(.rsi, .rcx)
    move()
    a.bind(done)
    a.vzeroupper()
    a.ret()
    return try a.finish()
  }

  private func move() {
    if form == .bytes { moveBytes() } else { moveWords() }
  }

  /// A lane for each pixel, one byte after the other, then the lanes of each 128 bits closed up.
  private func moveBytes() {
    let (pixels, next) = (y(0), y(1))
    for index in 0..<planes {
      let lanes = index == 0 ? pixels : next
      a.vpmovzxbd(lanes, plane(index))
      if index > 0 {
        a.vpslld(next, next, UInt8(8 * index))
        a.vorps(pixels, pixels, next)
      }
    }
    let halfBytes = 4 * planes
    if planes < 4 {
      let kept = (0..<16).map { $0 < halfBytes ? UInt32($0 / planes * 4 + $0 % planes) : 0x80 }
      let words = stride(from: 0, to: 16, by: 4).map { place -> UInt32 in
        kept[place..<place + 4].reversed().reduce(0) { $0 << 8 | $1 }
      }
      a.vpshufb(pixels, pixels, a.constant(words: words + words))
    }
    a.vextractf128(next.at(.xmm), pixels, 1)
    a.storeBytes(Address(.rsi), pixels.at(.xmm), count: halfBytes)
    a.storeBytes(Address(.rsi, halfBytes), next.at(.xmm), count: halfBytes)
  }

  /// Every vector of results takes lanes of all planes.
  private func moveWords() {
    let (target, next, order) = (y(0), y(1), y(2))
    for result in 0..<planes {
      for index in 0..<planes {
        let lanes = (0..<8).map { (8 * result + $0).quotientAndRemainder(dividingBy: planes) }
        a.vmovups(order, a.constant(words: lanes.map { UInt32($0.quotient) }))
        a.vpermps(index == 0 ? target : next, order, plane(index))
        guard index > 0 else { continue }
        let own = lanes.indices.reduce(0) { $0 | (lanes[$1].remainder == index ? 1 << $1 : 0) }
        a.vblendps(target, target, next, UInt8(own))
      }
      a.vmovups(Address(.rsi, 32 * result), target)
    }
  }
}
