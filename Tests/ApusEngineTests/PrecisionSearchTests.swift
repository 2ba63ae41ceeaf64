// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusCalibration
import ApusEngine
import ApusTestSupport
import Foundation
import Testing

@Suite struct PrecisionSearchTests {
  private func archive(_ samples: Int) throws -> String {
    let path = FileManager.default.temporaryDirectory.path + "/apus-samples-\(UInt64.random(in: 0 ... .max)).npz"
    let batch = try QuantizableNetwork.batch(samples, seed: 21)
    try NumPy.writeArchive([(name: "x", tensor: batch["x"]!)], to: path)
    return path
  }

  private func configuration(_ path: String) -> BuilderConfiguration {
    var configuration = BuilderConfiguration()
    configuration.level = 0
    configuration.precision = .auto
    configuration.accuracyMetric = .noise
    configuration.calibration = .file(path)
    return configuration
  }

  private func noise(_ engine: Engine, _ graph: Graph) throws -> Double {
    let inputs = try QuantizableNetwork.batch(16, seed: 5)
    let wanted = try ReferenceInterpreter.run(graph, inputs: [inputs["x"].map { .tensor($0) }])
    let got = try #require(try engine.makeContext().run(inputs)["y"])
    let relative = TensorDifference(got, try #require(wanted[0].tensor)).relativeL2
    return relative * relative
  }

  @Test func theBudgetIsKept() throws {
    let graph = try QuantizableNetwork.graph()
    let path = try archive(48)
    for budget in [10.0, 0.02, 1e-15] {
      var configuration = configuration(path)
      configuration.accuracyBudget = budget
      let engine = try Builder(configuration).build(graph)
      // Other samples than those it was measured on: some leeway.
      #expect(try 100 * noise(engine, graph) <= 3 * budget + 1e-9)
      #expect(engine.report.precision == "auto")
      let records = engine.report.layers
      guard engine.device.fastTypes.contains(.int8) else { continue }
      #expect(records.count == QuantizableNetwork.products.count)
      #expect(records.allSatisfy { !$0.reason.isEmpty && $0.seconds["fp32"] != nil && $0.seconds["int8"] != nil })
      if budget < 1e-5 { #expect(records.allSatisfy { $0.precision == "fp32" }) }
    }
  }

  /// A tensor's range is much too wide, another's much too narrow: results say so.
  @Test(arguments: [("one.b", 12.0), ("last", 0.1)])
  func rangesAreImprovedByTheirResults(layer: String, factor: Double) throws {
    let graph = try QuantizableNetwork.graph()
    let path = try archive(48)
    let configuration = configuration(path)
    guard try Builder(configuration).device().fastTypes.contains(.int8) else { return }
    let calibration = try Calibration(graph, configuration)
    for seed in 1...6 { try calibration.add(try QuantizableNetwork.batch(4, seed: UInt64(seed))) }
    var table = try calibration.finish()
    let node = try #require(graph.nodes.first { graph[$0].name == layer })
    let tensor = graph[try #require(graph[node].inputs[0])].name
    let range = try #require(table.entries[tensor]?.range)
    let spoilt = ActivationRange(lower: range.lower * factor, upper: range.upper * factor)
    table.entries[tensor]?.range = spoilt
    let study = try PrecisionStudy(
      graph, Builder(configuration), table, HeldOutSamples(batches: [try QuantizableNetwork.batch(8, seed: 50)]))
    try study.observe(
      OtherSamples(
        source: .file(path), inputs: Engine.Binding.inputs(of: graph), configuration: configuration, allLabels: nil))
    func noise() throws -> Double {
      try study.calibratedNoise(of: study.engine(study.precisions([layer: .int8]), isDraft: true))
    }
    let before = try noise()
    var errors = [layer: before]
    let changed = try RangeSearch(study: study, report: { (_, _) throws(ApusError) in }).run(&errors)
    #expect(changed == 1)
    let found = try #require(study.table.entries[tensor]?.range)
    #expect(abs(log(found.upper / range.upper)) < abs(log(factor)) - 1, "\(found.upper), not \(range.upper)")
    let after = try noise()
    #expect(after < 0.2 * before && abs(errors[layer]! - after) < 1e-6 * before, "\(after) of \(before)")
  }

  /// A tensor that one of two layers reads rounded to bytes and the other wider is stored in both forms.
  @Test(arguments: ["left", "right"]) func layersThatReadOneTensorMayDiffer(narrow: String) throws {
    let graph = try QuantizableNetwork.graph()
    var configuration = configuration(try archive(48))
    configuration.precision = .int8
    let types = try Builder(configuration).device().fastTypes
    guard types.contains(.int8) else { return }
    let all = try noise(Builder(configuration).build(graph), graph)
    configuration.precision = types.contains(.bfloat16) ? .bf16 : .fp32
    configuration.layerPrecisions = [narrow: .int8]
    let engine = try Builder(configuration).build(graph)
    let mixed = try noise(engine, graph)
    #expect(mixed > 0 && mixed < 0.5 * all, "\(mixed), all in bytes \(all)")
    let problems = engine.report.tuned.map(\.problem)
    #expect(problems.filter { $0.contains("u8[") && $0.contains("const i8[") }.count == 1, "\(problems)")
  }

  /// A cache with a spoilt range is good again once its ranges were searched again, and is kept so.
  @Test func rangesAreRefinedForInt8() throws {
    let graph = try QuantizableNetwork.graph()
    var configuration = configuration(try archive(48))
    configuration.precision = .int8
    guard try Builder(configuration).device().fastTypes.contains(.int8) else { return }
    let cache = FileManager.default.temporaryDirectory.path + "/apus-ranges-\(UInt64.random(in: 0 ... .max)).cache"
    defer { try? FileManager.default.removeItem(atPath: cache) }
    configuration.calibrationCachePath = cache
    let good = try noise(Builder(configuration).build(graph), graph)
    var table = try #require(try CalibrationTable.load(cache))
    #expect(!table.isRefined)
    let name = try #require(table.entries.keys.sorted().first)
    let range = try #require(table.entries[name]?.range)
    table.entries[name]?.range = ActivationRange(lower: range.lower * 0.3, upper: range.upper * 0.3)
    try table.save(cache)
    let spoilt = try noise(Builder(configuration).build(graph), graph)
    configuration.refinesRanges = true
    let engine = try Builder(configuration).build(graph)
    let refined = try noise(engine, graph)
    #expect(refined < 0.2 * spoilt, "\(good), spoilt \(spoilt), refined \(refined)")
    #expect(try CalibrationTable.load(cache)?.isRefined == true && engine.report.calibration?.isRefined == true)
    // The cache is enough now; without it the samples are needed.
    configuration.calibration = nil
    #expect(try noise(Builder(configuration).build(graph), graph) == refined)
    table.isRefined = false
    try table.save(cache)
    let error = #expect(throws: ApusError.self) { try Builder(configuration).build(graph) }
    #expect(error?.hint?.contains("--calibration") == true)
  }

  @Test func theBudgetIsReadOffWhatWasMeasured() throws {
    for exponent in [0.5, 1.0] {
      var curve = BudgetCurve()
      #expect(curve.noise(at: 1) == nil)
      for (index, noise) in [400.0, 40, 120, 70, 55].enumerated() {
        curve.add(noise: noise, metric: 0.01 * pow(noise, exponent) * (index % 2 == 0 ? 1.03 : 0.97))
      }
      curve.add(noise: 0, metric: 0.5)
      curve.add(noise: .infinity, metric: .nan)
      let found = try #require(curve.noise(at: 0.01 * pow(64, exponent)))
      #expect(abs(found / 64 - 1) < 0.1, "\(found)")
    }
  }

  @Test func wordsAndFilesThatDoNotFitAreErrors() throws {
    let graph = try QuantizableNetwork.graph()
    let few = configuration(try archive(2))
    #expect(throws: ApusError.self) { try Builder(few).build(graph) }
    var labelled = configuration(try archive(12))
    labelled.labelsPath = FileManager.default.temporaryDirectory.path + "/apus-labels-\(UInt64.random(in: 0 ... .max)).npy"
    try NumPy.write(try Tensor([Int64](repeating: 1, count: 5), .int64, shape: [5]), to: labelled.labelsPath!)
    let error = #expect(throws: ApusError.self) { try Builder(labelled).build(graph) }
    #expect(error?.message.contains("labels") == true)
  }

  @Test func singleLayersCanBeChosenByHand() throws {
    let graph = try QuantizableNetwork.graph()
    var configuration = configuration(try archive(12))
    configuration.precision = .int8
    configuration.layerPrecisions = ["one.a": .fp32]
    let engine = try Builder(configuration).build(graph)
    guard engine.device.fastTypes.contains(.int8) else { return }
    let wide = engine.graph.nodes.filter { id in
      let op = (engine.graph[id].op as? Fused)?.anchor ?? engine.graph[id].op
      return op is Conv && (op as? Conv)?.sumType == nil
    }
    #expect(wide.count == 1 && engine.graph[wide[0]].sources.contains("one.a"))
    configuration.layerPrecisions = ["nobody": .fp32]
    #expect(throws: ApusError.self) { try Builder(configuration).build(graph) }
  }

  /// A tensor's range is spoilt; the layer that reads it must be named first. Twenty times of twenty.
  @Test func blameFindsTheSpoiltLayer() throws {
    let graph = try QuantizableNetwork.graph()
    var configuration = BuilderConfiguration()
    configuration.level = 0
    configuration.precision = .int8
    let calibration = try Calibration(graph, configuration)
    for seed in 1...4 { try calibration.add(try QuantizableNetwork.batch(4, seed: UInt64(seed))) }
    let table = try calibration.finish()
    guard try Builder(configuration).device().fastTypes.contains(.int8) else { return }
    let samples = [try QuantizableNetwork.batch(8, seed: 9)]
    // Tensors that one layer alone reads.
    let readers: [String: String] = Dictionary(
      uniqueKeysWithValues: ["one.a", "one.b", "two.a", "two.b", "last", "classes"].compactMap { name in
        let id = graph.nodes.first { graph[$0].name == name }!
        return graph[id].inputs[0].map { (graph[$0].name, name) }
      })
    let tensors = readers.keys.filter { table.entries[$0] != nil }.sorted()
    #expect(tensors.count >= 5)
    var generator = SeededGenerator(seed: 20)
    var found = 0
    for _ in 0..<20 {
      let tensor = tensors[generator.integer(below: tensors.count)]
      let factor = generator.integer(below: 2) == 0 ? 1.0 / 24 : 64
      var spoilt = table
      spoilt.entries[tensor]!.range.lower *= factor
      spoilt.entries[tensor]!.range.upper *= factor
      configuration.calibrationTable = spoilt
      let engine = try Builder(configuration).build(graph)
      let blame = try Blame(of: graph, configuration, engine: engine, batches: samples)
      let first = blame.layers.first?.name
      if first == readers[tensor] {
        found += 1
      } else {
        Issue.record("\(tensor) times \(factor): \(blame.layers.prefix(3))")
      }
      if factor < 1 {
        #expect(blame.tensors.first { $0.name == tensor }.map { $0.saturatedCount > 0 } == true)
      }
    }
    #expect(found == 20)
  }

  @Test func theSmallestSetToRaiseIsFound() throws {
    let graph = try QuantizableNetwork.graph()
    var configuration = BuilderConfiguration()
    configuration.level = 0
    configuration.precision = .int8
    configuration.calibration = .file(try archive(16))
    guard try Builder(configuration).device().fastTypes.contains(.int8) else { return }
    let samples = [try QuantizableNetwork.batch(8, seed: 9)]
    let plain = try Blame(of: graph, configuration, batches: samples)
    let blame = try Blame(of: graph, configuration, batches: samples, wantedError: plain.error / 2)
    let raised = try #require(blame.raised)
    #expect(raised.error <= plain.error / 2 && !raised.layers.isEmpty)
    #expect(raised.layers == Array(blame.layers.map(\.name).prefix(raised.layers.count)))
    #expect(abs(plain.layers.reduce(0) { $0 + $1.share } - 1) < 1e-9)
  }
}

/// Networks that came rounded.
@Suite struct ExplicitBlameTests {
  /// Three convolutions, the left side of each rounded with a scale of its own.
  private func graph(scales: [Double]) throws -> Graph {
    var b = GraphBuilder("rounded")
    var y = b.input("x", .float32, [.symbol("N"), 4, 8, 8])
    for (index, scale) in scales.enumerated() {
      let parameters = [
        b.constant("s\(index)", try Tensor([scale], .float32, shape: [])),
        b.constant("z\(index)", try Tensor([Int64(128)], .uint8, shape: [])),
      ]
      let q = try b.apply(QuantizeLinear(outputType: .uint8), [y] + parameters, name: "q\(index)")
      let d = try b.apply(DequantizeLinear(), [q] + parameters, name: "d\(index)")
      let w = b.constant("w\(index)", try SmallNetworks.weights([4, 4, 3, 3], seed: UInt64(index), scale: 0.3))
      y = try b.apply(Conv(strides: [1, 1], pads: [1, 1, 1, 1]), [d, w], name: "conv\(index)")
    }
    return try b.finish(outputs: [("y", y)])
  }

  @Test(arguments: 0..<3) func theCoarsestRoundingIsFound(worst: Int) throws {
    var scales = [0.02, 0.03, 0.04]
    scales[worst] *= 8
    let graph = try graph(scales: scales)
    var generator = SeededGenerator(seed: 12)
    let batches = [["x": try generator.tensor(.float32, shape: [4, 4, 8, 8])]]
    var configuration = BuilderConfiguration()
    configuration.level = 0
    let blame = try Blame(of: graph, configuration, batches: batches, wantedError: 1e-12)
    #expect(blame.layers.first?.name == "conv\(worst)")
    #expect(blame.layers.count == 3 && abs(blame.layers.reduce(0) { $0 + $1.share } - 1) < 1e-9)
    #expect(blame.raised?.layers.count == 3 && blame.raised?.error == 0)
    // The whole engine's error is what its layers make together, more or less.
    let sum = blame.layers.reduce(0) { $0 + $1.error }
    #expect(blame.error > 0.3 * sum && blame.error < 3 * sum)
    let engine = try Builder(configuration).build(graph)
    let again = try Blame(of: graph, configuration, engine: engine, batches: batches)
    #expect(again.layers.map(\.name) == blame.layers.map(\.name))
  }

  @Test func saturationOfOwnRangesIsCounted() throws {
    let graph = try graph(scales: [0.001, 0.05])
    var generator = SeededGenerator(seed: 12)
    let batch = ["x": try generator.tensor(.float32, shape: [2, 4, 8, 8])]
    var configuration = BuilderConfiguration()
    configuration.level = 0
    let blame = try Blame(of: graph, configuration, batches: [batch])
    let beyond = batch["x"]!.floats().filter { $0 > 0.1275 || $0 < -0.1285 }.count
    #expect(blame.tensors.first?.name == "x" && blame.tensors.first?.saturatedCount == beyond && beyond > 0)
    #expect(blame.layers.first?.name == "conv0")
  }
}
