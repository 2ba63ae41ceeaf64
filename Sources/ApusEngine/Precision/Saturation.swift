// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusTensor

/// Counts what rounding to bytes cannot hold.
enum Saturation {
  /// Runs a network in single precision and compares what it makes with a table's ranges.
  ///
  /// - Returns: The tensors in the order of the network.
  static func count(
    _ network: Graph, _ configuration: BuilderConfiguration, _ table: CalibrationTable,
    _ batches: [[String: Tensor]]
  ) throws(ApusError) -> [Blame.Watched] {
    var configuration = configuration
    configuration.quantization.scalesChannels = false
    let calibration = try Calibration(network, configuration, calibrator: table.calibrator)
    if !table.scaling.isEmpty { try calibration.scale(table.scaling) }
    var counts = calibration.operands.map { Counter(name: $0.name, range: table.entries[$0.name]?.range) }
    for batch in batches {
      let values = try calibration.values(batch)
      for index in counts.indices { if let value = values(counts[index].name) { counts[index].add(value) } }
    }
    return counts.map(\.found)
  }

  /// What is odd about the values of one tensor.
  struct Counter {
    let name: String
    let range: ActivationRange?
    private var (count, nan, infinite, saturated) = (0, 0, 0, 0)

    init(name: String, range: ActivationRange?) {
      self.name = name
      self.range = range
    }

    var found: Blame.Watched {
      Blame.Watched(
        name: name, count: count, nanCount: nan, infiniteCount: infinite, saturatedCount: saturated)
    }

    mutating func add(_ tensor: Tensor) {
      guard tensor.dataType == .float32 else { return }
      // Half a step beyond the range still rounds to its end.
      let slack = Float((range?.scale ?? 0) / 2)
      let lower = range.map { Float($0.lower) - slack } ?? -.infinity
      let upper = range.map { Float($0.upper) + slack } ?? .infinity
      count += tensor.count
      tensor.withElements(of: Float.self) { values in
        for value in values {
          if value.isNaN {
            nan += 1
          } else if value.isInfinite {
            infinite += 1
          } else if value < lower || value > upper {
            saturated += 1
          }
        }
      }
    }
  }
}
