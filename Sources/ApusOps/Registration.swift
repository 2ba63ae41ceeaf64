// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph

/// Registers the operators that anchor fusions or slide windows.
func registerConvolution(_ registry: inout OperatorRegistry) {
  registry.register(Conv.self)
  registry.register(MatMul.self)
  registry.register(BlockQuantizedMatMul.self)
  registry.register(MaxPool.self)
  registry.register(AveragePool.self)
  registry.register(LpPool.self)
  registry.register(ConvTranspose.self)
  registry.register(PhasedConvTranspose.self)
  registry.register(Einsum.self)
  registry.register(Det.self)
}

/// Registers the normalisations.
func registerNormalization(_ registry: inout OperatorRegistry) {
  registry.register(BatchNormalization.self)
  registry.register(LRN.self)
  registry.register(LayerNormalization.self)
  registry.register(Softmax.self)
  registry.register(LogSoftmax.self)
  registry.register(Hardmax.self)
  registry.register(RMSNormalization.self)
  registry.register(InstanceNormalization.self)
  registry.register(GroupNormalization.self)
  registry.register(LpNormalization.self)
  registry.register(MeanVarianceNormalization.self)
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
  registry.register(ConvInteger.self)
  registry.register(QLinearConv.self)
  registry.register(QLinearMatMul.self)
}

/// Registers the operators that hold graphs.
func registerControlFlow(_ registry: inout OperatorRegistry) {
  registry.register(If.self)
  registry.register(Loop.self)
  registry.register(Scan.self)
}

/// Registers the operators on sequences and optional values.
func registerSequence(_ registry: inout OperatorRegistry) {
  let types: [any Operator.Type] = [
    SequenceConstruct.self, SequenceEmpty.self, SequenceAt.self, SequenceInsert.self,
    SequenceErase.self, SequenceLength.self, ConcatFromSequence.self, SplitToSequence.self,
    OptionalConstruct.self, OptionalGetElement.self, OptionalHasElement.self, SequenceMap.self,
  ]
  for type in types { registry.register(type) }
}

/// Registers resampling, detection and texts.
func registerVision(_ registry: inout OperatorRegistry) {
  let types: [any Operator.Type] = [
    Resize.self, GridSample.self, RoiAlign.self, NonMaxSuppression.self, StringConcat.self,
    StringNormalizer.self, StringSplit.self, RegexFullMatch.self, TfIdfVectorizer.self,
  ]
  for type in types { registry.register(type) }
}

/// Registers the random generators.
func registerRandom(_ registry: inout OperatorRegistry) {
  let types: [any Operator.Type] = [
    RandomNormal.self, RandomUniform.self, RandomNormalLike.self, RandomUniformLike.self,
    Bernoulli.self, Multinomial.self,
  ]
  for type in types { registry.register(type) }
}

/// Registers attention, losses and transforms.
func registerSequenceModels(_ registry: inout OperatorRegistry) {
  let types: [any Operator.Type] = [
    Attention.self, RotaryEmbedding.self, LinearAttention.self, NegativeLogLikelihoodLoss.self,
    BitCast.self, CenterCropPad.self, TensorScatter.self, DFT.self, STFT.self,
    MelWeightMatrix.self, AffineGrid.self, Col2Im.self, DeformConv.self, MaxUnpool.self,
    LabelEncoder.self, TreeEnsemble.self, ImageDecoder.self,
  ]
  for type in types { registry.register(type) }
}
