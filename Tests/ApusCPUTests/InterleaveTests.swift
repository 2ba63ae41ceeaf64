// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusEngine
import ApusOps
import ApusTensor
import Testing

/// Planes of elements that become the channels of pixels, around the numbers of pixels that are moved together.
@Suite(.enabled(if: ISA.current != .portable)) struct InterleaveTests {
  private let pool = ThreadPool(threadCount: 2)

  @Test(arguments: 2...4) func planesBecomeChannels(planes: Int) throws {
    for count in [1, 8, 9, 15, 16, 17, 63, 1000, 32773, 40000]
    where InterleaveKernel.takes(planes: planes, count: count, .bytes) {
      let source = try GuardedTensor(
        Tensor((0..<planes * count).map { Int64($0 * 37 % 251) }, .uint8, shape: [planes, count]))
      let target = try GuardedTensor(Tensor(.uint8, shape: [count, planes]))
      try InterleaveKernel(planes: planes, planeStride: count, count: count, .bytes).run(
        source.raw, target.raw, pool: pool)
      let (from, to) = (source.tensor.ints(), target.tensor.ints())
      let wrong = to.indices.first { to[$0] != from[$0 % planes * count + $0 / planes] }
      #expect(wrong == nil, "\(planes) x \(count)")
    }
  }

  @Test(arguments: 1...4) func planesOfFloatsBecomePixels(planes: Int) throws {
    for form in [InterleaveKernel.Form.words, .bfloat16]
    where InterleaveKernel.takes(planes: planes, form) {
      let type: DataType = form == .words ? .float32 : .bfloat16
      let channels = form == .words ? planes : (planes + 1) / 2 * 2
      for count in [1, 8, 9, 15, 16, 17, 63, 1000, 32773, 40000]
      where InterleaveKernel.takes(planes: planes, count: count, form) {
        let values = (0..<planes * count).map { Double($0 * 37 % 251) / 8 - 11 }
        let source = try GuardedTensor(Tensor(values, .float32, shape: [1, planes, 1, count]))
        let target = try GuardedTensor(Tensor(type, shape: [1, 1, count, channels]))
        try InterleaveKernel(planes: planes, planeStride: count, count: count, form).run(
          source.raw, target.raw, pool: pool)
        let op = PlanesToPixels(channels: channels, to: type)
        let want = try op.evaluate([.tensor(source.tensor)])[0].tensor?.doubles()
        #expect(target.tensor.doubles() == want, "\(planes) x \(count) \(form)")
      }
    }
  }
}
