// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import Testing

@Suite struct AttentionTests {
  private func tensor(_ values: [Double], _ shape: [Int]) throws -> RuntimeValue {
    .tensor(try Tensor(values, .float64, shape: shape))
  }

  private func doubles(_ value: RuntimeValue?) throws -> [Double] {
    try #require(value?.tensor).doubles()
  }

  @Test func equalScoresGiveTheMean() throws {
    // A query of zeros sees every key alike.
    let y = try Attention().evaluate([
      tensor([0, 0], [1, 1, 1, 2]), tensor([1, 2, 3, 4], [1, 1, 2, 2]),
      tensor([10, 20, 30, 40], [1, 1, 2, 2]),
    ])
    #expect(try doubles(y[0]) == [20, 30])
  }

  @Test func causalQueriesSeeThePastAndThemselves() throws {
    let q = try tensor([0, 0, 0], [1, 1, 3, 1])
    let v = try tensor([3, 6, 9], [1, 1, 3, 1])
    let y = try Attention(isCausal: true).evaluate([q, q, v])
    #expect(try doubles(y[0]) == [3, 4.5, 6])
    // With two places cached, the only query stands behind them.
    let past = try tensor([0, 0], [1, 1, 2, 1])
    let pastValues = try tensor([1, 2], [1, 1, 2, 1])
    let one = try tensor([0], [1, 1, 1, 1])
    let next = try Attention(isCausal: true).evaluate([
      one, one, try tensor([6], [1, 1, 1, 1]), nil, past, pastValues,
    ])
    #expect(try doubles(next[0]) == [3])
    #expect(try doubles(next[2]) == [1, 2, 6])
  }

  @Test func rowsWithoutAKeyAreZeroAndHeadsAreShared() throws {
    let mask = RuntimeValue.tensor(try Tensor([0, 0, 1, 1], .bool, shape: [2, 2]))
    let y = try Attention(queryHeads: 2, keyHeads: 1).evaluate([
      tensor([0, 0, 0, 0], [1, 2, 2]), tensor([0, 0], [1, 2, 1]), tensor([2, 4], [1, 2, 1]), mask,
    ])
    #expect(try doubles(y[0]) == [0, 0, 3, 3])
  }

  @Test func weightsFollowScaledAndMaskedScores() throws {
    // Scores 2 and 4, halved, with 1 added to the first: weights 1 / (1 + 1) each.
    let y = try Attention(scale: 0.5).evaluate([
      tensor([2], [1, 1, 1, 1]), tensor([1, 2], [1, 1, 2, 1]), tensor([3, 5], [1, 1, 2, 1]),
      tensor([1, 0], [1, 1, 1, 2]),
    ])
    #expect(try doubles(y[0]) == [4])
  }

  @Test func hiddenRowsMayStayNaN() throws {
    let mask = try tensor([-.infinity, -.infinity, 0, -.infinity], [2, 2])
    let y = try Attention(keepsNaN: true).evaluate([
      tensor([0, 0], [1, 1, 2, 1]), tensor([0, 0], [1, 1, 2, 1]), tensor([2, 4], [1, 1, 2, 1]), mask,
    ])
    let values = try doubles(y[0])
    #expect(values[0].isNaN && values[1] == 2)
  }

  @Test func sumsMayBeWiderThanOperands() throws {
    let x = RuntimeValue.tensor(try Tensor([0, 0], .bfloat16, shape: [1, 2, 1]))
    let v = RuntimeValue.tensor(try Tensor([1, 1.0078125], .bfloat16, shape: [1, 2, 1]))
    let op = Attention(queryHeads: 1, keyHeads: 1, sumType: .float32)
    let y = try #require(try op.evaluate([x, x, v])[0].tensor)
    #expect(y.dataType == .float32 && y.doubles() == [1.00390625, 1.00390625])
    var reader = AttributeReader(op.attributes, for: "Attention")
    #expect(try Attention(reading: &reader).sumType == .float32)
  }

  @Test func samplesAreElementsOfTheResult() throws {
    for isSideBySide in [false, true] {
      let shape = isSideBySide ? [2, 3, 8] : [2, 4, 3, 2]
      func numbers(_ seed: Double) throws -> Tensor {
        try Tensor((0..<48).map { (Double($0) * seed).truncatingRemainder(dividingBy: 1.7) }, .float64, shape: shape)
      }
      let operands = [try numbers(0.71), try numbers(0.37), try numbers(0.53)]
      let op = Attention(isCausal: true, queryHeads: 4, keyHeads: 4)
      let want = try doubles(try op.evaluate(operands.map { .tensor($0) })[0])
      let got = try op.evaluateSamples(operands, at: Array(0..<48))
      for (a, b) in zip(want, got) { #expect(abs(a - b) < 1e-12) }
      #expect(throws: ApusError.self) { try op.evaluateSamples(operands, at: [48]) }
    }
  }

  @Test func operandsThatDoNotFitAreErrors() throws {
    #expect(throws: ApusError.self) {
      try Attention().evaluate([
        tensor([0, 0], [1, 1, 1, 2]), tensor([1], [1, 1, 1, 1]), tensor([1], [1, 1, 1, 1]),
      ])
    }
    #expect(throws: ApusError.self) { try Attention().evaluate([tensor([0], [1, 1]), nil, nil]) }
  }

  @Test func rotationTurnsPairs() throws {
    let x = try tensor([1, 2, 3, 4], [1, 1, 1, 4])
    let cosine = try tensor([0, 1], [1, 1, 2])
    let sine = try tensor([1, 0], [1, 1, 2])
    // The first pair is turned by a quarter, the second not at all.
    #expect(try doubles(RotaryEmbedding().evaluate([x, cosine, sine])[0]) == [-3, 2, 1, 4])
    let neighbours = try RotaryEmbedding(isInterleaved: true).evaluate([x, cosine, sine])
    #expect(try doubles(neighbours[0]) == [-2, 1, 3, 4])
  }

  @Test func linearAttentionAddsUpWhatItWrites() throws {
    let ones = try tensor([1, 1], [1, 2, 1])
    let y = try LinearAttention(rule: .linear, queryHeads: 1, keyHeads: 1).evaluate([
      ones, ones, try tensor([5, 7], [1, 2, 1]),
    ])
    #expect(try doubles(y[0]) == [5, 12])
    #expect(try doubles(y[1]) == [12])
  }
}
