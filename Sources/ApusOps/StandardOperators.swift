// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph

extension OperatorRegistry {
  /// All operators of Apus.
  public static let standard: OperatorRegistry = {
    var registry = OperatorRegistry()
    registerPointwise(&registry)
    registerMovement(&registry)
    registerIndexing(&registry)
    registerReduction(&registry)
    registerConvolution(&registry)
    registerNormalization(&registry)
    registerRecurrent(&registry)
    registerQuantization(&registry)
    registerControlFlow(&registry)
    registerSequence(&registry)
    registerVision(&registry)
    registerSequenceModels(&registry)
    registerRandom(&registry)
    return registry
  }()
}

/// Registers the elementwise operators.
func registerPointwise(_ registry: inout OperatorRegistry) {
  let types: [any Operator.Type] = [
    Add.self, Sub.self, Mul.self, Div.self, Mod.self, Pow.self, Max.self, Min.self, And.self,
    Or.self, Xor.self, Not.self, BitwiseAnd.self, BitwiseOr.self, BitwiseXor.self, BitwiseNot.self,
    BitShift.self, Equal.self, Less.self, LessOrEqual.self, Greater.self, GreaterOrEqual.self,
    Where.self, Neg.self, Abs.self, Sign.self, Reciprocal.self, Sqrt.self, Exp.self, Log.self,
    Sin.self, Cos.self, Tan.self, Asin.self, Acos.self, Atan.self, Sinh.self, Cosh.self, Tanh.self,
    Asinh.self, Acosh.self, Atanh.self, Erf.self, Sigmoid.self, Relu.self, LeakyRelu.self, Elu.self,
    Selu.self, Celu.self, ThresholdedRelu.self, PRelu.self, HardSigmoid.self, HardSwish.self,
    Softplus.self, Softsign.self, Mish.self, Gelu.self, Swish.self, Floor.self, Ceil.self,
    Round.self, IsNaN.self, IsInf.self, Clip.self, Cast.self, Shrink.self, Identity.self,
    Pointwise.self, Prologued.self, Fused.self, Chain.self,
  ]
  for type in types { registry.register(type) }
}

/// Registers the operators that move elements.
func registerMovement(_ registry: inout OperatorRegistry) {
  let types: [any Operator.Type] = [
    Transpose.self, Reshape.self, Flatten.self, Squeeze.self, Unsqueeze.self, Concat.self,
    Slice.self, Split.self, Expand.self, Tile.self, Pad.self, DepthToSpace.self, SpaceToDepth.self,
    PlanesToPixels.self,
  ]
  for type in types { registry.register(type) }
}

/// Registers the operators that look elements up.
func registerIndexing(_ registry: inout OperatorRegistry) {
  let types: [any Operator.Type] = [
    Gather.self, GatherElements.self, GatherND.self, ScatterElements.self, ScatterND.self,
    NonZero.self, Compress.self, Unique.self, OneHot.self, NumberRange.self, ConstantOfShape.self,
    Shape.self, Size.self, EyeLike.self, Trilu.self, TopK.self, ArgMax.self, ArgMin.self,
    CumSum.self, ReverseSequence.self,
  ]
  for type in types { registry.register(type) }
}

/// Registers the reductions.
func registerReduction(_ registry: inout OperatorRegistry) {
  registry.register(Reduce.self)
}
