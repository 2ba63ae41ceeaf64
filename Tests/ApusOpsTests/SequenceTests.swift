// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor
import Testing

@Suite struct SequenceTests {
  private func sequence(_ items: [RuntimeValue]) throws -> RuntimeValue {
    try SequenceConstruct().evaluate(items)[0]
  }

  private func length(_ value: RuntimeValue) throws -> Int64 {
    try run(SequenceLength(), [value])[0].integers()[0]
  }

  @Test func buildsSequences() throws {
    let a = try f([1, 2], [2])
    let b = try f([3], [1])
    let both = try sequence([a, b])
    #expect(try length(both) == 2)
    #expect(try run(SequenceAt(), [both, i([-1], [])])[0].floats() == [3])
    let more = try SequenceInsert().evaluate([both, b, i([0], [])])[0]
    #expect(try run(SequenceAt(), [more, i([0], [])])[0].floats() == [3])
    #expect(try length(SequenceInsert().evaluate([both, b])[0]) == 3)
    #expect(try length(SequenceErase().evaluate([both])[0]) == 1)
    let empty = try SequenceEmpty().evaluate([])[0]
    #expect(try length(empty) == 0)
    #expect(refuses(SequenceAt(), [both, try i([2], [])]))
    #expect(refuses(SequenceAt(), [both, try i([-3], [])]))
    #expect(refuses(SequenceAt(), [both]))
    #expect(refuses(SequenceAt(), [a, try i([0], [])]))
    #expect(refuses(SequenceInsert(), [both, try i([1], [1])]))
    #expect(refuses(SequenceInsert(), [both, b, try i([.min], [])]))
    #expect(refuses(SequenceErase(), [empty]))
    #expect(refuses(SequenceConstruct(), []))
  }

  @Test func elementTypesStayOpenWhereElementsDiffer() throws {
    let types = [[2, 3], [2, 4]].map { ValueType.tensor(TensorType(.float32, shape: $0)) }
    let made = try SequenceConstruct().infer(InferenceInputs(types: types))
    let index = ValueType.tensor(TensorType(.int64, shape: []))
    func taken(_ scope: String) throws -> TensorType? {
      try SequenceAt().infer(InferenceInputs(types: made + [index], scope: scope))[0].tensor
    }
    let first = try taken("a")
    #expect(first?.dims?[0] == 2 && first?.dims?[1].value == nil)
    // Two elements need not have the same size.
    #expect(try taken("b") != first)
  }

  @Test func joinsAndSplits() throws {
    let a = try f([1, 2], [1, 2])
    let b = try f([3, 4], [1, 2])
    let both = try sequence([a, b])
    #expect(try run(ConcatFromSequence(axis: 0), [both])[0].shape == [2, 2])
    #expect(try run(ConcatFromSequence(axis: 1), [both])[0].floats() == [1, 2, 3, 4])
    #expect(try run(ConcatFromSequence(axis: -1, newAxis: true), [both])[0].shape == [1, 2, 2])
    #expect(refuses(ConcatFromSequence(axis: 2), [both]))
    #expect(refuses(ConcatFromSequence(axis: 0), [try SequenceEmpty().evaluate([])[0]]))
    #expect(
      refuses(ConcatFromSequence(axis: 0, newAxis: true), [try sequence([a, try f([1], [1])])]))
    let x = try f([1, 2, 3, 4, 5, 6], [2, 3])
    func pieces(_ op: SplitToSequence, _ split: RuntimeValue?) throws -> [Tensor] {
      guard case .sequence(let items, _) = try op.evaluate([x, split])[0] else { return [] }
      return items.compactMap(\.tensor)
    }
    #expect(try pieces(SplitToSequence(axis: 1), nil).map(\.shape) == [[2, 1], [2, 1], [2, 1]])
    #expect(
      try pieces(SplitToSequence(axis: 1, keepDims: false), nil).map { $0.floats() } == [
        [1, 4], [2, 5], [3, 6],
      ])
    #expect(
      try pieces(SplitToSequence(axis: 1), i([2], [])).map { $0.floats() } == [
        [1, 2, 4, 5], [3, 6],
      ])
    #expect(
      try pieces(SplitToSequence(axis: 1), i([0, 3], [2])).map(\.shape) == [[2, 0], [2, 3]])
    #expect(refuses(SplitToSequence(axis: 1), [x, try i([0], [])]))
    #expect(refuses(SplitToSequence(axis: 1), [x, try i([1, 1], [2])]))
    #expect(refuses(SplitToSequence(axis: 1), [x, try i([.max, .max], [2])]))
    #expect(refuses(SplitToSequence(axis: 2), [x]))
  }

  @Test func optionals() throws {
    let x = try f([1], [1])
    let full = try OptionalConstruct().evaluate([x])[0]
    let type = ValueType.tensor(TensorType(.float32, [1]))
    let empty = try OptionalConstruct(type: type).evaluate([])[0]
    #expect(try run(OptionalHasElement(), [full])[0].integers() == [1])
    #expect(try run(OptionalHasElement(), [empty])[0].integers() == [0])
    #expect(try run(OptionalHasElement(), [])[0].integers() == [0])
    #expect(try run(OptionalHasElement(), [x])[0].integers() == [1])
    #expect(try run(OptionalGetElement(), [full])[0].floats() == [1])
    #expect(refuses(OptionalGetElement(), [empty]))
    #expect(refuses(OptionalGetElement(), []))
    #expect(refuses(OptionalConstruct(), []))
  }

  @Test func texts() throws {
    func words(_ list: [String], _ shape: [Int]) throws -> RuntimeValue {
      .tensor(try Tensor(strings: list, shape: shape))
    }
    let x = try words(["Monday", "tuesday"], [2])
    #expect(try run(StringConcat(), [x, words(["!"], [1])])[0].strings == ["Monday!", "tuesday!"])
    #expect(refuses(StringConcat(), [x, try words(["a", "b", "c"], [3])]))
    #expect(refuses(StringConcat(), [x, try f([1], [1])]))
    let upper = StringNormalizer(caseChange: .upper, stopwords: ["monday"])
    #expect(try run(upper, [x])[0].strings == ["TUESDAY"])
    let sensitive = StringNormalizer(isCaseSensitive: true, stopwords: ["monday"])
    #expect(try run(sensitive, [x])[0].count == 2)
    #expect(try run(upper, [words(["MONDAY"], [1, 1])])[0].strings == [""])
    #expect(refuses(upper, [try words(["a", "b"], [2, 1])]))
  }
}
