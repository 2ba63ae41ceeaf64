// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import Testing

import ApusX86

@Suite struct AssemblerTests {
  @Test func encodingsMatchTheGNUAssembler() throws {
    for (text, emit) in encodingCases {
      let assembler = Assembler()
      emit(assembler)
      let bytes = try assembler.finish()
      let hex = bytes.map { byte in
        let digits = String(byte, radix: 16)
        return digits.count == 1 ? "0" + digits : digits
      }.joined()
      #expect(hex == goldenBytes[text], "\(text)")
    }
  }

  @Test func mistakesSurfaceInFinish() {
    let unbound = Assembler()
    unbound.jmp(unbound.label())
    #expect(throws: ApusError.self) { _ = try unbound.finish() }
    let high = Assembler()
    high.vmaskmovps(.ymm(17), mask: .ymm(1), Address(.rax))
    #expect(throws: ApusError.self) { _ = try high.finish() }
    let narrow = Assembler()
    narrow.vexVpdpbusd(.zmm(1), .zmm(2), Vec.zmm(3))
    #expect(throws: ApusError.self) { _ = try narrow.finish() }
    let rows = Assembler()
    rows.tileloadd(Tile(1), Address(.rax))
    #expect(throws: ApusError.self) { _ = try rows.finish() }
    let equal = Assembler()
    equal.tdpbssd(Tile(1), Tile(2), Tile(2))
    #expect(throws: ApusError.self) { _ = try equal.finish() }
    let index = Assembler()
    index.mov(.rax, Address(.rax, index: .rsp))
    #expect(throws: ApusError.self) { _ = try index.finish() }
  }

  #if arch(x86_64)
    @Test func codeRuns() throws {
      // Sums the integers n, n-1, ..., 1 and adds a constant stored behind the code.
      let assembler = Assembler()
      let forward = assembler.label()
      assembler.clear(.rax)
      assembler.test(.rdi, .rdi)
      assembler.j(.lessOrEqual, forward)
      let loop = assembler.here()
      assembler.add(.rax, .rdi)
      assembler.dec(.rdi)
      assembler.j(.notEqual, loop)
      assembler.bind(forward)
      assembler.add(.rax, assembler.constant(words: [1000, 0]))
      assembler.ret()
      let memory = try ExecutableMemory(assembler.finish(), name: "test")
      let function = memory.function(as: (@convention(c) (Int) -> Int).self)
      #expect(function(10) == 1055)
      #expect(function(0) == 1000)
    }

    @Test func vectorConstantsAreFound() throws {
      // An immediate behind the displacement must not shift the address.
      let assembler = Assembler()
      let first = assembler.constant(words: [0x3F80_0000, 0x4000_0000, 0x4040_0000, 0x4080_0000])
      assembler.vmovups(.xmm(0), first)
      assembler.vpermilps(.xmm(1), first, 0b00_01_10_11)
      assembler.vaddps(.xmm(0), .xmm(0), Vec.xmm(1))
      let two = assembler.constant(words: Array(repeating: 0x4000_0000, count: 4))
      assembler.vmulps(.xmm(0), .xmm(0), two)
      assembler.vmovups(Address(.rdi), .xmm(0))
      assembler.ret()
      let memory = try ExecutableMemory(assembler.finish(), name: "test")
      let function = memory.function(
        as: (@convention(c) (UnsafeMutablePointer<Float>) -> Void).self)
      var result = [Float](repeating: 0, count: 4)
      result.withUnsafeMutableBufferPointer { function($0.baseAddress!) }
      #expect(result == [10, 10, 10, 10])
    }
  #endif
}
