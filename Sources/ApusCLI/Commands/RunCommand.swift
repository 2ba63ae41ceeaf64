// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ArgumentParser

/// `apus run`
struct RunCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run", abstract: "Runs a model or engine on NumPy files.")

  @Argument(help: "The model or engine.")
  var model: String

  @OptionGroup var inputs: InputOptions

  @Option(name: .shortAndLong, help: "The .npz file to write the results to.")
  var output: String

  @OptionGroup var options: BuildOptions

  func run() throws {
    let engine = try options.engine(model, tunedFor: inputs).engine
    let tensors = try inputs.tensors(for: engine.inputs)
    let results = try engine.makeContext().run(tensors)
    let named = engine.outputs.compactMap { binding in
      results[binding.name].map { (name: binding.name, tensor: $0) }
    }
    try NumPy.writeArchive(named, to: output)
    for result in named { Terminal.line("\(result.name): \(result.tensor.type)") }
  }
}

/// The options that give input data.
struct InputOptions: ParsableArguments {
  @Option(
    parsing: .singleValue,
    help: ArgumentHelp("An input from a .npy file.", valueName: "name=file.npy"))
  var input: [String] = []

  @Option(help: "Inputs from a .npz file, by name.")
  var inputs: String?

  /// The shapes of all given arrays by name.
  func shapes() throws(ApusError) -> [String: [Int]] {
    var result: [String: [Int]] = [:]
    if let inputs {
      for (name, tensor) in try NumPy.readArchive(path: inputs) { result[name] = tensor.shape }
    }
    for text in input {
      guard let mark = text.lastIndex(of: "=") else { continue }
      result[String(text[..<mark])] =
        try NumPy.readArray(path: String(text[text.index(after: mark)...])).shape
    }
    return result
  }

  /// The tensors, as the bindings name them.
  func tensors(for bindings: [Engine.Binding]) throws(ApusError) -> [String: Tensor] {
    var result: [String: Tensor] = [:]
    let names = Set(bindings.map(\.name))
    if let inputs {
      for (name, tensor) in try NumPy.readArchive(path: inputs) where names.contains(name) {
        result[name] = tensor
      }
    }
    for text in input {
      guard let mark = text.lastIndex(of: "=") else {
        throw ApusError(
          .invalidArgument, "'\(text)' does not say which input it is", hint: "write NAME=FILE.npy")
      }
      result[String(text[..<mark])] = try NumPy.readArray(
        path: String(text[text.index(after: mark)...]))
    }
    return result
  }
}
