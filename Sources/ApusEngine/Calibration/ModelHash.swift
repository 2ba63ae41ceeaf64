// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph

/// The checksum of a network: operators, names, types and every constant. A calibration belongs to one.
enum ModelHash {
  /// - Throws: what writing the network as text throws.
  static func of(_ graph: Graph) throws(ApusError) -> UInt64 {
    var writer = TextWriter(sink: ConstantTable())
    var checksum = Checksum()
    checksum.update(try writer.write(graph))
    for tensor in writer.sink.tensors {
      if tensor.dataType == .string {
        for text in tensor.strings { checksum.update(text) }
      } else {
        checksum.update(tensor.bytes)
      }
    }
    return checksum.value
  }
}
