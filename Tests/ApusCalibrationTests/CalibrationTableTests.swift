// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusTensor
import Testing

@Suite struct CalibrationTableTests {
  private var table: CalibrationTable {
    var table = CalibrationTable(
      entries: [
        "a b": .init(range: ActivationRange(lower: -1.5, upper: 2), channelMeans: [0.25, -1]),
        "z": .init(
          range: ActivationRange(lower: -2, upper: 6),
          channelRanges: [ActivationRange(lower: -2, upper: 4.5), ActivationRange(lower: 0, upper: 6)]),
      ], calibrator: .percentile(99.9), modelHash: 0xfeed_beef, sampleCount: 12, isRandom: true)
    table.isRefined = true
    table.scaling.outputs["conv"] = [0, -3, 2]
    table.scaling.inputs["next"] = [0, -3, 2]
    return table
  }

  @Test func textRoundTrips() throws {
    let text = table.text
    #expect(try CalibrationTable(parsing: text) == table)
    #expect(text.contains("tensor\ta b\t-1.5\t2.0\t"))
  }

  @Test func damagedTextIsAnError() {
    let lines = table.text.split(separator: "\n").map(String.init)
    for index in lines.indices {
      var damaged = lines
      damaged[index] = index == 0 ? "apus calibration cache 99" : "\(lines[index])\textra\tfields"
      let error = #expect(throws: ApusError.self) {
        try CalibrationTable(parsing: damaged.joined(separator: "\n"))
      }
      #expect(error?.code == .malformedFile && error?.hint != nil)
    }
    for line in ["tensor\tx\tnan\t1\t1\t0\t", "tensor\tx\t1\t2\t1\t0\t", "divide\tx\t1 2 900", "what",
      "divide\tx\t-9223372036854775808", "channels\tx\t0:1", "channels\tz\t0:1",
      "tensor\tx\t0\t1\t1\t0\t\nchannels\tx\t1:2", "tensor\tx\t0\t1\t1\t0\t\nchannels\tx\t0:nan",
      "tensor\tx\t0\t1\t1\t0\t\nchannels\tx\t-1e300:1e300", "tensor\tx\t0\t1\t1\t0\t\nchannels\tx\t0:1:2",
      "tensor\tx\t-1e300\t1e300\t1\t0\t"] {
      #expect(throws: ApusError.self) {
        try CalibrationTable(parsing: "apus calibration cache 2\n\(line)\n")
      }
    }
  }

  @Test func channelsAreScaledByNumbersOfThreeBits() throws {
    for ratio in [1.0, 1.1, 1.25, 1.3, 1.99, 2, 2.6, 3.5, 7.9, 8, 1000] {
      let steps = ChannelScaling.steps(in: ratio)
      #expect(Double(ChannelScaling.factor(steps)) <= ratio && Double(ChannelScaling.factor(steps + 1)) > ratio)
      #expect(abs(ChannelScaling.factor(-steps) * ChannelScaling.factor(steps) - 1) < 1e-6)
      // The limit of ReLU6 stays exact in bf16.
      let limit = 6 * ChannelScaling.factor(steps)
      #expect(try Tensor([limit], shape: [1]).converted(to: .bfloat16).floats() == [limit])
    }
    #expect(ChannelScaling.steps(in: 0) == 0 && ChannelScaling.steps(in: .nan) == 0)
    #expect(ChannelScaling.steps(in: .infinity) == 0)
  }

  @Test func zeroIsExact() {
    for range in [(-1.0, 3.0), (0, 6), (-2.118, 2.64), (-1e-9, 5), (-7, 0)] {
      let range = ActivationRange(lower: range.0, upper: range.1)
      #expect((0...255).contains(range.zeroPoint))
      // Both ends round to a byte within half a step.
      for end in [range.lower, range.upper] {
        let byte = (end / range.scale).rounded() + Double(range.zeroPoint)
        #expect(byte > -0.6 && byte < 255.6, "\(range) \(byte)")
      }
    }
  }

  @Test func weightsAreRoundedByChannel() throws {
    let values: [Float] = [1, -2, 0.5, 100, 50, -25, 0, 0, 0]
    let weights = try Tensor(values, shape: [3, 3])
    for axis in [0, 1] {
      let result = try WeightQuantization.perChannel(weights, axis: axis)
      let scales = result.scales.floats()
      for (index, byte) in result.bytes.ints().enumerated() {
        let scale = scales[axis == 0 ? index / 3 : index % 3]
        #expect(abs(values[index] - Float(byte) * scale) <= scale / 2 * 1.001)
      }
    }
  }

  @Test func searchingForAClipNeverMakesItWorse() throws {
    var state: UInt64 = 3
    let values = (0..<512).map { _ -> Float in
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      let unit = Float(state >> 40) / Float(1 << 23) - 1
      return unit * unit * unit * unit * unit
    }
    let weights = try Tensor(values, shape: [4, 128])
    func error(_ searches: Bool) throws -> Float {
      let result = try WeightQuantization.perChannel(weights, axis: 0, searchesClipping: searches)
      let scales = result.scales.floats()
      return zip(values, result.bytes.ints()).enumerated().reduce(0) { sum, entry in
        let difference = entry.element.0 - Float(entry.element.1) * scales[entry.offset / 128]
        return sum + difference * difference
      }
    }
    #expect(try error(true) <= error(false))
  }
}
