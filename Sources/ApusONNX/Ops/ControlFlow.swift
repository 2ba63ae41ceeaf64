// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Branches and loops. What their graphs use from around them becomes extra operands, after the
  /// operator's own.
  mutating func addControlFlow() {
    on("If", since: 1) { (node) throws(ApusError) in
      let captures = try node.captures(["then_branch", "else_branch"])
      let then = try node.body("then_branch", inputTypes: [], captures)
      let other = try node.body("else_branch", inputTypes: [], captures)
      guard then.outputs.count == other.outputs.count else {
        throw ApusError(
          .invalidGraph,
          "the branches have \(then.outputs.count) and \(other.outputs.count) results")
      }
      return try node.result(
        If(thenBranch: then, elseBranch: other), [try node.operand(0)] + captures.operands)
    }
    on("Loop", since: 1) { (node) throws(ApusError) in
      let captures = try node.captures(["body"])
      var carried: [ValueID] = []
      for index in 2..<max(2, node.inputs.count) { carried.append(try node.operand(index)) }
      let body = try node.loopBody(
        "body", before: [.tensor(TensorType(.int64, [])), .tensor(TensorType(.bool, []))],
        states: carried.map { node.type(of: $0) }, after: [], firstResult: 1, captures)
      return try node.result(
        Loop(body: body, carriedCount: carried.count),
        [node.optional(0), node.optional(1)] + carried + captures.operands)
    }
    on("Scan", since: 8) { (node) throws(ApusError) in try node.batchedScan() }
    on("Scan", since: 9) { (node) throws(ApusError) in try node.scan() }
  }
}

extension NodeImport {
  /// Imports a body whose states keep their type from one iteration to the next: sizes that change
  /// become unknown, until the types are stable.
  func loopBody(
    _ name: String, before: [ValueType], states: [ValueType], after: [ValueType], firstResult: Int,
    _ captures: BodyCaptures
  ) throws(ApusError) -> Graph {
    var states = states
    for _ in 0..<3 {
      let body = try self.body(name, inputTypes: before + states + after, captures)
      guard body.outputs.count >= firstResult + states.count else {
        throw ApusError(
          .invalidGraph,
          "the body has \(body.outputs.count) results, at least \(firstResult + states.count) are needed"
        )
      }
      var isStable = true
      for index in states.indices {
        let result = body[body.outputs[firstResult + index]].type
        let common = Self.common(states[index], result, "\(label).\(index)")
        if common != states[index] {
          states[index] = common
          isStable = false
        }
      }
      if isStable { return body }
    }
    let open = states.map { Self.opened($0) }
    return try body(name, inputTypes: before + open + after, captures)
  }

  /// The type that holds values of both types.
  private static func common(_ a: ValueType, _ b: ValueType, _ scope: String) -> ValueType {
    guard case .tensor(let x) = a, case .tensor(let y) = b, let dims = x.dims else { return a }
    guard let others = y.dims, others.count == dims.count else {
      return .tensor(TensorType(x.dataType, nil))
    }
    let merged = dims.indices.map { axis in
      dims[axis] == others[axis] ? dims[axis] : Dim.symbol("\(scope).\(axis)")
    }
    return .tensor(TensorType(x.dataType, merged))
  }

  private static func opened(_ type: ValueType) -> ValueType {
    guard case .tensor(let tensor) = type else { return type }
    return .tensor(TensorType(tensor.dataType, nil))
  }

  fileprivate func scan() throws(ApusError) -> [ValueID] {
    let scanCount = try attributes.int("num_scan_inputs")
    guard scanCount >= 0, scanCount <= inputs.count else {
      throw ApusError(.invalidAttribute, "'num_scan_inputs' is \(scanCount) of \(inputs.count)")
    }
    let stateCount = inputs.count - scanCount
    let axes = try attributes.ints("scan_input_axes", Array(repeating: 0, count: scanCount))
    guard axes.count == scanCount else {
      throw ApusError(.invalidAttribute, "'scan_input_axes' has \(axes.count) of \(scanCount) axes")
    }
    let captures = try captures(["body"])
    var operands: [ValueID] = []
    for index in inputs.indices { operands.append(try operand(index)) }
    var slices: [ValueType] = []
    for index in 0..<scanCount {
      var type = try tensorType(stateCount + index)
      if var dims = type.dims {
        let axis = axes[index] < 0 ? axes[index] + dims.count : axes[index]
        guard dims.indices.contains(axis) else {
          throw ApusError(.invalidAttribute, "'scan_input_axes' has \(axes[index]) for \(type)")
        }
        dims.remove(at: axis)
        type.dims = dims
      }
      slices.append(.tensor(type))
    }
    let body = try loopBody(
      "body", before: [], states: operands.prefix(stateCount).map { type(of: $0) }, after: slices,
      firstResult: 0, captures)
    let resultCount = max(0, body.outputs.count - stateCount)
    let op = Scan(
      body: body, scanCount: scanCount, capturedCount: captures.operands.count,
      inputAxes: axes,
      inputDirections: try attributes.ints(
        "scan_input_directions", Array(repeating: 0, count: scanCount)),
      outputAxes: try attributes.ints("scan_output_axes", Array(repeating: 0, count: resultCount)),
      outputDirections: try attributes.ints(
        "scan_output_directions", Array(repeating: 0, count: resultCount)))
    return try result(op, operands + captures.operands)
  }
}

