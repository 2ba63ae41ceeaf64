// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph

/// The work of a `RowKernel` on a few long rows: every pass over a row is cut into parts, which are tasks
/// of their own, and what they combine to is combined when all are done. The parts depend on the length of
/// the rows alone.
package final class SplitRowPlan: Sendable {
  /// Where an operand of generated code lies.
  private enum Place: Sendable {
    /// In this operand: its part of the row.
    case operand(Int)
    /// The one element that was computed for the row as this scalar.
    case scalar(Int)
    /// Where the part leaves what its elements combine to.
    case partial
  }

  private enum Phase: Sendable {
    /// A pass over the elements of all parts, which may give a scalar.
    case pass(RowKernel, last: RowKernel, [Place], (reduction: RowKernel.Reduction, scalar: Int)?)
    /// A scalar from others.
    case scalar(RowKernel, [Place], Int)
  }

  /// Scratch memory a run needs: scalars and partial results.
  package let workspaceByteCount: Int
  private let columns: Int
  private let rows: Int
  private let kinds: [RowKernel.OperandKind]
  private let phases: [Phase]
  private let scalarCount: Int
  private let parts: Int

  /// Elements of a part.
  package static let chunk = 8192

  /// Plans the steps of a row kernel for `rows` rows of `columns` elements.
  ///
  /// - Throws: `not-yet-supported` where there is no vector code, there are too many operands, or a step
  ///   leaves one element for the row.
  package init(
    columns: Int, rows: Int, operands kinds: [RowKernel.OperandKind], steps: [RowKernel.Step],
    isa: ISA = .current
  ) throws(ApusError) {
    guard columns > 0, rows > 0, kinds.allSatisfy({ $0 == .rows || $0 == .perColumn }) else {
      throw ApusError(.notYetSupported, "rows that cannot be split")
    }
    self.columns = columns
    self.rows = rows
    self.kinds = kinds
    parts = (columns + Self.chunk - 1) / Self.chunk
    var writer = PhaseWriter(columns: columns, kinds: kinds, isa: isa)
    for step in steps { try writer.add(step) }
    phases = writer.phases
    scalarCount = writer.scalarCount
    workspaceByteCount = rows * (scalarCount + parts) * 4
  }

  /// Turns steps into phases.
  private struct PhaseWriter {
    let columns: Int
    let kinds: [RowKernel.OperandKind]
    let isa: ISA
    var phases: [Phase] = []
    var scalarCount = 0

    mutating func add(_ step: RowKernel.Step) throws(ApusError) {
      switch step {
      case .reduce(let reduction, let expression):
        try pass(expression, reduction, stores: false)
      case .store(let expression): try pass(expression, nil, stores: true)
      case .storeAndReduce(let expression, let reduction):
        try pass(expression, reduction, stores: true)
      case .scalar(let expression):
        let (places, renamed) = operands(of: expression, partial: false)
        let kernel = try RowKernel(
          columns: 1, operands: places.map { _ in .scalar }, steps: [.finish(renamed)], isa: isa)
        phases.append(.scalar(kernel, places, scalarCount))
        scalarCount += 1
      case .finish, .export:
        throw ApusError(.notYetSupported, "a step that leaves one element for the row")
      }
    }

    private mutating func pass(
      _ expression: ScalarExpr, _ reduction: RowKernel.Reduction?, stores: Bool
    ) throws(ApusError) {
      let (places, renamed) = operands(of: expression, partial: reduction != nil)
      var steps: [RowKernel.Step] = []
      if let reduction {
        steps = [
          stores ? .storeAndReduce(renamed, reduction) : .reduce(reduction, renamed),
          .export(.input(places.count + 1), operand: places.count - 1),
        ]
      } else {
        steps = [.store(renamed)]
      }
      let operands = places.map { place -> RowKernel.OperandKind in
        if case .operand = place { .rows } else { .scalar }
      }
      func kernel(_ columns: Int) throws(ApusError) -> RowKernel {
        try RowKernel(columns: columns, operands: operands, steps: steps, isa: isa)
      }
      let last = try kernel((columns - 1) % SplitRowPlan.chunk + 1)
      let whole = columns > SplitRowPlan.chunk ? try kernel(SplitRowPlan.chunk) : last
      phases.append(.pass(whole, last: last, places, reduction.map { ($0, scalarCount) }))
      if reduction != nil { scalarCount += 1 }
    }

    /// The operands that an expression reads, and the expression of these: elements of operands, the
    /// result so far (which follows the operands), and scalars.
    private func operands(of expression: ScalarExpr, partial: Bool) -> ([Place], ScalarExpr) {
      var read: [Int] = []
      expression.visitInputs { if !read.contains($0) && $0 != kinds.count { read.append($0) } }
      var places = read.map { index -> Place in
        index < kinds.count ? .operand(index) : .scalar(index - kinds.count - 1)
      }
      if partial { places.append(.partial) }
      let result = places.count
      return (
        places,
        expression.substituting { index in .input(read.firstIndex(of: index) ?? result) }
      )
    }
  }

  /// Works through all rows; `workspace` has `workspaceByteCount` bytes.
  package func run(
    _ operands: UnsafePointer<UnsafeRawPointer>, result: UnsafeMutableRawPointer,
    workspace: UnsafeMutableRawPointer, pool: ThreadPool
  ) {
    let scalars = workspace.assumingMemoryBound(to: Float.self)
    let partials = scalars + rows * scalarCount
    for phase in phases {
      switch phase {
      case .pass(let whole, let last, let places, let reducing):
        pool.parallelFor(
          rows * parts, (self, whole, last, places, operands, result, scalars, partials)
        ) { context, task in
          let (plan, whole, last, places, operands, result, scalars, partials) = context
          let (row, part) = task.quotientAndRemainder(dividingBy: plan.parts)
          plan.withAddresses(places, row, part, operands, scalars, partials) { addresses in
            (part == plan.parts - 1 ? last : whole).runOne(
              addresses, result: result + (row * plan.columns + part * Self.chunk) * 4)
          }
        }
        guard let reducing else { continue }
        for row in 0..<rows {
          let first = row * parts
          scalars[row * scalarCount + reducing.scalar] = (1..<max(1, parts)).reduce(partials[first])
          {
            reducing.reduction.combine($0, partials[first + $1])
          }
        }
      case .scalar(let kernel, let places, let scalar):
        for row in 0..<rows {
          withAddresses(places, row, 0, operands, scalars, partials) { addresses in
            kernel.runOne(addresses, result: scalars + (row * scalarCount + scalar))
          }
        }
      }
    }
  }

  /// The addresses of a part's operands.
  private func withAddresses(
    _ places: [Place], _ row: Int, _ part: Int, _ operands: UnsafePointer<UnsafeRawPointer>,
    _ scalars: UnsafeMutablePointer<Float>, _ partials: UnsafeMutablePointer<Float>,
    _ body: (UnsafePointer<UnsafeRawPointer>) -> Void
  ) {
    withUnsafeTemporaryAllocation(of: UnsafeRawPointer.self, capacity: max(1, places.count)) {
      list in
      guard let base = list.baseAddress else { return }
      for (index, place) in places.enumerated() {
        let address: UnsafeRawPointer
        switch place {
        case .operand(let number):
          let first = kinds[number] == .rows ? row * columns : 0
          address = operands[number] + (first + part * Self.chunk) * 4
        case .scalar(let number): address = UnsafeRawPointer(scalars + row * scalarCount + number)
        case .partial: address = UnsafeRawPointer(partials + row * parts + part)
        }
        (base + index).initialize(to: address)
      }
      body(base)
    }
  }
}
