// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusKernel
import ApusOps
import ApusOptimize

/// Which precision each product of a network takes: one for all, others for single nodes.
package struct LayerPrecisions: Sendable {
  /// The precision of nodes that are not named.
  var usual = BuilderConfiguration.Precision.fp32
  /// Whether `usual` and `named` were found for precision `auto`.
  var isChosen = false
  /// Precisions by node name.
  var named: [String: BuilderConfiguration.Precision] = [:]
  /// The ranges for int8; without them nothing is rounded to bytes.
  var table: CalibrationTable?
  /// How weights and biases are rounded.
  var quantization = QuantizationOptions()
  /// Weights that were rounded with this table and these options.
  var rounded = RoundedWeights()

  /// Rows of int4 weights that share a scale.
  var int4Group = 32

  /// What users of the engine should know.
  var notes: [String] = []
  /// Why each layer has its precision.
  var records: [LayerRecord] = []

  /// What the user asked for.
  var asked: BuilderConfiguration.Precision { isChosen ? .auto : usual }

  /// The precision of a layer.
  func precision(of name: String) -> BuilderConfiguration.Precision { named[name] ?? usual }

  /// Whether any product can take a precision.
  func uses(_ precision: BuilderConfiguration.Precision) -> Bool {
    usual == precision || named.values.contains(precision)
  }

  /// The pass that puts rounding to bytes in; nil when nothing is to be rounded.
  var insertion: InsertQuantization? {
    guard let table, uses(.int8) else { return nil }
    return InsertQuantization(table, choosing: choice(of: .int8), quantization, known: rounded)
  }

  /// The pass that rounds products to `bfloat16`; nil when none is to be.
  var narrowing: UseBFloat16? {
    guard uses(.bf16) else { return nil }
    return UseBFloat16(
      choosing: choice(of: .bf16), quantization.correctsRounding ? table : nil, isScaled: insertion != nil,
      known: rounded)
  }

  /// The pass that stores weights in half precision; nil when none are to be.
  var halving: StoreWeightsInHalf? {
    uses(.fp16) ? StoreWeightsInHalf(choosing: choice(of: .fp16)) : nil
  }

  /// The pass that stores weights in four bits; nil when none are to be.
  var quartering: StoreWeightsInFourBits? {
    uses(.int4) ? StoreWeightsInFourBits(choosing: choice(of: .int4), block: int4Group) : nil
  }

  private func choice(of precision: BuilderConfiguration.Precision) -> LayerChoice {
    let apart = named.filter { ($0.value == precision) != (usual == precision) }.keys
    return usual == precision ? .allBut(Set(apart)) : .only(Set(apart))
  }
}
