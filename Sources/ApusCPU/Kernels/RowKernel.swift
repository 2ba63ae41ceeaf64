// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import ApusX86

/// A generated loop over the rows of a matrix that goes over each row several times: softmax, layer
/// normalisation, reductions over the last axis.
///
/// The expressions of the steps see, in this order: the operands' elements, the element stored last, and
/// the scalars that earlier steps of the row gave. Elements that are stored to be read again are floats;
/// only the last step's have the result's type, and where that is narrower the others stay in a row of
/// scratch memory.
package final class RowKernel: Sendable {
  /// What elements are combined by.
  package enum Reduction: Hashable, Sendable {
    case sum, product, maximum, minimum
    /// As `maximum`, but a NaN may be lost: for those whose later steps see it again, one instruction.
    case largest

    var neutral: Float {
      switch self {
      case .sum: 0
      case .product: 1
      case .maximum, .largest: -.infinity
      case .minimum: .infinity
      }
    }

    /// Two partial results as one; a NaN stays.
    func combine(_ a: Float, _ b: Float) -> Float {
      switch self {
      case .sum: a + b
      case .product: a * b
      case .maximum: a.isNaN || b.isNaN ? .nan : max(a, b)
      case .minimum: a.isNaN || b.isNaN ? .nan : min(a, b)
      case .largest: max(a, b)
      }
    }
  }

  /// One step of a row's work.
  package enum Step: Hashable, Sendable {
    /// A new scalar: the expression's values over the row, combined.
    case reduce(Reduction, ScalarExpr)
    /// A new scalar from earlier ones.
    case scalar(ScalarExpr)
    /// Stores the expression's value for every element.
    case store(ScalarExpr)
    /// Stores, and combines what it stores to a new scalar.
    case storeAndReduce(ScalarExpr, Reduction)
    /// Stores one element for the row; the result then has one column.
    case finish(ScalarExpr)
    /// Writes a value of the row to the one element of a scalar operand.
    case export(ScalarExpr, operand: Int)
  }

  /// How an operand is indexed.
  package enum OperandKind: Hashable, Sendable {
    /// Its rows are the result's.
    case rows
    /// Each of its rows is that of so many rows of the result, all such operands' alike.
    case rowGroups(of: Int)
    /// One row, the same for all.
    case perColumn
    /// One element.
    case scalar
  }

  fileprivate let memory: ExecutableMemory
  private let columns: Int
  private let resultBytes: Int
  /// Rows of the result that share a row of the operands that have one for several.
  private let groupSize: Int?

  /// `(operand addresses, result, rows, first row, group of rows)`
  fileprivate typealias Code = @convention(c) (
    UnsafePointer<UnsafeRawPointer>, UnsafeMutableRawPointer, Int, Int, Int
  ) -> Void

  /// Most elements of a row that is kept in scratch memory, which is on the stack.
  package static let scratchColumns = 8192

  /// Generates the loop for rows of `columns` elements; operands without an entry in `types` are single
  /// precision.
  ///
  /// - Throws: `not-yet-supported` when a function has no vector code, there are too many operands, or a
  ///   row is too long for scratch memory.
  package init(
    columns: Int, operands: [OperandKind], types: [DataType] = [], steps: [Step],
    result: DataType = .float32, isa: ISA = .current
  ) throws(ApusError) {
    guard isa != .portable, columns > 0 else {
      throw ApusError(.notYetSupported, "generated code needs AVX2")
    }
    var groups: Set<Int> = []
    for case .rowGroups(let size) in operands { groups.insert(size) }
    guard groups.count <= 1, groups.allSatisfy({ $0 > 0 }) else {
      throw ApusError(.notYetSupported, "operands that repeat for different numbers of rows")
    }
    groupSize = groups.first
    var generator = try RowGenerator(
      columns: columns, operands: operands, types: types, steps: steps, result: result, isa: isa)
    memory = try ExecutableMemory(generator.generate(), name: "rows of \(columns) \(isa.rawValue)")
    self.columns = columns
    resultBytes = steps.leaveOneElement ? 4 : columns * ElementAccess.byteCount(result)
  }

  /// Works through `rows` rows. The result may be the memory of an operand with rows of its size.
  package func run(
    _ operands: UnsafePointer<UnsafeRawPointer>, result: UnsafeMutableRawPointer, rows: Int,
    pool: ThreadPool
  ) {
    let groupSize = groupSize ?? rows
    guard rows > 0 else { return }
    let perTask = min(groupSize, max(1, 8192 / columns))
    let tasksPerGroup = (groupSize + perTask - 1) / perTask
    pool.parallelFor(
      rows / groupSize * tasksPerGroup,
      (self, operands, result, groupSize, perTask, tasksPerGroup)
    ) { context, task in
      let (kernel, operands, result, groupSize, perTask, tasksPerGroup) = context
      let (group, part) = task.quotientAndRemainder(dividingBy: tasksPerGroup)
      let first = group * groupSize + part * perTask
      kernel.memory.function(as: Code.self)(
        operands, result + first * kernel.resultBytes, min(perTask, groupSize - part * perTask),
        first, group)
    }
  }
}

