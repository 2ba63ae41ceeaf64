// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

extension Engine {
  /// Seeded inputs for measurements: floats in [-1, 1), integers small and never negative (they may
  /// be indices).
  ///
  /// - Throws: `invalid-argument` when the configuration's shapes do not fit.
  public func sampleInputs(_ configuration: BuilderConfiguration = BuilderConfiguration())
    throws(ApusError) -> [String: Tensor]
  {
    var generator = SeededGenerator(seed: 42)
    var result: [String: Tensor] = [:]
    let types = try TunedShapes(configuration).types(of: graph)
    for (binding, type) in zip(inputs, types) {
      guard let tensor = type.tensor, let shape = tensor.shape else { continue }
      result[binding.name] = try generator.sample(tensor.dataType, shape: shape)
    }
    return result
  }
}
