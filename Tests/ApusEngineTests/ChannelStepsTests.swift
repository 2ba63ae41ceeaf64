// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusCalibration
import ApusOps
import ApusTestSupport
import Testing

/// Inputs whose channels have steps of their own.
@Suite struct ChannelStepsTests {
  private static let means: [Float] = [0.485, 0.456, 0.406]

  /// Pixels, all of 0 to 255 among them, less a mean for each channel.
  private func images(_ count: Int, seed: Int, height: Int = 40, width: Int = 37) throws -> Tensor {
    let size = height * width
    let values = (0..<count * 3 * size).map { index -> Float in
      let pixel = index % size < 2 ? index % size * 255 : (index &* 7919 &+ seed &* 104729) % 256
      return Float(pixel) / 255 - Self.means[index / size % 3]
    }
    return try Tensor(values, shape: [count, 3, height, width])
  }

  /// One convolution whose weights are signs, which bytes hold as they are.
  private func network(pads: [Int], bias: Bool = true, height: Int = 40, width: Int = 37) throws -> Graph {
    var graph = Graph(name: "one convolution")
    let dims = [Dim.symbol("N"), Dim(3), Dim(height), Dim(width)]
    let x = graph.addInput("x", .tensor(TensorType(.float32, dims)))
    let signs = (0..<8 * 27).map { index -> Float in
      (index &* 2654435761 >> 7) % 3 == 0 ? -1 : 1
    }
    let w = graph.addConstant("w", try Tensor(signs, shape: [8, 3, 3, 3]))
    var inputs: [ValueID?] = [x, w]
    if bias {
      inputs.append(graph.addConstant("b", try Tensor((0..<8).map { Float($0) - 3 }, shape: [8])))
    }
    let y = try graph.add(Conv(strides: [2, 1], pads: pads), inputs, name: "conv")
    graph.addOutput(y[0], name: "y")
    return graph
  }

  private func error(of table: CalibrationTable, _ graph: Graph) throws -> Double {
    var configuration = BuilderConfiguration()
    configuration.level = 0
    configuration.precision = .int8
    configuration.calibrationTable = table
    let x = try images(2, seed: 5)
    let wanted = try ReferenceInterpreter.run(graph, inputs: [.tensor(x)])
    let got = try #require(try Builder(configuration).build(graph).makeContext().run(["x": x])["y"])
    return TensorDifference(got, try #require(wanted[0].tensor)).relativeL2
  }

  private func table(_ graph: Graph) throws -> CalibrationTable {
    var configuration = BuilderConfiguration()
    configuration.level = 0
    let calibration = try Calibration(graph, configuration)
    for seed in 1...4 { try calibration.add(["x": try images(3, seed: seed)]) }
    return try calibration.finish()
  }

  @Test(arguments: [[0, 0, 0, 0], [1, 1, 1, 1], [0, 2, 1, 0]], [true, false])
  func pixelsAreWhatTheyWere(pads: [Int], bias: Bool) throws {
    let graph = try network(pads: pads, bias: bias)
    var table = try table(graph)
    let ranges = try #require(table.entries["x"]?.channelRanges)
    #expect(ranges.count == 3 && ranges.allSatisfy { abs($0.scale * 255 - 1) < 1e-6 })
    #expect(try CalibrationTable(parsing: table.text).entries["x"]?.channelRanges == ranges)
    let exact = try error(of: table, graph)
    table.entries["x"]?.channelRanges = []
    let shared = try error(of: table, graph)
    guard try Builder(BuilderConfiguration()).device().fastTypes.contains(.int8) else { return }
    // Inside nothing is rounded at all; at the border zero lies between two bytes.
    #expect(exact < (pads.contains { $0 != 0 } ? 0.8 * shared : 1e-6) && shared > 1e-4, "\(exact) \(shared)")
  }

  /// The border of a small image is too large a part of it.
  @Test func smallImagesShareAStep() throws {
    let graph = try network(pads: [1, 1, 1, 1], height: 5, width: 6)
    var configuration = BuilderConfiguration()
    configuration.level = 0
    configuration.precision = .int8
    let calibration = try Calibration(graph, configuration)
    for seed in 1...4 { try calibration.add(["x": images(3, seed: seed, height: 5, width: 6)]) }
    configuration.calibrationTable = try calibration.finish()
    let engine = try Builder(configuration).build(graph)
    guard engine.device.fastTypes.contains(.int8) else { return }
    #expect(!engine.graph.nodes.contains { engine.graph[$0].op is Pad })
    configuration.calibrationTable = try table(network(pads: [1, 1, 1, 1]))
    let large = try Builder(configuration).build(network(pads: [1, 1, 1, 1]))
    #expect(large.graph.nodes.contains { large.graph[$0].op is Pad })
  }

  /// Outliers: a range that is cut off has shorter steps for all channels.
  @Test func channelsShareAStepThatIsShorter() throws {
    let graph = try network(pads: [1, 1, 1, 1])
    var configuration = BuilderConfiguration()
    configuration.level = 0
    let calibration = try Calibration(graph, configuration, calibrator: .percentile(99))
    for seed in 1...4 {
      let x = try images(3, seed: seed)
      x.mutableBytes.storeBytes(of: Float(40), toByteOffset: 0, as: Float.self)
      try calibration.add(["x": x])
    }
    let entry = try #require(try calibration.finish().entries["x"])
    #expect(entry.channelRanges.isEmpty && entry.range.upper < 2)
  }
}
