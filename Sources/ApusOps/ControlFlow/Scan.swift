// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Runs a graph over slices (ONNX `Scan`): operands are state values, scanned tensors, captured values;
/// the body takes them in the same order, one slice of each scanned tensor, and returns the new states
/// and one slice of each stacked result.
public struct Scan: ControlFlowOperator {
  public static let name = "Scan"
  public var bodies: [Graph]
  /// The number of scanned operands.
  public var scanCount: Int
  /// The number of captured operands, which come last.
  public var capturedCount: Int
  /// Axis and direction (1: backwards) of every scanned operand and stacked result; empty for zeros.
  public var inputAxes: [Int]
  public var inputDirections: [Int]
  public var outputAxes: [Int]
  public var outputDirections: [Int]

  /// Creates the operator.
  public init(
    body: Graph, scanCount: Int, capturedCount: Int = 0, inputAxes: [Int] = [],
    inputDirections: [Int] = [], outputAxes: [Int] = [], outputDirections: [Int] = []
  ) {
    bodies = [body]
    self.scanCount = scanCount
    self.capturedCount = capturedCount
    self.inputAxes = inputAxes
    self.inputDirections = inputDirections
    self.outputAxes = outputAxes
    self.outputDirections = outputDirections
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    bodies = [try attributes.graph("body")]
    scanCount = try attributes.int("scan_count")
    capturedCount = try attributes.int("captured_count", 0)
    inputAxes = try attributes.ints("input_axes", [])
    inputDirections = try attributes.ints("input_directions", [])
    outputAxes = try attributes.ints("output_axes", [])
    outputDirections = try attributes.ints("output_directions", [])
  }

  public var attributes: Attributes {
    [
      "body": .graph(bodies[0]), "scan_count": .int(scanCount),
      "captured_count": .int(capturedCount), "input_axes": .ints(inputAxes),
      "input_directions": .ints(inputDirections), "output_axes": .ints(outputAxes),
      "output_directions": .ints(outputDirections),
    ]
  }

  private func stateCount(_ operands: Int) throws(ApusError) -> Int {
    let count = operands - scanCount - capturedCount
    guard scanCount > 0, capturedCount >= 0, count >= 0, bodies[0].outputs.count >= count,
      bodies[0].inputs.count == operands
    else {
      throw ApusError(
        .typeMismatch,
        "\(operands) operands for a body of \(bodies[0].inputs.count) inputs, \(scanCount) of them scanned"
      )
    }
    return count
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let states = try stateCount(inputs.count)
    let body = bodies[0]
    let first = try inputs.tensor(states)
    let axis = inputAxes.first ?? 0
    let length = first.dims.flatMap { dims in
      (try? Axis.resolved(axis, rank: dims.count)).map { dims[$0] }
    }
    return body.outputs.indices.map { index in
      let type = body[body.outputs[index]].type
      guard index >= states, case .tensor(let tensor) = type, var dims = tensor.dims else {
        return index < states ? inputs.types[index] ?? type : type
      }
      dims = dims.indices.map { dims[$0].value == nil ? inputs.freshDim("r\(index).\($0)") : dims[$0] }
      let place = outputAxes.isEmpty ? 0 : outputAxes[index - states]
      let at = place < 0 ? place + dims.count + 1 : place
      guard at >= 0, at <= dims.count else { return typed(tensor.dataType, nil) }
      dims.insert(length ?? inputs.freshDim("length"), at: at)
      return typed(tensor.dataType, dims)
    }
  }

  public func execute(
    _ inputs: [RuntimeValue?],
    run: (Int, [RuntimeValue?]) throws(ApusError) -> [RuntimeValue]
  ) throws(ApusError) -> [RuntimeValue] {
    let stateTotal = try stateCount(inputs.count)
    var states = Array(inputs.prefix(stateTotal))
    let captured = Array(inputs.suffix(capturedCount))
    var scanned: [(tensor: Tensor, axis: Int, backwards: Bool)] = []
    for index in 0..<scanCount {
      let tensor = try inputs.required(stateTotal + index)
      let axis = try Axis.resolved(
        index < inputAxes.count ? inputAxes[index] : 0, rank: tensor.rank)
      let backwards = index < inputDirections.count && inputDirections[index] == 1
      scanned.append((tensor, axis, backwards))
    }
    let length = scanned[0].tensor.shape[scanned[0].axis]
    guard scanned.allSatisfy({ $0.tensor.shape[$0.axis] == length }) else {
      throw ApusError(.typeMismatch, "the scanned operands differ in length")
    }
    let stackedCount = bodies[0].outputs.count - stateTotal
    var stacks = [[Tensor]](repeating: [], count: stackedCount)
    for step in 0..<length {
      var operands = states
      for (tensor, axis, backwards) in scanned {
        operands.append(
          .tensor(try Self.slice(tensor, axis, backwards ? length - 1 - step : step)))
      }
      let results = try run(0, operands + captured)
      guard results.count == stateTotal + stackedCount else {
        throw ApusError(.internalError, "the body returned \(results.count) values")
      }
      states = Array(results.prefix(stateTotal))
      for index in 0..<stackedCount {
        guard let tensor = results[stateTotal + index].tensor else {
          throw ApusError(.typeMismatch, "a stacked result is not a tensor")
        }
        stacks[index].append(tensor)
      }
    }
    var results: [RuntimeValue] = states.compactMap { $0 }
    for index in 0..<stackedCount {
      let backwards = index < outputDirections.count && outputDirections[index] == 1
      let list = backwards ? stacks[index].reversed() : stacks[index]
      let output = bodies[0].outputs[stateTotal + index]
      results.append(
        .tensor(
          try TensorStack.stack(
            list, axis: index < outputAxes.count ? outputAxes[index] : 0,
            emptyType: bodies[0][output].type)))
    }
    return results
  }

  private static func slice(_ tensor: Tensor, _ axis: Int, _ index: Int) throws(ApusError) -> Tensor {
    let indices = try Tensor([Int64(index)], .int64, shape: [])
    guard
      case .tensor(let result)? = try Gather(axis: axis).evaluate([
        .tensor(tensor), .tensor(indices),
      ]).first
    else { throw ApusError(.internalError, "no slice") }
    return result
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    try execute(inputs) { (body, operands) throws(ApusError) in
      try ReferenceInterpreter.run(bodies[body], inputs: operands)
    }
  }
}
