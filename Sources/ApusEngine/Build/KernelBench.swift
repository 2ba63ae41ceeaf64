// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// Runs kernels of one problem on seeded operands: compares them with the reference and times them.
final class KernelBench {
  private let problem: Problem
  private let library: KernelLibrary
  private let stream: any ExecutionStream
  private let operands: [Tensor?]
  private let inputMemory: [BenchMemory?]
  private let outputMemory: [BenchMemory]
  private var expected: [Expected]?
  /// The constants as kernels want them, by operand number, the last one used behind the others. Of large ones only
  /// one form is kept: those of all candidates together would be many times as large as the network.
  private var packed: [Int: [(layout: PackedLayout, memory: DeviceMemory)]] = [:]

  /// What the reference says: every element of a result, or some of them.
  private struct Expected {
    var indices: [Int]?
    var values: [Double]
    var scale: Double
  }

  /// Problems with more operations are compared at sampled elements where the operator can.
  private static let fullComparisonLimit = 2e7
  /// Problems with more operations than this are not compared where sampling is impossible.
  private static let comparisonLimit = 1e9
  private static let sampleCount = 192

  init(problem: Problem, library: KernelLibrary) throws(ApusError) {
    self.problem = problem
    self.library = library
    stream = try library.backend.makeStream()
    var generator = SeededGenerator(seed: Checksum.of(problem.key))
    var operands: [Tensor?] = []
    var memory: [BenchMemory?] = []
    for (index, input) in problem.inputs.enumerated() {
      guard let input else {
        operands.append(nil)
        memory.append(nil)
        continue
      }
      if let constant = input.constant {
        let dense = try input.packing.map { layout throws(ApusError) in
          try layout.unpack(constant, input.dataType, shape: input.shape)
        }
        operands.append(dense ?? constant)
        memory.append(BenchMemory(memory: try library.backend.importConstant(constant)))
        continue
      }
      let tensor = try Self.operand(index, input, problem.op, &generator)
      operands.append(tensor)
      memory.append(try BenchMemory(input, library.backend, holding: tensor, on: stream))
    }
    self.operands = operands
    inputMemory = memory
    var outputs: [BenchMemory] = []
    for output in problem.outputs { outputs.append(try BenchMemory(output, library.backend)) }
    outputMemory = outputs
  }

  /// An operand's elements. Integers after the first operand are indices, axes or lengths, for which
  /// zero is always possible, or divisors and shifts of elementwise operators, which must be positive.
  private static func operand(
    _ index: Int, _ input: Problem.Operand, _ op: any Operator, _ generator: inout SeededGenerator
  ) throws(ApusError) -> Tensor {
    let type = input.dataType
    guard index > 0, type.isInteger else { return try generator.tensor(type, shape: input.shape) }
    if op is any PointwiseOperator {
      let count = try Tensor.checkedCount(input.shape)
      let values = (0..<count).map { _ in Int64(1 + generator.integer(below: 7)) }
      return try Tensor(values, type, shape: input.shape)
    }
    let isIndex = type == .int32 || type == .int64
    return isIndex
      ? try Tensor(type, shape: input.shape) : try generator.tensor(type, shape: input.shape)
  }

  /// Why a kernel disagrees with the reference; nil when it agrees.
  func disagreement(_ compiled: KernelLibrary.Compiled) throws(ApusError) -> String? {
    guard let expected = try reference() else { return nil }
    for (index, got) in try results(of: compiled).enumerated() {
      let want = expected[index]
      let comparison = ResultComparison(problem, problem.outputs[index].dataType, scale: want.scale)
      if let reason = comparison.verdict(got.doubles(), want.values, at: want.indices).reason {
        return reason
      }
      if try !outputMemory[index].gapsAreMarked(on: stream) {
        return "result \(index) is written between its rows"
      }
    }
    return nil
  }

  /// Takes what a kernel computes, which agrees with the reference, as the reference for others.
  func expectResults(of compiled: KernelLibrary.Compiled) throws(ApusError) {
    expected = try results(of: compiled).map { result in
      let values = result.doubles()
      return Expected(indices: nil, values: values, scale: ResultComparison.scale(values))
    }
  }

