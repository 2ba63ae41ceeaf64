// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusKernel

/// The CPU's tactics in order of preference; the portable one, which takes everything, is last.
enum CPUTactics {
  static func all(isa: ISA, pool: ThreadPool) -> [any Tactic] {
    let native: [any Tactic] = [
      StridedCopyTactic(pool: pool),
      GatherTactic(pool: pool),
      SoftmaxTactic(pool: pool),
      LayerNormalizationTactic(pool: pool),
      ReduceTactic(pool: pool),
      ExtremumTactic(pool: pool),
      PoolTactic(pool: pool),
    ]
    return generated(isa: isa, pool: pool) + native + [PortableTactic()]
  }

  private static func generated(isa: ISA, pool: ThreadPool) -> [any Tactic] {
    guard isa != .portable else { return [] }
    return [
      MatMulTactic(isa: isa, pool: pool),
      NibbleMatMulTactic(pool: pool),
      BatchedMatMulTactic(isa: isa, pool: pool),
      ComputedMatMulTactic(pool: pool),
      ConvTactic(isa: isa, pool: pool),
      WinogradTactic(isa: isa, pool: pool),
      ConvTransposeTactic(isa: isa, pool: pool),
      DepthwiseTactic(isa: isa, pool: pool),
      DotDepthwiseTactic(pool: pool),
      StripTactic(isa: isa, pool: pool),
      ScaledConvTactic(isa: isa, pool: pool),
      RecurrentTactic(isa: isa, pool: pool),
      AttentionTactic(isa: isa, pool: pool),
      WindowPoolTactic(isa: isa, pool: pool),
      PointwiseTactic(isa: isa, pool: pool),
      GeneratedRowTactic(isa: isa, pool: pool),
      SplitRowTactic(isa: isa, pool: pool),
      ReductionTactic(isa: isa, pool: pool),
      LRNTactic(isa: isa, pool: pool),
      TransposeTactic(isa: isa, pool: pool),
      InterleaveTactic(pool: pool),
    ]
  }
}
