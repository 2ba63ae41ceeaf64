// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph

/// Writes the graph after every pass that changed it to the folder of `APUS_DUMP`.
struct GraphDumper {
  private let folder = Knobs.dump.text
  private var number = 0

  /// Writes one numbered text and one dot file.
  mutating func dump(_ graph: Graph, _ label: String) throws(ApusError) {
    guard !folder.isEmpty else { return }
    let digits = String(number)
    let prefix = String(repeating: "0", count: max(0, 3 - digits.count)) + digits
    number += 1
    try FileIO.write(text: try graph.text(), to: "\(folder)/\(prefix)-\(label).txt")
    try FileIO.write(text: DotWriter.dot(graph), to: "\(folder)/\(prefix)-\(label).dot")
  }
}
