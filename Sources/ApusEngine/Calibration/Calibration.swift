// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusOps
import ApusOptimize
import ApusTensor

/// Watches a network in single precision over samples and finds the ranges of the tensors that int8
/// kernels will read.
///
/// Only those are watched: nothing between a convolution and its activation, and one tensor where
/// others are only moved out of it. What is kept of a batch is its histograms, so that memory does not
/// grow with the number of batches and their order does not matter. (Where channels are scaled, the first
/// few batches decide by what; they are kept until then.)
public final class Calibration {
  /// A tensor whose range is wanted.
  struct Watched {
    let name: String
    var histogram = MagnitudeHistogram()
  }

  /// The left side of a product: whose range it has, and the means of its channels.
  struct Operand {
    let name: String
    let root: String
    let axis: Int
    var means = ChannelMeans()
  }

  /// How ranges are chosen.
  public let calibrator: Calibrator
  /// The checksum of the network.
  public let modelHash: UInt64
  /// How many samples were seen.
  public internal(set) var sampleCount = 0
  /// Batches that are in the histograms.
  public internal(set) var batchCount = 0
  /// The checksum over all inputs that were seen: what a resumed calibration must see again.
  var seen = Checksum()
  var watched: [Watched]
  var operands: [Operand]
  /// What the weights of products multiply; empty where weights are rounded without.
  var samplers: [PatchSampler]
  /// What channels are scaled by; nil while that is not decided.
  var scaling: ChannelScaling?
  /// Batches that wait for that decision.
  private var waiting: [[String: Tensor]] = []
  /// So many samples show how large channels get, or what fits into so much memory.
  private static let (decidingSamples, decidingBytes) = (64, 64 << 20)
  private let graph: Graph
  /// How many results the network itself has.
  private let resultCount: Int
  private let configuration: BuilderConfiguration
  private var context: ExecutionContext?
  /// The network's inputs.
  public let inputs: [Engine.Binding]

  /// Prepares a network.
  ///
  /// - Parameter configuration: Device, threads, batch and shapes; its precision does not matter.
  /// - Throws: as `Builder.build`.
  public init(
    _ network: Graph, _ configuration: BuilderConfiguration = BuilderConfiguration(),
    calibrator: Calibrator? = nil
  ) throws(ApusError) {
    self.calibrator = calibrator ?? configuration.calibrator
    modelHash = try ModelHash.of(network)
    inputs = Engine.Binding.inputs(of: network)
    var configuration = configuration
    configuration.precision = .fp32
    configuration.layerPrecisions = [:]
    configuration.level = min(configuration.level, 1)
    let backend = try Devices.backend(
      for: configuration.device, threadCount: configuration.threadCount)
    var graph = network
    var pipeline = Pipeline(Pipeline.preparing(backend.traits))
    var report = BuildReport()
    try pipeline.run(&graph, report: &report)
    resultCount = graph.outputs.count
    (watched, operands, samplers) = try Self.watch(&graph)
    if !configuration.quantization.correctsRounding { samplers = [] }
    self.graph = graph
    self.configuration = configuration
    let groups = try ChannelGroups(unwatched)
    let quantization = configuration.quantization
    if watched.isEmpty || !quantization.scalesChannels
      || !groups.canScale(balancing: quantization.equalizesChannels)
    {
      try scale(ChannelScaling())
    }
  }

  /// Builds the network that is watched, with its channels scaled.
  func scale(_ scaling: ChannelScaling) throws(ApusError) {
    self.scaling = scaling
    guard !watched.isEmpty else { return }
    var scaled = graph
    _ = try EqualizeChannels(scaling).run(on: &scaled, in: PassContext())
    context = try Builder(configuration).build(scaled).makeContext()
  }

