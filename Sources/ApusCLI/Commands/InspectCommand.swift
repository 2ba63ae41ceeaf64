// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ArgumentParser

/// `apus inspect`
struct InspectCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "inspect", abstract: "Shows what a model or engine consists of.")

  @Argument(help: "The model or engine.")
  var model: String

  @Flag(help: "Print JSON.")
  var json = false

  @Flag(help: "Print the optimised graph in the text format.")
  var graph = false

  @Flag(help: "Print the optimised graph for Graphviz.")
  var dot = false

  @Flag(help: "List every candidate of every kernel, with times and reasons of refusal.")
  var candidates = false

  @Option(help: "Say why the node with this name was not fused further.")
  var why: String?

  @OptionGroup var options: BuildOptions

  func run() throws {
    let engine = try options.engine(model).engine
    if graph {
      Terminal.line(try engine.graph.text())
      return
    }
    if dot {
      Terminal.line(DotWriter.dot(engine.graph))
      return
    }
    let configuration = try options.configuration()
    if json {
      Terminal.line(try engine.inspect(configuration).text(indent: 2))
      return
    }
    try printSummary(engine, configuration)
  }

  private func printSummary(_ engine: Engine, _ configuration: BuilderConfiguration) throws {
    Terminal.line("device   \(engine.device.name), \(engine.device.isa), \(engine.device.threadCount) threads")
    for input in engine.inputs { Terminal.line("input    \(input.name): \(input.type)") }
    for output in engine.outputs { Terminal.line("output   \(output.name): \(output.type)") }
    Terminal.line("weights  \(engine.constantByteCount) bytes")
    for note in engine.report.notes { Terminal.line("note     \(note)") }
    if !engine.isReference {
      if let memory = try engine.memoryPlan(configuration) {
        Terminal.line(
          "memory   \(memory.peakByteCount) bytes planned, \(memory.naiveByteCount) without sharing, "
            + "\(memory.lowerBoundByteCount) at least")
      }
      printPlacement(try engine.placement(configuration))
      for kernel in try engine.kernels(configuration) where why == nil || kernel.name.contains(why!) {
        Terminal.line("kernel   \(kernel.tactic)")
        Terminal.line("         \(kernel.problem)")
        Terminal.line("         computes \(kernel.sources.joined(separator: ", "))")
        if let tuned = kernel.tuned { printCandidates(tuned) }
      }
    }
    for layer in engine.report.layers where why == nil || layer.name.contains(why!) { printLayer(layer) }
    for refusal in engine.report.refusals where why.map({ refusal.node.contains($0) }) ?? false {
      Terminal.line("not fused (\(refusal.rule)): \(refusal.node): \(refusal.reason)")
    }
  }

  /// The precision of a layer, its time and error in each, and why.
  private func printLayer(_ layer: LayerRecord) {
    Terminal.line("layer    \(Terminal.padded(layer.precision, 5)) \(layer.name): \(layer.reason)")
    let columns = layer.seconds.sorted { $0.value < $1.value }.map { precision, seconds in
      let error = layer.errors[precision].map { error in
        error > 0 ? " \(Terminal.fixed(SignalToNoise.decibels(error), 1)) dB" : " exact"
      }
      return "\(precision) \(Terminal.fixed(seconds * 1e6, 1)) us\(error ?? "")"
    }
    if !columns.isEmpty { Terminal.line("         \(columns.joined(separator: ", "))") }
  }

  private func printPlacement(_ placement: Placement) {
    for row in placement.rows {
      Terminal.line(
        "runs     \(Terminal.padded(row.operatorName, 32)) \(Terminal.padded(row.source, 9))"
          + "\(Terminal.padded("\(row.kernelCount)", 6)) \(Terminal.fixed(row.share * 100, 1)) % of the work")
    }
    if placement.portableShare > 0.05 {
      Terminal.line(
        "slow     \(Terminal.fixed(placement.portableShare * 100, 1)) % of the work runs on the portable path")
    }
  }

  /// The candidates of a kernel, fastest first: all of them, or one line that sums them up.
  private func printCandidates(_ tuned: BuildReport.Tuned) {
    let times = tuned.measurements.sorted { $0.seconds < $1.seconds }
    func microseconds(_ seconds: Double) -> String { Terminal.fixed(seconds * 1e6, 1) }
    if candidates || why != nil {
      for (id, seconds) in times {
        Terminal.line("         candidate \(Terminal.padded(microseconds(seconds), 10)) us  \(id)")
      }
      for (id, reason) in tuned.refusals { Terminal.line("         refused   \(id): \(reason)") }
    } else if let first = times.first {
      let next = times.dropFirst().first.map { ", the next \(microseconds($0.seconds))" } ?? ""
      Terminal.line(
        "         measured \(microseconds(first.seconds)) us\(next); \(times.count) candidates, "
          + "\(tuned.refusals.count) refused")
    }
  }
}