  private func results(of compiled: KernelLibrary.Compiled) throws(ApusError) -> [Tensor] {
    for memory in outputMemory { try memory.markGaps(on: stream) }
    try withArguments(compiled) { (arguments) throws(ApusError) in
      try compiled.kernel.launch(arguments, on: stream)
    }
    try stream.synchronize()
    var results: [Tensor] = []
    for (index, output) in problem.outputs.enumerated() {
      let got = try Tensor(output.dataType, shape: output.shape)
      try stream.copyRows(of: output, from: outputMemory[index].address, to: got)
      results.append(got)
    }
    return results
  }

  private func reference() throws(ApusError) -> [Expected]? {
    if let expected { return expected }
    let work = problem.cost.operations
    var made: [Expected] = []
    if work > Self.fullComparisonLimit, let op = problem.op as? any SampledOperator, op.canSample {
      let count = problem.outputs[0].count
      var generator = SeededGenerator(seed: 1)
      var indices = (0..<Self.sampleCount).map { _ in generator.integer(below: max(1, count)) }
      indices += [0, count - 1, count / 2]
      let values = try op.evaluateSamples(operands, at: indices)
      made = [Expected(indices: indices, values: values, scale: ResultComparison.scale(values))]
    } else if work <= Self.comparisonLimit {
      let results = try problem.op.evaluate(operands.map { $0.map { .tensor($0) } })
      made = results.prefix(problem.outputs.count).map { result in
        let values = result.tensor?.doubles() ?? []
        return Expected(indices: nil, values: values, scale: ResultComparison.scale(values))
      }
    } else {
      return nil
    }
    expected = made
    return made
  }

  /// Where a network's constants are when a layer begins: what all of them take decides, for the other
  /// layers' pass through the caches in between.
  enum Constants {
    /// All fit the second-level cache.
    case cached
    /// In the last-level cache at best.
    case shared
    /// In memory.
    case uncached

    init(networkByteCount: Int) {
      self = networkByteCount < 1 << 20 ? .cached : networkByteCount < 16 << 20 ? .shared : .uncached
    }
  }

  /// Whether packing the constants for one kernel and then for another costs little.
  var packsOften: Bool {
    problem.inputs.reduce(0) { $0 + ($1?.constant?.byteCount ?? 0) } <= Self.keptBytes
  }
  private static let keptBytes = 4 << 20

  /// The shortest of a few runs, in seconds; gives up early when far behind `best` twice. After `effort`
  /// seconds, three measured runs are enough. Operands that are computed were just written and may be in
  /// any cache; constants are where `constants` says.
  func measure(
    _ compiled: KernelLibrary.Compiled, best: Double?, runs: Int = 12, effort: Double, constants: Constants
  ) throws(ApusError) -> Double {
    var shortest = Double.infinity
    try withArguments(compiled) { (arguments) throws(ApusError) in
      let limit = Clock.seconds + effort
      for run in 0..<runs {
        displace(constants, compiled)
        let start = Clock.seconds
        try compiled.kernel.launch(arguments, on: stream)
        try stream.synchronize()
        let seconds = Clock.seconds - start
        if run > 0 { shortest = min(shortest, seconds) }
        if let best, run > 1, shortest > 3 * best { break }
        if run >= 3 && Clock.seconds > limit { break }
      }
    }
    return shortest
  }

  /// Puts the constants where `place` says.
  private func displace(_ place: Constants, _ compiled: KernelLibrary.Compiled) {
    guard place != .cached, problem.inputs.contains(where: { $0?.constant != nil }) else { return }
    if place == .shared { return Self.read(Self.others) }
    for (index, input) in problem.inputs.enumerated() where input?.constant != nil {
      // What an earlier candidate packed is not what this one reads.
      let isPacked = compiled.packing[index] != nil && input?.packing == nil
      if let memory = isPacked ? packed[index]?.last?.memory : inputMemory[index]?.memory { library.backend.evict(memory) }
    }
  }

