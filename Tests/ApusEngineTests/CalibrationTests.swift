// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusCalibration
import ApusOptimize
import ApusTestSupport
import Foundation
import Testing

@Suite struct CalibrationTests {
  private let folder: String

  init() throws {
    folder = FileManager.default.temporaryDirectory.path + "/apus-calibration-\(UInt64.random(in: 0 ... .max))"
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
  }

  private var quick: BuilderConfiguration {
    var configuration = BuilderConfiguration()
    configuration.level = 0
    return configuration
  }

  private func table(
    _ graph: Graph, _ configuration: BuilderConfiguration, seeds: ClosedRange<UInt64> = 1...6
  ) throws -> CalibrationTable {
    let calibration = try Calibration(graph, configuration)
    for seed in seeds { try calibration.add(try QuantizableNetwork.batch(4, seed: seed)) }
    return try calibration.finish()
  }

  private func difference(_ engine: Engine, _ graph: Graph, seed: UInt64 = 77) throws -> Double {
    let inputs = try QuantizableNetwork.batch(5, seed: seed)
    let wanted = try ReferenceInterpreter.run(graph, inputs: [inputs["x"].map { .tensor($0) }])
    let got = try #require(try engine.makeContext().run(inputs)["y"])
    return TensorDifference(got, try #require(wanted[0].tensor)).relativeL2
  }

  @Test(arguments: ["entropy", "minmax", "percentile", "mse"])
  func bytesComeCloseToSinglePrecision(calibrator: String) throws {
    let graph = try QuantizableNetwork.graph()
    var configuration = quick
    configuration.chosenCalibrator = Calibrator(calibrator)
    configuration.precision = .int8
    configuration.calibrationTable = try table(graph, configuration)
    let engine = try Builder(configuration).build(graph)
    let error = try difference(engine, graph)
    #expect(error < 0.05 && error > 0, "\(error)")
    guard engine.device.fastTypes.contains(.int8) else { return }
    let sums = engine.graph.nodes.filter { id in
      let op = (engine.graph[id].op as? Fused)?.anchor ?? engine.graph[id].op
      return (op as? Conv)?.sumType == .int32 || (op as? MatMul)?.sumType == .int32
    }
    #expect(sums.count == QuantizableNetwork.products.count)
  }

  @Test func onlyWhatStaysQuantizedIsCalibrated() throws {
    let graph = try QuantizableNetwork.graph()
    let names = Set(try table(graph, quick).entries.keys)
    // No convolution before its rectifier, one range for what pooling only moves.
    #expect(names.count == 8, "\(names.sorted())")
    let convolutions = graph.nodes.filter { graph[$0].op is Conv }
    let results = Set(convolutions.map { graph[graph[$0].outputs[0]].name })
    #expect(names.isDisjoint(with: results))
  }

  /// But for the last bits.
  private static func expectClose(_ a: [Float]?, _ b: [Float]?) throws {
    let (a, b) = (try #require(a), try #require(b))
    let largest = a.map { abs($0) }.max() ?? 0
    let worst = zip(a, b).map { abs($0 - $1) }.max() ?? 0
    #expect(a.count == b.count && worst <= 4e-6 * largest, "\(worst) of \(largest)")
  }

  @Test func channelScalingChangesNothingInFloats() throws {
    let graph = try QuantizableNetwork.graph()
    var largest: [String: [Double]] = [:]
    for value in graph.values {
      guard let channels = graph[value].type.tensor?.dims?.dropFirst().first?.value else { continue }
      largest[graph[value].name] = (0..<channels).map { (channel: Int) -> Double in
        Double(channel % 7) * 24 + 0.01
      }
    }
    let scaling = try ChannelGroups(graph).scaling(for: largest, balancing: true)
    #expect(!scaling.isEmpty)
    var scaled = graph
    let count = try EqualizeChannels(scaling).run(on: &scaled, in: PassContext())
    #expect(count > 4)
    let inputs = [RuntimeValue?.some(.tensor(try QuantizableNetwork.batch(2, seed: 3)["x"]!))]
    let before = try ReferenceInterpreter.run(graph, inputs: inputs)[0].tensor?.floats()
    let after = try ReferenceInterpreter.run(scaled, inputs: inputs)[0].tensor?.floats()
    try Self.expectClose(before, after)
  }

  /// Two blocks with a depthwise convolution between limited activations, channels of very different size.
  private func depthwiseNetwork() throws -> Graph {
    var b = GraphBuilder("depthwise")
    let limits = try [0, 6].map { b.constant("limit\($0)", try .scalar(Double($0), .float32)) }
    var y = b.input("x", .float32, [.symbol("N"), 4, 12, 12])
    for (index, (inputs, channels)) in [(4, 24), (16, 32)].enumerated() {
      let sizes: [Float] = [2, 0.3, 0.02, 0.1]
      func weights(_ shape: [Int], _ factor: (Float) -> Float) throws -> Tensor {
        var values = try SmallNetworks.weights(shape, seed: UInt64(index + 1)).floats()
        let perChannel = values.count / channels
        for place in values.indices { values[place] *= factor(sizes[place / perChannel % 4]) }
        return try Tensor(values, shape: shape)
      }
      let expand = b.constant("expand\(index)", try weights([channels, inputs, 1, 1]) { $0 })
      y = try b.apply(Conv(), [y, expand])
      y = try b.apply(Clip(), [y, limits[0], limits[1]], name: "limited\(index)")
      let window = b.constant("window\(index)", try weights([channels, 1, 3, 3]) { 1 / $0 })
      y = try b.apply(Conv(pads: [1, 1, 1, 1], group: channels), [y, window])
      y = try b.apply(Clip(), [y, limits[0], limits[1]])
      let project = b.constant(
        "project\(index)", try SmallNetworks.weights([16, channels, 1, 1], seed: 8))
      y = try b.apply(Conv(), [y, project])
    }
    return try b.finish(outputs: [("y", y)])
  }

  @Test func channelsThatDepthwiseConvolutionsReadKeepTheirDetail() throws {
    let graph = try depthwiseNetwork()
    var configuration = quick
    configuration.precision = .int8
    var errors: [Double] = []
    for scales in [false, true] {
      configuration.quantization.scalesChannels = scales
      let table = try table(graph, configuration)
      // The expansions, their limits and the depthwise convolutions of both blocks, nothing else.
      #expect(table.scaling.outputs.count == (scales ? 4 : 0))
      #expect(table.scaling.inputs.count == (scales ? 2 : 0))
      #expect(table.scaling.outputs.values.joined().min() == (scales ? -12 : nil))
      configuration.calibrationTable = try CalibrationTable(parsing: table.text)
      let engine = try Builder(configuration).build(graph)
      errors.append(try (70...80).reduce(0) { try $0 + difference(engine, graph, seed: $1) })
      guard scales else { continue }
      var scaled = graph
      _ = try EqualizeChannels(table.scaling).run(on: &scaled, in: PassContext())
      let inputs = [RuntimeValue?.some(.tensor(try QuantizableNetwork.batch(2, seed: 3)["x"]!))]
      let before = try ReferenceInterpreter.run(graph, inputs: inputs)[0].tensor?.floats()
      let after = try ReferenceInterpreter.run(scaled, inputs: inputs)[0].tensor?.floats()
      try Self.expectClose(before, after)
    }
    guard try Builder(configuration).device().fastTypes.contains(.int8) else { return }
    #expect(errors[1] < 0.7 * errors[0], "\(errors)")
  }

  @Test func equalizedBytesComeClose() throws {
    let graph = try QuantizableNetwork.graph()
    var configuration = quick
    configuration.quantization.equalizesChannels = true
    configuration.precision = .int8
    configuration.calibrationTable = try table(graph, configuration, seeds: 1...10)
    #expect(configuration.calibrationTable?.scaling.isEmpty == false)
    #expect(try difference(try Builder(configuration).build(graph), graph) < 0.05)
  }

  /// What weights were seen to multiply makes their errors cancel; a cache keeps it, an engine does not.
  @Test func weightsAreRoundedByWhatTheyMultiply() throws {
    let graph = try QuantizableNetwork.graph()
    var configuration = quick
    configuration.precision = .int8
    configuration.quantization.correctsBias = false
    var errors: [Double] = []
    for corrects in [false, true] {
      configuration.quantization.correctsRounding = corrects
      let table = try table(graph, configuration)
      #expect(table.moments.count == (corrects ? QuantizableNetwork.products.count : 0))
      configuration.calibrationTable = try CalibrationTable(parsing: table.text)
      let engine = try Builder(configuration).build(graph)
      #expect(engine.report.calibration?.moments.isEmpty ?? true)
      errors.append(try (70...90).reduce(0) { try $0 + difference(engine, graph, seed: $1) })
    }
    guard try Builder(configuration).device().fastTypes.contains(.int8) else { return }
    #expect(errors[1] < errors[0], "\(errors)")
  }

  @Test func batchesAndOrderDoNotMatter() throws {
    let graph = try QuantizableNetwork.graph()
    let one = try Calibration(graph, quick)
    for seed in (1...6).reversed() { try one.add(try QuantizableNetwork.batch(4, seed: UInt64(seed))) }
    let other = try table(graph, quick)
    #expect(try one.finish().entries.mapValues(\.range) == other.entries.mapValues(\.range))
  }

  @Test func badDataIsNamed() throws {
    let calibration = try Calibration(try QuantizableNetwork.graph(), quick)
    #expect(throws: ApusError.self) { try calibration.finish() }
    for value in [Float.nan, .infinity] {
      let broken = try QuantizableNetwork.batch(1, seed: 1)
      broken["x"]!.mutableBytes.storeBytes(of: value, toByteOffset: 8, as: Float.self)
      let error = #expect(throws: ApusError.self) { try calibration.add(broken) }
      #expect(error?.message.contains("'x'") == true && error?.message.contains("1 elements") == true)
    }
    for bad in [
      ["x": try Tensor(.float32, shape: [0, 4, 12, 12])], ["x": try Tensor(.float32, shape: [1, 3, 12, 12])],
      ["y": try Tensor(.float32, shape: [1, 4, 12, 12])], ["x": try Tensor(.float64, shape: [1, 4, 12, 12])],
    ] {
      let error = #expect(throws: ApusError.self) { try calibration.add(bad) }
      #expect(error?.code == .invalidArgument)
    }
    #expect(calibration.sampleCount == 0)
  }

  @Test func int8WithoutDataSaysHowToGiveIt() throws {
    for precision in [BuilderConfiguration.Precision.int8, .auto] {
      var configuration = quick
      configuration.precision = precision
      let error = #expect(throws: ApusError.self) {
        try Builder(configuration).build(try QuantizableNetwork.graph())
      }
      #expect(error?.hint?.contains("--calibration") == true)
    }
  }

  @Test func randomDataIsWrittenIntoTheEngine() throws {
    var configuration = quick
    configuration.precision = .int8
    configuration.calibration = .random(3)
    let engine = try Builder(configuration).build(try QuantizableNetwork.graph())
    #expect(engine.report.notes.contains { $0.contains("random") })
  }

  // MARK: Files

  private func write(_ seed: UInt64, _ name: String, samples: Int = 4) throws {
    let batch = try QuantizableNetwork.batch(samples, seed: seed)
    try NumPy.writeArchive([(name: "x", tensor: batch["x"]!)], to: "\(folder)/\(name)")
  }

  @Test func aFolderIsReadInOrderAndTheCacheReused() throws {
    for seed in 1...6 { try write(UInt64(seed), "\(seed).npz") }
    let graph = try QuantizableNetwork.graph()
    var configuration = quick
    configuration.precision = .int8
    configuration.calibration = try CalibrationSource(folder)
    configuration.calibrationCachePath = "\(folder)/cache"
    let engine = try Builder(configuration).build(graph)
    let cache = try #require(try CalibrationTable.load("\(folder)/cache"))
    #expect(cache.sampleCount == 24)
    #expect(cache.entries.mapValues(\.range) == (try table(graph, quick)).entries.mapValues(\.range))
    #expect(!FileManager.default.fileExists(atPath: "\(folder)/cache.partial"))
    // The cache alone is enough, and makes the same engine.
    configuration.calibration = nil
    let again = try Builder(configuration).build(graph)
    let inputs = try QuantizableNetwork.batch(3, seed: 8)
    #expect(
      try engine.makeContext().run(inputs)["y"]?.floats() == again.makeContext().run(inputs)["y"]?.floats())
    // Another network, and another calibrator, are told apart.
    #expect(throws: ApusError.self) { try Builder(configuration).build(try SmallNetworks.residual()) }
    configuration.chosenCalibrator = .mse
    let error = #expect(throws: ApusError.self) { try Builder(configuration).build(graph) }
    #expect(error?.message.contains("entropy") == true && error?.message.contains("mse") == true)
  }

