// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusEngine
import Testing

@Suite struct OptionTests {
  @Test func readsEveryOption() throws {
    var configuration = BuilderConfiguration()
    for (option, text) in [
      ("device", "cpu"), ("precision", "fp32"), ("threads", "4"), ("batch", "8"),
      ("shape", "images:0=1x3x8x8:2x3x8x8:4x3x8x8"), ("workspace", "64M"),
      ("timing-cache", "times.txt"), ("level", "2"), ("time-budget", "1.5"),
      ("optimize", "reference"), ("calibration", "random:8"), ("calibrator", "percentile:99.9"),
      ("calibration-cache", "ranges.txt"), ("skip-bad-calibration-files", "true"),
      ("weight-clipping", "true"), ("bias-correction", "false"), ("equalize", "true"),
      ("rounding-correction", "false"),
      ("accuracy-budget", "0.5"), ("accuracy-metric", "noise"), ("labels", "labels.npy"),
      ("layer-precision", "a=b=fp32"), ("int4-group", "64"),
      ("preprocess", "resize=256,crop=224,scale=255"),
    ] {
      try configuration.set(option, to: text)
    }
    #expect(configuration.threadCount == 4 && configuration.batch == 8)
    #expect(configuration.shapes["images:0"]?.optimum == [2, 3, 8, 8])
    #expect(configuration.workspaceLimit == 64 << 20)
    #expect(configuration.timeBudgetSeconds == 1.5 && configuration.isReference)
    #expect(configuration.calibration == .random(8) && configuration.calibrator == .percentile(99.9))
    #expect(configuration.quantization.searchesWeightClipping && !configuration.quantization.correctsBias)
    #expect(!configuration.quantization.correctsRounding)
    #expect(configuration.accuracyBudget == 0.5 && configuration.accuracyMetric == .noise)
    #expect(configuration.int4Group == 64)
    #expect(configuration.layerPrecisions == ["a=b": .fp32])
  }

  @Test(arguments: [
    ("colour", "blue"), ("threads", "many"), ("threads", "-1"), ("batch", "0"), ("level", "6"),
    ("precision", "int7"), ("workspace", "9999999999999G"), ("time-budget", "nan"),
    ("shape", "image"), ("shape", "image=1xx3"), ("shape", "image=2:1:3"), ("shape", "image=1:2"),
    ("optimize", "much"), ("calibration", "nowhere"), ("calibrator", "median"),
    ("accuracy-budget", "0"), ("accuracy-metric", "luck"), ("layer-precision", "conv"),
    ("layer-precision", "conv=auto"), ("int4-group", "48"), ("preprocess", "blur=3"),
    ("preprocess", "crop=0"), ("preprocess", "mean=1:2"), ("preprocess", "scale=0"), ("equalize", "maybe"),
  ])
  func refusesWithAHint(option: String, text: String) {
    var configuration = BuilderConfiguration()
    let error = #expect(throws: ApusError.self) { try configuration.set(option, to: text) }
    #expect(error?.code == .invalidArgument && error?.hint != nil)
  }
}