extension NodeImport {
  /// The body runs on items of the sequences among the operands.
  func sequenceMap() throws(ApusError) -> [ValueID] {
    let captures = try captures(["body"])
    var operands: [ValueID] = []
    var types: [ValueType?] = []
    for index in inputs.indices {
      let operand = try operand(index)
      operands.append(operand)
      if case .sequence(let element) = type(of: operand) {
        types.append(element)
      } else {
        types.append(type(of: operand))
      }
    }
    let body = try body("body", inputTypes: types, captures)
    return try result(
      SequenceMap(body: body, capturedCount: captures.operands.count),
      operands + captures.operands)
  }
}

extension NodeImport {
  /// Version 8 scans every member of a batch: a scan over the batch whose body scans.
  fileprivate func batchedScan() throws(ApusError) -> [ValueID] {
    guard optional(0) == nil else {
      throw ApusError(.notYetSupported, "Scan of version 8 with 'sequence_lens'")
    }
    let scanCount = try attributes.int("num_scan_inputs")
    let stateCount = inputs.count - 1 - scanCount
    guard scanCount >= 0, stateCount >= 0 else {
      throw ApusError(.invalidAttribute, "'num_scan_inputs' is \(scanCount) of \(inputs.count - 1)")
    }
    var operands: [ValueID] = []
    var members: [ValueType] = []
    for index in 1..<max(1, inputs.count) {
      operands.append(try operand(index))
      members.append(.tensor(try Self.member(try tensorType(index))))
    }
    var slices: [ValueType] = []
    for member in members.dropFirst(stateCount) {
      guard case .tensor(let type) = member else { continue }
      slices.append(.tensor(try Self.member(type)))
    }
    let captures = try captures(["body"])
    let body = try loopBody(
      "body", before: [], states: Array(members.prefix(stateCount)), after: slices, firstResult: 0,
      captures)
    let resultCount = max(0, body.outputs.count - stateCount)
    let scan = Scan(
      body: body, scanCount: scanCount, capturedCount: captures.operands.count,
      inputAxes: Array(repeating: 0, count: scanCount),
      inputDirections: try attributes.ints("directions", Array(repeating: 0, count: scanCount)),
      outputAxes: Array(repeating: 0, count: resultCount),
      outputDirections: Array(repeating: 0, count: resultCount))
    var outer = Graph(name: "\(label).member")
    var inner: [ValueID] = []
    for (index, type) in members.enumerated() { inner.append(outer.addInput("member\(index)", type)) }
    for (index, value) in captures.operands.enumerated() {
      inner.append(outer.addInput("captured\(index)", type(of: value)))
    }
    for value in try outer.add(
      scan, inner, outputCount: max(1, body.outputs.count), name: "\(label)/member", sources: [label])
    { outer.addOutput(value) }
    let count = members.count
    let batch = Scan(
      body: outer, scanCount: count, capturedCount: captures.operands.count,
      inputAxes: Array(repeating: 0, count: count),
      inputDirections: Array(repeating: 0, count: count),
      outputAxes: Array(repeating: 0, count: outer.outputs.count),
      outputDirections: Array(repeating: 0, count: outer.outputs.count))
    return try result(batch, operands + captures.operands)
  }

  /// One element along the first axis.
  private static func member(_ type: TensorType) throws(ApusError) -> TensorType {
    guard let dims = type.dims else { return type }
    guard !dims.isEmpty else { throw ApusError(.typeMismatch, "\(type) has no axis to scan") }
    return TensorType(type.dataType, Array(dims.dropFirst()))
  }
}
