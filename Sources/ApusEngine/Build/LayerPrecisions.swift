// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusKernel
import ApusOps
import ApusOptimize

/// Which precision each product of a network takes: one for all, others for single nodes.
struct LayerPrecisions: Sendable {
  /// The precision of nodes that are not named.
  var usual = BuilderConfiguration.Precision.fp32
  /// Precisions by node name.
  var named: [String: BuilderConfiguration.Precision] = [:]
  /// The ranges for int8; without them nothing is rounded to bytes.
  var table: CalibrationTable?
  /// How weights and biases are rounded.
  var quantization = QuantizationOptions()

  /// What users of the engine should know.
  var notes: [String] = []

  /// Whether any product can take a precision.
  func uses(_ precision: BuilderConfiguration.Precision) -> Bool {
    usual == precision || named.values.contains(precision)
  }

  /// The pass that puts rounding to bytes in; nil when nothing is to be rounded.
  var insertion: InsertQuantization? {
    guard let table, uses(.int8) else { return nil }
    return InsertQuantization(table, choosing: choice(of: .int8), quantization)
  }

  /// The pass that rounds products to `bfloat16`; nil when none is to be.
  var narrowing: UseBFloat16? {
    uses(.bf16) ? UseBFloat16(choosing: choice(of: .bf16)) : nil
  }

  private func choice(of precision: BuilderConfiguration.Precision) -> LayerChoice {
    let apart = named.filter { ($0.value == precision) != (usual == precision) }.keys
    return usual == precision ? .allBut(Set(apart)) : .only(Set(apart))
  }
}

extension Builder {
  /// The precisions the configuration asks for.
  ///
  /// Networks that are quantised already follow their own scales at `fp32` and `int8` alike; where data
  /// is given, `int8` rounds what they left in floats, too.
  ///
  /// - Throws: `invalid-argument` for int8 without data, and for layers that do not exist.
  func precisions(for network: Graph, _ traits: DeviceTraits) throws(ApusError) -> LayerPrecisions {
    var result = LayerPrecisions(
      usual: configuration.precision, named: configuration.layerPrecisions,
      quantization: configuration.quantization)
    try checkLayers(network)
    if result.uses(.bf16) && !traits.fastTypes.contains(.bfloat16) {
      Log.warning("this device has no instructions for bf16: what is to be bf16 computes in fp32")
    }
    if result.uses(.fp16) || result.usual == .auto {
      throw ApusError(
        .notYetSupported, "this precision is not available in this version yet",
        hint: "build with --precision fp32, bf16 or int8")
    }
    guard result.uses(.int8) else { return result }
    result.table = try calibrationTable(for: network)
    if let table = result.table {
      if table.isRandom {
        result.notes.append("calibrated with random numbers: its results mean nothing, only its speed does")
      }
      return result
    }
    guard network.nodes.contains(where: { network[$0].op is DequantizeLinear }) else {
      throw ApusError(
        .invalidArgument,
        "precision 'int8' needs calibration data: the network has no scales of its own",
        hint: "give some hundred samples with --calibration FILE.npz (an array for each input) or a "
          + "folder of them, or ranges found before with --calibration-cache FILE; "
          + "--calibration random:N is enough to measure speed")
    }
    return result
  }

  private func checkLayers(_ network: Graph) throws(ApusError) {
    let names = Set(network.nodes.map { network[$0].name })
    for name in configuration.layerPrecisions.keys.sorted() where !names.contains(name) {
      throw ApusError(
        .invalidArgument, "a precision is given for '\(name)', which is no node of the network",
        hint: "apus inspect lists the nodes")
    }
  }
}
