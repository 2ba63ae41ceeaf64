// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

/// Runs a graph before and after a pass by the reference interpreter on seeded inputs and compares
/// (`APUS_VERIFY=2`).
enum PassComparison {
  /// - Throws: `internal` naming the pass and the result that changed.
  static func check(_ pass: String, _ before: Graph, _ after: Graph) throws(ApusError) {
    var generator = SeededGenerator(seed: 7)
    var inputs: [RuntimeValue?] = []
    for id in before.inputs {
      guard let type = before[id].type.tensor, let dims = type.dims else { return }
      inputs.append(
        .tensor(try generator.tensor(type.dataType, shape: dims.map { $0.value ?? 2 })))
    }
    let old = try ReferenceInterpreter.run(before, inputs: inputs)
    let new = try ReferenceInterpreter.run(after, inputs: inputs)
    for (index, name) in before.outputNames.enumerated() {
      guard let a = old[index].tensor?.doubles(), let b = new[index].tensor?.doubles() else {
        continue
      }
      let scale = a.reduce(1e-12) { $1.isFinite ? max($0, abs($1)) : $0 }
      let worst = zip(a, b).reduce(0) { max($0, abs($1.0 - $1.1)) }
      guard a.count == b.count, worst <= 1e-3 * scale else {
        throw ApusError(
          .internalError, "pass \(pass) changed result '\(name)' by \(worst) (largest value \(scale))")
      }
    }
  }
}
