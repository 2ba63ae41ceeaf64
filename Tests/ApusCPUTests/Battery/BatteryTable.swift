// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusKernel

/// What the battery found, a row for each tactic.
struct BatteryTable: CustomStringConvertible {
  /// The findings about one tactic.
  struct Row {
    let tactic: String
    /// Why it takes nothing on this device; nil where it must be tried.
    let lacks: String?
    /// Element types of the first operands.
    var types: Set<String> = []
    var problems = 0
    var configurations = 0
    var error = 0.0
    var failures: [String] = []

    var verdict: String {
      if !failures.isEmpty { return "\(failures.count) FAILED" }
      if problems == 0 { return lacks ?? "NEVER TRIED" }
      return lacks == nil ? "passed" : "TAKES PROBLEMS ALTHOUGH: \(lacks ?? "")"
    }

    /// Whether it was tried and right, or cannot be tried here.
    var passes: Bool { failures.isEmpty && (problems == 0) == (lacks != nil) }
  }

  private(set) var rows: [Row]
  let isa: String
  var seconds = 0.0

  /// An empty table.
  init(_ tactics: [any Tactic], isa: String) {
    self.isa = isa
    rows = tactics.map { Row(tactic: $0.name, lacks: $0.lacks) }
  }

  subscript(index: Int) -> Row {
    get { rows[index] }
    set { rows[index] = newValue }
  }

  var description: String {
    let header = ["tactic", "operands", "problems", "configurations", "worst", "result"]
    var lines = [header]
    for row in rows {
      lines.append([
        row.tactic, row.types.sorted().joined(separator: " "), "\(row.problems)",
        "\(row.configurations)", row.problems == 0 ? "" : Self.rounded(row.error), row.verdict,
      ])
    }
    let tried = rows.filter { $0.problems > 0 }
    lines.append([
      "\(tried.count) of \(rows.count) tactics", "", "\(rows.reduce(0) { $0 + $1.problems })",
      "\(rows.reduce(0) { $0 + $1.configurations })",
      Self.rounded(rows.map(\.error).max() ?? 0), "\(rows.count { !$0.passes }) not passed",
    ])
    let types = lines.map { $0[1] }
    for index in lines.indices { lines[index].remove(at: 1) }
    let widths = (0..<5).map { column in lines.map { $0[column].count }.max() ?? 0 }
    let text = zip(lines, types).map { line, types in
      let cells = line.enumerated().map { column, cell in
        let gap = String(repeating: " ", count: widths[column] - cell.count)
        return (1...3).contains(column) ? gap + cell : cell + gap
      }
      return "  " + (cells + [types]).joined(separator: "  ")
    }
    return """
      The battery on \(isa), \(Self.rounded(seconds)) s; the worst difference is in units of what is allowed:
      \(text.joined(separator: "\n"))
      """
  }

  private static func rounded(_ value: Double) -> String {
    guard value.isFinite else { return "\(value)" }
    let hundredths = Int((value * 100).rounded(.up))
    return "\(hundredths / 100).\(hundredths % 100 < 10 ? "0" : "")\(hundredths % 100)"
  }
}
