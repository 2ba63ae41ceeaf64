// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusEngine
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

/// A problem with the elements it is tried on.
struct BatteryProblem: Sendable {
  let problem: Problem
  let operands: [Tensor?]
}

/// Makes a part of the problems that the battery is about.
protocol ProblemFamily {
  static func problems(_ make: inout ProblemMaker) throws -> [BatteryProblem]
}

/// Makes operands of seeded elements, and problems whose results are what the operator infers.
struct ProblemMaker {
  /// An operand with its elements.
  struct Operand {
    var tensor: Tensor
    var isConstant = false
  }

  private var generator: SeededGenerator

  init(seed: UInt64) { generator = SeededGenerator(seed: seed) }

  /// An operand: floats in -1..<1 times `scale`, bytes of their whole range, other integers below 100.
  mutating func operand(
    _ type: DataType, _ shape: [Int], scale: Double = 1, constant: Bool = false
  ) throws -> Operand {
    guard type.isFloat || type.isInteger else {
      throw ApusError(.internalError, "operands of \(type)")
    }
    let count = shape.reduce(1, *)
    if type == .float32, scale == 1 {
      return Operand(tensor: try generator.tensor(type, shape: shape), isConstant: constant)
    }
    if type.isFloat {
      let values = (0..<count).map { _ in
        (Double(generator.next() >> 40) / 8_388_608 - 1) * scale
      }
      return Operand(tensor: try Tensor(values, type, shape: shape), isConstant: constant)
    }
    let range = type.integerRange
    let (low, high) = (max(range.lowerBound, -128), min(range.upperBound, 255))
    let values = (0..<count).map { _ in
      low + Int64(generator.integer(below: Int(high - low + 1)))
    }
    return Operand(tensor: try Tensor(values, type, shape: shape), isConstant: constant)
  }

  /// A constant operand.
  mutating func constant(_ type: DataType, _ shape: [Int], scale: Double = 1) throws -> Operand {
    try operand(type, shape, scale: scale, constant: true)
  }

  /// The problem that an operator poses with these operands.
  func problem(_ op: any Operator, _ operands: [Operand?], resultCount: Int = 1) throws
    -> BatteryProblem
  {
    let constants = operands.map { $0.flatMap { $0.isConstant ? $0.tensor : nil } }
    let types = try op.infer(
      InferenceInputs(
        types: operands.map { $0.map { .tensor($0.tensor.type) } }, constants: constants,
        outputCount: resultCount))
    var outputs: [Problem.Operand] = []
    for type in types.prefix(resultCount) {
      guard let tensor = type.tensor, let shape = tensor.shape else {
        throw ApusError(.internalError, "\(op.name) gives \(type)")
      }
      outputs.append(Problem.Operand(dataType: tensor.dataType, shape: shape, constant: nil))
    }
    let inputs = zip(operands, constants).map { operand, constant in
      operand.map {
        Problem.Operand(dataType: $0.tensor.dataType, shape: $0.tensor.shape, constant: constant)
      }
    }
    return BatteryProblem(
      problem: Problem(op: op, inputs: inputs, outputs: outputs),
      operands: operands.map { $0?.tensor })
  }

  /// The problem of an operator whose result of this shape goes through an epilogue.
  mutating func problem(
    _ anchor: any Operator, _ operands: [Operand?], result shape: [Int],
    _ epilogue: BatteryEpilogue?
  ) throws -> BatteryProblem {
    guard let epilogue else { return try problem(anchor, operands) }
    return try problem(
      Fused(
        anchor: anchor, anchorInputCount: operands.count,
        epilogue: Epilogue(epilogue.expression, extraCount: epilogue.extras.count)),
      operands + (try extras(epilogue, result: shape)).map(Optional.some))
  }

  /// An epilogue's operands for a result of this shape.
  mutating func extras(_ epilogue: BatteryEpilogue, result shape: [Int]) throws -> [Operand] {
    var result: [Operand] = []
    for extra in epilogue.extras {
      switch extra.kind {
      case .scalar: result.append(try constant(extra.type, []))
      case .perColumn: result.append(try constant(extra.type, [shape.last ?? 1]))
      case .full: result.append(try operand(extra.type, shape))
      }
    }
    return result
  }
}

/// Takes the elements of a list one after the other, again and again.
struct Rotation<Element> {
  private let elements: [Element]
  private var next = 0

  init(_ elements: [Element]) { self.elements = elements }

  mutating func take() -> Element {
    defer { next += 1 }
    return elements[next % elements.count]
  }
}
