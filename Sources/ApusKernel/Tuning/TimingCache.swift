// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import Synchronization

/// Measured times by problem and device, kept in a text file that can be compared and merged.
///
/// One record a line, tab separated: device fingerprint, problem, chosen tactic id, the tactic's
/// version, then every measurement as `id=microseconds`. A record whose tactic version differs from
/// the code's is ignored, and counted.
public final class TimingCache: Sendable {
  /// One problem's record.
  public struct Entry: Sendable, Equatable {
    /// The id of the winner.
    public var winner: String
    /// The version of the winner's tactic.
    public var version: Int
    /// All measured times in seconds, in the order of measurement.
    public var measurements: [Measurement]

    /// Creates a record.
    public init(winner: String, version: Int, measurements: [Measurement]) {
      self.winner = winner
      self.version = version
      self.measurements = measurements
    }
  }

  /// One measured time.
  public struct Measurement: Sendable, Equatable {
    public var id: String
    public var seconds: Double

    /// Records a time.
    public init(id: String, seconds: Double) {
      self.id = id
      self.seconds = seconds
    }
  }

  private struct Key: Hashable {
    let device: String
    let problem: String
  }

  private struct State {
    var entries: [Key: Entry] = [:]
    var foreign = 0
  }

  private static let header = "apus timing cache 1"
  private let state = Mutex(State())

  /// Creates an empty cache.
  public init() {}

  /// The record of a problem on a device.
  public func entry(problem: String, device: String) -> Entry? {
    state.withLock { $0.entries[Key(device: device, problem: problem)] }
  }

  /// Adds or replaces a record.
  public func record(_ entry: Entry, problem: String, device: String) {
    state.withLock { $0.entries[Key(device: device, problem: problem)] = entry }
  }

  /// Takes over the records of another cache; they replace its own of the same problems.
  public func merge(_ other: TimingCache) {
    let entries = other.state.withLock { $0.entries }
    state.withLock { $0.entries.merge(entries) { $1 } }
  }

  /// The number of records.
  public var count: Int { state.withLock { $0.entries.count } }

  /// The number of records of other devices.
  public func foreignCount(device: String) -> Int {
    state.withLock { state in state.entries.keys.reduce(0) { $1.device == device ? $0 : $0 + 1 } }
  }

  /// Reads a cache file; a file that does not exist is an empty cache.
  ///
  /// - Throws: `malformed-file` with the line; the file is left untouched.
  public static func load(_ path: String) throws(ApusError) -> TimingCache {
    guard FileIO.exists(path) else { return TimingCache() }
    let text = String(decoding: try FileIO.read(path), as: UTF8.self)
    do {
      return try TimingCache(parsing: text)
    } catch {
      throw error.at(GraphLocation(file: path))
    }
  }

  /// Reads the text form.
  public convenience init(parsing text: String) throws(ApusError) {
    self.init()
    let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
    guard lines.first.map(String.init) == Self.header else {
      throw ApusError(
        .malformedFile, "this is not a timing cache of a version that is known",
        hint: "delete the file or name another one; it is made anew")
    }
    for (number, line) in lines.enumerated().dropFirst() where !line.isEmpty {
      guard let (key, entry) = Self.parse(line) else {
        throw ApusError(
          .malformedFile, "line \(number + 1) is damaged",
          hint: "delete the line or the file; timings are measured again")
      }
      state.withLock { $0.entries[key] = entry }
    }
  }

  private static func parse(_ line: Substring) -> (Key, Entry)? {
    let fields = line.split(separator: "\t", omittingEmptySubsequences: false).map(String.init)
    guard fields.count >= 4, let version = Int(fields[3]) else { return nil }
    var measurements: [Measurement] = []
    for field in fields.dropFirst(4) {
      guard let mark = field.lastIndex(of: "="),
        let microseconds = Double(field[field.index(after: mark)...])
      else { return nil }
      measurements.append(Measurement(id: String(field[..<mark]), seconds: microseconds * 1e-6))
    }
    let entry = Entry(winner: fields[2], version: version, measurements: measurements)
    return (Key(device: fields[0], problem: fields[1]), entry)
  }

  /// The text form, sorted, so that equal caches are equal files.
  public var text: String {
    let entries = state.withLock { $0.entries }
    let lines = entries.map { key, entry in
      let times = entry.measurements.map { "\t\($0.id)=\(Self.microseconds($0.seconds))" }.joined()
      return "\(key.device)\t\(key.problem)\t\(entry.winner)\t\(entry.version)\(times)"
    }
    return ([Self.header] + lines.sorted()).joined(separator: "\n") + "\n"
  }

  private static func microseconds(_ seconds: Double) -> Double {
    (seconds * 1e9).rounded() / 1e3
  }

  /// Writes the text form, replacing the file in one step.
  public func save(_ path: String) throws(ApusError) { try FileIO.write(text: text, to: path) }
}
