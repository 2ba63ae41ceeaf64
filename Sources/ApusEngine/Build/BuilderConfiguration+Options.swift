// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusImages

extension BuilderConfiguration {
  /// Sets an option by the name and text that `apus build --NAME TEXT` takes; the C interface and
  /// everything above it go through here, so that all accept the same.
  ///
  /// - Throws: `invalid-argument` for an unknown name or an unusable text, which changes nothing.
  public mutating func set(_ option: String, to text: String) throws(ApusError) {
    switch option {
    case "device": device = text
    case "precision": precision = try OptionText.choice(option, text)
    case "threads": threadCount = try OptionText.integer(option, text, 0...65536)
    case "batch": batch = try OptionText.integer(option, text, 1...Int(Int32.max))
    case "shape":
      let (name, range) = try OptionText.shape(text)
      shapes[name] = range
    case "workspace": workspaceLimit = try OptionText.byteCount(option, text)
    case "timing-cache": timingCachePath = text
    case "level": level = try OptionText.integer(option, text, 0...5)
    case "time-budget": timeBudgetSeconds = try OptionText.seconds(option, text)
    case "optimize":
      guard text == "full" || text == "reference" else {
        throw OptionText.unusable(option, text, "full or reference")
      }
      isReference = text == "reference"
    case "calibration": calibration = try CalibrationSource(text)
    case "preprocess": preprocessing = try ImagePreprocessing(text)
    case "calibration-cache": calibrationCachePath = text
    case "calibration-table": calibrationTable = try CalibrationTable(parsing: text)
    case "skip-bad-calibration-files": skipsBadCalibrationFiles = try OptionText.flag(option, text)
    case "weight-clipping": quantization.searchesWeightClipping = try OptionText.flag(option, text)
    case "rounding-correction": quantization.correctsRounding = try OptionText.flag(option, text)
    case "equalize": quantization.equalizesChannels = try OptionText.flag(option, text)
    case "bias-correction": quantization.correctsBias = try OptionText.flag(option, text)
    case "calibrator":
      guard let known = Calibrator(text) else {
        throw OptionText.unusable(option, text, "entropy, minmax, percentile, percentile:P or mse")
      }
      chosenCalibrator = known
    case "refine-ranges": refinesRanges = try OptionText.flag(option, text)
    case "accuracy-budget": accuracyBudget = try OptionText.positive(option, text)
    case "accuracy-metric": accuracyMetric = try OptionText.choice(option, text)
    case "labels": labelsPath = text
    case "int4-group":
      guard let size = Int(text), [32, 64, 128].contains(size) else {
        throw OptionText.unusable(option, text, "32, 64 or 128")
      }
      int4Group = size
    case "layer-precision":
      let (name, precision) = try OptionText.layerPrecision(text)
      layerPrecisions[name] = precision
    default:
      throw ApusError(
        .invalidArgument, "there is no option '\(option)'",
        hint: "the options are \(Self.optionNames.joined(separator: ", "))")
    }
  }

  /// The names that `set` takes.
  public static let optionNames = [
    "device", "precision", "threads", "batch", "shape", "workspace", "timing-cache", "level",
    "time-budget", "optimize", "calibration", "preprocess", "calibrator", "calibration-cache", "calibration-table",
    "skip-bad-calibration-files", "refine-ranges", "weight-clipping", "bias-correction",
    "rounding-correction", "equalize", "int4-group",
    "layer-precision", "accuracy-budget", "accuracy-metric", "labels",
  ]
}

/// Reads option texts.
enum OptionText {
  static func unusable(_ option: String, _ text: String, _ wanted: String) -> ApusError {
    ApusError(.invalidArgument, "'\(text)' is no value for '\(option)'", hint: "use \(wanted)")
  }

  static func integer(_ option: String, _ text: String, _ range: ClosedRange<Int>)
    throws(ApusError) -> Int
  {
    guard let value = Int(text), range.contains(value) else {
      throw unusable(option, text, "a whole number from \(range.lowerBound) to \(range.upperBound)")
    }
    return value
  }

