// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusTensor

/// What an interrupted calibration leaves beside its cache, so that the next one goes on from there.
extension Calibration {
  private static let header = "apus calibration state 3"

  /// The state after the batches so far; nil while it waits for more to decide how channels are scaled.
  package var stateText: String? {
    guard let scaling else { return nil }
    var lines = [
      Self.header, "model\t\(Checksum.hex(modelHash))",
      "seen\t\(batchCount)\t\(sampleCount)\t\(Checksum.hex(seen.value))",
    ]
    lines += watched.map { "tensor\t\($0.name)\t\($0.histogram.text)" }
    lines += operands.map { operand in
      let means = operand.means
      let channels = means.sums.indices.map { "\(means.sums[$0]):\(means.lower[$0]):\(means.upper[$0])" }
      return "means\t\(operand.name)\t\(means.count)\t\(channels.joined(separator: " "))"
    }
    lines += scaling.lines
    lines += samplers.map { "rows\t\($0.node)\t\($0.text)" }
    return lines.joined(separator: "\n") + "\n"
  }

  /// What a state says about the data it is from.
  struct Progress {
    let batchCount: Int
    let sampleCount: Int
    let seen: UInt64
  }

  /// Takes over the counts of a state; nil, with nothing changed, when it is damaged or of another
  /// network.
  ///
  /// - Throws: what building the scaled network throws.
  func restore(_ text: String) throws(ApusError) -> Progress? {
    var histograms: [String: MagnitudeHistogram] = [:]
    var means: [String: ChannelMeans] = [:]
    var rows: [String: String] = [:]
    var progress: Progress?
    var scaling = ChannelScaling()
    var lines = text.split(separator: "\n").map(String.init)[...]
    guard lines.popFirst() == Self.header else { return nil }
    for line in lines {
      let fields = line.split(separator: "\t", omittingEmptySubsequences: false).map(String.init)
      switch (fields[0], fields.count) {
      case ("model", 2):
        guard fields[1] == Checksum.hex(modelHash) else { return nil }
      case ("seen", 4):
        guard let batches = Int(fields[1]), let samples = Int(fields[2]),
          let seen = UInt64(fields[3], radix: 16), (0...1 << 48).contains(batches),
          (0...1 << 48).contains(samples)
        else { return nil }
        progress = Progress(batchCount: batches, sampleCount: samples, seen: seen)
      case ("tensor", 3):
        guard let histogram = MagnitudeHistogram(parsing: fields[2]) else { return nil }
        histograms[fields[1]] = histogram
      case ("means", 4):
        guard let read = ChannelMeans(count: fields[2], channels: fields[3]) else { return nil }
        means[fields[1]] = read
      case ("rows", 3):
        rows[fields[1]] = fields[2]
      case ("divide", 3), ("multiply", 3):
        guard scaling.read(fields[0], fields[1], fields[2]) else { return nil }
      default: return nil
      }
    }
    var samplers = samplers
    for index in samplers.indices {
      guard let text = rows[samplers[index].node], samplers[index].restore(text) else { return nil }
    }
    guard let progress, watched.allSatisfy({ histograms[$0.name] != nil }),
      operands.allSatisfy({ means[$0.name] != nil })
    else { return nil }
    try scale(scaling)
    for index in watched.indices { watched[index].histogram = histograms[watched[index].name]! }
    for index in operands.indices { operands[index].means = means[operands[index].name]! }
    self.samplers = samplers
    return progress
  }
}

extension ChannelMeans {
  /// Reads `sum:lower:upper` of every channel; nil when they are damaged.
  fileprivate init?(count: String, channels: String) {
    guard let count = Int(count), count >= 0 else { return nil }
    self.init(count: count)
    for channel in channels.split(separator: " ") {
      let numbers = channel.split(separator: ":").map { Double($0) ?? .nan }
      guard numbers.count == 3, numbers.allSatisfy(\.isFinite), numbers[1] <= 0, numbers[2] >= 0 else {
        return nil
      }
      sums.append(numbers[0])
      lower.append(Float(numbers[1]))
      upper.append(Float(numbers[2]))
    }
  }
}
