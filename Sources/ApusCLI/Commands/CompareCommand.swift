// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ArgumentParser

/// `apus compare`
struct CompareCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "compare",
    abstract: "Compares results tensor by tensor with the reference or another model.")

  @Argument(help: "The model or engine.")
  var model: String

  @Option(help: "Inputs from a .npz file; arrays named like results are compared with, too.")
  var inputs: String

  @Option(help: "reference, or another model or engine.")
  var against = "reference"

  @Option(help: "Relative L2 error above which the command fails.")
  var tolerance: Double?

  @OptionGroup var options: BuildOptions

  func run() throws {
    let given = try InputOptions.parse(["--inputs", inputs])
    let engine = try options.engine(model, tunedFor: given).engine
    let tensors = try given.tensors(for: engine.inputs)
    let results = try engine.makeContext().run(tensors)
    let expected = try other(engine).makeContext().run(tensors)
    var worstError = 0.0
    for binding in engine.outputs {
      guard let a = results[binding.name], let b = expected[binding.name] else { continue }
      let difference = TensorDifference(a, b)
      worstError = max(worstError, difference.relativeL2)
      Terminal.line("\(binding.name): \(difference)")
    }
    if let tolerance, !(worstError <= tolerance) {
      throw ApusError(
        .execution, "the relative L2 error \(worstError) is above the tolerance \(tolerance)")
    }
  }

  private func other(_ engine: Engine) throws(ApusError) -> Engine {
    var configuration = try options.configuration()
    if against != "reference" {
      if try Model.isEngine(path: against) { return try Engine.load(path: against) }
      return try Builder(configuration).build(contentsOf: against)
    }
    configuration.isReference = true
    let isEngine = try Model.isEngine(path: model)
    let graph = isEngine ? engine.graph : try Model.load(path: model)
    return try Builder(configuration).build(graph)
  }
}
