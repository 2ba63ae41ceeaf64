// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph

/// Registers the operators that anchor fusions or slide windows.
func registerConvolution(_ registry: inout OperatorRegistry) {
  registry.register(Conv.self)
  registry.register(MatMul.self)
  registry.register(MaxPool.self)
  registry.register(AveragePool.self)
}

/// Registers the normalisations.
func registerNormalization(_ registry: inout OperatorRegistry) {
  registry.register(BatchNormalization.self)
  registry.register(LRN.self)
  registry.register(LayerNormalization.self)
  registry.register(Softmax.self)
  registry.register(LogSoftmax.self)
  registry.register(Hardmax.self)
}

/// Registers the recurrent networks.
func registerRecurrent(_ registry: inout OperatorRegistry) {
  registry.register(LSTM.self)
  registry.register(GRU.self)
  registry.register(RNN.self)
}

/// Registers the quantising operators.
func registerQuantization(_ registry: inout OperatorRegistry) {
  registry.register(QuantizeLinear.self)
  registry.register(DequantizeLinear.self)
  registry.register(DynamicQuantizeLinear.self)
  registry.register(MatMulInteger.self)
}

/// Registers the operators that hold graphs.
func registerControlFlow(_ registry: inout OperatorRegistry) {
  registry.register(If.self)
  registry.register(Loop.self)
  registry.register(Scan.self)
}
