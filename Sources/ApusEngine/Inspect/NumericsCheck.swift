// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusKernel
import ApusTensor

/// Looks through every kernel's results for what is not a finite number and names the kernels that
/// made it (`APUS_CHECK_NUMERICS`). Each kernel is waited for, so running is slow.
struct NumericsCheck {
  private var reported = 0
  /// More lines than this in one run say nothing new: what is not finite spreads.
  private static let lineLimit = 10

  /// Counts elements of the results of step `index` that are not finite.
  mutating func inspect(_ instance: PlanInstance, step index: Int, on stream: any ExecutionStream)
    throws(ApusError)
  {
    let step = instance.plan.steps[index]
    for (type, address) in zip(step.problem.outputs, instance.resultAddresses(ofStep: index))
    where type.dataType.isFloat {
      let tensor = try Tensor(type.dataType, shape: type.shape)
      guard tensor.count > 0 else { continue }
      try stream.copyRows(of: type, from: address, to: tensor)
      var bad = (nan: 0, infinite: 0)
      for value in tensor.doubles() where !value.isFinite {
        if value.isNaN { bad.nan += 1 } else { bad.infinite += 1 }
      }
      if bad.nan + bad.infinite > 0 { report(step, bad, of: tensor.count) }
    }
  }

  private mutating func report(
    _ step: StaticPlan.Step, _ bad: (nan: Int, infinite: Int), of count: Int
  ) {
    reported += 1
    guard reported <= Self.lineLimit else { return }
    Log.warning(
      "\(step.operatorName) '\(step.nodeName)' (\(step.tacticID)) wrote \(bad.nan) NaN and "
        + "\(bad.infinite) infinite elements of \(count)")
  }
}
