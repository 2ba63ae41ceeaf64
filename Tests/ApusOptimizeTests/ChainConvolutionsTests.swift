// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusOptimize
import ApusTestSupport
import Testing

@Suite struct ChainConvolutionsTests {
  /// A convolution with channels last and a clipped bias.
  private func layer(
    _ b: inout GraphBuilder, _ x: ValueID, _ weights: [Int], seed: UInt64, group: Int = 1,
    other: ValueID? = nil, pads: [Int] = [], strides: [Int] = []
  ) throws -> ValueID {
    let w = b.constant("w\(seed)", try SmallNetworks.weights(weights, seed: seed))
    let bias = b.constant("b\(seed)", try SmallNetworks.weights([weights[3]], seed: seed + 50))
    var y = try b.apply(
      Conv(strides: strides, pads: pads, group: group, channelsLast: true), [x, w])
    y = try b.apply(Relu(), [try b.apply(Add(), [y, bias])])
    if let other { y = try b.apply(Add(), [y, other]) }
    return y
  }

  private func depthwise(_ b: inout GraphBuilder, _ x: ValueID, _ channels: Int, stride: Int = 1) throws
    -> ValueID
  {
    try layer(
      &b, x, [3, 3, 1, channels], seed: 2, group: channels, pads: [1, 1, 1, 1],
      strides: [stride, stride])
  }

