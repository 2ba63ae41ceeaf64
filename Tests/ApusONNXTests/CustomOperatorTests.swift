// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusProto
import Testing

/// An operator of a user's own, as the guide shows it.
private struct Scale: PointwiseOperator {
  static let name = "test.Scale"
  let factor: Double

  init(reading attributes: inout AttributeReader) throws(ApusError) {
    factor = Double(try attributes.int("factor", 1))
  }
  var attributes: Attributes { ["factor": .int(Int(factor))] }

  func body(_ inputs: [DataType]) -> ScalarExpr { .input(0) * .const(factor) }
}

@Suite struct CustomOperatorTests {
  private var model: [UInt8] {
    get throws {
      try Make.model(
        Make.graph(
          [
            Make.node("Relu", ["x"], ["a"]),
            Make.node("Scale", ["a"], ["b"], domain: "my.domain", [Make.attribute("factor", 3)]),
            Make.node("Neg", ["b"], ["y"]),
          ], inputs: [Make.input("x", [4])], outputs: ["y"]), domains: ["my.domain"])
    }
  }

  @Test func aRegisteredOperatorIsBuiltFusedSavedAndLoaded() throws {
    var table = ONNXOperatorTable.standard
    table.register(Scale.self, as: "Scale", domain: "my.domain")
    let engine = try Builder().build(ONNXImporter(table: table).importModel(bytes: try model))
    let x = try Tensor([Float](arrayLiteral: -1, 2, 0, 5), shape: [4])
    #expect(try engine.makeContext().run(["x": x])["y"]?.floats() == [0, -6, 0, -15])
    #expect(try engine.kernels().count == 1)

    let path = "/tmp/apus-test-\(UInt64.random(in: 0 ..< .max)).plan"
    var registry = OperatorRegistry.standard
    registry.register(Scale.self)
    try engine.save(path: path)
    let loaded = try Engine.load(path: path, registry: registry)
    #expect(try loaded.makeContext().run(["x": x])["y"]?.floats() == [0, -6, 0, -15])
  }

  @Test func errorsSayWhatIsMissing() throws {
    var table = ONNXOperatorTable.standard
    let model = try model
    let unknown = #expect(throws: ApusError.self) {
      try ONNXImporter().importModel(bytes: model)
    }
    #expect(unknown?.code == .unsupportedOperator)
    #expect(unknown?.message.contains("my.domain.Scale") == true)
    #expect(unknown?.hint?.contains("register") == true)
    table.register("Scale", domain: "my.domain") { (attributes) throws(ApusError) in
      var reader = AttributeReader(attributes, for: "Scale")
      _ = try reader.string("factor")
      return Relu()
    }
    let mistyped = #expect(throws: ApusError.self) {
      try ONNXImporter(table: table).importModel(bytes: model)
    }
    #expect(mistyped?.code == .invalidAttribute)
    #expect(mistyped?.description.contains("Scale") == true)
  }
}
