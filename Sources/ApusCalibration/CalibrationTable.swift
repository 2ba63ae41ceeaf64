// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// What calibration found: the range of every tensor that is to be quantised. As text it is the
/// calibration cache.
public struct CalibrationTable: Sendable, Hashable {
  /// What was found about a tensor.
  public struct Entry: Sendable, Hashable {
    /// The range its bytes stand for.
    public var range: ActivationRange
    /// The mean of each channel, for correcting biases; empty where there is none.
    public var channelMeans: [Double]
    /// What each channel's bytes stand for, where channels have steps of their own; empty elsewhere.
    public var channelRanges: [ActivationRange]

    /// Creates an entry.
    public init(
      range: ActivationRange, channelMeans: [Double] = [], channelRanges: [ActivationRange] = []
    ) {
      self.range = range
      self.channelMeans = channelMeans
      self.channelRanges = channelRanges
    }
  }

  /// The tensors by name.
  public var entries: [String: Entry]
  /// What products' weights multiply, by the products' nodes: how the weights are to be rounded.
  public var moments: [String: WeightMoments] = [:]
  /// What the channels were scaled by before; the ranges are those of the scaled tensors.
  public var scaling = ChannelScaling()
  /// How the ranges were chosen.
  public var calibrator: Calibrator
  /// The checksum of the network they were found with.
  public var modelHash: UInt64
  /// How many samples were seen.
  public var sampleCount: Int
  /// Whether ranges were searched again by what they do to the results.
  public var isRefined = false
  /// Whether the samples were random numbers, which say nothing about accuracy.
  public var isRandom: Bool

  /// Creates a table.
  public init(
    entries: [String: Entry], calibrator: Calibrator, modelHash: UInt64, sampleCount: Int,
    isRandom: Bool = false
  ) {
    self.entries = entries
    self.calibrator = calibrator
    self.modelHash = modelHash
    self.sampleCount = sampleCount
    self.isRandom = isRandom
  }

  private static let header = "apus calibration cache 2"

  /// The text form: a line of head data each, then `name, lower, upper, scale, zero point, means` of the
  /// tensors by tabs, then `lower:upper` of their channels where these have steps of
  /// their own, then second moments by products; sorted, so that equal tables are equal files.
  public var text: String {
    var lines = [
      Self.header, "model\t\(Checksum.hex(modelHash))", "calibrator\t\(calibrator)\(isRefined ? "\trefined" : "")",
      "samples\t\(sampleCount)\(isRandom ? "\trandom" : "")",
    ]
    lines += entries.map { name, entry in
      let range = entry.range
      let means = entry.channelMeans.map { "\(Float($0))" }.joined(separator: " ")
      return "tensor\t\(name)\t\(range.lower)\t\(range.upper)\t\(range.scale)\t\(range.zeroPoint)\t\(means)"
    }.sorted()
    lines += entries.filter { !$1.channelRanges.isEmpty }.map { name, entry in
      let ranges = entry.channelRanges.map { "\($0.lower):\($0.upper)" }.joined(separator: " ")
      return "channels\t\(name)\t\(ranges)"
    }.sorted()
    lines += scaling.lines
    lines += moments.map { name, moments in
      (["moments", name] + moments.fields).joined(separator: "\t")
    }.sorted()
    return lines.joined(separator: "\n") + "\n"
  }

  /// Reads the text form.
  ///
  /// - Throws: `malformed-file` with the line.
  public init(parsing text: String) throws(ApusError) {
    var lines = text.split(separator: "\n", omittingEmptySubsequences: false)[...]
    guard lines.popFirst().map(String.init) == Self.header else {
      throw ApusError(
        .malformedFile, "this is not a calibration cache of a version that is known",
        hint: "delete the file or name another one; it is made anew")
    }
    self.init(entries: [:], calibrator: .entropy, modelHash: 0, sampleCount: 0)
    for (number, line) in zip(2..., lines) where !line.isEmpty {
      guard read(line.split(separator: "\t", omittingEmptySubsequences: false).map(String.init))
      else {
        throw ApusError(
          .malformedFile, "line \(number) of the calibration cache is damaged",
          hint: "delete the file; the network is calibrated again")
      }
    }
  }

  private mutating func read(_ fields: [String]) -> Bool {
    switch (fields[0], fields.count) {
    case ("model", 2):
      guard let hash = UInt64(fields[1], radix: 16) else { return false }
      modelHash = hash
    case ("calibrator", 2...3):
      guard let known = Calibrator(fields[1]), fields.count == 2 || fields[2] == "refined" else { return false }
      calibrator = known
      isRefined = fields.count == 3
    case ("samples", 2...3):
      guard let count = Int(fields[1]), count >= 0 else { return false }
      sampleCount = count
      isRandom = fields.count == 3
    case ("tensor", 7):
      let means = fields[6].split(separator: " ").map { Double($0) }
      guard let range = Self.range(fields[2], fields[3]), !means.contains(nil) else { return false }
      entries[fields[1]] = Entry(range: range, channelMeans: means.compactMap { $0 })
    case ("channels", 3):
      let ranges = fields[2].split(separator: " ").map { text -> ActivationRange? in
        let ends = text.split(separator: ":")
        return ends.count == 2 ? Self.range(String(ends[0]), String(ends[1])) : nil
      }
      guard entries[fields[1]] != nil, !ranges.contains(nil) else { return false }
      entries[fields[1]]?.channelRanges = ranges.compactMap { $0 }
    case ("moments", 5):
      guard let read = WeightMoments(fields: fields[2...]) else { return false }
      moments[fields[1]] = read
    case ("divide", 3), ("multiply", 3): return scaling.read(fields[0], fields[1], fields[2])
    default: return false
    }
    return true
  }

  private static func range(_ lower: String, _ upper: String) -> ActivationRange? {
    guard let lower = Double(lower), let upper = Double(upper), Float(lower).isFinite,
      Float(upper - lower).isFinite, lower <= 0, upper >= 0
    else { return nil }
    return ActivationRange(lower: lower, upper: upper)
  }

  /// Reads a cache file; nil when there is none.
  ///
  /// - Throws: `malformed-file` when it is damaged; the file is left untouched.
  public static func load(_ path: String) throws(ApusError) -> CalibrationTable? {
    guard FileIO.exists(path) else { return nil }
    do {
      return try CalibrationTable(parsing: String(decoding: try FileIO.read(path), as: UTF8.self))
    } catch {
      throw error.at(GraphLocation(file: path))
    }
  }

  /// Writes the text form, replacing the file in one step.
  public func save(_ path: String) throws(ApusError) { try FileIO.write(text: text, to: path) }
}
