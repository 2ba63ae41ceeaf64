// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ArgumentParser

/// `apus devices`
struct DevicesCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "devices", abstract: "Lists the devices that engines can run on.")

  @Flag(help: "Print JSON.")
  var json = false

  func run() throws {
    if json {
      Terminal.line(Devices.json.text(indent: 2))
      return
    }
    for device in try Devices.all() {
      Terminal.line("\(device.kind): \(device.name), \(device.isa), \(device.threadCount) threads")
      if !device.features.isEmpty { Terminal.line("  has \(device.features.joined(separator: ", "))") }
    }
  }
}

/// `apus ops`
struct OpsCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "ops", abstract: "Lists the operators that models may use.")

  @Flag(help: "Print a Markdown table.")
  var markdown = false

  func run() throws {
    let entries = ONNXOperatorTable.standard.entries.sorted { $0.name < $1.name }
    if markdown {
      Terminal.line(
        """
        # Operators

        Made by `make operators`. \(entries.count) operators of ONNX and its extensions are understood, each from \
        operator set 7 on; a number is an operator-set version from which another definition holds.

        | Operator | Definitions |
        | --- | --- |
        """)
    }
    for entry in entries {
      let versions = entry.versions.sorted().map { "\($0)" }.joined(separator: ", ")
      Terminal.line(
        markdown
          ? "| \(entry.name) | \(versions) |" : "\(Terminal.padded(entry.name, 32)) \(versions)")
    }
  }
}

/// `apus knobs`
struct KnobsCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "knobs", abstract: "Lists the settings that the environment can change.")

  func run() throws {
    for knob in Knobs.all {
      let value = knob.defaultValue.isEmpty ? "" : " (default \(knob.defaultValue))"
      Terminal.line("\(Terminal.padded(knob.name, 22)) \(knob.summary)\(value)")
    }
  }
}
