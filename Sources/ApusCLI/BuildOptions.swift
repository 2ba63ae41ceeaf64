// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ArgumentParser

/// The options that every command which builds a model takes.
struct BuildOptions: ParsableArguments {
  @Option(help: "The device: auto, cpu or cuda[:N].")
  var device = "auto"

  @Option(help: "Precision of the kernels: fp32, bf16, fp16, int8, int4 or auto.")
  var precision = "fp32"

  @Option(help: "Samples for int8: FILE.npz, FILE.npy, a folder of them or of images, or random:N.")
  var calibration: String?

  @Option(
    help: ArgumentHelp(
      "What is done to images, for example resize=256,crop=224,scale=255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225.",
      valueName: "steps"))
  var preprocess: String?

  @Option(help: "How ranges are chosen: entropy, minmax, percentile, percentile:P or mse.")
  var calibrator: String?

  @Option(help: "File with the ranges found: used when it exists, else written.")
  var calibrationCache: String?

  @Option(help: "Whether the ranges to blame for most of the error are searched by what they do to the results: true or false.")
  var refineRanges: String?

  @Flag(help: "Leave calibration files out that cannot be used, with a warning.")
  var skipBadCalibrationFiles = false

  @Option(help: "What --precision auto may cost: points of top-1, or percent of the results' energy.")
  var accuracyBudget: String?

  @Option(help: "What the budget limits: top1 (classifiers) or noise.")
  var accuracyMetric: String?

  @Option(help: "A .npy file with the class of each calibration sample, in order.")
  var labels: String?

  @Option(help: "Whether int8 weights take the scale with the smallest error: true or false.")
  var weightClipping: String?

  @Option(help: "Whether channels are scaled so that small ones keep their detail: true or false.")
  var equalize: String?

  @Option(help: "Whether biases make up for the mean error of int8 weights: true or false.")
  var biasCorrection: String?

  @Option(help: "Whether weights are rounded together for int8, so that their errors cancel: true or false.")
  var roundingCorrection: String?

  @Option(help: "Weights of a column that share a scale with int4: 32, 64 or 128.")
  var int4Group: Int?

  @Option(
    parsing: .singleValue,
    help: ArgumentHelp("Precision of one layer.", valueName: "node=precision"))
  var layerPrecision: [String] = []

  @Option(help: "CPU threads one inference may use; all cores by default.")
  var threads: Int?

  @Option(help: "Batch size to tune for.")
  var batch: Int?

  @Option(
    parsing: .singleValue,
    help: ArgumentHelp("Sizes of an input, for example x=1x3x224x224 or ids=1x1:1x64:8x512.",
      valueName: "name=min:opt:max"))
  var shape: [String] = []

  @Option(help: "Most workspace a kernel may use, for example 64M; an error where no kernel of a layer fits.")
  var workspace: String?

  @Option(help: "Timing cache file to start from and to add to.")
  var timingCache: String?

  @Option(help: "Tuning effort: 0 none ... 5 everything.")
  var level: Int?

  @Option(help: "Seconds of tuning after which the best found so far is kept.")
  var timeBudget: String?

  @Option(help: "full, or reference for the network as it is on the reference interpreter.")
  var optimize = "full"

  /// The configuration that these options describe.
  func configuration() throws(ApusError) -> BuilderConfiguration {
    var result = BuilderConfiguration()
    let options: [(String, String?)] = [
      ("device", device), ("precision", precision), ("calibration", calibration),
      ("preprocess", preprocess), ("calibrator", calibrator), ("calibration-cache", calibrationCache),
      ("accuracy-budget", accuracyBudget), ("accuracy-metric", accuracyMetric), ("labels", labels),
      ("refine-ranges", refineRanges), ("weight-clipping", weightClipping), ("bias-correction", biasCorrection),
      ("rounding-correction", roundingCorrection),
      ("equalize", equalize), ("int4-group", int4Group.map { "\($0)" }),
      ("skip-bad-calibration-files", skipBadCalibrationFiles ? "true" : nil), ("threads", threads.map { "\($0)" }),
      ("batch", batch.map { "\($0)" }), ("workspace", workspace), ("timing-cache", timingCache),
      ("level", level.map { "\($0)" }), ("time-budget", timeBudget), ("optimize", optimize),
    ]
    for (name, text) in options { if let text { try result.set(name, to: text) } }
    for text in layerPrecision { try result.set("layer-precision", to: text) }
    for text in shape { try result.set("shape", to: text) }
    return result
  }

  /// The engine in a file: loaded when it is one, built in memory when it is a model.
  ///
  /// - Parameter inputs: Data that is going to be run; a model is tuned for its shapes.
  func engine(_ path: String, tunedFor inputs: InputOptions? = nil) throws(ApusError) -> (
    engine: Engine, loadSeconds: Double, buildSeconds: Double
  ) {
    let start = Clock.seconds
    if try Model.isEngine(path: path) {
      let configuration = try configuration()
      let engine = try Engine.load(path: path, threadCount: configuration.threadCount)
      return (engine, Clock.seconds - start, 0)
    }
    var configuration = try configuration()
    let graph = try Model.load(path: path)
    for (name, shape) in try inputs?.shapes() ?? [:] where configuration.shapes[name] == nil {
      guard let id = graph.inputs.first(where: { graph[$0].name == name }),
        graph[id].type.tensor?.rank == shape.count
      else { continue }
      configuration.shapes[name] = .init(minimum: shape, optimum: shape, maximum: shape)
    }
    do {
      let engine = try Builder(configuration, progress: ProgressPrinter().handler).build(
        consume graph)
      return (engine, 0, Clock.seconds - start)
    } catch {
      throw error.at(GraphLocation(file: path))
    }
  }
}
