// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

extension Builder {
  /// The precisions the configuration asks for, and the builder to go on with, which knows what was
  /// measured on the way.
  ///
  /// Networks that are quantised already follow their own scales at `fp32` and `int8` alike; where data
  /// is given, `int8` rounds what they left in floats, too.
  ///
  /// - Throws: `invalid-argument` for int8 without data, and for layers that do not exist.
  func precisions(for network: Graph, _ traits: DeviceTraits) throws(ApusError) -> (
    precisions: LayerPrecisions, builder: Builder
  ) {
    try checkLayers(network)
    if configuration.precision == .auto { return try chosen(for: network) }
    var result = LayerPrecisions(
      usual: configuration.precision, named: configuration.layerPrecisions,
      quantization: configuration.quantization, int4Group: configuration.int4Group)
    if result.uses(.int4) && !traits.fastTypes.contains(.uint4) {
      Log.warning("this device has no kernels for int4: what is to be int4 computes in fp32")
    }
    if result.uses(.bf16) && !traits.fastTypes.contains(.bfloat16) {
      Log.warning("this device has no instructions for bf16: what is to be bf16 computes in fp32")
    }
    guard result.uses(.int8) else { return (result, self) }
    if !traits.fastTypes.contains(.int8) {
      Log.warning("this device has no instructions for int8: what is to be int8 computes in fp32")
    }
    result.table = try calibrationTable(for: network)
    if configuration.refinesRanges, let table = result.table, !table.isRefined, !table.isRandom,
      traits.fastTypes.contains(.int8)
    {
      // What its builds measure serves the build to come.
      var builder = self
      builder.cache = try timingCache()
      result.table = try builder.refined(table, for: network)
      return (result, builder)
    }
    guard result.table != nil || isQuantized(network) else { throw Self.withoutData("precision 'int8'") }
    result.notes = result.table.map(Self.notes) ?? []
    return (result, self)
  }

  /// The ranges, those to blame for most of the error being searched again; its cache then keeps them.
  private func refined(_ table: CalibrationTable, for network: Graph) throws(ApusError) -> CalibrationTable {
    guard let source = configuration.calibration else { throw Self.withoutData("refining ranges") }
    let study = try PrecisionStudy(network, self, table, HeldOutSamples())
    try study.observe(
      OtherSamples(
        source: source, inputs: Engine.Binding.inputs(of: network), configuration: configuration,
        allLabels: nil))
    let start = Clock.seconds
    let search = RangeSearch(study: study) { (done, total) throws(ApusError) in
      let goesOn = progress?(
        BuildProgress(
          phase: "ranges", done: done, total: total, timed: 0, elapsedSeconds: Clock.seconds - start,
          remainingSeconds: nil))
      if goesOn == false { throw ApusError(.cancelled, "the search for ranges was cancelled") }
    }
    var errors = try search.errors()
    _ = try search.run(&errors)
    var result = study.table
    result.isRefined = true
    if let path = configuration.calibrationCachePath { try result.save(path) }
    return result
  }

  private func isQuantized(_ network: Graph) -> Bool {
    network.nodes.contains { network[$0].op is DequantizeLinear }
  }

  private static func notes(_ table: CalibrationTable) -> [String] {
    table.isRandom
      ? ["calibrated with random numbers: its results mean nothing, only its speed does"] : []
  }

  private static func withoutData(_ what: String) -> ApusError {
    ApusError(
      .invalidArgument, "\(what) needs calibration data: the network has no scales of its own",
      hint: "give some hundred samples with --calibration FILE.npz (an array for each input) or a "
        + "folder of them, or ranges found before with --calibration-cache FILE; "
        + "--calibration random:N is enough to measure speed")
  }

  private func checkLayers(_ network: Graph) throws(ApusError) {
    let names = network.nodes.map { network[$0].name }
    for name in configuration.layerPrecisions.keys.sorted()
    // Layers that were merged are called after their nodes: `conv1+bn1`, `linear/MatMul`.
    where !names.contains(where: { name == $0 || name.hasPrefix("\($0)+") || name.hasPrefix("\($0)/") })
    {
      throw ApusError(
        .invalidArgument, "a precision is given for '\(name)', which is no node of the network",
        hint: "apus inspect lists the nodes")
    }
  }

  /// The fastest precisions within the accuracy budget.
  private func chosen(for network: Graph) throws(ApusError) -> (
    precisions: LayerPrecisions, builder: Builder
  ) {
    guard let source = configuration.calibration else { throw Self.withoutData("precision 'auto'") }
    let labels = try labels()
    var samples = HeldOutSamples(labels: labels)
    let table = try calibrationTable(for: network, from: source, settingAside: &samples)
    try samples.check()
    var builder = self
    builder.cache = try timingCache()
    let study = try PrecisionStudy(network, builder, table, samples)
    let metric = configuration.accuracyMetric ?? study.usualMetric
    guard metric != .top1 || study.usualMetric == .top1 else {
      throw ApusError(
        .invalidArgument, "the accuracy metric 'top1' needs a network with one result of class scores",
        hint: "use --accuracy-metric noise")
    }
    try study.observe(
      OtherSamples(
        source: source,
        inputs: Engine.Binding.inputs(of: network),
        configuration: configuration, allLabels: labels))
    let search = PrecisionSearch(
      study: study, budget: configuration.accuracyBudget, metric: metric, progress: progress)
    var outcome = try search.run()
    for (name, precision) in configuration.layerPrecisions {
      outcome.precisions.named[name] = precision
    }
    outcome.precisions.int4Group = configuration.int4Group
    outcome.precisions.notes = outcome.notes + Self.notes(table)
    outcome.precisions.records = outcome.records
    outcome.precisions.isChosen = true
    return (outcome.precisions, builder)
  }

  /// - Throws: `file-access`, `malformed-file`, or `invalid-argument` for what are no whole numbers.
  private func labels() throws(ApusError) -> [Int]? {
    guard let path = configuration.labelsPath else { return nil }
    let tensor = try NumPy.readArray(path: path)
    guard tensor.dataType.isInteger else {
      throw ApusError(
        .invalidArgument, "labels must be whole numbers, these are \(tensor.dataType)",
        location: GraphLocation(file: path))
    }
    return tensor.ints()
  }
}
