// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOptimize
import ApusTensor

/// The bytes that every intermediate result of a network takes when none shares memory.
enum ReferenceSizes {
  static func sizes(of graph: Graph, types: [ValueType]) throws(ApusError) -> Int {
    let concrete = try Specializer().specialize(graph, types: types)
    var sum = 0
    for id in concrete.nodes {
      for output in concrete[id].outputs {
        guard let type = concrete[output].type.tensor, let shape = type.shape,
          let bytes = type.dataType.byteCount(of: try Tensor.checkedCount(shape))
        else { continue }
        sum += bytes
      }
    }
    return sum
  }
}
