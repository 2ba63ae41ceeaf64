// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusCalibration
import Foundation
import Testing

/// The published algorithm, word for word and slow.
private func published(_ bins: [UInt64], _ levels: Int) -> Int {
  let last = (bins.lastIndex { $0 > 0 } ?? -1) + 1
  guard last > levels else { return last }
  var divergences: [Double] = []
  for size in levels...last {
    var reference = bins[..<size].map { Double($0) }
    let inside = reference.reduce(0, +)
    guard inside > 0 else {
      divergences.append(.infinity)
      continue
    }
    reference[size - 1] += bins[size..<last].reduce(0.0) { $0 + Double($1) }
    var rounded = [Double](repeating: 0, count: size)
    for level in 0..<levels {
      let start = level * (size / levels)
      let end = level == levels - 1 ? size : start + size / levels
      let occupied = (start..<end).filter { reference[$0] > 0 }
      let sum = bins[start..<end].reduce(0.0) { $0 + Double($1) }
      for index in occupied { rounded[index] = max(sum, 1e-4) / Double(occupied.count) }
    }
    let total = reference.reduce(0, +)
    var divergence = 0.0
    for index in 0..<size where reference[index] > 0 {
      let p = reference[index] / total
      divergence += p * log(p / (rounded[index] / inside))
    }
    divergences.append(divergence)
  }
  let least = divergences.min() ?? 0
  return levels + (divergences.lastIndex { $0 <= least + 1e-11 } ?? 0)
}

@Suite struct EntropyThresholdTests {
  private func histogram(_ kind: Int, _ seed: UInt64) -> [UInt64] {
    var state = seed &* 77 &+ 1
    func unit() -> Double {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return Double(state >> 11) / Double(1 << 53)
    }
    var bins = [UInt64](repeating: 0, count: 600)
    for _ in 0..<20_000 {
      let value =
        switch kind {
        case 0: -log(1 - unit()) * 60  // exponential
        case 1: unit() * 600  // flat
        case 2: pow(unit(), 4) * 600  // steep
        default: unit() < 0.002 ? 500 + unit() * 99 : unit() * 150  // outliers
        }
      bins[min(599, Int(value))] += 1
    }
    return bins
  }

  @Test(arguments: [0, 1, 2, 3])
  func equalsThePublishedAlgorithm(kind: Int) {
    for seed in 1...3 {
      let bins = histogram(kind, UInt64(seed))
      let found = EntropyThreshold.find(bins, binWidth: 0.5, levels: 64)
      #expect(found == Double(published(bins, 64)) * 0.5)
    }
  }

  @Test func clipsLonelyOutliers() {
    var bins = [UInt64](repeating: 0, count: 2048)
    for index in 0..<300 { bins[index] = UInt64(3000 - 10 * index) }
    bins[2047] = 1
    #expect(EntropyThreshold.find(bins, binWidth: 1) < 600)
  }

  @Test func fewBinsAreTakenWhole() {
    #expect(EntropyThreshold.find([], binWidth: 1) == 0)
    #expect(EntropyThreshold.find([0, 0], binWidth: 1) == 0)
    #expect(EntropyThreshold.find([4, 0, 1], binWidth: 2) == 6)
  }
}
