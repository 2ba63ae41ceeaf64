// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusOptimize
import ApusTestSupport
import Testing

@Suite struct FuseAttentionTests {
  /// How attention is written out.
  private struct Form {
    var places = 7
    var heads = 3
    var width = 4
    var maskDims: [Dim]?
    /// Whether queries are scaled instead of scores.
    var scalesQueries = false
    var masksBeforeScaling = false
    var isTurnedTwice = false
    var showsWeights = false
    var joinsHeads = true
    var softmaxAxis = -1
    var type = DataType.float32
  }

  private func graph(_ form: Form) throws -> Graph {
    var b = GraphBuilder("attention")
    let rows: [Dim] = [2, Dim(form.places), Dim(form.heads * form.width)]
    let split = try Tensor([0, 0, Int64(form.heads), Int64(form.width)], .int64, shape: [4])
    let factor = b.constant("factor", try .scalar(0.5, .float32))
    func side(_ name: String, _ permutation: [Int]) throws -> ValueID {
      var x = try b.apply(Reshape(), [b.input(name, .float32, rows), b.constant("split \(name)", split)])
      if form.type != .float32 { x = try b.apply(Cast(to: form.type), [x]) }
      if form.scalesQueries && name == "q" { x = try b.apply(Mul(), [x, factor]) }
      if form.isTurnedTwice && permutation == [0, 2, 3, 1] {
        x = try b.apply(Transpose(permutation: [0, 2, 1, 3]), [x])
        return try b.apply(Transpose(permutation: [0, 1, 3, 2]), [x])
      }
      return try b.apply(Transpose(permutation: permutation), [x])
    }
    let sum: DataType? = form.type == .float32 ? nil : .float32
    let (q, k) = (try side("q", [0, 2, 1, 3]), try side("k", [0, 2, 3, 1]))
    let v = try side("v", [0, 2, 1, 3])
    var scores = try b.apply(MatMul(sumType: sum), [q, k])
    let mask = form.maskDims.map { b.input("mask", .float32, $0) }
    if let mask, form.masksBeforeScaling { scores = try b.apply(Add(), [scores, mask]) }
    if !form.scalesQueries { scores = try b.apply(Div(), [scores, factor]) }
    if let mask, !form.masksBeforeScaling { scores = try b.apply(Add(), [mask, scores]) }
    var weights = try b.apply(Softmax(axis: form.softmaxAxis), [scores])
    let shown = weights
    if form.type != .float32 { weights = try b.apply(Cast(to: form.type), [weights]) }
    var y = try b.apply(MatMul(sumType: sum), [weights, v])
    if form.type != .float32 { y = try b.apply(Cast(to: form.type), [y]) }
    if form.joinsHeads { y = try b.apply(Transpose(permutation: [0, 2, 1, 3]), [y]) }
    return try b.finish(outputs: form.showsWeights ? [("y", y), ("weights", shown)] : [("y", y)])
  }

  private func run(_ graph: Graph) throws -> [Double] {
    var generator = SeededGenerator(seed: 7)
    let inputs = try graph.inputs.map { id -> RuntimeValue? in
      let type = graph[id].type.tensor!
      return .tensor(try generator.tensor(type.dataType, shape: type.shape!))
    }
    return try ReferenceInterpreter.run(graph, inputs: inputs)[0].tensor!.doubles()
  }

  private func names(_ graph: Graph) -> [String] { graph.nodes.map { graph[$0].op.name } }

  /// The pass fires and the result stays.
  @discardableResult private func fuses(
    _ form: Form, tolerance: Double = 1e-6, sourceLocation: SourceLocation = #_sourceLocation
  ) throws -> Graph {
    let before = try graph(form)
    var after = before
    #expect(
      try FuseAttention().run(on: &after, in: PassContext()) == 1, sourceLocation: sourceLocation)
    _ = try RemoveDeadNodes().run(on: &after, in: PassContext())
    try GraphVerifier.verify(after)
    #expect(!names(after).contains("Softmax"), sourceLocation: sourceLocation)
    let (a, b) = (try run(before), try run(after))
    #expect(a.count == b.count && !a.isEmpty)
    for (x, y) in zip(a, b) { #expect(abs(x - y) <= tolerance, sourceLocation: sourceLocation) }
    return after
  }

