// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ArgumentParser

/// `apus build`
struct BuildCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "build", abstract: "Builds a model into an engine file.")

  @Argument(help: "The model: an ONNX file.")
  var model: String

  @Option(name: .shortAndLong, help: "The engine file to write.")
  var output: String

  @OptionGroup var options: BuildOptions

  func run() throws {
    let builder = Builder(try options.configuration(), progress: ProgressPrinter().handler)
    let start = Clock.seconds
    let engine = try builder.build(contentsOf: model)
    try engine.save(path: output)
    let kernels = engine.graph.nodeCount
    Terminal.line(
      "\(output): \(kernels) nodes, \(engine.constantByteCount) bytes of weights, "
        + "built in \(Terminal.fixed(Clock.seconds - start, 2)) s for \(engine.device.name)")
    let parts = engine.constantByteCounts.filter { $0.value > 0 }.sorted { $0.value > $1.value }
    Terminal.line("weights   " + parts.map { "\($0.key) \($0.value)" }.joined(separator: ", ") + " bytes")
    for note in engine.report.notes { Terminal.line("note      \(note)") }
  }
}