  /// Fuses the epilogues, then runs the pass and compares; gives the operators' names.
  private func names(_ graph: Graph, _ shape: [Int]) throws -> [String] {
    let context = PassContext()
    var graph = graph
    _ = try MergePointwise().run(on: &graph, in: context)
    while try FuseEpilogues().run(on: &graph, in: context) > 0 {}
    _ = try RemoveDeadNodes().run(on: &graph, in: context)
    let before = graph
    let count = try ChainConvolutions().run(on: &graph, in: context)
    try GraphVerifier.verify(graph)
    if count == 0 { #expect(try graph.text() == before.text()) }
    var generator = SeededGenerator(seed: 3)
    let x = RuntimeValue.tensor(try generator.tensor(.float32, shape: shape))
    let expected = try ReferenceInterpreter.run(before, inputs: [x])
    let got = try ReferenceInterpreter.run(graph, inputs: [x])
    for (a, b) in zip(got, expected) {
      #expect(try #require(a.tensor).bytes.elementsEqual(try #require(b.tensor).bytes))
    }
    return graph.nodes.map { graph[$0].op.name }
  }

  @Test func aBottleneckBecomesAChain() throws {
    for stride in [1, 2] {
      var b = GraphBuilder("bottleneck")
      let x = b.input("x", .float32, [2, 7, 6, 4])
      let wide = try layer(&b, x, [1, 1, 4, 12], seed: 1)
      let filtered = try depthwise(&b, wide, 12, stride: stride)
      let y = try layer(&b, filtered, [1, 1, 12, 4], seed: 3, other: stride == 1 ? x : nil)
      let graph = try b.finish(outputs: [("y", y)])
      #expect(try names(graph, [2, 7, 6, 4]) == ["Chain"])
    }
  }

  @Test func twoConvolutionsAreEnough() throws {
    var b = GraphBuilder("before")
    let x = b.input("x", .float32, [1, 5, 5, 4])
    let y = try depthwise(&b, try layer(&b, x, [1, 1, 4, 8], seed: 1), 8)
    // As where a network looks at the whole image in between.
    let mean = try b.apply(Reduce(function: .mean, axes: [1, 2]), [y])
    let z = try b.apply(Mul(), [y, mean])
    let w = b.constant("w", try SmallNetworks.weights([1, 1, 8, 4], seed: 9))
    let p = try b.apply(Conv(channelsLast: true), [z, w])
    let names = try self.names(try b.finish(outputs: [("p", p)]), [1, 5, 5, 4])
    #expect(names.sorted() == ["Chain", "Chain", "Reduce"], "\(names)")

    var c = GraphBuilder("behind")
    let u = c.input("x", .float32, [1, 5, 5, 8])
    let v = try layer(&c, try depthwise(&c, u, 8), [1, 1, 8, 4], seed: 3)
    #expect(try self.names(try c.finish(outputs: [("y", v)]), [1, 5, 5, 8]) == ["Chain"])
  }

  @Test func whatOthersReadStaysOutside() throws {
    // The wide tensor is a result, too; then the depthwise convolution's result is.
    var b = GraphBuilder("readers")
    let x = b.input("x", .float32, [1, 5, 5, 4])
    let wide = try layer(&b, x, [1, 1, 4, 8], seed: 1)
    let filtered = try depthwise(&b, wide, 8)
    let y = try layer(&b, filtered, [1, 1, 8, 4], seed: 3)
    let graph = try b.finish(outputs: [("wide", wide), ("filtered", filtered), ("y", y)])
    #expect(try names(graph, [1, 5, 5, 4]).contains("Chain") == false)
  }

  @Test func elementwiseOperatorsJoinTheProductBehind() throws {
    // Factors for the channels of each image, then of all; one for everything.
    for factors in [[2, 1, 1, 8], [1, 1, 1, 8], [8], [1]] {
      var b = GraphBuilder("scaled")
      let x = b.input("x", .float32, [2, 5, 4, 8])
      let g = b.constant("g", try SmallNetworks.weights(factors, seed: 4))
      let y = try layer(&b, try b.apply(Sigmoid(), [try b.apply(Mul(), [x, g])]), [1, 1, 8, 4], seed: 3)
      let names = try self.names(try b.finish(outputs: [("y", y)]), [2, 5, 4, 8])
      #expect(names == ["Chain"], "\(factors) \(names)")
    }
  }

  @Test func otherElementwiseOperatorsStayOutside() throws {
    // A factor for each pixel, a second reader, and an image that is the second operand only.
    var b = GraphBuilder("others")
    let x = b.input("x", .float32, [1, 5, 4, 8])
    let pixels = b.constant("p", try SmallNetworks.weights([1, 5, 4, 1], seed: 4))
    let channels = b.constant("c", try SmallNetworks.weights([1, 1, 1, 8], seed: 5))
    let scaled = try b.apply(Mul(), [x, channels])
    let y = try [
      try b.apply(Mul(), [x, pixels]), scaled, try b.apply(Mul(), [channels, x]),
    ].enumerated().map { try layer(&b, $1, [1, 1, 8, 4], seed: UInt64($0 + 6)) }
    let outputs = y.enumerated().map { ("y\($0)", $1) } + [("scaled", scaled)]
    let names = try self.names(try b.finish(outputs: outputs), [1, 5, 4, 8])
    #expect(!names.contains("Chain"), "\(names)")
  }

  @Test func concatenationsStayInPlace() throws {
    var b = GraphBuilder("concatenation")
    let x = b.input("x", .float32, [1, 5, 4, 8])
    let g = b.constant("g", try SmallNetworks.weights([8], seed: 4))
    let y = try layer(&b, try b.apply(Mul(), [x, g]), [1, 1, 8, 4], seed: 3)
    let all = try b.apply(Concat(axis: 3), [x, y])
    let names = try self.names(try b.finish(outputs: [("y", all)]), [1, 5, 4, 8])
    #expect(!names.contains("Chain"), "\(names)")
  }

  @Test func otherConvolutionsAreLeftAlone() throws {
    // A 3x3 convolution that mixes channels, and a 1x1 one that skips pixels.
    var b = GraphBuilder("others")
    let x = b.input("x", .float32, [1, 6, 6, 4])
    let wide = try layer(&b, x, [3, 3, 4, 8], seed: 1, pads: [1, 1, 1, 1])
    let filtered = try depthwise(&b, wide, 8)
    let y = try layer(&b, filtered, [1, 1, 8, 4], seed: 3, strides: [2, 2])
    #expect(try names(try b.finish(outputs: [("y", y)]), [1, 6, 6, 4]).contains("Chain") == false)
  }

  @Test func poolingJoinsTheConvolutionBefore() throws {
    for (kernel, stride, isTaken) in [(7, 2, true), (1, 1, true), (3, 2, true), (3, 1, false)] {
      var b = GraphBuilder("stem")
      let x = b.input("x", .float32, [2, 13, 12, 3])
      let y = try layer(
        &b, x, [kernel, kernel, 3, 8], seed: 1, pads: Array(repeating: kernel / 2, count: 4),
        strides: [stride, stride])
      let pool = PoolAttributes(
        kernel: [3, 3], strides: [2, 2], pads: [1, 1, 1, 1], dilations: [], ceilMode: false, channelsLast: true)
      let graph = try b.finish(outputs: [("y", try b.apply(MaxPool(pool), [y]))])
      #expect(try names(graph, [2, 13, 12, 3]).contains("Chain") == isTaken)
    }
  }

  @Test func theFirstConvolutionJoinsTheDepthwiseOneBehind() throws {
    var b = GraphBuilder("stem")
    let x = b.input("x", .float32, [1, 9, 9, 3])
    let filtered = try depthwise(&b, try layer(&b, x, [3, 3, 3, 8], seed: 1, strides: [2, 2]), 8)
    let y = try layer(&b, filtered, [1, 1, 8, 4], seed: 3)
    #expect(try names(try b.finish(outputs: [("y", y)]), [1, 9, 9, 3]) == ["Chain"])
  }

  @Test func aChainBeforeTakesTheConvolutionBetweenTwo() throws {
    // Depthwise and 1x1 in turn: no convolution is in two chains.
    var b = GraphBuilder("in turn")
    let x = b.input("x", .float32, [1, 5, 5, 8])
    let y = try layer(&b, try depthwise(&b, x, 8), [1, 1, 8, 8], seed: 3)
    let w = b.constant("w4", try SmallNetworks.weights([3, 3, 1, 8], seed: 4))
    let z = try b.apply(Conv(pads: [1, 1, 1, 1], group: 8, channelsLast: true), [y, w])
    let names = try self.names(try b.finish(outputs: [("z", z)]), [1, 5, 5, 8])
    #expect(names.sorted() == ["Chain", "Conv"], "\(names)")
  }
}
