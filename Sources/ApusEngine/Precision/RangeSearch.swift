// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration

/// Finds better ranges for the tensors whose rounding to bytes is to blame for most of an engine's error.
///
/// A calibrator sees a tensor alone. What its errors do to the results depends on what is made of it: a
/// channel of large numbers may meet small weights and can be clipped, the tail of another decides the answer.
/// So wider and narrower ranges are tried in engines that round only this tensor's readers, and the one whose
/// results are nearest to single precision is kept. It costs nothing at run time.
package struct RangeSearch {
  let study: PrecisionStudy
  /// Called before each tensor; throws to stop.
  let report: (_ done: Int, _ total: Int) throws(ApusError) -> Void

  /// Tensors are looked at, the worst first, until this share of the error was.
  private static let share = 0.85
  private static let tensorLimit = 20
  /// A step outwards or inwards, and how much better the results must be for it.
  private static let steps = [1.4, 0.72]
  private static let fineSteps = [1.18, 0.85]
  private static let limits = 0.25...4.0
  private static let gain = 0.95

  package init(
    study: PrecisionStudy, report: @escaping (_ done: Int, _ total: Int) throws(ApusError) -> Void
  ) {
    self.study = study
    self.report = report
  }

  /// The error energy of each layer in int8, alone with those that read the same tensor.
  package func errors() throws(ApusError) -> [String: Double] {
    let tensors = rangedTensors()
    var errors: [String: Double] = [:]
    for (index, tensor) in tensors.enumerated() {
      try report(index, 2 * tensors.count)
      let noise = try noise(of: tensor)
      for layer in tensor.layers { errors[layer] = noise / Double(tensor.layers.count) }
    }
    return errors
  }

  /// Improves the study's ranges.
  ///
  /// - Parameter errors: The error energy of each layer in int8; corrected for what was gained.
  /// - Returns: How many ranges were changed.
  package func run(_ errors: inout [String: Double]) throws(ApusError) -> Int {
    let worst = worstTensors(errors)
    var changed = 0
    for (index, tensor) in worst.enumerated() {
      try report(index, worst.count)
      let start = study.table
      let before = try noise(of: tensor)
      var best = (noise: before, table: start)
      for step in Self.steps {
        var factor = step
        while Self.limits.contains(factor) {
          study.table = Self.scaled(start, tensor.operands, by: factor)
          let noise = try noise(of: tensor)
          guard noise < best.noise * Self.gain else { break }
          best = (noise, study.table)
          factor *= step
        }
        if best.noise < before { break }
      }
      let coarse = best.table
      for step in Self.fineSteps {
        study.table = Self.scaled(coarse, tensor.operands, by: step)
        let noise = try noise(of: tensor)
        guard noise < best.noise * Self.gain else { continue }
        best = (noise, study.table)
        break
      }
      study.table = best.table
      guard best.noise < before else { continue }
      changed += 1
      for layer in tensor.layers { errors[layer]? *= best.noise / before }
    }
    return changed
  }

  /// A range, the tensors that share it, and the layers that read them.
  private struct RangedTensor {
    var operands: Set<String> = []
    var layers: [String] = []
    var error = 0.0
  }

  /// The ranges that one number can change, in the order of the layers that read them.
  private func rangedTensors() -> [RangedTensor] {
    var tensors: [RangedTensor] = []
    var known: [String: Int] = [:]
    for layer in study.layers {
      guard let rounded = layer.rounded,
        study.table.entries[rounded.operand]?.channelRanges.isEmpty ?? true
      else { continue }
      if known[rounded.range] == nil {
        known[rounded.range] = tensors.count
        tensors.append(RangedTensor())
      }
      guard let index = known[rounded.range] else { continue }
      tensors[index].operands.insert(rounded.operand)
      tensors[index].layers.append(layer.name)
    }
    return tensors
  }

  private func worstTensors(_ errors: [String: Double]) -> [RangedTensor] {
    var tensors = rangedTensors()
    for index in tensors.indices {
      tensors[index].error = tensors[index].layers.reduce(0) { $0 + (errors[$1] ?? 0) }
    }
    let total = tensors.reduce(0) { $0 + $1.error }
    let sorted = tensors.enumerated().sorted { a, b in
      a.element.error == b.element.error ? a.offset < b.offset : a.element.error > b.element.error
    }.map(\.element)
    var (sum, count) = (0.0, 0)
    while count < min(sorted.count, Self.tensorLimit), sum < Self.share * total {
      sum += sorted[count].error
      count += 1
    }
    return Array(sorted.prefix(count))
  }

  /// The error energy of an engine in which only the readers of a tensor round.
  private func noise(of tensor: RangedTensor) throws(ApusError) -> Double {
    let choice = Dictionary(uniqueKeysWithValues: tensor.layers.map { ($0, PrecisionStudy.Precision.int8) })
    return try study.calibratedNoise(of: try study.engine(study.precisions(choice), isDraft: true))
  }

  private static func scaled(_ table: CalibrationTable, _ operands: Set<String>, by factor: Double)
    -> CalibrationTable
  {
    var result = table
    for operand in operands {
      guard let range = table.entries[operand]?.range else { continue }
      result.entries[operand]?.range = ActivationRange(
        lower: range.lower * factor, upper: range.upper * factor)
    }
    return result
  }
}