  /// Makes what is to be watched a result of the network.
  private static func watch(_ graph: inout Graph) throws(ApusError) -> (
    [Watched], [Operand], [PatchSampler]
  ) {
    var watched: [Watched] = []
    var samplers: [PatchSampler] = []
    var operands: [Operand] = []
    var exported: Set<String> = []
    for product in try QuantizableProducts(graph).products {
      let (name, root) = (graph[product.input].name, graph[product.root].name)
      let node = graph[product.node]
      if let weights = node.inputs[1].flatMap({ graph[$0].constant }),
        let sampler = PatchSampler(node, operand: name, weights: weights)
      {
        samplers.append(sampler)
      }
      for value in [product.root, product.input] where exported.insert(graph[value].name).inserted {
        guard !graph.inputs.contains(value) else { continue }
        graph.addOutput(value, name: exportName(graph[value].name))
      }
      if !watched.contains(where: { $0.name == root }) {
        watched.append(Watched(name: root))
      }
      guard !operands.contains(where: { $0.name == name }) else { continue }
      let rank = graph[product.input].type.tensor?.rank ?? 2
      operands.append(
        Operand(name: name, root: root, axis: node.op is Conv ? 1 : rank - 1))
    }
    return (watched, operands, samplers)
  }

  /// A result of the network may bear the tensor's own name already.
  private static func exportName(_ name: String) -> String { "calibrated:\(name)" }

  /// Runs a batch and counts what it makes.
  ///
  /// - Throws: `invalid-argument` for inputs that do not fit, are empty, or hold what is not a finite
  ///   number, and when a tensor of the network overflows; what was counted before stays.
  public func add(_ inputs: [String: Tensor]) throws(ApusError) {
    try CalibrationBatches.check(inputs)
    try InputCheck.check(try InputCheck.ordered(inputs.mapValues { .tensor($0) }, for: graph), for: graph)
    if scaling == nil {
      var batch: [String: Tensor] = [:]
      for (name, tensor) in inputs { batch[name] = try tensor.copied() }
      waiting.append(batch)
      let samples = waiting.reduce(0) { $0 + Self.samples(in: $1) }
      let bytes = waiting.joined().reduce(0) { $0 + $1.value.byteCount }
      if samples >= Self.decidingSamples || bytes >= Self.decidingBytes { try decideScaling() }
    } else {
      try count(inputs)
    }
    note(inputs)
  }

  /// Runs the waiting batches to see how large channels get, then counts them.
  private func decideScaling() throws(ApusError) {
    let context = try Builder(configuration).build(graph).makeContext()
    var largest: [String: [Double]] = [:]
    for batch in waiting {
      let results = try context.run(batch)
      for operand in operands {
        guard let value = batch[operand.name] ?? results[Self.exportName(operand.name)] else { continue }
        ChannelMagnitudes.add(value, axis: operand.axis, to: &largest[operand.name, default: []])
      }
    }
    let scaling = try ChannelGroups(unwatched).scaling(
      for: largest, balancing: configuration.quantization.equalizesChannels)
    if scaling.isEmpty {
      self.scaling = scaling
      self.context = context
    } else {
      try scale(scaling)
    }
    let batches = waiting
    waiting = []
    for batch in batches { try count(batch) }
  }

  /// The network without the results that are only for watching.
  private var unwatched: Graph {
    var graph = graph
    graph.removeOutputs(from: resultCount)
    return graph
  }

  private func count(_ inputs: [String: Tensor]) throws(ApusError) {
    let value = try values(inputs)
    for tensor in watched { if let value = value(tensor.name) { try checkFinite(value, tensor.name) } }
    for index in watched.indices {
      guard let value = value(watched[index].name) else { continue }
      value.withElements(of: Float.self) { watched[index].histogram.add($0) }
    }
    for index in operands.indices {
      guard let value = value(operands[index].name) else { continue }
      operands[index].means.add(
        value, axis: operands[index].axis, withRanges: isInput(operands[index]))
    }
    sample(value)
  }

  /// Takes rows of what weights multiply.
  private func sample(_ value: (String) -> Tensor?) {
    for index in samplers.indices {
      if let tensor = value(samplers[index].operand) { samplers[index].add(tensor) }
    }
  }

