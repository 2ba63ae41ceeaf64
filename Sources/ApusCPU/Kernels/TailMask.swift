// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusX86

/// Which lanes of a partial vector exist: a mask register with AVX-512, a vector of element masks with
/// AVX2, and how many, if the code is for one number only; bytes, for which AVX2 has no masks, need that.
package enum TailMask: Hashable, Sendable {
  case mask(Mask)
  case lanes(Vec, count: Int?)
}

extension Assembler {
  /// Selects the first `count` lanes (1 to lanes - 1), `count` in a register that is overwritten.
  func prepareTail(_ tail: TailMask, count: R64, scratch: R64) {
    switch tail {
    case .mask(let mask):
      mov(scratch, -1)
      bzhi(scratch, scratch, count)
      kmovw(mask, scratch)
    case .lanes(let vector, _):
      // A window of eight ones followed by eight zeros.
      lea(scratch, laneWindow.offset(32))
      shl(count, 2)
      sub(scratch, count)
      vmovups(vector, Address(scratch))
    }
  }

  /// Selects the first `count` lanes.
  func prepareTail(_ tail: TailMask, count: Int, scratch: R64) {
    switch tail {
    case .mask(let mask):
      mov(scratch, (1 << count) - 1)
      kmovw(mask, scratch)
    case .lanes(let vector, _):
      vmovups(vector, laneWindow.offset(32 - 4 * count))
    }
  }

  private var laneWindow: Address {
    constant(words: Array(repeating: 0xFFFF_FFFF, count: 8) + Array(repeating: 0, count: 8))
  }

  /// Loads a whole vector, or the lanes of `tail` with zeros in the others.
  func loadTail(_ to: Vec, _ from: Address, _ tail: TailMask?) {
    switch tail {
    case nil: vmovups(to, from)
    case .mask(let mask): vmovups(to, from, mask: mask, zeroing: true)
    case .lanes(let lanes, _): vmaskmovps(to, mask: lanes, from)
    }
  }

  /// Stores a whole vector, or the lanes of `tail`.
  func storeTail(_ to: Address, _ from: Vec, _ tail: TailMask?) {
    switch tail {
    case nil: vmovups(to, from)
    case .mask(let mask): vmovups(to, from, mask: mask)
    case .lanes(let lanes, _): vmaskmovps(to, mask: lanes, from)
    }
  }
}