  @Test func oneBadFileCanBeLeftOut() throws {
    for seed in 1...3 { try write(UInt64(seed), "\(seed).npz") }
    try FileIO.write(text: "no zip", to: "\(folder)/2b.npz")
    let source = try CalibrationSource(folder)
    let graph = try QuantizableNetwork.graph()
    let error = #expect(throws: ApusError.self) { try Calibration(graph, quick).add(contentsOf: source) }
    #expect(error?.description.contains("2b.npz") == true)
    let calibration = try Calibration(graph, quick)
    try calibration.add(contentsOf: source, skipsBadFiles: true)
    #expect(calibration.sampleCount == 12)
  }

  @Test func anInterruptedCalibrationGoesOn() throws {
    for seed in 1...6 { try write(UInt64(seed), "\(seed).npz", samples: 1) }
    let graph = try QuantizableNetwork.graph()
    let source = try CalibrationSource(folder)
    let first = try Calibration(graph, quick)
    for seed in 1...3 { try first.add(try QuantizableNetwork.batch(1, seed: UInt64(seed))) }
    let state = "\(folder)/state"
    try FileIO.write(text: try #require(first.stateText), to: state)
    let resumed = try Calibration(graph, quick)
    try resumed.add(contentsOf: source, statePath: state)
    let whole = try Calibration(graph, quick)
    try whole.add(contentsOf: source)
    #expect(try resumed.finish() == whole.finish())
    #expect(resumed.sampleCount == 6 && !FileManager.default.fileExists(atPath: state))
    // Other data is not mixed with it.
    try FileIO.write(text: try #require(first.stateText), to: state)
    try write(50, "2.npz", samples: 1)
    #expect(throws: ApusError.self) { try Calibration(graph, quick).add(contentsOf: source, statePath: state) }
  }

  /// Channels are scaled by what the first samples show: those that come after an interruption must be, too.
  @Test func anInterruptedCalibrationKeepsItsScaling() throws {
    let graph = try depthwiseNetwork()
    func batch(_ seed: Int) throws -> [String: Tensor] {
      ["x": try SmallNetworks.weights([8, 4, 12, 12], seed: UInt64(seed))]
    }
    for seed in 10...21 {
      try NumPy.writeArchive([(name: "x", tensor: try batch(seed)["x"]!)], to: "\(folder)/\(seed).npz")
    }
    let source = try CalibrationSource(folder)
    let first = try Calibration(graph, quick)
    for seed in 10...14 { try first.add(try batch(seed)) }
    #expect(first.stateText == nil)
    for seed in 15...18 { try first.add(try batch(seed)) }
    let text = try #require(first.stateText)
    #expect(text.contains("\ndivide\t"))
    let state = "\(folder)/state"
    try FileIO.write(text: text, to: state)
    let resumed = try Calibration(graph, quick)
    try resumed.add(contentsOf: source, openBatch: 8, statePath: state)
    let whole = try Calibration(graph, quick)
    try whole.add(contentsOf: source, openBatch: 8)
    #expect(try resumed.finish() == whole.finish())
  }

  @Test func sourcesAreToldApart() throws {
    #expect(try CalibrationSource("random:7") == .random(7))
    #expect(try CalibrationSource("a.npz") == .file("a.npz"))
    #expect(try CalibrationSource(folder) == .folder(folder))
    for bad in ["random:0", "random:x", "nothing", "\(folder)/none"] {
      #expect(throws: ApusError.self) { try CalibrationSource(bad) }
    }
    func batches() throws -> Int {
      try CalibrationSource(folder).batches(for: try QuantizableNetwork.graph(), quick).count
    }
    #expect(throws: ApusError.self) { try batches() }
    try FileIO.write(text: "", to: "\(folder)/a.jpg")
    let error = #expect(throws: ApusError.self) { try batches() }
    #expect(error?.hint?.contains("--preprocess") == true)
  }

  @Test func samplesMayArriveOverTime() async throws {
    let graph = try QuantizableNetwork.graph()
    let batches = AsyncStream<[String: Tensor]> { stream in
      for seed in 1...6 {
        if let batch = try? QuantizableNetwork.batch(4, seed: UInt64(seed)) { stream.yield(batch) }
      }
      stream.finish()
    }
    let table = try await CalibrationTable.calibrating(graph, quick, with: batches)
    #expect(table.sampleCount == 24)
  }
}