  /// The moments of what weights multiply over some batches alone, for a table that came without.
  func moments(_ batches: [[String: Tensor]]) throws(ApusError) -> [String: WeightMoments] {
    for batch in batches { sample(try values(batch)) }
    return moments
  }

  private var moments: [String: WeightMoments] {
    var result: [String: WeightMoments] = [:]
    for sampler in samplers where sampler.sums.count > 0 { result[sampler.node] = sampler.sums.moments }
    return result
  }

  /// Runs a batch; the function returned gives the tensors that are watched by their names.
  func values(_ inputs: [String: Tensor]) throws(ApusError) -> (String) -> Tensor? {
    guard let context else { return { _ in nil } }
    let results = try context.run(inputs)
    return { name in inputs[name] ?? results[Self.exportName(name)] }
  }

  /// Counts a batch as seen.
  private func note(_ inputs: [String: Tensor]) {
    for name in inputs.keys.sorted() { if let tensor = inputs[name] { seen.update(tensor.bytes) } }
    batchCount += 1
    sampleCount += Self.samples(in: inputs)
  }

  /// The size of the first axis of the first input that has one.
  static func samples(in inputs: [String: Tensor]) -> Int {
    inputs.sorted { $0.key < $1.key }.lazy.compactMap { $0.value.shape.first }.first ?? 1
  }

  private func checkFinite(_ tensor: Tensor, _ name: String) throws(ApusError) {
    let broken = tensor.brokenCount
    guard broken == 0 else {
      throw ApusError(
        .invalidArgument,
        "the network makes \(broken) elements of '\(name)' NaN or infinite from this calibration data",
        hint: "look at the data: is it preprocessed as the network expects?")
    }
  }

  /// Chooses the ranges.
  ///
  /// - Throws: `invalid-argument` when no batch was added.
  public func finish() throws(ApusError) -> CalibrationTable {
    guard batchCount > 0 else {
      throw ApusError(
        .invalidArgument, "there is no calibration data: not one sample was given",
        hint: "give some hundred samples of what the network will see")
    }
    if scaling == nil { try decideScaling() }
    var ranges: [String: ActivationRange] = [:]
    for tensor in watched {
      ranges[tensor.name] = calibrator.range(of: tensor.histogram)
      if tensor.histogram.largest == 0 {
        Log.warning("'\(tensor.name)' is zero in all calibration data: what reads it keeps single precision")
      }
    }
    var table = CalibrationTable(
      entries: [:], calibrator: calibrator, modelHash: modelHash, sampleCount: sampleCount)
    table.scaling = scaling ?? ChannelScaling()
    table.moments = moments
    for operand in operands {
      guard let range = ranges[operand.root] else { continue }
      table.entries[operand.name] = CalibrationTable.Entry(
        range: range, channelMeans: operand.means.values)
      if isInput(operand) {
        setChannels(of: operand, range, &table)
      }
    }
    return table
  }

  private func isInput(_ operand: Operand) -> Bool {
    operand.root == operand.name && inputs.contains { $0.name == operand.name }
  }

  /// Channels of the network's own input have steps of their own where these are not longer: those of an image
  /// are then its very bytes, and nothing is lost by rounding them.
  private func setChannels(
    of operand: Operand, _ range: ActivationRange, _ table: inout CalibrationTable
  ) {
    let ranges = operand.means.ranges
    guard let lower = ranges.map(\.lower).min(), let upper = ranges.map(\.upper).max(),
      ranges.allSatisfy({ !$0.isEmpty && $0.scale <= range.scale * 1.001 }),
      ranges.contains(where: { $0.lower < 0 || $0.scale < range.scale * 0.999 })
    else { return }
    table.entries[operand.name]?.channelRanges = ranges
    table.entries[operand.name]?.range = ActivationRange(lower: lower, upper: upper)
  }
}
