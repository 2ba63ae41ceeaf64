// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Layers whose precisions are decided together: those that read the same tensor, which is stored once where they
/// agree.
///
/// They usually do, and their products may be one then. Two layers may also differ, where one rounds much and the
/// other takes long: the tensor is stored twice, and what that costs is measured with them.
struct PrecisionUnit {
  typealias Precision = PrecisionStudy.Precision

  private(set) var layers: [PrecisionStudy.Layer]

  /// One way to compute them.
  struct Option {
    /// The precision of each layer, by name.
    let choice: [String: Precision]
    let seconds: Double
  }

  /// The units of a network, in the order of their first layers.
  static func units(of layers: [PrecisionStudy.Layer]) -> [PrecisionUnit] {
    var units: [PrecisionUnit] = []
    var known: [String: Int] = [:]
    for layer in layers {
      if let operand = layer.rounded?.operand, let index = known[operand] {
        units[index].layers.append(layer)
      } else {
        if let operand = layer.rounded?.operand { known[operand] = units.count }
        units.append(PrecisionUnit(layers: [layer]))
      }
    }
    return units
  }

  /// The precisions that there are for all of them.
  var choices: [Precision] {
    layers[0].choices.filter { choice in layers.allSatisfy { $0.choices.contains(choice) } }
  }

  /// One precision for all.
  func uniform(_ precision: Precision) -> [String: Precision] {
    Dictionary(uniqueKeysWithValues: layers.map { ($0.name, precision) })
  }

  /// One layer in a narrow precision, the other in a wide one; nil for what has not two, or not these precisions.
  func mixed(narrow: Precision, wide: Precision, narrowFirst: Bool) -> [String: Precision]? {
    guard layers.count == 2, narrow != wide, choices.contains(narrow), choices.contains(wide) else { return nil }
    let order = narrowFirst ? [narrow, wide] : [wide, narrow]
    return Dictionary(uniqueKeysWithValues: zip(layers.map(\.name), order))
  }

  /// What an engine says of them: how it computes them and how long that takes; nil where it has precisions for them
  /// that are no choice of theirs, or did not measure them.
  func option(_ engine: (choice: [String: Precision], seconds: [String: Double])) -> Option? {
    var own: [String: Precision] = [:]
    var sum = 0.0
    for layer in layers {
      guard let precision = engine.choice[layer.name], let seconds = engine.seconds[layer.name] else { return nil }
      own[layer.name] = precision
      sum += seconds
    }
    let isMixed = Set(own.values).count > 1
    return isMixed && layers.count != 2 ? nil : Option(choice: own, seconds: sum)
  }
}
