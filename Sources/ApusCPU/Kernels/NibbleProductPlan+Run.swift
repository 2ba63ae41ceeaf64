// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

extension NibbleProductPlan {
  /// Multiplies.
  package func run(_ operands: Operands, pool: ThreadPool) {
    pool.parallelFor(tasks, (self, operands)) { context, task in
      let (plan, operands) = context
      plan.run(task, operands)
    }
  }

  /// Argument blocks of both kinds of code.
  private struct Arguments {
    let lookup: UnsafeMutablePointer<Int>
    let product: UnsafeMutablePointer<Int>
  }

  private func run(_ task: Int, _ operands: Operands) {
    let words = Microkernel.Argument.operands + extras.count
    let panels = shape.panels * task / tasks..<shape.panels * (task + 1) / tasks
    withUnsafeTemporaryAllocation(of: Int.self, capacity: NibbleKernel.Argument.count + words) { memory in
      guard let memory = memory.baseAddress else { return }
      memory.initialize(repeating: 0, count: NibbleKernel.Argument.count + words)
      let arguments = Arguments(lookup: memory, product: memory + NibbleKernel.Argument.count)
      arguments.product[Microkernel.Argument.batchCount] = 1
      // One member, which begins where A does.
      var noOffset = 0
      withUnsafeMutablePointer(to: &noOffset) { offset in
        arguments.product[Microkernel.Argument.batchOffsets] = Int(bitPattern: offset)
        if shape.unpacks {
          unpack(task, panels, operands, arguments)
        } else {
          for panel in panels { multiply(task, panel, operands, arguments) }
        }
      }
    }
  }

  /// The scratch memory of a task.
  private func scratch(_ task: Int, _ operands: Operands) -> Int {
    Int(bitPattern: operands.workspace) + task * (workspaceByteCount / tasks)
  }

  /// Points the argument block at a panel from block `first` and vector `vector` on.
  private func point(
    _ arguments: Arguments, _ panel: Int, block first: Int = 0, vector: Int = 0, _ operands: Operands
  ) {
    typealias Argument = NibbleKernel.Argument
    let width = shape.vectors * 16
    let column = vector * 16
    let scale = (panel * shape.blocks + first) * width + column
    let words = (shape.k + 7) / 8
    arguments.lookup[Argument.words] =
      Int(bitPattern: operands.words)
      + ((panel * words + first * shape.block / 8) * width + column) * 4
    arguments.lookup[Argument.scales] =
      Int(bitPattern: operands.scales) + scale * (shape.hasHalfScales ? 2 : 4)
    arguments.lookup[Argument.zeros] = operands.zeros.map { Int(bitPattern: $0) + scale } ?? 0
  }

  /// Vectors of columns in use of a panel.
  private func vectors(_ panel: Int) -> Int {
    panel == shape.panels - 1 ? (shape.lastColumns + 15) / 16 : shape.vectors
  }

  /// The number of the variant for a panel.
  private func variant(_ panel: Int) -> Int { panel == shape.panels - 1 ? 1 : 0 }

  /// Points the argument block at results and the epilogue's operands.
  private func point(_ arguments: Arguments, row: Int, _ panel: Int, _ operands: Operands) {
    let column = panel * shape.vectors * 16
    let place = row * shape.n + column
    arguments.product[Microkernel.Argument.c] =
      Int(bitPattern: operands.c) + place * ElementAccess.byteCount(types.result)
    guard let addresses = operands.extras else { return }
    for (index, kind) in extras.enumerated() {
      let bytes = ElementAccess.byteCount(types.operands[index])
      arguments.product[Microkernel.Argument.operands + index] =
        Int(bitPattern: addresses[index])
        + (kind == .scalar ? 0 : kind == .perColumn ? column : place) * bytes
    }
  }

  // MARK: Few rows

  /// Sums of each tile go to memory, from where they are stored by the code of a product of single
  /// precision: of 1 and the sums.
  private func multiply(_ task: Int, _ panel: Int, _ operands: Operands, _ arguments: Arguments) {
    guard let finish = products[1, variant(panel)] else { return }
    let sums = scratch(task, operands)
    let used = vectors(panel)
    var one: Float = 1
    withUnsafeMutablePointer(to: &one) { one in
      arguments.product[Microkernel.Argument.a] = Int(bitPattern: one)
      arguments.product[Microkernel.Argument.k] = 1
      arguments.product[Microkernel.Argument.flags] = Microkernel.finish
      for tile in tiles {
        for vector in stride(from: 0, to: used, by: shape.vectorsAtOnce) {
          point(arguments, panel, vector: vector, operands)
          arguments.lookup[NibbleKernel.Argument.blocks] = shape.k / shape.block
          arguments.lookup[NibbleKernel.Argument.hasRest] = 1
          arguments.lookup[NibbleKernel.Argument.result] = sums + vector * 64
          arguments.lookup[NibbleKernel.Argument.a] =
            Int(bitPattern: operands.a) + tile.row * shape.k * 4
          lookups[tile.count, min(shape.vectorsAtOnce, used - vector)]?.code(arguments.lookup)
        }
        for row in 0..<tile.count {
          arguments.product[Microkernel.Argument.b] = sums + row * shape.vectors * 64
          point(arguments, row: tile.row + row, panel, operands)
          finish.code(arguments.product)
        }
      }
    }
  }

  // MARK: Many rows

  /// For each block of rows of A: a stretch of a panel is unpacked and multiplied with all of them.
  private func unpack(_ task: Int, _ panels: Range<Int>, _ operands: Operands, _ arguments: Arguments) {
    let scratch = scratch(task, operands)
    for first in stride(from: 0, to: tiles.count, by: tilesPerBlock) {
      let rows = first..<min(tiles.count, first + tilesPerBlock)
      for panel in panels {
        for block in stride(from: 0, to: shape.blocks, by: stretch) {
          let blocks = block..<min(shape.blocks, block + stretch)
          unpack(panel, blocks, scratch, operands, arguments)
          multiply(rows, panel, blocks, scratch, operands, arguments)
        }
      }
    }
  }

  private func unpack(
    _ panel: Int, _ blocks: Range<Int>, _ scratch: Int, _ operands: Operands, _ arguments: Arguments
  ) {
    let whole = min(blocks.upperBound, shape.k / shape.block)
    arguments.lookup[NibbleKernel.Argument.blocks] = max(0, whole - blocks.lowerBound)
    arguments.lookup[NibbleKernel.Argument.hasRest] = blocks.upperBound > whole ? 1 : 0
    arguments.lookup[NibbleKernel.Argument.result] = scratch
    point(arguments, panel, block: blocks.lowerBound, operands)
    lookups[0, vectors(panel)]?.code(arguments.lookup)
  }

  private func multiply(
    _ rows: Range<Int>, _ panel: Int, _ blocks: Range<Int>, _ scratch: Int, _ operands: Operands,
    _ arguments: Arguments
  ) {
    let start = blocks.lowerBound * shape.block
    arguments.product[Microkernel.Argument.b] = scratch
    arguments.product[Microkernel.Argument.k] = min(shape.k, blocks.upperBound * shape.block) - start
    arguments.product[Microkernel.Argument.flags] =
      (start > 0 ? Microkernel.accumulate : 0)
      | (blocks.upperBound == shape.blocks ? Microkernel.finish : 0)
    for number in rows {
      let tile = tiles[number]
      arguments.product[Microkernel.Argument.a] =
        Int(bitPattern: operands.a) + (tile.row * shape.k + start) * 4
      point(arguments, row: tile.row, panel, operands)
      products[tile.count, variant(panel)]?.code(arguments.product)
    }
  }
}
