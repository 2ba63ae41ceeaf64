// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ArgumentParser

/// `apus blame`
struct BlameCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "blame",
    abstract: "Finds which layers make an engine's results differ from single precision.")

  @Argument(help: "The engine, or a model with --precision and calibration data.")
  var model: String

  @Option(help: "Inputs: FILE.npz, FILE.npy or a folder of them, like calibration data.")
  var inputs: String

  @Option(help: "The model that the engine was built of.")
  var of: String?

  @Option(help: "Signal-to-noise ratio of the results in dB: the smallest set of layers to raise for it is found.")
  var wanted: Double?

  @Option(help: "How many layers to list.")
  var top = 20

  @Flag(help: "Print one JSON object.")
  var json = false

  @OptionGroup var options: BuildOptions

  func run() throws {
    let isEngine = try Model.isEngine(path: model)
    guard let source = isEngine ? of : model else {
      throw ApusError(
        .invalidArgument, "an engine does not hold the network in single precision",
        hint: "name the model that it was built of with --of MODEL")
    }
    let configuration = try options.configuration()
    let engine = isEngine ? try Engine.load(path: model, threadCount: configuration.threadCount) : nil
    let network = try Model.load(path: source)
    let blame = try Blame(
      of: network, configuration, engine: engine,
      batches: try CalibrationSource(inputs).batches(for: network, configuration),
      wantedError: wanted.map { SignalToNoise.share(decibels: $0) }, progress: ProgressPrinter().handler)
    if json { return Terminal.line(blame.json.text()) }
    show(blame)
  }

  private func decibels(_ share: Double) -> String {
    Terminal.padded(Terminal.fixed(SignalToNoise.decibels(share), 1), 5)
  }

  private func show(_ blame: Blame) {
    Terminal.line("results   \(decibels(blame.error)) dB signal to noise")
    for layer in blame.layers.prefix(top) {
      Terminal.line(
        "layer     \(Terminal.padded(Terminal.fixed(100 * layer.share, 1), 5)) % of the error, "
          + "\(decibels(layer.error)) dB alone  \(layer.precision)  \(layer.name)")
    }
    for tensor in blame.tensors
    where tensor.nanCount + tensor.infiniteCount + tensor.saturatedCount > 0 {
      Terminal.line(
        "tensor    \(tensor.saturatedCount) of \(tensor.count) beyond the range, \(tensor.nanCount) NaN, "
          + "\(tensor.infiniteCount) infinite  \(tensor.name)")
    }
    guard let raised = blame.raised else { return }
    Terminal.line("raise     \(raised.layers.count) layers to fp32 for \(decibels(raised.error)) dB:")
    for name in raised.layers { Terminal.line("          --layer-precision '\(name)=fp32'") }
  }
}
