// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ArgumentParser
import Synchronization

/// `apus bench`
struct BenchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bench", abstract: "Measures latency and throughput.")

  @Argument(help: "The model or engine.")
  var model: String

  @Option(help: "Inferences in flight at once, each with a context of its own.")
  var streams = 1

  @Option(help: "Seconds to measure.")
  var seconds = 3.0

  @Flag(help: "Print one JSON object as the last line.")
  var json = false

  @Flag(help: "Print the time of every kernel.")
  var layers = false

  @OptionGroup var options: BuildOptions

  func validate() throws {
    guard streams > 0, streams <= 256 else { throw ValidationError("--streams must be 1...256") }
    guard seconds > 0, seconds <= 86400 else { throw ValidationError("--seconds must be positive") }
  }

  func run() throws {
    let (engine, loadSeconds, buildSeconds) = try options.engine(model)
    let inputs = try BenchInputs.tensors(for: engine, try options.configuration())
    let times = try measure(engine, inputs)
    let batch = inputs.values.compactMap { $0.shape.first }.first ?? 1
    let summary = BenchSummary(times: times.latencies, wallSeconds: times.wall, batch: batch)
    var entries = summary.entries
    entries += [
      ("load_ms", .number(loadSeconds * 1e3)),
      ("build_ms", .number(buildSeconds * 1e3)),
      ("peak_memory_bytes", .int(Terminal.peakMemoryByteCount)),
      ("threads", .int(engine.device.threadCount)),
      ("batch", .int(options.batch ?? batch)),
      ("streams", .int(streams)),
      ("precision", .string(options.precision)),
      ("device", .string(engine.device.kind)),
    ]
    // Behind the figures: measuring the roofline takes memory that the engine does not.
    if layers { try printLayers(engine, inputs) }
    if !json {
      for (name, value) in entries { Terminal.line("\(Terminal.padded(name, 20)) \(value.text())") }
    }
    if json { Terminal.line(JSON.object(entries).text()) }
  }

  private func printLayers(_ engine: Engine, _ inputs: [String: Tensor]) throws(ApusError) {
    let layers = try engine.makeContext().layerTimes(inputs)
    let total = layers.reduce(0) { $0 + $1.kernel.seconds }
    for layer in layers {
      let kernel = layer.kernel
      let columns = [
        Terminal.padded(Terminal.fixed(kernel.seconds * 1e6, 1), 10) + " us",
        Terminal.padded(Terminal.fixed(100 * kernel.seconds / total, 1), 5) + " %",
        Terminal.padded(Terminal.fixed(kernel.operations / kernel.seconds * 1e-9, 1), 7) + " GFLOP/s",
        Terminal.share(layer.share) + " ",
        kernel.tactic + " ", kernel.name,
      ]
      Terminal.line(columns.joined(separator: " "))
    }
    Terminal.line("\(Terminal.fixed(total * 1e3, 3)) ms in all")
  }

  private func measure(_ engine: Engine, _ inputs: [String: Tensor]) throws(ApusError) -> (
    latencies: [Double], wall: Double
  ) {
    if streams == 1 {
      let start = Clock.seconds
      return (try Self.loop(engine, inputs, seconds), Clock.seconds - start)
    }
    let runner = StreamRunner(engine: engine, inputs: inputs, seconds: seconds, streams: streams)
    return try runner.run()
  }

  static func loop(_ engine: Engine, _ inputs: [String: Tensor], _ seconds: Double)
    throws(ApusError) -> [Double]
  {
    let context = try engine.makeContext()
    for (name, tensor) in inputs { try context.bindInput(name, tensor) }
    let warm = Clock.seconds + min(0.5, seconds / 4)
    var warmRuns = 0
    while warmRuns < 3 || Clock.seconds < warm {
      try context.execute()
      warmRuns += 1
      if warmRuns >= 1, Clock.seconds > warm + seconds { break }
    }
    var times: [Double] = []
    let end = Clock.seconds + seconds
    while Clock.seconds < end || times.count < 3 {
      let start = Clock.seconds
      try context.execute()
      times.append(Clock.seconds - start)
    }
    return times
  }
}

/// Random inputs of the tuned shapes.
enum BenchInputs {
  static func tensors(for engine: Engine, _ configuration: BuilderConfiguration) throws(ApusError)
    -> [String: Tensor]
  {
    try engine.sampleInputs(configuration)
  }
}

/// Percentiles of measured times.
struct BenchSummary {
  let times: [Double]
  let wallSeconds: Double
  let batch: Int

  var entries: [(String, JSON)] {
    let sorted = times.sorted()
    func percentile(_ share: Double) -> Double {
      sorted.isEmpty ? 0 : sorted[min(sorted.count - 1, Int(Double(sorted.count) * share))]
    }
    let total = times.reduce(0, +)
    let rate = Double(times.count * batch) / max(total, 1e-12)
    let isParallel = wallSeconds < total * 0.9
    return [
      ("median_ms", .number(percentile(0.5) * 1e3)),
      ("mean_ms", .number(total / Double(max(1, times.count)) * 1e3)),
      ("min_ms", .number((sorted.first ?? 0) * 1e3)),
      ("p90_ms", .number(percentile(0.9) * 1e3)),
      ("p99_ms", .number(percentile(0.99) * 1e3)),
      (
        "samples_per_s",
        .number(isParallel ? Double(times.count * batch) / wallSeconds : rate)
      ),
      ("runs", .int(times.count)),
    ]
  }
}