  static func flag(_ option: String, _ text: String) throws(ApusError) -> Bool {
    guard let value = Bool(text) else { throw unusable(option, text, "true or false") }
    return value
  }

  /// `NODE=PRECISION`.
  static func layerPrecision(_ text: String) throws(ApusError) -> (
    String, BuilderConfiguration.Precision
  ) {
    guard let mark = text.lastIndex(of: "="),
      let precision = BuilderConfiguration.Precision(
        rawValue: String(text[text.index(after: mark)...])), precision != .auto
    else { throw unusable("layer-precision", text, "NODE=fp32, NODE=bf16, NODE=fp16, NODE=int8 or NODE=int4") }
    return (String(text[..<mark]), precision)
  }

  static func positive(_ option: String, _ text: String) throws(ApusError) -> Double {
    guard let value = Double(text), value > 0, value.isFinite else {
      throw unusable(option, text, "a number above 0")
    }
    return value
  }

  static func seconds(_ option: String, _ text: String) throws(ApusError) -> Double {
    guard let value = Double(text), value >= 0, value.isFinite else {
      throw unusable(option, text, "seconds, for example 30 or 0.5")
    }
    return value
  }

  static func choice<Choice: RawRepresentable & CaseIterable>(_ option: String, _ text: String)
    throws(ApusError) -> Choice where Choice.RawValue == String
  {
    guard let value = Choice(rawValue: text) else {
      let names = Choice.allCases.map(\.rawValue).joined(separator: ", ")
      throw unusable(option, text, "one of \(names)")
    }
    return value
  }

  /// `64M` and the like, in powers of 1024.
  static func byteCount(_ option: String, _ text: String) throws(ApusError) -> Int {
    let units: [Character: Int] = ["K": 1 << 10, "M": 1 << 20, "G": 1 << 30]
    let unit = text.last.flatMap { units[Character($0.uppercased())] }
    guard let count = Int(unit == nil ? text : String(text.dropLast())), count >= 0 else {
      throw unusable(option, text, "bytes, for example 64M or 2G")
    }
    let (bytes, overflow) = count.multipliedReportingOverflow(by: unit ?? 1)
    guard !overflow else { throw unusable(option, text, "less") }
    return bytes
  }

  /// `NAME=MIN:OPT:MAX`, or `NAME=SIZES` when all three are equal; sizes like `1x3x224x224`.
  static func shape(_ text: String) throws(ApusError) -> (String, BuilderConfiguration.ShapeRange) {
    let wanted = "NAME=MIN:OPT:MAX, for example image=1x3x32x32:8x3x32x32:16x3x32x32"
    // The last mark: names may hold one.
    guard let mark = text.lastIndex(of: "=") else { throw unusable("shape", text, wanted) }
    var parts: [[Int]] = []
    let values = text[text.index(after: mark)...]
    for part in values.split(separator: ":", omittingEmptySubsequences: false) {
      var sizes: [Int] = []
      for size in part.split(separator: "x", omittingEmptySubsequences: false) where part != "" {
        guard let size = Int(size), size >= 0 else { throw unusable("shape", text, wanted) }
        sizes.append(size)
      }
      parts.append(sizes)
    }
    guard parts.count == 1 || parts.count == 3, let first = parts.first, let last = parts.last,
      parts.allSatisfy({ $0.count == first.count })
    else { throw unusable("shape", text, wanted) }
    let middle = parts[parts.count / 2]
    for index in first.indices where !(first[index] <= middle[index] && middle[index] <= last[index])
    {
      throw unusable("shape", text, "minimum, optimum and maximum in rising order")
    }
    return (
      String(text[..<mark]),
      BuilderConfiguration.ShapeRange(minimum: first, optimum: middle, maximum: last)
    )
  }
}
