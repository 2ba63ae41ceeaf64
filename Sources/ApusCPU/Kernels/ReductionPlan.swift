// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// A reduction of single-precision numbers, or of bytes and BF16 numbers as such, over any axes, as stages that each reduce the middle axis of
/// `[outer, reduced, inner]`: along rows where nothing is inside, else down columns. Long ones are cut
/// into parts, whose results are reduced in a stage of their own, so that there are tasks for all threads
/// when there are few results. The division depends on the sizes alone.
package final class ReductionPlan: Sendable {
  private enum Kernels: Sendable {
    /// For a whole part of a row, and for its last one if that is shorter.
    case rows(RowKernel, last: RowKernel)
    case columns(ColumnKernel)
  }

  private struct Stage: Sendable {
    let outer: Int
    let reduced: Int
    let inner: Int
    /// Elements of the reduced axis in a part.
    let chunk: Int
    /// Bytes of an element of what it reads.
    let elementBytes: Int
    let kernels: Kernels
    /// Where its result starts in the workspace, in bytes; nil for the last stage.
    let place: Int?

    var parts: Int { (reduced + chunk - 1) / chunk }
  }

  /// Scratch memory a run needs: the results of stages.
  package let workspaceByteCount: Int
  private let stages: [Stage]

  /// Plans the reduction of the axes of `shape` with `isReduced`; elements are of `type`, results single precision.
  ///
  /// - Throws: `not-yet-supported` when a function has no vector code, no axis is reduced, or rows of narrow numbers are.
  package init(
    shape: [Int], isReduced: [Bool], function: ColumnKernel.Function, type: DataType = .float32,
    isa: ISA = .current
  ) throws(ApusError) {
    let divisions = Self.divide(shape, isReduced)
    guard !divisions.isEmpty, shape.allSatisfy({ $0 > 0 }) else {
      throw ApusError(.notYetSupported, "a reduction of nothing")
    }
    var stages: [Stage] = []
    var bytes = 0
    for (index, division) in divisions.enumerated() {
      var part = ColumnKernel.Function(function.reduction)
      if index == 0 { part.before = function.before }
      let isLast = index == divisions.count - 1
      if isLast { part.after = function.after }
      let own = index == 0 ? type : .float32
      let kernels: Kernels
      if division.inner == 1 {
        guard own == .float32 else {
          throw ApusError(.notYetSupported, "a reduction of rows of \(own)")
        }
        let steps = RowKernel.reduction(part.reduction, before: part.before, after: part.after)
        func kernel(_ columns: Int) throws(ApusError) -> RowKernel {
          try RowKernel(columns: columns, operands: [.rows], steps: steps, isa: isa)
        }
        let whole = try kernel(division.chunk)
        let rest = division.reduced % division.chunk
        kernels = .rows(whole, last: rest == 0 ? whole : try kernel(rest))
      } else {
        kernels = .columns(try ColumnKernel(columns: division.inner, part, type: own, isa: isa))
      }
      stages.append(
        Stage(
          outer: division.outer, reduced: division.reduced, inner: division.inner,
          chunk: division.chunk, elementBytes: ElementAccess.byteCount(own), kernels: kernels,
          place: isLast ? nil : bytes))
      if !isLast { bytes += (division.outer * division.parts * division.inner * 4 + 63) / 64 * 64 }
    }
    self.stages = stages
    workspaceByteCount = bytes
  }

  /// A stage without its code.
  private struct Division {
    var outer: Int
    var reduced: Int
    var inner: Int
    var chunk: Int

    var parts: Int { (reduced + chunk - 1) / chunk }
  }

  /// The stages of a reduction, innermost axes first.
  private static func divide(_ shape: [Int], _ isReduced: [Bool]) -> [Division] {
    // Neighbouring axes that are treated alike are one.
    var axes: [(size: Int, isReduced: Bool)] = []
    for (size, reduced) in zip(shape, isReduced) where size != 1 {
      if let last = axes.last, last.isReduced == reduced {
        axes[axes.count - 1].size *= size
      } else {
        axes.append((size, reduced))
      }
    }
    var divisions: [Division] = []
    var inner = 1
    while let axis = axes.popLast() {
      guard axis.isReduced else {
        inner *= axis.size
        continue
      }
      let outer = axes.reduce(1) { $0 * $1.size }
      // Short rows one behind the other are read as longer ones.
      let together = gathered(axis.size, inner)
      var division = Division(
        outer: outer, reduced: axis.size / together, inner: inner * together,
        chunk: axis.size / together)
      division.chunk = chunk(division)
      divisions.append(division)
      if division.parts > 1 {
        divisions.append(
          Division(
            outer: outer, reduced: division.parts, inner: division.inner, chunk: division.parts))
      }
      if together > 1 {
        divisions.append(
          Division(outer: outer, reduced: together, inner: inner, chunk: together))
      }
    }
    return divisions
  }

  /// How many rows of `inner` elements, of `reduced`, are read as one; a divisor of both counts.
  private static func gathered(_ reduced: Int, _ inner: Int) -> Int {
    guard inner > 1, inner < 32 else { return 1 }
    return (1...64 / inner).last { reduced % $0 == 0 && reduced / $0 >= 8 } ?? 1
  }

  /// Bytes that are worth a task of their own, and tasks that keep a machine busy.
  private static let taskBytes = 64 << 10
  private static let wantedTasks = 32

  /// The elements of the reduced axis in one part.
  private static func chunk(_ division: Division) -> Int {
    let bytes = division.outer * division.reduced * division.inner * 4
    let wanted = min(wantedTasks, bytes / taskBytes)
    let blocks = (division.inner + 255) / 256
    let parts = (wanted + division.outer * blocks - 1) / (division.outer * blocks)
    guard parts > 1 else { return division.reduced }
    let unit = division.inner == 1 ? 64 : 1
    let least = division.inner == 1 ? 4096 : 16
    let even = (division.reduced + parts - 1) / parts
    return min(division.reduced, max(least, (even + unit - 1) / unit * unit))
  }

  /// Reduces; `workspace` has `workspaceByteCount` bytes.
  package func run(
    _ x: UnsafeRawPointer, result: UnsafeMutableRawPointer, workspace: UnsafeMutableRawPointer,
    pool: ThreadPool
  ) {
    var source = x
    for stage in stages {
      let target = stage.place.map { workspace + $0 } ?? result
      switch stage.kernels {
      case .rows(let whole, let last):
        run(stage, whole, last, source, target, pool)
      case .columns(let kernel):
        run(stage, kernel, source, target, pool)
      }
      source = UnsafeRawPointer(target)
    }
  }

  private func run(
    _ stage: Stage, _ whole: RowKernel, _ last: RowKernel, _ source: UnsafeRawPointer,
    _ target: UnsafeMutableRawPointer, _ pool: ThreadPool
  ) {
    if stage.parts == 1 {
      withUnsafePointer(to: source) { operands in
        whole.run(operands, result: target, rows: stage.outer, pool: pool)
      }
      return
    }
    pool.parallelFor(stage.outer * stage.parts, (stage, whole, last, source, target)) {
      context, task in
      let (stage, whole, last, source, target) = context
      let (row, part) = task.quotientAndRemainder(dividingBy: stage.parts)
      let kernel = part == stage.parts - 1 ? last : whole
      withUnsafePointer(to: source + (row * stage.reduced + part * stage.chunk) * 4) { operands in
        kernel.runOne(operands, result: target + task * 4)
      }
    }
  }

  private func run(
    _ stage: Stage, _ kernel: ColumnKernel, _ source: UnsafeRawPointer,
    _ target: UnsafeMutableRawPointer, _ pool: ThreadPool
  ) {
    let unitBytes = stage.chunk * min(stage.inner, kernel.blockColumns) * 4
    let units = stage.outer * stage.parts * kernel.blockCount
    let perTask = max(1, Self.taskBytes / 2 / unitBytes)
    pool.parallelFor(
      (units + perTask - 1) / perTask, (stage, kernel, source, target, units, perTask)
    ) {
      context, task in
      let (stage, kernel, source, target, units, perTask) = context
      for unit in task * perTask..<min(units, (task + 1) * perTask) {
        let (rows, block) = unit.quotientAndRemainder(dividingBy: kernel.blockCount)
        let (outer, part) = rows.quotientAndRemainder(dividingBy: stage.parts)
        let first = part * stage.chunk
        kernel.run(
          source + (outer * stage.reduced + first) * stage.inner * stage.elementBytes,
          result: target + rows * stage.inner * 4, rows: min(stage.chunk, stage.reduced - first),
          block: block)
      }
    }
  }
}
