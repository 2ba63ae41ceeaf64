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
      if tensor.dataType.isInteger {
        let count = try Tensor.checkedCount(shape)
        let values = (0..<count).map { _ in Int64(generator.integer(below: 2)) }
        result[binding.name] = try Tensor(values, tensor.dataType, shape: shape)
      } else {
        result[binding.name] = try generator.tensor(tensor.dataType, shape: shape)
      }
    }
    return result
  }
}
