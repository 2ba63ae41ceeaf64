// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Random numbers, and what draws them.
  mutating func addRandom() {
    op("RandomNormal", since: 1) { (node) throws(ApusError) in
      RandomNormal(
        shape: try node.attributes.ints("shape"), mean: try node.attributes.float("mean", 0),
        scale: try node.attributes.float("scale", 1), seed: try node.seed(),
        dataType: try node.attributes.dataType("dtype") ?? .float32)
    }
    op("RandomUniform", since: 1) { (node) throws(ApusError) in
      RandomUniform(
        shape: try node.attributes.ints("shape"), low: try node.attributes.float("low", 0),
        high: try node.attributes.float("high", 1), seed: try node.seed(),
        dataType: try node.attributes.dataType("dtype") ?? .float32)
    }
    op("RandomNormalLike", since: 1) { (node) throws(ApusError) in
      RandomNormalLike(
        mean: try node.attributes.float("mean", 0), scale: try node.attributes.float("scale", 1),
        seed: try node.seed(), dataType: try node.attributes.dataType("dtype"))
    }
    op("RandomUniformLike", since: 1) { (node) throws(ApusError) in
      RandomUniformLike(
        low: try node.attributes.float("low", 0), high: try node.attributes.float("high", 1),
        seed: try node.seed(), dataType: try node.attributes.dataType("dtype"))
    }
    op("Bernoulli", since: 15) { (node) throws(ApusError) in
      Bernoulli(seed: try node.seed(), dataType: try node.attributes.dataType("dtype"))
    }
    op("Multinomial", since: 7) { (node) throws(ApusError) in
      Multinomial(
        sampleSize: try node.attributes.int("sample_size", 1), seed: try node.seed(),
        dataType: try node.attributes.dataType("dtype") ?? .int32)
    }
  }
}

extension NodeImport {
  /// The seed; nil when every run is to draw anew.
  func seed() throws(ApusError) -> Double? { try attributes.optionalFloat("seed") }
}
