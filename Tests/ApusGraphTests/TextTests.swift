// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusTestSupport
import Testing

@Suite struct TextTests {
  private func roundTrip(_ graph: Graph) throws {
    var writer = TextWriter(sink: ConstantTable())
    let text = try writer.write(graph)
    var reader = TextReader(text, registry: .standard, constants: writer.sink.tensors)
    let again = try reader.read()
    var second = TextWriter(sink: ConstantTable())
    #expect(try second.write(again) == text)
  }

  @Test func graphsSurviveTheTextFormat() throws {
    try roundTrip(try SmallNetworks.residual())
    try roundTrip(try SmallNetworks.branching())
  }

  @Test func unusualNamesAndConstantsSurvive() throws {
    var b = GraphBuilder("odd \"name\"\n")
    let x = b.input("a b:0%", .float32, [.symbol("unk \"1\""), 2])
    let c = b.constant("ünïcode", try Tensor([Float.infinity, -0.0], shape: [2]))
    let y = try b.apply(Add(), [x, c], name: "spaced out")
    try roundTrip(try b.finish(outputs: [("out put", y)]))
  }

  @Test func damagedTextIsAnError() throws {
    let text = try SmallNetworks.residual().text()
    var generator = SeededGenerator(seed: 3)
    for _ in 0..<300 {
      var bytes = Array(text.utf8)
      switch generator.integer(below: 3) {
      case 0: bytes.removeLast(generator.integer(below: bytes.count))
      case 1: bytes[generator.integer(below: bytes.count)] = UInt8(32 + generator.integer(below: 90))
      default:
        let at = generator.integer(below: bytes.count)
        bytes.removeSubrange(at..<min(bytes.count, at + 1 + generator.integer(below: 40)))
      }
      var reader = TextReader(
        String(decoding: bytes, as: UTF8.self), registry: .standard,
        constants: [])
      // Nothing but a clean error or a graph may come of it.
      _ = try? reader.read()
    }
  }

  @Test func expressionsSurviveTheirText() throws {
    let expr: ScalarExpr = .select(
      .less(.input(0), .const(0.5)), .cast(.unary(.round, .input(1)), .int8),
      .max(.input(0) * .const(-1e-30), .unary(.exponential, .input(2))))
    #expect(try ScalarExpr(parsing: expr.description) == expr)
    #expect(throws: ApusError.self) { try ScalarExpr(parsing: "add($0") }
    #expect(throws: ApusError.self) { try ScalarExpr(parsing: String(repeating: "neg(", count: 9999)) }
  }
}