  /// Twice as much as a second-level cache usually holds.
  private static let others = [UInt64](repeating: 1, count: (2 << 20) / 8)

  /// Brings memory into the caches, a line at a time.
  @inline(never) private static func read(_ words: [UInt64]) {
    var sum: UInt64 = 0
    for index in stride(from: 0, to: words.count, by: 8) { sum &+= words[index] }
    precondition(sum > 0, "every word is one")
  }

  private func memory(of constant: Tensor, _ index: Int, _ layout: PackedLayout) throws(ApusError)
    -> DeviceMemory
  {
    var forms = packed[index] ?? []
    if let place = forms.firstIndex(where: { $0.layout == layout }) {
      forms.append(forms.remove(at: place))
      packed[index] = forms
      return forms[forms.count - 1].memory
    }
    if !packsOften { packed[index] = nil }
    let memory = try library.backend.importConstant(try layout.pack(constant))
    packed[index, default: []].append((layout, memory))
    return memory
  }

  private func withArguments(
    _ compiled: KernelLibrary.Compiled,
    _ body: (UnsafePointer<DeviceAddress>) throws(ApusError) -> Void
  ) throws(ApusError) {
    var addresses = inputMemory.map { $0?.address ?? .none }
    for (index, layout) in compiled.packing {
      guard let input = problem.inputs[index], let constant = input.constant, input.packing == nil
      else { continue }
      addresses[index] = try memory(of: constant, index, layout).address
    }
    addresses += outputMemory.map(\.address)
    let bytes = compiled.kernel.workspaceByteCount
    let workspace = bytes > 0 ? try library.backend.allocate(byteCount: bytes) : nil
    addresses.append(workspace?.address ?? .none)
    let result: Result<Void, ApusError> = addresses.withUnsafeBufferPointer { buffer in
      do throws(ApusError) {
        try body(buffer.baseAddress!)
        return .success(())
      } catch { return .failure(error) }
    }
    withExtendedLifetime(workspace) {}
    try result.get()
  }
}

/// A small seeded generator (SplitMix64, Steele et al. 2014) for operands that must be the same on
/// every machine.
package struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64

  package init(seed: UInt64) { state = seed }

  package mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }

  /// A tensor for an input nobody gave data for: integers are 0 or 1, as they may be indices.
  package mutating func sample(_ type: DataType, shape: [Int]) throws(ApusError) -> Tensor {
    guard type.isInteger else { return try tensor(type, shape: shape) }
    let count = try Tensor.checkedCount(shape)
    return try Tensor((0..<count).map { _ in Int64(integer(below: 2)) }, type, shape: shape)
  }

  /// A number below `bound`.
  package mutating func integer(below bound: Int) -> Int { Int(next() % UInt64(bound)) }

  /// A tensor of values in [-1, 1) (floats) or small numbers (integers, booleans).
  ///
  /// - Throws: `resource-limit` for more elements than a sample can have.
  package mutating func tensor(_ type: DataType, shape: [Int]) throws(ApusError) -> Tensor {
    let count = try Tensor.checkedCount(shape)
    guard count <= 1 << 30 else {
      throw ApusError(
        .resourceLimit, "a sample of shape \(shape) is too large",
        hint: "give the input a smaller shape with --shape")
    }
    if type == .float32 {
      let tensor = try Tensor(type, shape: shape)
      let floats = tensor.mutableBytes.assumingMemoryBound(to: Float.self)
      for index in 0..<count { floats[index] = Float(Int64(next() >> 40)) / 8_388_608 - 1 }
      return tensor
    }
    if type.isFloat || type.isComplex {
      let values = (0..<(type.isComplex ? 2 * count : count)).map { _ in
        Double(Int64(next() >> 40)) / 8_388_608 - 1
      }
      return try Tensor(values, type, shape: shape)
    }
    if type == .string { return try Tensor(type, shape: shape) }
    let range = type.integerRange
    let low = max(range.lowerBound, -100)
    let high = min(range.upperBound, 100)
    let values = (0..<count).map { _ in low + Int64(integer(below: Int(high - low + 1))) }
    return try Tensor(values, type, shape: shape)
  }
}
