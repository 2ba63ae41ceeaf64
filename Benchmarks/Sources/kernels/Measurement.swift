// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

func exitProcess(_ status: Int32) -> Never { exit(status) }

/// The time of a kernel, without what moves its operands to and from it.
struct Measurement {
  let kernel: Kernel
  let precision: BuilderConfiguration.Precision
  let tactic: String
  let seconds: Double
  /// Operations and bytes in a second.
  let rate: Double
  let bandwidth: Double

  /// Builds the kernel's network and times its longest kernel.
  ///
  /// - Throws: as `Builder.build`.
  init(of kernel: Kernel, _ precision: BuilderConfiguration.Precision, threads: Int) throws(ApusError) {
    self.kernel = kernel
    self.precision = precision
    var configuration = BuilderConfiguration()
    configuration.threadCount = threads
    configuration.precision = precision
    if precision == .int8 { configuration.calibration = .random(2) }
    let engine = try Builder(configuration).build(try kernel.graph())
    let context = try engine.makeContext()
    let inputs = try engine.sampleInputs(configuration)
    var best: [KernelTime] = []
    let end = Clock.seconds + 0.4
    while Clock.seconds < end || best.isEmpty {
      let times = try context.profile(inputs)
      if best.isEmpty {
        best = times
      } else {
        for index in best.indices where times[index].seconds < best[index].seconds {
          best[index] = times[index]
        }
      }
    }
    // The one with the most operations; of none, the longest.
    let main = best.max { ($0.operations, $0.seconds) < ($1.operations, $1.seconds) }
    tactic = main?.tactic ?? ""
    seconds = main?.seconds ?? 0
    rate = (main?.operations ?? 0) / max(seconds, 1e-12)
    bandwidth = (main?.bytes ?? 0) / max(seconds, 1e-12)
  }

  /// All measurements with their share of the roof: the fastest direct product in the precision for what computes
  /// (Winograd's, counted as if they were direct, may be above it), the fastest of all for what moves memory. What has a
  /// twin may be held up by the `multipliers`, too: the larger share of both bounds counts.
  static func json(
    _ rows: [Measurement], multipliers: (BuilderConfiguration.Precision) -> Double
  ) -> [JSON] {
    rows.map { row in
      let rivals = rows.filter { $0.kernel.bound == row.kernel.bound }
      let share: Double
      switch row.kernel.bound {
      case .compute:
        let direct = rivals.filter { $0.precision == row.precision && !$0.tactic.contains("winograd") }
        share = row.rate / (direct.map(\.rate).max() ?? 1)
      case .memory:
        if let twin = rows.first(where: { $0.kernel.name == row.kernel.twin }) {
          share = max(row.bandwidth / twin.bandwidth, row.rate / multipliers(row.precision))
        } else {
          share = row.bandwidth / (rivals.map(\.bandwidth).max() ?? 1)
        }
      }
      return .object([
        ("name", .string(row.kernel.name)), ("precision", .string(row.precision.rawValue)),
        ("bound", .string(row.kernel.bound.rawValue)), ("tactic", .string(row.tactic)),
        ("microseconds", .number(row.seconds * 1e6)), ("gflops", .number(row.rate * 1e-9)),
        ("gigabytes_per_second", .number(row.bandwidth * 1e-9)), ("share", .number(share)),
      ])
    }
  }
}
