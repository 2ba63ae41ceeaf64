// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusX86

/// A generated loop over the rows of a matrix that goes over each row several times: softmax, layer
/// normalisation, reductions over the last axis.
///
/// The expressions of the steps see, in this order: the operands' elements, the element of the result
/// stored so far, and the scalars that earlier steps of the row gave.
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
    /// One row, the same for all.
    case perColumn
    /// One element.
    case scalar
  }

  fileprivate let memory: ExecutableMemory
  private let columns: Int
  private let resultBytes: Int

  /// `(operand addresses, result, rows, first row)`
  fileprivate typealias Code = @convention(c) (
    UnsafePointer<UnsafeRawPointer>, UnsafeMutableRawPointer, Int, Int
  ) -> Void

  /// Generates the loop for rows of `columns` elements.
  ///
  /// - Throws: `not-yet-supported` when a function has no vector code or there are too many operands.
  package init(
    columns: Int, operands: [OperandKind], steps: [Step], isa: ISA = .current
  ) throws(ApusError) {
    guard isa != .portable, columns > 0 else {
      throw ApusError(.notYetSupported, "generated code needs AVX2")
    }
    var generator = RowGenerator(columns: columns, operands: operands, steps: steps, isa: isa)
    memory = try ExecutableMemory(generator.generate(), name: "rows of \(columns) \(isa.rawValue)")
    self.columns = columns
    var single = false
    for case .finish in steps { single = true }
    resultBytes = single ? 4 : columns * 4
  }

  /// Works through `rows` rows. The result may be the memory of an operand with rows.
  package func run(
    _ operands: UnsafePointer<UnsafeRawPointer>, result: UnsafeMutableRawPointer, rows: Int,
    pool: ThreadPool
  ) {
    let code = memory.function(as: Code.self)
    let perTask = max(1, 8192 / columns)
    pool.parallelFor(
      (rows + perTask - 1) / perTask, (code, operands, result, rows, perTask, resultBytes)
    ) { context, task in
      let (code, operands, result, rows, perTask, resultBytes) = context
      let first = task * perTask
      code(operands, result + first * resultBytes, min(perTask, rows - first), first)
    }
  }
}

extension RowKernel {
  /// Works through one row, the operands' and the result's rows being at these addresses.
  func runOne(_ operands: UnsafePointer<UnsafeRawPointer>, result: UnsafeMutableRawPointer) {
    memory.function(as: Code.self)(operands, result, 1, 0)
  }
}

/// The step lists of the usual row operators. `x` is operand 0; see `RowKernel` for the numbering.
extension RowKernel {
  /// Softmax of operand 0.
  package static var softmax: [Step] {
    let (x, stored) = (ScalarExpr.input(0), ScalarExpr.input(1))
    return [
      .reduce(.largest, x), .storeAndReduce(.unary(.exponential, x - .input(2)), .sum),
      .scalar(.unary(.reciprocal, .input(3))), .store(stored * .input(4)),
    ]
  }

  /// Logarithm of the softmax of operand 0.
  package static var logSoftmax: [Step] {
    let x = ScalarExpr.input(0)
    return [
      .reduce(.largest, x), .reduce(.sum, .unary(.exponential, x - .input(2))),
      .scalar(.unary(.logarithm, .input(3)) + .input(2)), .store(x - .input(4)),
    ]
  }

  /// Normalisation to mean 0 and variance 1 of `value`, times operand `scale`, plus operand `bias`;
  /// `value` is an expression of the `operandCount` operands.
  package static func layerNormalization(
    columns: Int, epsilon: Double, operandCount: Int, value: ScalarExpr = .input(0), scale: Int?,
    bias: Int?
  ) -> [Step] {
    func scalar(_ index: Int) -> ScalarExpr { .input(operandCount + 1 + index) }
    let share = ScalarExpr.const(1 / Double(columns))
    let centred = value - scalar(1)
    var result = centred * scalar(3)
    if let scale { result = result * .input(scale) }
    if let bias { result = result + .input(bias) }
    return [
      .reduce(.sum, value), .scalar(scalar(0) * share), .reduce(.sum, centred * centred),
      .scalar(
        .unary(.reciprocalSquareRoot, scalar(2) * share + .const(epsilon))),
      .store(result),
    ]
  }

  /// One value per row: `after` (of input 0) of the combined `before` (of input 0).
  package static func reduction(
    _ reduction: Reduction, before: ScalarExpr = .input(0), after: ScalarExpr = .input(0)
  ) -> [Step] {
    [.reduce(reduction, before), .finish(after.substituting { _ in .input(2) })]
  }
}
