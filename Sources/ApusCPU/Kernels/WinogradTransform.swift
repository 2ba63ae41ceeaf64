// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusX86

/// Sums of few numbers with small factors: one side of a Winograd transform, written as the steps that
/// share what they can.
struct LinearProgram {
  /// One sum.
  struct Step {
    /// Factors and the values they apply to: inputs first, then the results of earlier steps. A value
    /// with the factor 1 comes first if there is one.
    var terms: [(factor: Float, value: Int)]
  }

  /// The number of inputs.
  var inputs: Int
  var steps: [Step]
  /// The values that are results.
  var results: [Int]

  private init(_ inputs: Int, _ steps: [[(Float, Int)]], _ results: [Int]) {
    self.inputs = inputs
    self.steps = steps.map { Step(terms: $0.map { (factor: $0.0, value: $0.1) }) }
    self.results = results
  }

  /// `B^T d` for results of `m` numbers (points 0, 1, -1 and infinity; 2 and -2 as well for m = 4).
  static func input(_ m: Int) -> LinearProgram {
    if m == 2 {
      return LinearProgram(
        4, [[(1, 0), (-1, 2)], [(1, 1), (1, 2)], [(1, 2), (-1, 1)], [(1, 1), (-1, 3)]],
        [4, 5, 6, 7])
    }
    return LinearProgram(
      6,
      [
        [(1, 4), (4, 0), (-5, 2)],  // 6: the first result
        [(1, 5), (4, 1), (-5, 3)],  // 7: the last one
        [(1, 4), (-4, 2)],  // 8
        [(1, 3), (-4, 1)],  // 9
        [(1, 8), (1, 9)],  // 10
        [(1, 8), (-1, 9)],  // 11
        [(1, 4), (-1, 2)],  // 12
        [(1, 3), (-1, 1)],  // 13
        [(1, 12), (2, 13)],  // 14
        [(1, 12), (-2, 13)],  // 15
      ], [6, 10, 11, 14, 15, 7])
  }

  /// `B^T d` for m = 4 without multiplications other than by 2 and 4, which are shifts of integers.
  static var inputOfIntegers: LinearProgram {
    LinearProgram(
      6,
      [
        [(1, 4), (-1, 2)],  // 6
        [(1, 3), (-1, 1)],  // 7
        [(1, 0), (-1, 2)],  // 8
        [(1, 5), (-1, 3)],  // 9
        [(1, 6), (4, 8)],  // 10: the first result
        [(1, 7), (1, 7)],  // 11
        [(1, 9), (-2, 11)],  // 12: the last one
        [(1, 4), (-4, 2)],  // 13
        [(1, 3), (-4, 1)],  // 14
        [(1, 13), (1, 14)],  // 15
        [(1, 13), (-1, 14)],  // 16
        [(1, 6), (1, 11)],  // 17
        [(1, 6), (-1, 11)],  // 18
      ], [10, 15, 16, 17, 18, 12])
  }

  /// `A^T x`: `m` results from `m + 2` products.
  static func output(_ m: Int) -> LinearProgram {
    if m == 2 {
      return LinearProgram(
        4, [[(1, 1), (1, 2)], [(1, 1), (-1, 2)], [(1, 0), (1, 4)], [(1, 5), (-1, 3)]], [6, 7])
    }
    return LinearProgram(
      6,
      [
        [(1, 1), (1, 2)],  // 6
        [(1, 1), (-1, 2)],  // 7
        [(1, 3), (1, 4)],  // 8
        [(1, 3), (-1, 4)],  // 9
        [(1, 6), (1, 0), (1, 8)],  // 10
        [(1, 7), (2, 9)],  // 11
        [(1, 6), (4, 8)],  // 12
        [(1, 7), (8, 9), (1, 5)],  // 13
      ], [10, 11, 12, 13])
  }

  /// The factors other than one, without their signs.
  var factors: [Float] {
    Array(Set(steps.flatMap { $0.terms.map { abs($0.factor) } }.filter { $0 != 1 })).sorted()
  }

  /// The steps that `count` first results need.
  func limited(to count: Int) -> LinearProgram {
    var copy = self
    copy.results = Array(results.prefix(count))
    return copy
  }

  /// Writes the steps. Inputs come in registers that may be overwritten; `emit` gets each result as soon
  /// as it is there, in a register that is free afterwards unless `emit` keeps it.
  func emit(
    _ a: Assembler, inputs registers: [Vec], free: [Vec], _ arithmetic: LinearArithmetic,
    result: (Int, Vec) -> Bool
  ) {
    var place = Dictionary(
      uniqueKeysWithValues: registers.enumerated().map { ($0.offset, $0.element) })
    var spare = free
    let needed = neededValues()
    var uses: [Int: Int] = [:]
    for (index, step) in steps.enumerated() where needed.contains(inputs + index) {
      for term in step.terms { uses[term.value, default: 0] += 1 }
    }
    func release(_ value: Int) {
      uses[value, default: 0] -= 1
      guard uses[value] == 0, !results.contains(value), let register = place[value] else { return }
      spare.append(register)
      place[value] = nil
    }
    for (index, step) in steps.enumerated() where needed.contains(inputs + index) {
      guard let first = step.terms.first, let start = place[first.value] else { continue }
      let value = inputs + index
      let target: Vec
      if uses[first.value] == 1 && !results.contains(first.value) {
        target = start
        place[first.value] = nil
        uses[first.value] = 0
      } else {
        target = spare.removeLast()
      }
      var sum = start
      for term in step.terms.dropFirst() {
        guard let other = place[term.value] else { continue }
        arithmetic.add(a, target, sum, term.factor, other)
        sum = target
        release(term.value)
      }
      if target != start { release(first.value) }
      place[value] = target
      for (number, wanted) in results.enumerated() where wanted == value {
        let isKept = result(number, target)
        if !isKept && uses[value, default: 0] == 0 {
          spare.append(target)
          place[value] = nil
        }
      }
    }
  }

  /// The values that some result depends on.
  private func neededValues() -> Set<Int> {
    var needed = Set(results)
    for (index, step) in steps.enumerated().reversed() where needed.contains(inputs + index) {
      for term in step.terms { needed.insert(term.value) }
    }
    return needed
  }
}

/// What the sums of a linear program are made of.
enum LinearArithmetic {
  /// Numbers of single precision; factors other than one are in registers.
  case floats([Float: Vec])
  /// 16-bit integers, wrapping around; factors are powers of two. Multiples need a register.
  case words(scratch: Vec)

  /// `to = sum + factor * other`
  func add(_ a: Assembler, _ to: Vec, _ sum: Vec, _ factor: Float, _ other: Vec) {
    switch self {
    case .floats(let factors):
      if factor == 1 { return a.vaddps(to, sum, other) }
      if factor == -1 { return a.vsubps(to, sum, other) }
      guard let multiplier = factors[abs(factor)] else { return }
      if to != sum { a.vmovups(to, sum) }
      if factor > 0 {
        a.vfmadd231ps(to, other, multiplier)
      } else {
        a.vfnmadd231ps(to, other, multiplier)
      }
    case .words(let scratch):
      var multiple = other
      if abs(factor) != 1 {
        a.vpsllw(scratch, other, UInt8(abs(factor).exponent))
        multiple = scratch
      }
      if factor > 0 { a.vpaddw(to, sum, multiple) } else { a.vpsubw(to, sum, multiple) }
    }
  }
}
