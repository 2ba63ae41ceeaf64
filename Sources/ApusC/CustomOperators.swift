// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import CApus
import Synchronization

/// The operators that the program has registered.
enum CustomOperators {
  private static let known = Mutex<[String: CustomFunction]>([:])

  static func key(_ domain: String, _ name: String) -> String { "\(domain).\(name)" }

  static func register(_ function: CustomFunction) {
    let key = key(function.domain, function.name)
    known.withLock { $0[key] = function }
  }

  /// The function with this key.
  static func function(_ key: String) -> CustomFunction? { known.withLock { $0[key] } }

  /// What models may use.
  static var table: ONNXOperatorTable {
    var table = ONNXOperatorTable.standard
    for (key, function) in known.withLock({ $0 }) {
      table.register(function.name, domain: function.domain, since: function.since) {
        (attributes) throws(ApusError) in
        CustomOperator(key: key, function: function, own: attributes)
      }
    }
    return table
  }

  /// What engine files may use.
  static var registry: OperatorRegistry {
    var registry = OperatorRegistry.standard
    registry.register(CustomOperator.self)
    return registry
  }
}

/// A registered function of the program. The program promises that it may be called on any thread.
final class CustomFunction: @unchecked Sendable {
  /// The type of one result.
  enum Result {
    /// That of an operand.
    case like(Int)
    /// A tensor whose shape is known only after running.
    case tensor(DataType)
  }

  let domain: String
  let name: String
  let since: Int
  let results: [Result]
  private let run: apus_operator_run
  private let user: UnsafeMutableRawPointer?
  private let release: apus_release?

  /// - Throws: `invalid-argument` for a text that names no types.
  init(
    domain: String, name: String, since: Int, results: String, run: @escaping apus_operator_run,
    user: UnsafeMutableRawPointer?, release: apus_release?
  ) throws(ApusError) {
    self.domain = domain
    self.name = name
    self.since = since
    self.results = try results.split(separator: ",", omittingEmptySubsequences: false).map {
      (text) throws(ApusError) in
      try Self.result(String(text).filter { $0 != " " })
    }
    self.run = run
    self.user = user
    self.release = release
  }

  deinit { release?(user) }

  private static func result(_ text: String) throws(ApusError) -> Result {
    if text.first == "#", let operand = Int(text.dropFirst()), operand >= 0 { return .like(operand) }
    if let type = DataType(name: text) { return .tensor(type) }
    throw ApusError(
      .invalidArgument, "'\(text)' is not the type of a result",
      hint: "write an element type such as f32 or i64, or #0 for the type of input 0")
  }

  /// Calls the function.
  func callAsFunction(_ inputs: [RuntimeValue?], attributes: String) throws(ApusError)
    -> [RuntimeValue]
  {
    let operands = inputs.map { $0.map { handle(ValueHandle($0)) } }
    var made = [OpaquePointer?](repeating: nil, count: results.count)
    defer {
      for operand in operands { apus_value_destroy(operand) }
      for value in made { apus_value_destroy(value) }
    }
    let text = CText(attributes)
    let outcome = run(user, text.pointer, operands, operands.count, &made, made.count)
    guard outcome == apus_status(APUS_OK) else {
      throw lastError() ?? ApusError(.execution, "the function of '\(name)' failed")
    }
    var values: [RuntimeValue] = []
    for (index, value) in made.enumerated() {
      guard value != nil else {
        throw ApusError(.execution, "the function of '\(name)' made no result \(index)")
      }
      values.append(try object(value, ValueHandle.self, named: "outputs").value)
    }
    return values
  }
}

/// A node that a registered function computes.
struct CustomOperator: Operator, DataDependentShape {
  static let name = "Custom"
  private static let keyName = "registered_as"
  private let key: String
  private let function: CustomFunction
  private let own: Attributes

  init(key: String, function: CustomFunction, own: Attributes) {
    self.key = key
    self.function = function
    self.own = own
  }

