// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ArgumentParser

/// `apus tactics`
struct TacticsCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "tactics",
    abstract: "Measures every candidate for a matrix product, or for every problem of a model.")

  @Option(help: "A model whose problems to measure.")
  var model: String?

  @Option(help: "Rows of the product.")
  var m = 128

  @Option(help: "Columns of the product.")
  var n = 512

  @Option(help: "Depth of the product.")
  var k = 768

  @OptionGroup var options: BuildOptions

  func run() throws {
    var configuration = try options.configuration()
    configuration.level = options.level ?? 5
    let graph = try model.map { try Model.load(path: $0) } ?? product()
    let roof = try Devices.roofline(
      of: configuration.device, threadCount: configuration.threadCount)
    let builder = Builder(configuration, progress: ProgressPrinter().handler)
    for tuned in try builder.tuneAll(graph) {
      Terminal.line(tuned.problem)
      for (id, seconds) in tuned.measurements.sorted(by: { $0.seconds < $1.seconds }) {
        let rate = tuned.operations / seconds * 1e-9
        Terminal.line(
          "  \(Terminal.padded(Terminal.fixed(seconds * 1e6, 1), 11)) us "
            + "\(Terminal.padded(Terminal.fixed(rate, 1), 8)) GFLOP/s  "
            + "\(Terminal.share(roof?.share(of: tuned.work, seconds)))  \(id)"
            + (id == tuned.winner ? "  <--" : ""))
      }
      for (id, reason) in tuned.refusals { Terminal.line("  refused  \(id): \(reason)") }
    }
  }

  private func product() throws -> Graph {
    guard m > 0, n > 0, k > 0, m * k < 1 << 32, n * k < 1 << 32 else {
      throw ApusError(.invalidArgument, "a product of \(m) x \(n) x \(k) is not possible")
    }
    var builder = GraphBuilder("product")
    let a = builder.input("a", .float32, [Dim(m), Dim(k)])
    let b = builder.constant("b", try Tensor(.float32, shape: [k, n]))
    let c = try builder.apply(MatMul(), [a, b])
    return try builder.finish(outputs: [("c", c)])
  }
}
