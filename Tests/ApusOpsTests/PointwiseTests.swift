// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor
import Testing

@Suite struct PointwiseTests {
  @Test func broadcastsBothWays() throws {
    let sum = try run(Add(), [f([1, 2, 3], [3, 1]), f([10, 20], [1, 2])])[0]
    #expect(sum.shape == [3, 2])
    #expect(sum.floats() == [11, 21, 12, 22, 13, 23])
    let scalar = try run(Mul(), [f([2], []), f([1, 2, 3, 4], [2, 2])])[0]
    #expect(scalar.floats() == [2, 4, 6, 8])
    let inner = try run(Sub(), [f([1, 2, 3, 4, 5, 6], [1, 2, 3]), f([1, 2], [2, 1])])[0]
    #expect(inner.shape == [1, 2, 3] && inner.floats() == [0, 1, 2, 2, 3, 4])
  }

  @Test func emptyOperands() throws {
    #expect(try run(Add(), [f([], [0, 3]), f([1, 2, 3], [3])])[0].shape == [0, 3])
    #expect(try run(Relu(), [f([], [2, 0])])[0].shape == [2, 0])
  }

  @Test func integersAreExact() throws {
    #expect(try run(Div(), [i([-7, 7], [2]), i([2, -2], [2])])[0].ints() == [-3, -3])
    #expect(try run(Mod(), [i([-7, 7], [2]), i([3, -3], [2])])[0].ints() == [2, -2])
    #expect(try run(Mod(fmod: true), [i([-7, 7], [2]), i([3, -3], [2])])[0].ints() == [-1, 1])
    #expect(try run(Relu(), [i([-5, 5], [2], .int32)])[0].ints() == [0, 5])
    let big = Int64(1) << 62
    #expect(try run(Add(), [i([big], [1]), i([1], [1])])[0].integers() == [big + 1])
    #expect(try run(Add(), [i([127], [1], .int8), i([1], [1], .int8)])[0].ints() == [-128])
    #expect(try run(Pow(), [i([3, 2], [2]), i([4, 10], [2])])[0].ints() == [81, 1024])
    #expect(
      try run(BitShift(direction: .right), [i([16], [1], .uint8), i([2], [1], .uint8)])[0].ints()
        == [4])
    #expect(refuses(Div(), [try i([1], [1]), try i([0], [1])]))
  }

  @Test func minAndMaxPassNaN() throws {
    let result = try run(Max(), [f([1, .nan], [2]), f([2, 0], [2])])[0].floats()
    #expect(result[0] == 2 && result[1].isNaN)
  }

  @Test func activations() throws {
    let x = try f([-2, 0, 2], [3])
    #expect(try run(LeakyRelu(alpha: 0.5), [x])[0].floats() == [-1, 0, 2])
    #expect(try run(HardSigmoid(), [x])[0].floats().map { ($0 * 10).rounded() } == [1, 5, 9])
    #expect(try run(ThresholdedRelu(alpha: 1), [x])[0].floats() == [0, 0, 2])
    #expect(try run(Softsign(), [x])[0].floats().map { ($0 * 3).rounded() } == [-2, 0, 2])
    #expect(try run(Shrink(bias: 1, lambd: 1.5), [x])[0].floats() == [-1, 0, 1])
    #expect(try run(Shrink(bias: 0, lambd: 1.5), [i([-1, 2], [2])])[0].ints() == [0, 2])
    #expect(abs(try run(Gelu(), [x])[0].floats()[2] - 1.9544997) < 1e-5)
    #expect(abs(try run(Gelu(approximate: true), [x])[0].floats()[2] - 1.9545977) < 1e-5)
    #expect(abs(try run(Celu(alpha: 2), [x])[0].floats()[0] + 1.2642411) < 1e-5)
    #expect(
      try run(PRelu(), [f([-1, -1], [1, 2]), f([0.5, 2], [2])])[0].floats() == [-0.5, -2])
    #expect(
      try run(IsInf(detectNegative: false), [f([.infinity, -.infinity], [2])])[0].ints() == [1, 0])
    #expect(
      try run(IsInf(detectNegative: false, detectPositive: false), [x])[0].ints() == [0, 0, 0])
    #expect(try run(Round(), [f([0.5, 1.5, -2.5], [3])])[0].floats() == [0, 2, -2])
  }

  @Test func clipWithOmittedLimits() throws {
    let x = try f([-2, 0, 2], [3])
    let one = try f([1], [])
    #expect(try run(Clip(), [x])[0].floats() == [-2, 0, 2])
    #expect(try run(Clip(), [x, f([-1], []), one])[0].floats() == [-1, 0, 1])
    #expect(try run(Clip(), [x, nil, one])[0].floats() == [-2, 0, 1])
    #expect(try run(Clip(), [x, one])[0].floats() == [1, 1, 2])
    #expect(refuses(Clip(), [x, try i([1], [])]))
  }

  @Test func stringsAndCasts() throws {
    let names: RuntimeValue = .tensor(try Tensor(strings: ["a", "b"], shape: [2]))
    let other: RuntimeValue = .tensor(try Tensor(strings: ["b"], shape: [1]))
    #expect(try run(Equal(), [names, other])[0].ints() == [0, 1])
    #expect(try run(Where(), [i([1, 0], [2], .bool), names, other])[0].strings == ["a", "b"])
    let numbers: RuntimeValue = .tensor(try Tensor(strings: ["1.5", "-INF", "NaN"], shape: [3]))
    let parsed = try run(Cast(to: .float32), [numbers])[0].floats()
    #expect(parsed[0] == 1.5 && parsed[1] == -.infinity && parsed[2].isNaN)
    #expect(try run(Cast(to: .string), [i([-3], [1])])[0].strings == ["-3"])
    #expect(try run(Cast(to: .int32), [f([-1.9, 2.9], [2])])[0].ints() == [-1, 2])
    #expect(try run(Cast(to: .bool), [f([0.1, 0], [2])])[0].ints() == [1, 0])
    #expect(refuses(Add(), [names, names]))
    #expect(refuses(Cast(to: .int32), [names]))
    #expect(refuses(Cast(to: .complex64), [try f([1], [1])]))
  }

  @Test func badOperandsAreErrors() throws {
    let x = try f([1, 2, 3], [3])
    #expect(refuses(Add(), [x, try f([1, 2], [2])]))
    #expect(refuses(Add(), [x]))
    #expect(refuses(Add(), [x, nil]))
    #expect(refuses(Add(), [x, try i([1, 2, 3], [3])]))
    #expect(refuses(Sin(), [try i([1], [1])]))
    #expect(inferRefuses(Add(), [[2, 3], [4, 3]]))
    let complex: RuntimeValue = .tensor(try Tensor(.complex64, shape: [2]))
    #expect(refuses(Add(), [complex, complex]))
  }

  @Test func symbolicBroadcasting() throws {
    func type(_ dims: [Dim]) -> ValueType { .tensor(TensorType(.float32, dims)) }
    let n = Dim.symbol("N")
    let result = try Add().infer(InferenceInputs(types: [type([n, 1, 4]), type([n, 7, 1])]))
    #expect(result == [type([n, 7, 4])])
    #expect(try Add().infer(InferenceInputs(types: [type([n]), type([8])])) == [type([8])])
  }

  @Test func fusedRunsItsEpilogueAndSamples() throws {
    let fused = Fused(
      anchor: Transpose(), anchorInputCount: 1,
      epilogue: Epilogue(.max(.input(0) + .input(1), .const(0)), extraCount: 1))
    let result = try run(fused, [f([1, -2, 3, -4], [2, 2]), f([0, 1], [2])])[0]
    #expect(result.floats() == [1, 4, 0, 0])
    #expect(!fused.canSample)
    var reader = AttributeReader(fused.attributes, for: "Fused")
    #expect(try Fused(reading: &reader).anchorInputCount == 1)
    #expect(refuses(fused, [try f([1], [1, 1])]))
    #expect(refuses(fused, [try f([1], [1, 1]), try f([1, 2], [2])]))
  }

  @Test func shapeArithmetic() throws {
    let vector = ValueType.tensor(TensorType(.int64, shape: [2]))
    let n = Dim.symbol("N")
    let facts = InferenceInputs(
      types: [vector, vector], constants: [nil, try .vector([2, 3])], symbolic: [[n * 2, n], nil])
    #expect(Mul().symbolicResults(facts) == [[n * 4, n * 3]])
    #expect(Div().symbolicResults(facts).first??.first == n)
    #expect(Sub().symbolicResults(facts) == [[n * 2 - 2, n - 3]])
  }
}
