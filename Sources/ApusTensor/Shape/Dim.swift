// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// A dimension of a tensor: a whole number, or a polynomial over named symbols such as `2*N + 1`.
///
/// Symbols stand for sizes known only when the network runs. Polynomials are kept in a canonical
/// form, so equal expressions compare equal: `N*3 / 3 == N`. Where an exact quotient does not
/// exist, a fresh opaque symbol such as `floor(N+1,2)` keeps the expression's text as its name.
public struct Dim: Hashable, Sendable {
  /// Terms: a sorted product of symbols (empty for the constant) and its coefficient, sorted.
  private var terms: [Term]

  private struct Term: Hashable, Sendable {
    var symbols: [String]
    var coefficient: Int
  }

  private init(terms: [Term]) { self.terms = terms }

  /// A known size.
  public init(_ value: Int) {
    terms = value == 0 ? [] : [Term(symbols: [], coefficient: value)]
  }

  /// An unknown size with a name; equal names are equal sizes within one graph.
  public static func symbol(_ name: String) -> Dim {
    Dim(terms: [Term(symbols: [name], coefficient: 1)])
  }

  /// The size when it is known.
  public var value: Int? {
    if terms.isEmpty { return 0 }
    return terms.count == 1 && terms[0].symbols.isEmpty ? terms[0].coefficient : nil
  }

  /// The name when this is a bare symbol.
  public var symbolName: String? {
    guard terms.count == 1, terms[0].coefficient == 1, terms[0].symbols.count == 1 else { return nil }
    return terms[0].symbols[0]
  }

  /// The coefficient and symbols of every term, in canonical order.
  package var textTerms: [(coefficient: Int, symbols: [String])] {
    terms.map { ($0.coefficient, $0.symbols) }
  }

  /// The symbols that occur.
  public var symbols: Set<String> { Set(terms.flatMap(\.symbols)) }

  private static func normalised(_ terms: [Term]) -> Dim {
    var sums: [[String]: Int] = [:]
    for term in terms { sums[term.symbols, default: 0] &+= term.coefficient }
    let kept = sums.filter { $0.value != 0 }.map { Term(symbols: $0.key, coefficient: $0.value) }
    return Dim(
      terms: kept.sorted {
        $0.symbols.count != $1.symbols.count
          ? $0.symbols.count > $1.symbols.count
          : $0.symbols.lexicographicallyPrecedes($1.symbols)
      })
  }

  /// The sum.
  public static func + (a: Dim, b: Dim) -> Dim { normalised(a.terms + b.terms) }

  /// The difference.
  public static func - (a: Dim, b: Dim) -> Dim { a + b * Dim(-1) }

  /// The product.
  public static func * (a: Dim, b: Dim) -> Dim {
    var products: [Term] = []
    for x in a.terms {
      for y in b.terms {
        products.append(
          Term(
            symbols: (x.symbols + y.symbols).sorted(),
            coefficient: x.coefficient.multipliedReportingOverflow(by: y.coefficient).partialValue))
      }
    }
    return normalised(products)
  }

  /// The quotient rounded down: exact where the divisor divides every term, else opaque.
  public func floorDivided(by divisor: Dim) -> Dim {
    if let a = value, let b = divisor.value, b != 0 {
      return Dim(a >= 0 ? a / b : -((-a + abs(b) - 1) / abs(b)) * (b < 0 ? -1 : 1))
    }
    if divisor.value == 1 { return self }
    if self == divisor { return Dim(1) }
    if divisor.terms.count == 1, let exact = exactQuotient(divisor.terms[0]) { return exact }
    return .symbol("floor(\(self),\(divisor))")
  }

  private func exactQuotient(_ divisor: Term) -> Dim? {
    var quotient: [Term] = []
    for term in terms {
      guard term.coefficient % divisor.coefficient == 0 else { return nil }
      var rest = term.symbols
      for symbol in divisor.symbols {
        guard let index = rest.firstIndex(of: symbol) else { return nil }
        rest.remove(at: index)
      }
      quotient.append(Term(symbols: rest, coefficient: term.coefficient / divisor.coefficient))
    }
    return Self.normalised(quotient)
  }

  /// This dimension with the given symbols replaced.
  public func substituting(_ sizes: [String: Dim]) -> Dim {
    if terms.allSatisfy({ $0.symbols.allSatisfy { sizes[$0] == nil } }) { return self }
    var sum = Dim(0)
    for term in terms {
      var product = Dim(term.coefficient)
      for symbol in term.symbols { product = product * (sizes[symbol] ?? .symbol(symbol)) }
      sum = sum + product
    }
    return sum
  }
}

extension Dim: ExpressibleByIntegerLiteral, CustomStringConvertible {
  public init(integerLiteral value: Int) { self.init(value) }

  public var description: String {
    if terms.isEmpty { return "0" }
    return terms.map { term in
      if term.symbols.isEmpty { return String(term.coefficient) }
      let product = term.symbols.joined(separator: "*")
      return term.coefficient == 1 ? product : "\(term.coefficient)*\(product)"
    }.joined(separator: "+")
  }
}
