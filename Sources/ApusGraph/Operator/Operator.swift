// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusTensor

/// An operator: a value holding attributes, with its typing rule and its meaning.
///
/// An operator is defined once, here. `evaluate` is the specification that every kernel, rewrite and
/// backend is tested against; it is written for clarity. What else an operator can do for the
/// optimiser is said by the small capability protocols beside this one.
public protocol Operator: Sendable {
  /// The canonical name, unique in a registry.
  static var name: String { get }

  /// Creates the operator from its attributes.
  ///
  /// - Throws: `invalid-attribute` when one is missing, mistyped or out of range.
  init(reading attributes: inout AttributeReader) throws(ApusError)

  /// The attributes that `init(reading:)` would read back.
  var attributes: Attributes { get }

  /// The types of the results for operands of these types.
  ///
  /// Dimensions that only the data decides become fresh symbols (`inputs.freshDim`).
  /// - Throws: `type-mismatch` when the operands contradict the operator's contract.
  func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType]

  /// The results for these operands; an omitted optional operand is nil.
  ///
  /// - Throws: `type-mismatch`, `invalid-argument` or `execution`; never traps on any values.
  func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue]
}

/// What shape inference may look at.
public struct InferenceInputs: Sendable {
  /// The operands' types; nil for an omitted optional operand.
  public var types: [ValueType?]
  /// The operands' values where they are constants.
  public var constants: [Tensor?]
  /// The elements of integer operands where they are known up to symbols (shape arithmetic).
  public var symbolic: [[Dim]?]
  /// The number of results the node has.
  public var outputCount: Int
  /// Makes dimension names that occur nowhere else.
  public var scope: String

  /// Creates the inputs of one inference.
  public init(
    types: [ValueType?], constants: [Tensor?] = [], symbolic: [[Dim]?] = [], outputCount: Int = 1,
    scope: String = ""
  ) {
    self.types = types
    self.constants = constants
    self.symbolic = symbolic
    self.outputCount = outputCount
    self.scope = scope
  }

  /// The number of operands, omitted ones included.
  public var count: Int { types.count }

  /// Whether operand `index` is given.
  public func has(_ index: Int) -> Bool { index < types.count && types[index] != nil }

  /// The tensor type of operand `index`.
  public func tensor(_ index: Int) throws(ApusError) -> TensorType {
    guard index < types.count, let type = types[index] else {
      throw ApusError(.typeMismatch, "operand \(index) is missing")
    }
    guard case .tensor(let tensor) = type else {
      throw ApusError(.typeMismatch, "operand \(index) is \(type), expected a tensor")
    }
    return tensor
  }

  /// The value of operand `index` when it is a constant.
  public func constant(_ index: Int) -> Tensor? {
    index < constants.count ? constants[index] : nil
  }

  /// The elements of integer operand `index` up to symbols.
  public func dims(_ index: Int) -> [Dim]? {
    if let tensor = constant(index), tensor.dataType.isInteger, tensor.count <= 1024 {
      return tensor.ints().map { Dim($0) }
    }
    return index < symbolic.count ? symbolic[index] : nil
  }

  /// The elements of integer operand `index` when all are known.
  public func ints(_ index: Int) -> [Int]? {
    if let tensor = constant(index), tensor.dataType.isInteger { return tensor.ints() }
    guard let dims = dims(index) else { return nil }
    let values = dims.compactMap(\.value)
    return values.count == dims.count ? values : nil
  }

  /// A dimension that only the data decides.
  public func freshDim(_ label: String) -> Dim { .symbol("\(scope).\(label)") }
}

/// An operator whose results depend on more than its operands (random generators); never folded or
/// merged.
public protocol NondeterministicOperator: Operator {}

/// An operator whose results' shapes depend on the operands' elements, not only on their shapes.
/// The engine plans what follows once the shapes are known.
public protocol DataDependentShape: Operator {
  /// The operands whose elements decide the shapes; when all of them are constants, nothing is open.
  func shapeDecidingInputs(count: Int) -> [Int]
}

/// An elementwise operator: everything about it follows from its expression.
public protocol PointwiseOperator: BatchwiseOperator {
  /// The expression over the operands, whose types are given (integer and float forms may differ).
  func body(_ inputs: [DataType]) -> ScalarExpr
}

/// An operator that only moves elements: its results are strided copies of its operands.
public protocol MovementOperator: Operator {
  /// The copies for operands of these shapes, or nil when operand values needed are not in `inputs`.
  func copyPlan(_ inputs: [Tensor?], shapes: [[Int]?]) throws(ApusError) -> CopyPlan
  /// The operands whose elements are moved; the others are parameters (axes, sizes, fill values).
  func movedInputs(count: Int) -> [Int]
}

/// An operator that says what the elements of integer results are in terms of symbols.
public protocol ShapeValueOperator: Operator {
  /// The elements of each result up to symbols; nil where unknown.
  func symbolicResults(_ inputs: InferenceInputs) -> [[Dim]?]
}

