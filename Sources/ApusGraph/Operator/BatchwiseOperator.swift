// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// An operand as the question about batches sees it.
public struct BatchOperand: Hashable, Sendable {
  /// The number of axes.
  public var rank: Int
  /// Whether the first axis counts the members of the batch; else the operand is the same for all.
  public var isBatched: Bool

  /// Describes an operand.
  public init(rank: Int, isBatched: Bool) {
    self.rank = rank
    self.isBatched = isBatched
  }
}

/// An operator that may treat the members of a batch, along the first axis, each on its own.
public protocol BatchwiseOperator: Operator {
  /// Whether member `n` of every result follows from member `n` of the batched operands and from the
  /// others. Omitted operands are nil; every result is known to have the batch along its first axis.
  func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool
}

extension PointwiseOperator {
  public func isBatchwise(_ operands: [BatchOperand?], resultRank: Int) -> Bool {
    operands.broadcastBatches(to: resultRank)
  }
}

extension Sequence where Element == BatchOperand? {
  /// Whether the operands are broadcast with their batches along the same axis.
  public func broadcastBatches(to rank: Int) -> Bool {
    allSatisfy { $0.map { !$0.isBatched || $0.rank == rank } ?? true }
  }

  /// Whether operand 0 has the batch and no other one does.
  public var onlyFirstIsBatched: Bool {
    enumerated().allSatisfy { index, operand in (operand?.isBatched ?? false) == (index == 0) }
  }
}