  /// The pass leaves the graph alone, saying why where it got that far.
  private func stays(
    _ form: Form, because reason: String? = nil, sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    var after = try graph(form)
    let text = try after.text()
    let context = PassContext()
    #expect(try FuseAttention().run(on: &after, in: context) == 0, sourceLocation: sourceLocation)
    #expect(try after.text() == text, sourceLocation: sourceLocation)
    if let reason {
      #expect(
        context.refusals.contains { $0.reason.contains(reason) }, "\(context.refusals)",
        sourceLocation: sourceLocation)
    }
  }

  @Test func headsAreReadInTheirRows() throws {
    for masked in [nil, [1, 1, 1, 7], [2, 1, 7, 7], [7], [3, 1, 7]] as [[Dim]?] {
      for scalesQueries in [false, true] {
        for isTurnedTwice in [false, true] {
          let after = try fuses(
            Form(maskDims: masked, scalesQueries: scalesQueries, isTurnedTwice: isTurnedTwice))
          #expect(names(after).sorted() == ["Attention", "Reshape"], "\(names(after))")
        }
      }
    }
  }

  @Test func membersAndHeadsMayBeOneAxis() throws {
    for maskDims in [nil, [6, 1, 7], [1, 7, 7], [7, 7]] as [[Dim]?] {
      var b = GraphBuilder("members")
      let sides = ["q", "k", "v"].map { b.input($0, .float32, [6, 7, 4]) }
      let turned = try b.apply(Transpose(permutation: [0, 2, 1]), [sides[1]])
      var scores = try b.apply(MatMul(), [sides[0], turned])
      if let maskDims { scores = try b.apply(Add(), [scores, b.input("mask", .float32, maskDims)]) }
      let y = try b.apply(MatMul(), [try b.apply(Softmax(axis: 2), [scores]), sides[2]])
      let before = try b.finish(outputs: [("y", y)])
      var after = before
      #expect(try FuseAttention().run(on: &after, in: PassContext()) == 1)
      for (x, y) in zip(try run(before), try run(after)) { #expect(abs(x - y) <= 1e-6) }
    }
  }

  @Test func aResultByHeadsKeepsItsOrder() throws {
    let after = try fuses(Form(maskDims: [1, 1, 1, 7], joinsHeads: false))
    #expect(names(after).filter { $0 == "Transpose" }.count == 1)
  }

  @Test func roundedOperandsKeepTheirResult() throws {
    for joins in [false, true] {
      let after = try fuses(Form(joinsHeads: joins, type: .bfloat16), tolerance: 2e-2)
      let op = after.nodes.compactMap { after[$0].op as? Attention }.first
      // The rounding behind the product is the operator's own.
      #expect(op != nil && op?.sumType == nil)
    }
    try stays(Form(width: 5, type: .bfloat16), because: "width")
  }

  @Test func hiddenRowsStayNaN() throws {
    let before = try graph(Form(maskDims: [1, 1, 7, 7]))
    var after = before
    #expect(try FuseAttention().run(on: &after, in: PassContext()) == 1)
    let hidden = try Tensor(
      (0..<49).map { $0 / 7 == 2 || $0 % 7 == 1 ? -Double.infinity : 0 }, .float32, shape: [1, 1, 7, 7])
    var generator = SeededGenerator(seed: 7)
    let inputs = try before.inputs.map { id -> RuntimeValue? in
      let type = before[id].type.tensor!
      return .tensor(before[id].name == "mask" ? hidden : try generator.tensor(.float32, shape: type.shape!))
    }
    let a = try ReferenceInterpreter.run(before, inputs: inputs)[0].tensor!.doubles()
    let b = try ReferenceInterpreter.run(after, inputs: inputs)[0].tensor!.doubles()
    #expect(a.contains { $0.isNaN } && a.contains { !$0.isNaN })
    for (x, y) in zip(a, b) { #expect(x.isNaN == y.isNaN && (x.isNaN || abs(x - y) < 1e-6)) }
  }

  @Test func whatOnlyLooksAlikeStays() throws {
    try stays(Form(showsWeights: true))
    try stays(Form(softmaxAxis: 2))
    try stays(Form(maskDims: [1, 1, 1, 7], masksBeforeScaling: true), because: "scaled")
    // One number for all keys of a query is no mask of keys.
    try stays(Form(maskDims: [1, 1, 7, 1]), because: "mask")
  }

  @Test func devicesWithoutSuchAKernelAreLeftAlone() throws {
    let engine = try Builder(backend: FakeDeviceBackend()).build(try graph(Form()))
    #expect(!engine.graph.nodes.contains { engine.graph[$0].op is Attention })
  }
}