/// An operator that runs a pointwise epilogue on its first result while it is still in registers.
public protocol AnchorOperator: Operator {
  /// Whether it does so as it is, for operands of these types: kernels with epilogues want channels last.
  func ownsEpilogue(_ inputs: [TensorType?]) -> Bool
  /// How many operands an epilogue may have besides the result; kernels have registers for six.
  var epilogueOperandLimit: Int { get }
}

extension AnchorOperator {
  public func ownsEpilogue(_ inputs: [TensorType?]) -> Bool { true }
  public var epilogueOperandLimit: Int { 6 }
}

/// An anchor that works on each line along the last axis on its own, in several passes, and so may compute
/// the elements of its first operand as it reads them.
public protocol RowOperator: AnchorOperator {
  /// Whether it does so for operands of these types: others than the first are one line each.
  func isOverRows(_ inputs: [TensorType?]) -> Bool
}

extension RowOperator {
  public func ownsEpilogue(_ inputs: [TensorType?]) -> Bool { isOverRows(inputs) }
  /// Its own operands take pointers, too.
  public var epilogueOperandLimit: Int { 2 }
}

/// An operator that can compute its result in a permuted layout: `f(transpose(x)) = transpose(f'(x))`.
public protocol PermutableOperator: Operator {
  /// The operator that, given operands permuted by `permutation` (output axis i is input axis
  /// `permutation[i]`), yields the permuted results; nil when there is none. `inputs` are the
  /// un-permuted operand types; `permuted` says which operands must be permuted (others are left
  /// alone).
  func permuted(by permutation: [Int], inputs: InferenceInputs) -> PermutedForm?
}

/// See `PermutableOperator`.
public struct PermutedForm: Sendable {
  /// The operator on permuted operands.
  public var op: any Operator
  /// For each operand, whether it must be permuted.
  public var permutesInput: [Bool]
  /// Operands (parameters such as axes or pads) to replace by a constant.
  public var replacedInputs: [Int: Tensor]

  /// Creates a permuted form.
  public init(op: any Operator, permutesInput: [Bool], replacedInputs: [Int: Tensor] = [:]) {
    self.op = op
    self.permutesInput = permutesInput
    self.replacedInputs = replacedInputs
  }
}

/// An operator that holds graphs and runs them.
public protocol ControlFlowOperator: Operator {
  /// The graphs, in a fixed order; passes replace them by optimised ones.
  var bodies: [Graph] { get set }
  /// Runs the operator with `run(body, operands)` as the way to run one of the bodies.
  func execute(
    _ inputs: [RuntimeValue?],
    run: (_ body: Int, _ operands: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue]
  ) throws(ApusError) -> [RuntimeValue]
}

/// Operations and bytes of one execution, for estimates and reports.
public struct Cost: Sendable, Hashable {
  /// Multiplications and additions, counted separately.
  public var operations: Double
  /// Bytes read and written if every operand is read once and every result written once.
  public var bytes: Double

  /// Creates a cost.
  public init(operations: Double, bytes: Double) {
    self.operations = operations
    self.bytes = bytes
  }
}

/// An operator that knows its arithmetic cost; others are counted one operation per result element.
public protocol CostedOperator: Operator {
  /// The number of operations for operands and results of these types.
  func operations(inputs: [TensorType?], outputs: [TensorType]) -> Double
}

/// An operator that states how far a float kernel may be from the reference, relative to the largest
/// magnitude in the result; the default suits a few roundings.
public protocol TolerantOperator: Operator {
  /// The tolerance for results of this type and operands of these types.
  func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double
}

extension Operator {
  /// The canonical name.
  public var name: String { Self.name }

  /// The cost for operands and results of these types.
  public func cost(inputs: [TensorType?], outputs: [TensorType]) -> Cost {
    func count(_ type: TensorType) -> Double {
      (type.shape ?? []).reduce(1.0) { $0 * Double($1) }
    }
    func bytes(_ type: TensorType) -> Double {
      type.shape == nil ? 0 : count(type) * Double(type.dataType.bitWidth) / 8
    }
    let moved = inputs.reduce(0) { $0 + ($1.map(bytes) ?? 0) } + outputs.reduce(0) { $0 + bytes($1) }
    let work =
      (self as? any CostedOperator)?.operations(inputs: inputs, outputs: outputs)
      ?? outputs.reduce(0) { $0 + count($1) }
    return Cost(operations: work, bytes: moved)
  }

  /// The tolerance of float kernels against `evaluate`, relative to the result's largest magnitude.
  public func tolerance(_ type: DataType, inputs: [TensorType?]) -> Double {
    if let stated = self as? any TolerantOperator {
      return stated.tolerance(type, inputs: inputs)
    }
    switch type {
    case .float64: return 1e-12
    case .float32: return 2e-6
    case .float16: return 2e-3
    case .bfloat16: return 2e-2
    default: return 0
    }
  }
}