  init(reading attributes: inout AttributeReader) throws(ApusError) {
    key = try attributes.string(Self.keyName)
    var own = attributes.all()
    own[Self.keyName] = nil
    self.own = own
    guard let function = CustomOperators.function(key) else {
      throw ApusError(
        .unsupportedOperator, "the custom operator '\(key)' is not registered in this process",
        hint: "register it before loading the engine")
    }
    self.function = function
  }

  var attributes: Attributes {
    var all = own
    all[Self.keyName] = .string(key)
    return all
  }

  func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    var types: [ValueType] = []
    for result in function.results {
      switch result {
      case .like(let operand): types.append(.tensor(try inputs.tensor(operand)))
      case .tensor(let type): types.append(.tensor(TensorType(type, nil)))
      }
    }
    return types
  }

  func shapeDecidingInputs(count: Int) -> [Int] {
    let isOpen = function.results.contains { if case .tensor = $0 { true } else { false } }
    return isOpen ? Array(0..<count) : []
  }

  func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let results = try function(inputs, attributes: try json().text())
    for (index, (value, result)) in zip(results, function.results).enumerated() {
      try check(value, result, index, inputs)
    }
    return results
  }

  private func check(
    _ value: RuntimeValue, _ result: CustomFunction.Result, _ index: Int, _ inputs: [RuntimeValue?]
  ) throws(ApusError) {
    guard let tensor = value.tensor else {
      throw ApusError(.execution, "result \(index) of '\(key)' is not a tensor")
    }
    switch result {
    case .tensor(let type):
      guard tensor.dataType == type else {
        throw ApusError(
          .execution, "result \(index) of '\(key)' is \(tensor.dataType), declared as \(type)")
      }
    case .like(let operand):
      guard operand < inputs.count, let model = inputs[operand]?.tensor,
        model.dataType == tensor.dataType, model.shape == tensor.shape
      else {
        throw ApusError(
          .execution,
          "result \(index) of '\(key)' is \(tensor.dataType)\(tensor.shape), declared to be like "
            + "input \(operand)")
      }
    }
  }

  /// The node's attributes.
  private func json() throws(ApusError) -> JSON {
    var entries: [(String, JSON)] = []
    for (name, value) in own.entries {
      switch value {
      case .int(let number): entries.append((name, .int(number)))
      case .float(let number): entries.append((name, .number(number)))
      case .string(let text): entries.append((name, .string(text)))
      case .ints(let list): entries.append((name, .array(list.map { .int($0) })))
      case .floats(let list): entries.append((name, .array(list.map { .number($0) })))
      case .strings(let list): entries.append((name, .array(list.map { .string($0) })))
      case .tensor(let tensor):
        entries.append(
          (
            name,
            .object([
              ("dims", .array(tensor.shape.map { .int($0) })),
              ("values", .array(tensor.doubles().map { .number($0) })),
            ])
          ))
      default: break
      }
    }
    return .object(entries)
  }
}

@c @implementation
public func apus_register_operator(
  _ domain: UnsafePointer<CChar>?, _ name: UnsafePointer<CChar>?, _ since: Int32,
  _ results: UnsafePointer<CChar>?, _ run: apus_operator_run?, _ user: UnsafeMutableRawPointer?,
  _ release: apus_release?
) -> apus_status {
  status { () throws(ApusError) in
    guard let run else { throw missing("run") }
    CustomOperators.register(
      try CustomFunction(
        domain: try text(domain, named: "domain"), name: try text(name, named: "name"),
        since: Int(since), results: try text(results, named: "results"), run: run, user: user,
        release: release))
  }
}

@c @implementation
public func apus_fail(_ message: UnsafePointer<CChar>?) -> apus_status {
  status { () throws(ApusError) in
    throw ApusError(.execution, message.map { String(cString: $0) } ?? "no reason was given")
  }
}
