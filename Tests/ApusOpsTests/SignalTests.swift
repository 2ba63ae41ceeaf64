// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import Testing

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

@Suite struct SignalTests {
  private func tensor(_ values: [Double], _ shape: [Int]) throws -> RuntimeValue {
    .tensor(try Tensor(values, .float64, shape: shape))
  }

  private func integers(_ values: [Int]) throws -> RuntimeValue { .tensor(try .vector(values)) }

  private func doubles(_ value: RuntimeValue?) throws -> [Double] {
    try #require(value?.tensor).doubles()
  }

  /// Powers of two, primes, and one.
  @Test(arguments: [1, 2, 3, 5, 8, 12, 13, 64, 97])
  func theTransformIsTheSumOfItsDefinition(length: Int) throws {
    let signal = (0..<length).map { sin(Double($0 * $0)) + 0.25 }
    let result = try doubles(DFT().evaluate([tensor(signal, [1, length, 1])])[0])
    for k in 0..<length {
      var (real, imaginary) = (0.0, 0.0)
      for n in 0..<length {
        let angle = -2 * Double.pi * Double(k * n % length) / Double(length)
        real += signal[n] * cos(angle)
        imaginary += signal[n] * sin(angle)
      }
      #expect(abs(result[2 * k] - real) < 1e-11 * Double(length))
      #expect(abs(result[2 * k + 1] - imaginary) < 1e-11 * Double(length))
    }
    let back = try doubles(
      DFT(isInverse: true).evaluate([tensor(result, [1, length, 2])])[0])
    for n in 0..<length { #expect(abs(back[2 * n] - signal[n]) < 1e-12) }
  }

  @Test func halfOfTheFrequenciesSuffice() throws {
    let signal = [1.0, 5, -2, 0.5, 3, 3]
    let half = try DFT(isOneSided: true).evaluate([tensor(signal, [1, 6, 1])])[0]
    #expect(half.tensor?.shape == [1, 4, 2])
    let back = try doubles(DFT(isInverse: true, isOneSided: true).evaluate([half])[0])
    for n in 0..<6 { #expect(abs(back[n] - signal[n]) < 1e-12) }
  }

  @Test func hostileLengthsAreErrors() throws {
    for length in [0, -3, 1 << 40] {
      #expect(throws: ApusError.self) {
        try DFT().evaluate([tensor([1, 2], [1, 2, 1]), integers([length])])
      }
    }
    #expect(throws: ApusError.self) {
      try STFT().evaluate([tensor([1, 2], [1, 2, 1]), integers([0]), nil, integers([2])])
    }
  }

  @Test func lossesSkipTheIgnoredClass() throws {
    let x = try tensor([-1, -2, -3, -4, -5, -6], [3, 2])
    let labels = try integers([0, 1, 1])
    let mean = try NegativeLogLikelihoodLoss(ignoredClass: 1).evaluate([x, labels])
    #expect(try doubles(mean[0]) == [1])
    let none = try NegativeLogLikelihoodLoss(reduction: .none).evaluate([x, labels])
    #expect(try doubles(none[0]) == [1, 4, 6])
    #expect(throws: ApusError.self) {
      try NegativeLogLikelihoodLoss().evaluate([x, integers([0, 2, 1])])
    }
  }

  @Test func piecesOfTexts() throws {
    let x = RuntimeValue.tensor(try Tensor(strings: ["a,b,,c", ""], shape: [2]))
    let split = try StringSplit(delimiter: ",", maximumSplits: 2).evaluate([x])
    #expect(split[0].tensor?.strings == ["a", "b", ",c", "", "", ""])
    #expect(split[1].tensor?.ints() == [3, 1])
    let words = RuntimeValue.tensor(try Tensor(strings: ["  two words "], shape: []))
    #expect(try StringSplit().evaluate([words])[0].tensor?.strings == ["two", "words"])
    #expect(throws: ApusError.self) { try RegexFullMatch(pattern: "(") }
  }

  @Test func blocksAddUp() throws {
    // Two blocks of width 2 that overlap in the middle of three pixels.
    let y = try Col2Im().evaluate([tensor([1, 2, 10, 20], [1, 2, 2]), integers([3]), integers([2])])
    #expect(try doubles(y[0]) == [1, 12, 20])
  }

  @Test func treesThatLeadBackAreErrors() throws {
    var tables = TreeEnsemble.Tables()
    (tables.features, tables.comparisons, tables.splits) = ([0], [0], [0.5])
    (tables.trueNodes, tables.trueIsLeaf) = ([0], [1])
    (tables.falseNodes, tables.falseIsLeaf) = ([0], [0])
    (tables.leafTargets, tables.leafWeights, tables.roots) = ([0], [7], [0])
    let trees = try TreeEnsemble(tables: tables, targets: 1)
    #expect(try doubles(trees.evaluate([tensor([0.25], [1, 1])])[0]) == [7])
    #expect(throws: ApusError.self) { try trees.evaluate([tensor([0.75], [1, 1])]) }
  }
}
