// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusGraph
import Testing

@Suite struct LinearFormTests {
  private let x = ScalarExpr.input(0)
  private let y = ScalarExpr.input(1)

  @Test func scalesAndOffsetsAreMerged() {
    let nested = ((x - .const(3)) * .const(0.5) + y / .const(4)) / .const(0.25)
    #expect(nested.mergingScales() == x * .const(2) + .const(-6) + y)
    #expect((x + .const(7) - .const(7)).mergingScales() == x)
    #expect((x - x).mergingScales() == .const(0))
    // A factor that all share stays one product.
    let shared = (x + y) * .const(3)
    #expect(shared.mergingScales() == shared)
  }

  @Test func factorsGoThroughLimits() {
    let scaled = ScalarExpr.max(x * y + .const(1), .const(0)) * .const(4)
    #expect(scaled.mergingScales() == .max(x * y * .const(4) + .const(4), .const(0)))
    let both = ScalarExpr.min(.max(x * .const(2), .const(-1)), .const(6)) * .const(0.5)
    #expect(both.mergingScales() == .min(.max(x, .const(-0.5)), .const(3)))
    // A negative factor would turn a lower limit into an upper one.
    let turned = ScalarExpr.max(x, .const(0)) * .const(-2)
    #expect(turned.mergingScales() == turned)
  }

  @Test func limitsBehindTheRangeOfBytesGo() {
    func rounded(_ steps: ScalarExpr, zero: Int = 0) -> ScalarExpr {
      ScalarQuantization(steps: steps, zeroPoint: zero, type: .uint8).expression
    }
    let relu = ScalarExpr.max(x, .const(0))
    #expect(rounded(relu * .const(3)).mergingScales() == rounded(x * .const(3)))
    #expect(rounded(.min(relu, .const(100)) * .const(3)).mergingScales() == rounded(x * .const(3)))
    // Here they are inside.
    #expect(
      rounded(.min(relu, .const(80)) * .const(3)).mergingScales()
        == rounded(.min(.max(x * .const(3), .const(0)), .const(240))))
    #expect(
      rounded(relu * .const(3), zero: 5).mergingScales()
        == rounded(.max(x * .const(3), .const(0)), zero: 5))
  }

  @Test func roundedNumbersAreNotConvertedTwice() throws {
    let steps = x * y * .const(8) / .const(2)
    let rounding = ScalarQuantization(steps: steps, zeroPoint: 12, type: .uint8)
    let back = (ScalarExpr.cast(rounding.expression, .float32) - .const(12)) * .const(0.25)
    let merged = back.mergingScales()
    #expect(!merged.contains { if case .cast = $0 { true } else { false } })
    for (a, b) in [(0.3, 2.0), (-4.0, 1.0), (100.0, 1.0), (0.5, 0.25)] {
      let operands = [a, b].map { ScalarEvaluator.Elements.real([$0], .float32) }
      let got = try ScalarEvaluator(operands: operands, count: 1).evaluate(merged, expected: .float32).reals.first
      let want = max(-12, min(243, (a * b * 4).rounded(.toNearestOrEven))) * 0.25
      #expect(got == want)
    }
  }
}
