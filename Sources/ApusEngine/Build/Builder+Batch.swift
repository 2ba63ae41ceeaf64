// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase

/// Whether a batch runs as a whole or member by member is measured on the finished engines: what decides
/// is which caches the tensors between the layers stay in, and no layer on its own shows that.
extension Builder {
  private static let (fewestRuns, mostRuns, enoughSeconds) = (3, 20, 0.3)

  /// The faster one of two engines for the same network, run in turn.
  func fastest(_ whole: Engine, _ split: Engine, batch: Int) throws(ApusError) -> Engine {
    let engines = [whole, split]
    var contexts: [ExecutionContext] = []
    for engine in engines {
      let context = try engine.makeContext()
      for (name, tensor) in try engine.sampleInputs(configuration) {
        try context.bindInput(name, tensor)
      }
      try context.execute()
      contexts.append(context)
    }
    var seconds = [[Double]](repeating: [], count: engines.count)
    let begin = Clock.seconds
    for run in 0..<Self.mostRuns {
      if run >= Self.fewestRuns && Clock.seconds - begin > Self.enoughSeconds { break }
      for (index, context) in contexts.enumerated() {
        let start = Clock.seconds
        try context.execute()
        seconds[index].append(Clock.seconds - start)
      }
    }
    let medians = seconds.map { $0.sorted()[$0.count / 2] }
    let chosen = medians[1] < medians[0] ? 1 : 0
    let text = medians.map { String(Double(Int($0 * 1e5)) / 100) }
    var report = engines[chosen].report
    report.notes.append(
      "a batch of \(batch) takes \(text[0]) ms as a whole and \(text[1]) ms member by member: "
        + (chosen == 0 ? "run as a whole" : "run member by member"))
    report.totalSeconds += Clock.seconds - begin
    return Engine(
      graph: engines[chosen].graph, library: engines[chosen].library, report: report,
      isReference: false, splitsBatch: chosen == 1)
  }
}
