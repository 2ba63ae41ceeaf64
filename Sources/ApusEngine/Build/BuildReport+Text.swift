// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusOptimize

/// The form in which an engine file keeps the report: tab-separated lines that begin with their kind.
/// A reader passes over kinds it does not know, and over damaged lines: nothing but explanations
/// and the workspace limit depends on them. How long the build and its phases took is left out, so that builds from the same timing
/// cache give the same file.
extension BuildReport {
  /// The text form.
  package var text: String {
    var lines = [["build", "\(importedNodeCount)", "\(optimizedNodeCount)"]]
    if !precision.isEmpty { lines.append(["precision", precision]) }
    if let workspaceLimit { lines.append(["workspace", "\(workspaceLimit)"]) }
    lines += notes.map { ["note", $0] }
    lines += layers.map { ["layer"] + $0.fields }
    if let calibration {
      lines.append(["quantization"] + quantization.fields)
      lines += calibration.text.split(separator: "\n").map { line in
        ["calibration"] + line.split(separator: "\t", omittingEmptySubsequences: false).map(String.init)
      }
    }
    lines += phases.map { ["phase", $0.name] }
    lines += rewrites.map { ["rewrite", $0.rule, "\($0.count)"] }
    lines += refusals.map { ["not-rewritten", $0.rule, $0.node, $0.reason] }
    for problem in tuned {
      lines.append([
        "problem", problem.problem, problem.winner, problem.fromCache ? "cached" : "measured",
        "\(problem.operations)",
      ])
      lines += problem.measurements.map { ["candidate", $0.id, "\($0.seconds)"] }
      lines += problem.refusals.map { ["refused", $0.id, $0.reason] }
    }
    return lines.map { fields in fields.map(Self.oneField).joined(separator: "\t") + "\n" }.joined()
  }

  /// Reads the text form.
  package init(parsing text: String) {
    self.init()
    var table = ""
    for line in text.split(separator: "\n") {
      let fields = line.split(separator: "\t", omittingEmptySubsequences: false).map(String.init)
      if fields[0] == "calibration" {
        table += fields.dropFirst().joined(separator: "\t") + "\n"
      } else {
        read(fields[0], Array(fields.dropFirst()))
      }
    }
    calibration = table.isEmpty ? nil : try? CalibrationTable(parsing: table)
  }

  private mutating func read(_ kind: String, _ fields: [String]) {
    switch (kind, fields.count) {
    case ("build", 2):
      importedNodeCount = Int(fields[0]) ?? 0
      optimizedNodeCount = Int(fields[1]) ?? 0
    case ("precision", 1): precision = fields[0]
    case ("workspace", 1): workspaceLimit = Int(fields[0]).flatMap { $0 >= 0 ? $0 : nil }
    case ("layer", 5): if let layer = LayerRecord(fields: fields) { layers.append(layer) }
    case ("quantization", _): quantization = QuantizationOptions(fields: fields)
    case ("note", 1): notes.append(fields[0])
    case ("phase", 1): phases.append((fields[0], 0))
    case ("rewrite", 2): rewrites.append((fields[0], Int(fields[1]) ?? 0))
    case ("not-rewritten", 3): refusals.append((fields[0], fields[1], fields[2]))
    case ("problem", 4):
      tuned.append(
        Tuned(
          problem: fields[0], winner: fields[1], measurements: [], refusals: [],
          fromCache: fields[2] == "cached", operations: Double(fields[3]) ?? 0))
    case ("candidate", 2) where !tuned.isEmpty:
      tuned[tuned.count - 1].measurements.append((fields[0], Double(fields[1]) ?? 0))
    case ("refused", 2) where !tuned.isEmpty:
      tuned[tuned.count - 1].refusals.append((fields[0], fields[1]))
    default: break
    }
  }

  private static func oneField(_ text: String) -> String {
    guard text.contains(where: { $0 == "\t" || $0.isNewline }) else { return text }
    return String(text.map { $0 == "\t" || $0.isNewline ? " " : $0 })
  }
}

extension QuantizationOptions {
  /// The options that are switched on.
  fileprivate var fields: [String] {
    [
      searchesWeightClipping ? "weight-clipping" : nil, correctsBias ? "bias-correction" : nil,
      equalizesChannels ? "equalize" : nil, correctsRounding ? "rounding-correction" : nil,
    ].compactMap { $0 }
  }

  fileprivate init(fields: [String]) {
    self.init()
    searchesWeightClipping = fields.contains("weight-clipping")
    correctsBias = fields.contains("bias-correction")
    equalizesChannels = fields.contains("equalize")
    correctsRounding = fields.contains("rounding-correction")
  }
}
