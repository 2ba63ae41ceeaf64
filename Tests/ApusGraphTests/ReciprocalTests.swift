// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusGraph
import Testing

@Suite struct ReciprocalTests {
  private let x = ScalarExpr.input(0)

  private func changed(_ expression: ScalarExpr, integers: Bool = false) -> ScalarExpr {
    expression.multiplyingByReciprocals { $0 == x && integers }
  }

  @Test func divisionsByConstantsAreProducts() {
    #expect(changed(x / .const(8)) == x * .const(0.125))
    #expect(changed(x / .const(3)) == x * .const(Double(Float(1) / 3)))
    #expect(changed(.unary(.errorFunction, x / .const(3))) == .unary(.errorFunction, x * .const(Double(Float(1) / 3))))
  }

  @Test func whatDecidesBetweenWholeNumbersIsDivided() {
    let steps = ScalarExpr.unary(.round, .max(.const(0), x / .const(3)))
    #expect(changed(steps) == steps)
    #expect(changed(.cast(x / .const(3), .uint8)) == .cast(x / .const(3), .uint8))
    #expect(changed(.less(x / .const(3), .const(1))) == .less(x / .const(3), .const(1)))
    #expect(changed(.unary(.round, x / .const(4))) == .unary(.round, x * .const(0.25)))
  }

  @Test func someAreLeft() {
    for divisor in [0.0, 1e-40, 3e38, .infinity, .nan] {
      guard case .binary(.divide, _, _) = changed(x / .const(divisor)) else {
        Issue.record("division by \(divisor) became a product")
        continue
      }
    }
    #expect(changed(x / .const(4), integers: true) == x / .const(4))
    #expect(changed(.const(1) / x) == .const(1) / x)
  }
}
