// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor
import Testing

@Suite struct ChainTests {
  private let chain = Chain([Mul(), Add(), Relu()], operandCounts: [1, 1, 0])

  @Test func operatorsFollowEachOther() throws {
    let result = try run(chain, [f([1, -2], [2]), f([3], [1]), f([4, 5], [2])])[0]
    #expect(result.floats() == [7, 0])
    #expect(chain.operands(of: 0) == 1..<2 && chain.operands(of: 1) == 2..<3)
    #expect(chain.operands(of: 2).isEmpty)
    let type = TensorType(.float32, shape: [2])
    #expect(try chain.resultTypes(inputs: [type, type, type]).map(\.shape) == [[2], [2], [2]])
    #expect(chain.cost(inputs: [type, type, type], outputs: [type]).operations == 6)
  }

  @Test func operandsAreCounted() throws {
    #expect(refuses(chain, [try f([1], [1]), try f([1], [1])]))
    #expect(refuses(Chain([], operandCounts: []), [try f([1], [1])]))
    #expect(refuses(Chain([Relu()], operandCounts: [0, 0]), [try f([1], [1])]))
    var reader = AttributeReader(["operandCounts": .ints([-1])], for: "Chain")
    #expect(throws: ApusError.self) { try Chain(reading: &reader) }
  }

  @Test func attributesComeBack() throws {
    var reader = AttributeReader(chain.attributes, for: "Chain")
    let read = try Chain(reading: &reader)
    try reader.finish()
    #expect(read.operandCounts == [1, 1, 0])
    #expect(read.stages.map(\.name) == ["Mul", "Add", "Relu"])
  }

  @Test func membersOfABatchStayApartWhereTheyDoInEveryOperator() {
    let member = BatchOperand(rank: 4, isBatched: true)
    let weights = BatchOperand(rank: 4, isBatched: false)
    let convolutions = Chain([Conv(), Conv(group: 2)], operandCounts: [1, 1])
    #expect(convolutions.isBatchwise([member, weights, weights], resultRank: 4))
    #expect(!convolutions.isBatchwise([member, member, weights], resultRank: 4))
    #expect(!convolutions.isBatchwise([member, weights], resultRank: 4))
  }
}
