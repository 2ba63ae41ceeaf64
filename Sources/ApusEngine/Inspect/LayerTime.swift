// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusKernel
import ApusTensor

/// The time of a kernel over several runs.
public struct LayerTime: Sendable {
  /// The kernel, with the median of its times.
  public let kernel: KernelTime
  /// The median of the shares that it reached of what the device could; nil where that is not known.
  public let share: Double?
}

extension ExecutionContext {
  /// Runs several times with a clock around every kernel.
  ///
  /// The clock of a core changes from one moment to the next, so how much the device computes is measured before every few
  /// runs that are compared with it. How much it reads is measured once, since that empties the caches.
  ///
  /// - Throws: as `run`.
  public func layerTimes(_ inputs: [String: Tensor]) throws(ApusError) -> [LayerTime] {
    let device = engine.device
    let backend = try Devices.backend(for: device.kind, threadCount: device.threadCount)
    var roof = try backend.roofline(seconds: 0.01)
    var rounds: [(times: [KernelTime], roof: Roofline?)] = []
    let end = Clock.seconds + Self.seconds
    while rounds.count < Self.leastRounds || Clock.seconds < end {
      if let operations = try backend.peakOperations(seconds: 0.001) { roof?.operations = operations }
      _ = try profile(inputs)
      var times = try profile(inputs)
      for _ in 1..<Self.runs {
        // A network that takes random numbers may go another way.
        for (index, kernel) in try profile(inputs).enumerated().prefix(times.count)
        where kernel.seconds < times[index].seconds {
          times[index].seconds = kernel.seconds
        }
      }
      rounds.append((times, roof))
    }
    rounds = rounds.filter { $0.times.count == rounds[0].times.count }
    func median(_ values: [Double]) -> Double { values.sorted()[values.count / 2] }
    return rounds[0].times.indices.map { index in
      var kernel = rounds[0].times[index]
      kernel.seconds = median(rounds.map { $0.times[index].seconds })
      let shares = rounds.compactMap { $0.roof?.share(of: kernel.work, $0.times[index].seconds) }
      return LayerTime(kernel: kernel, share: shares.isEmpty ? nil : median(shares))
    }
  }

  /// Of each round the fastest run of a kernel counts, behind one that fills the caches, and the median of the rounds.
  private static let runs = 3
  private static let leastRounds = 5
  /// As long as rounds go on: a machine that others use, too, has slow moments of some tens of milliseconds.
  private static let seconds = 1.0
}
