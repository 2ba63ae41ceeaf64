// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor
import Testing

@Suite struct ConvolutionTests {
  @Test func convolves() throws {
    let x = try f([1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 1, 3, 3])
    let ones = try f([1, 1, 1, 1], [1, 1, 2, 2])
    #expect(try run(Conv(), [x, ones])[0].floats() == [12, 16, 24, 28])
    #expect(try run(Conv(), [x, ones, f([10], [1])])[0].floats() == [22, 26, 34, 38])
    #expect(try run(Conv(strides: [2, 2]), [x, ones])[0].floats() == [12])
    #expect(try run(Conv(dilations: [2, 2]), [x, ones])[0].floats() == [20])
    let padded = try run(Conv(pads: [1, 0, 0, 0]), [x, ones])[0]
    #expect(padded.shape == [1, 1, 3, 2] && padded.floats() == [3, 5, 12, 16, 24, 28])
    let same = try run(Conv(strides: [2, 2], autoPad: .sameUpper), [x, ones])[0]
    #expect(same.shape == [1, 1, 2, 2] && same.floats() == [12, 9, 15, 9])
    let lower = try run(Conv(strides: [2, 2], autoPad: .sameLower), [x, ones])[0]
    #expect(lower.floats() == [1, 5, 11, 28])
  }

  @Test func groupsAndLayouts() throws {
    // Two channels, each with a kernel of its own.
    let x = try f([1, 2, 3, 4, 5, 6], [1, 2, 3])
    let w = try f([1, 1, 10, 10], [2, 1, 2])
    #expect(try run(Conv(group: 2), [x, w])[0].floats() == [3, 5, 90, 110])
    let last = try f([1, 4, 2, 5, 3, 6], [1, 3, 2])
    let lastWeights = try f([1, 10, 1, 10], [2, 1, 2])
    let result = try run(Conv(group: 2, channelsLast: true), [last, lastWeights])[0]
    #expect(result.shape == [1, 2, 2] && result.floats() == [3, 90, 5, 110])
    #expect(Conv().weightPermutations(rank: 4) == [1: [2, 3, 1, 0]])
    let cube = try run(
      Conv(),
      [
        f(Array(repeating: 1, count: 8), [1, 1, 2, 2, 2]),
        f(Array(repeating: 2, count: 8), [1, 1, 2, 2, 2]),
      ])[0]
    #expect(cube.shape == [1, 1, 1, 1, 1] && cube.floats() == [16])
    let op = Conv(pads: [1, 1], group: 2)
    let samples = try op.evaluateSamples([x.tensor, w.tensor], at: [0, 1, 5])
    let whole = try run(op, [x, w])[0].doubles()
    #expect(samples == [whole[0], whole[1], whole[5]])
    #expect(throws: ApusError.self) { try op.evaluateSamples([x.tensor, w.tensor], at: [99]) }
  }

  @Test func refusesConvolutions() throws {
    let x = try f([1, 2, 3, 4], [1, 1, 2, 2])
    #expect(refuses(Conv(), [x, try f([1], [1, 1, 1])]))
    #expect(refuses(Conv(group: 2), [x, try f([1], [1, 1, 1, 1])]))
    #expect(refuses(Conv(group: 0), [x, try f([1], [1, 1, 1, 1])]))
    #expect(refuses(Conv(strides: [0, 1]), [x, try f([1], [1, 1, 1, 1])]))
    #expect(refuses(Conv(pads: [1]), [x, try f([1], [1, 1, 1, 1])]))
    #expect(refuses(Conv(pads: [.max, 0, 0, 0]), [x, try f([1], [1, 1, 1, 1])]))
    #expect(refuses(Conv(), [x, try f([1], [1, 1, 1, 1]), try f([1, 2], [2])]))
    #expect(refuses(Conv(), [x]))
    let empty = try run(Conv(), [x, f(Array(repeating: 1, count: 9), [1, 1, 3, 3])])[0]
    #expect(empty.shape == [1, 1, 0, 0])
  }