extension [RowKernel.Step] {
  /// Whether the result has one element for each row.
  var leaveOneElement: Bool {
    contains { step in
      if case .finish = step { true } else { false }
    }
  }
}

extension RowKernel {
  /// Works through one row, the operands' and the result's rows being at these addresses.
  func runOne(_ operands: UnsafePointer<UnsafeRawPointer>, result: UnsafeMutableRawPointer) {
    memory.function(as: Code.self)(operands, result, 1, 0, 0)
  }
}

/// The step lists of the usual row operators. `x` is operand 0; see `RowKernel` for the numbering.
extension RowKernel {
  /// The first pass over a row, which combines `value`; what it takes several instructions to compute is
  /// stored for the passes behind it.
  private static func first(_ reduction: Reduction, _ value: ScalarExpr, operandCount: Int) -> (
    step: Step, again: ScalarExpr
  ) {
    if case .input = value { return (.reduce(reduction, value), value) }
    return (.storeAndReduce(value, reduction), .input(operandCount))
  }

  /// Softmax of `value`, an expression of the `operandCount` operands, with `epilogue` behind it.
  ///
  /// - Parameter recomputing: Whether all is computed again in every pass rather than stored.
  package static func softmax(
    _ value: ScalarExpr = .input(0), operandCount: Int = 1, recomputing: Bool = false,
    epilogue: (ScalarExpr) -> ScalarExpr = { $0 }
  ) -> [Step] {
    let scalar = { (index: Int) in ScalarExpr.input(operandCount + 1 + index) }
    if recomputing {
      let power = ScalarExpr.unary(.exponential, value - scalar(0))
      return [
        .reduce(.largest, value), .reduce(.sum, power), .scalar(.unary(.reciprocal, scalar(1))),
        .store(epilogue(power * scalar(2))),
      ]
    }
    let (first, again) = first(.largest, value, operandCount: operandCount)
    return [
      first, .storeAndReduce(.unary(.exponential, again - scalar(0)), .sum),
      .scalar(.unary(.reciprocal, scalar(1))),
      .store(epilogue(.input(operandCount) * scalar(2))),
    ]
  }

  /// Logarithm of the softmax of `value`.
  package static func logSoftmax(
    _ value: ScalarExpr = .input(0), operandCount: Int = 1,
    epilogue: (ScalarExpr) -> ScalarExpr = { $0 }
  ) -> [Step] {
    let scalar = { (index: Int) in ScalarExpr.input(operandCount + 1 + index) }
    return [
      .reduce(.largest, value), .reduce(.sum, .unary(.exponential, value - scalar(0))),
      .scalar(.unary(.logarithm, scalar(1)) + scalar(0)), .store(epilogue(value - scalar(2))),
    ]
  }

  /// Normalisation to mean 0 and variance 1 of `value`, times operand `scale`, plus operand `bias`, with
  /// `epilogue` behind it; `value` is an expression of the `operandCount` operands.
  ///
  /// - Parameter recomputing: Whether `value` is computed again in every pass rather than stored.
  package static func layerNormalization(
    columns: Int, epsilon: Double, operandCount: Int, value: ScalarExpr = .input(0), scale: Int?,
    bias: Int?, recomputing: Bool = false, epilogue: (ScalarExpr) -> ScalarExpr = { $0 }
  ) -> [Step] {
    func scalar(_ index: Int) -> ScalarExpr { .input(operandCount + 1 + index) }
    let share = ScalarExpr.const(1 / Double(columns))
    let (first, again) =
      recomputing
      ? (.reduce(.sum, value), value) : first(.sum, value, operandCount: operandCount)
    let centred = again - scalar(1)
    var result = centred * scalar(3)
    if let scale { result = result * .input(scale) }
    if let bias { result = result + .input(bias) }
    return [
      first, .scalar(scalar(0) * share), .reduce(.sum, centred * centred),
      .scalar(
        .unary(.reciprocalSquareRoot, scalar(2) * share + .const(epsilon))),
      .store(epilogue(result)),
    ]
  }

  /// One value per row: `after` (of input 0) of the combined `before` (of input 0).
  package static func reduction(
    _ reduction: Reduction, before: ScalarExpr = .input(0), after: ScalarExpr = .input(0)
  ) -> [Step] {
    [.reduce(reduction, before), .finish(after.substituting { _ in .input(2) })]
  }
}
