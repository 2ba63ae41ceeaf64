// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph

/// The loop nest of one strided copy: outer axes are walked by task, the two innermost ones by one of
/// three bodies chosen once.
struct CopyLoop: Sendable {
  private enum Body: Sendable {
    /// The innermost axis is contiguous on both sides.
    case runs
    /// The innermost axis is contiguous on the target side only, the next one on the source side:
    /// a transposition, done in blocks.
    case transpose
    case elements
  }

  private let body: Body
  private let elementSize: Int
  /// Outer axes, then the two innermost (size 1 when the copy has fewer).
  private let outerSizes: [Int]
  private let outerSource: [Int]
  private let outerTarget: [Int]
  private let rows: Int
  private let columns: Int
  private let rowSource: Int
  private let rowTarget: Int
  private let columnSource: Int
  private let columnTarget: Int
  private let outerCount: Int
  private let rowsPerTask: Int

  /// The number of independent tasks.
  let taskCount: Int

  /// What lies between the runs that are copied is filled with a byte.
  struct Gaps: Sendable {
    let byte: UInt8
    /// Where the first run begins and the result ends, in bytes from the result's start.
    let first: Int
    let end: Int
  }

  /// Whether runs are copied from the first to the last place of the target, so that each can fill what lies before
  /// the next.
  var isAscending: Bool {
    guard case .runs = body, outerCount > 0, rows > 0 else { return false }
    var extent = columns * elementSize
    for (size, step) in zip(outerSizes + [rows], outerTarget + [rowTarget]).reversed() where size > 1 {
      guard step >= extent else { return false }
      extent += (size - 1) * step
    }
    return true
  }

  /// Copies a task's runs and fills what lies behind each; the first also fills what lies before it.
  func run(
    _ task: Int, _ source: UnsafeRawPointer, _ target: UnsafeMutableRawPointer, filling gaps: Gaps
  ) {
    let blocks = (rows + rowsPerTask - 1) / rowsPerTask
    let outer = task / blocks
    let first = task % blocks * rowsPerTask
    let (from, to) = (source + offset(outer, outerSource), target + offset(outer, outerTarget))
    let bytes = columns * elementSize
    func fill(_ start: UnsafeMutableRawPointer, _ count: Int) {
      start.initializeMemory(as: UInt8.self, repeating: gaps.byte, count: count)
    }
    if task == 0 { fill(target - gaps.first, gaps.first) }
    for row in first..<min(rows, first + rowsPerTask) {
      let start = to + row * rowTarget
      start.copyMemory(from: from + row * rowSource, byteCount: bytes)
      let next =
        row + 1 < rows
        ? start + rowTarget
        : outer + 1 < outerCount
          ? target + offset(outer + 1, outerTarget) : target - gaps.first + gaps.end
      fill(start + bytes, next - start - bytes)
    }
  }

  /// The offset of an outer index, counted over all outer axes.
  private func offset(_ index: Int, _ steps: [Int]) -> Int {
    var (rest, offset) = (index, 0)
    for axis in outerSizes.indices.reversed() {
      offset += rest % outerSizes[axis] * steps[axis]
      rest /= outerSizes[axis]
    }
    return offset
  }

  init(_ copy: CopyPlan.Copy, elementSize: Int) {
    self.elementSize = elementSize
    var axes = copy.sizes.indices.map { axis in
      (
        size: copy.sizes[axis], source: copy.sourceStrides[axis] * elementSize,
        target: copy.targetStrides[axis] * elementSize
      )
    }
    // For a transposition the axis that is contiguous in the source goes next to the innermost one.
    if let last = axes.last, last.source != elementSize, last.target == elementSize,
      let unit = axes.indices.dropLast().last(where: { axes[$0].source == elementSize })
    {
      axes.insert(axes.remove(at: unit), at: axes.count - 1)
    }
    while axes.count < 2 { axes.insert((size: 1, source: 0, target: 0), at: 0) }
    let row = axes[axes.count - 2]
    let column = axes[axes.count - 1]
    outerSizes = axes.dropLast(2).map(\.size)
    outerSource = axes.dropLast(2).map(\.source)
    outerTarget = axes.dropLast(2).map(\.target)
    rows = row.size
    columns = column.size
    rowSource = row.source
    rowTarget = row.target
    columnSource = column.source
    columnTarget = column.target
    if column.source == elementSize && column.target == elementSize {
      body = .runs
    } else if row.source == elementSize && column.target == elementSize {
      body = .transpose
    } else {
      body = .elements
    }
    outerCount = outerSizes.reduce(1, *)
    // Tasks of some 64 KiB: large enough to amortise their start, small enough to share out.
    let rowBytes = max(1, columns * elementSize)
    rowsPerTask = max(1, min(rows, (1 << 16) / rowBytes / 16 * 16 + 16))
    taskCount = outerCount * ((rows + rowsPerTask - 1) / rowsPerTask)
  }

  /// Runs one task.
  func run(_ task: Int, _ source: UnsafeRawPointer, _ target: UnsafeMutableRawPointer) {
    let blocks = (rows + rowsPerTask - 1) / rowsPerTask
    let outer = task / blocks
    let first = task % blocks * rowsPerTask
    let last = min(rows, first + rowsPerTask)
    let (from, to) = (source + offset(outer, outerSource), target + offset(outer, outerTarget))
    switch body {
    case .runs:
      for row in first..<last {
        (to + row * rowTarget).copyMemory(
          from: from + row * rowSource, byteCount: columns * elementSize)
      }
    case .transpose, .elements:
      switch elementSize {
      case 4: copyBlocks(of: UInt32.self, first, last, from, to)
      case 8: copyBlocks(of: UInt64.self, first, last, from, to)
      case 2: copyBlocks(of: UInt16.self, first, last, from, to)
      case 1: copyBlocks(of: UInt8.self, first, last, from, to)
      default: bytes(first, last, from, to)
      }
    }
  }

  @inline(__always)
  private func copyBlocks<Element: BitwiseCopyable>(
    of type: Element.Type, _ first: Int, _ last: Int, _ from: UnsafeRawPointer,
    _ to: UnsafeMutableRawPointer
  ) {
    let block = 16
    for rowStart in stride(from: first, to: last, by: block) {
      let rowEnd = min(last, rowStart + block)
      for columnStart in stride(from: 0, to: columns, by: block) {
        let columnEnd = min(columns, columnStart + block)
        for row in rowStart..<rowEnd {
          var source = from + (row * rowSource + columnStart * columnSource)
          var target = to + (row * rowTarget + columnStart * columnTarget)
          for _ in columnStart..<columnEnd {
            target.storeBytes(of: source.loadUnaligned(as: Element.self), as: Element.self)
            source += columnSource
            target += columnTarget
          }
        }
      }
    }
  }

  private func bytes(
    _ first: Int, _ last: Int, _ from: UnsafeRawPointer, _ to: UnsafeMutableRawPointer
  ) {
    for row in first..<last {
      for column in 0..<columns {
        (to + (row * rowTarget + column * columnTarget)).copyMemory(
          from: from + (row * rowSource + column * columnSource), byteCount: elementSize)
      }
    }
  }
}