  @Test func transposesConvolutions() throws {
    let x = try f([1, 2], [1, 1, 2])
    let w = try f([1, 10, 100], [1, 1, 3])
    #expect(try run(ConvTranspose(), [x, w])[0].floats() == [1, 12, 120, 200])
    #expect(try run(ConvTranspose(strides: [2]), [x, w])[0].floats() == [1, 10, 102, 20, 200])
    #expect(try run(ConvTranspose(strides: [2], outputPadding: [1]), [x, w])[0].count == 6)
    #expect(try run(ConvTranspose(pads: [1, 1]), [x, w])[0].floats() == [12, 120])
    #expect(
      try run(ConvTranspose(strides: [2], outputShape: [4]), [x, w])[0].floats() == [
        10, 102, 20, 200,
      ])
    #expect(
      try run(ConvTranspose(strides: [2], autoPad: .sameUpper), [x, w])[0].floats() == [
        1, 10, 102, 20,
      ])
    let grouped = try run(
      ConvTranspose(group: 2),
      [f([1, 2], [1, 2, 1]), f([3, 4, 5, 6], [2, 2, 1]), f([0, 0, 1, 1], [4])])[0]
    #expect(grouped.shape == [1, 4, 1] && grouped.floats() == [3, 4, 11, 13])
    #expect(refuses(ConvTranspose(group: 3), [x, w]))
    #expect(refuses(ConvTranspose(outputPadding: [-1]), [x, w]))
    #expect(refuses(ConvTranspose(strides: [1 << 40]), [x, w]))
    #expect(refuses(ConvTranspose(), [x, try f([1], [1, 1, 1, 1])]))
  }

  @Test func pools() throws {
    let x = try f([1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 1, 3, 3])
    let pool = PoolAttributes(kernel: [2, 2])
    let largest = try run(MaxPool(pool), [x], outputs: 2)
    #expect(largest[0].floats() == [5, 6, 8, 9] && largest[1].integers() == [4, 5, 7, 8])
    let columns = try run(MaxPool(pool, columnMajorIndices: true), [x], outputs: 2)
    #expect(columns[1].integers() == [4, 7, 5, 8])
    #expect(try run(AveragePool(pool), [x])[0].floats() == [3, 4, 6, 7])
    let around = PoolAttributes(kernel: [2, 2], strides: [2, 2], pads: [1, 1, 0, 0])
    #expect(try run(AveragePool(around), [x])[0].floats() == [1, 2.5, 5.5, 7])
    #expect(
      try run(AveragePool(around, countIncludePad: true), [x])[0].floats() == [0.25, 1.25, 2.75, 7])
    let open = PoolAttributes(kernel: [2, 2], strides: [2, 2], ceilMode: true)
    #expect(try run(MaxPool(open), [x], outputs: 2)[0].floats() == [5, 6, 8, 9])
    #expect(try run(AveragePool(open), [x])[0].floats() == [3, 4.5, 7.5, 9])
    let line = PoolAttributes(kernel: [2], channelsLast: true)
    #expect(
      try run(MaxPool(line), [f([1, 5, 3, 2, 0, 9], [1, 3, 2])])[0].floats() == [3, 5, 3, 9])
    #expect(
      try run(LpPool(PoolAttributes(kernel: [2])), [f([3, 4, 0], [1, 1, 3])])[0].floats() == [5, 4])
    #expect(
      try run(LpPool(PoolAttributes(kernel: [2]), p: 1), [f([3, -4, 0], [1, 1, 3])])[0].floats()
        == [7, 4])
    #expect(refuses(LpPool(pool, p: 0), [x]))
    #expect(refuses(MaxPool(PoolAttributes(kernel: [2])), [x]))
    #expect(refuses(MaxPool(PoolAttributes(kernel: [0, 2])), [x]))
    let words: RuntimeValue = .tensor(try Tensor(strings: ["a"], shape: [1, 1, 1, 1]))
    #expect(refuses(AveragePool(PoolAttributes(kernel: [1, 1])), [words]))
  }

  @Test func multipliesMatrices() throws {
    let a = try f([1, 2, 3, 4], [2, 2])
    #expect(try run(MatMul(), [a, a])[0].floats() == [7, 10, 15, 22])
    #expect(try run(MatMul(), [f([1, 1], [2]), a])[0].floats() == [4, 6])
    #expect(try run(MatMul(), [a, f([1, 1], [2])])[0].floats() == [3, 7])
    #expect(try run(MatMul(), [f([1, 2], [2]), f([3, 4], [2])])[0].shape == [])
    let batch = try run(MatMul(), [f([1, 2, 3, 4], [2, 1, 2]), f([1, 1, 2, 2], [1, 2, 2])])[0]
    #expect(batch.shape == [2, 1, 2] && batch.floats() == [5, 5, 11, 11])
    #expect(
      try run(MatMul(), [f([], [2, 0]), f([], [0, 3])])[0].floats() == Array(repeating: 0, count: 6)
    )
    #expect(refuses(MatMul(), [a, try f([1, 2, 3], [3])]))
    #expect(refuses(MatMul(), [a, try f([1], [])]))
    #expect(try run(Det(), [f([1, 2, 3, 4, 2, 0, 0, 2], [2, 2, 2])])[0].floats() == [-2, 4])
    #expect(refuses(Det(), [try f([1, 2], [1, 2])]))
  }

  @Test func sumsProducts() throws {
    let a = try f([1, 2, 3, 4, 5, 6], [2, 3])
    let b = try f([1, 0, 0, 1, 1, 1], [3, 2])
    #expect(try run(Einsum(equation: "ij,jk->ik"), [a, b])[0].floats() == [4, 5, 10, 11])
    #expect(try run(Einsum(equation: "ij, jk"), [a, b])[0].floats() == [4, 5, 10, 11])
    #expect(try run(Einsum(equation: "ij->ji"), [a])[0].floats() == [1, 4, 2, 5, 3, 6])
    #expect(try run(Einsum(equation: "ij->"), [a])[0].floats() == [21])
    #expect(try run(Einsum(equation: "ii->i"), [f([1, 2, 3, 4], [2, 2])])[0].floats() == [1, 4])
    #expect(
      try run(Einsum(equation: "...i,...i->..."), [a, f([1, 1, 1], [3])])[0].floats() == [6, 15])
    #expect(
      try run(Einsum(equation: "i,j->ij"), [i([1, 2], [2]), i([3, 4], [2])])[0].integers() == [
        3, 4, 6, 8,
      ])
    for equation in ["ij->k", "ij->ii", "i", "ij,jk->ik", "i.j->ij", "ij-", "i1->i", ".....->", ""]
    {
      #expect(refuses(Einsum(equation: equation), [a]))
    }
    #expect(refuses(Einsum(equation: "ij,jk->ik"), [a, a]))
  }
}
