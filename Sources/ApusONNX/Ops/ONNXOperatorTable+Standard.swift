// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

extension ONNXOperatorTable {
  /// Every ONNX operator that Apus imports.
  public static let standard: ONNXOperatorTable = {
    var table = ONNXOperatorTable()
    table.addUnary()
    table.addActivations()
    table.addBinary()
    table.addMovement()
    table.addIndexing()
    table.addCreation()
    table.addReduction()
    table.addLinearAlgebra()
    table.addConvolution()
    table.addNormalization()
    table.addRecurrent()
    table.addQuantization()
    table.addLegacy()
    table.addControlFlow()
    table.addSequences()
    table.addVision()
    table.addRandom()
    table.addText()
    table.addAttention()
    table.addLosses()
    table.addSignal()
    table.addClassic()
    table.addTraining()
    table.addContrib()
    return table
  }()
}
