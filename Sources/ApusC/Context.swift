// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import CApus

/// A context with the inputs set through C and addresses for its results.
final class ContextHandle {
  private let context: ExecutionContext
  private let inputNames: [String]
  private let outputNames: [String]
  private var inputs: [RuntimeValue?]
  private var results: [RuntimeValue] = []
  private var resultDims: [CDims] = []

  init(_ engine: Engine) throws(ApusError) {
    context = try engine.makeContext()
    inputNames = engine.inputs.map(\.name)
    outputNames = engine.outputs.map(\.name)
    inputs = Array(repeating: nil, count: inputNames.count)
  }

  func set(_ name: String, _ value: RuntimeValue) throws(ApusError) {
    guard let index = inputNames.firstIndex(of: name) else {
      throw unknown("input", name, inputNames)
    }
    if case .tensor(let tensor) = value { try context.bindInput(name, tensor) }
    inputs[index] = value
  }

  func clear() {
    for index in inputs.indices { inputs[index] = nil }
  }

  func run() throws(ApusError) {
    // Bound tensors run without allocation; containers and absent inputs go the general way.
    if inputs.allSatisfy({ $0?.tensor != nil }) {
      try context.execute()
      results = context.results
    } else {
      results = try context.run(inputs)
    }
    let shapes = results.map { $0.tensor?.shape.map(Int64.init) ?? [] }
    if shapes != resultDims.map(\.values) { resultDims = shapes.map(CDims.init) }
  }

  /// The result with this name and its sizes.
  func result(_ name: String) throws(ApusError) -> (RuntimeValue, CDims) {
    guard let index = outputNames.firstIndex(of: name) else {
      throw unknown("output", name, outputNames)
    }
    guard index < results.count else {
      throw ApusError(.invalidArgument, "there are no outputs yet: the context has not run")
    }
    return (results[index], resultDims[index])
  }

  private func unknown(_ kind: String, _ name: String, _ names: [String]) -> ApusError {
    let known = names.map { "'\($0)'" }.joined(separator: ", ")
    return ApusError(
      .invalidArgument, "there is no \(kind) named '\(name)'", hint: "the \(kind)s are \(known)")
  }
}

@c @implementation
public func apus_context_create(
  _ engine: OpaquePointer?, _ context: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    let engine = try object(engine, EngineHandle.self, named: "engine").engine
    guard let context else { throw missing("context") }
    context.pointee = handle(try ContextHandle(engine))
  }
}

@c @implementation
public func apus_context_set_input(
  _ context: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ tensor: UnsafePointer<apus_tensor>?
) -> apus_status {
  status { () throws(ApusError) in
    let context = try object(context, ContextHandle.self, named: "context")
    let name = try text(name, named: "name")
    do throws(ApusError) {
      try context.set(name, .tensor(try borrowedTensor(tensor, owner: nil)))
    } catch {
      throw error.message.contains("'\(name)'")
        ? error : ApusError(error.code, "input '\(name)': \(error.message)", hint: error.hint)
    }
  }
}

@c @implementation
public func apus_context_set_value(
  _ context: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ value: OpaquePointer?
) -> apus_status {
  status { () throws(ApusError) in
    let context = try object(context, ContextHandle.self, named: "context")
    let value = try object(value, ValueHandle.self, named: "value").value
    try context.set(try text(name, named: "name"), value)
  }
}

@c @implementation
public func apus_context_clear(_ context: OpaquePointer?) {
  (try? object(context, ContextHandle.self, named: "context"))?.clear()
}

@c @implementation
public func apus_context_run(_ context: OpaquePointer?) -> apus_status {
  status { () throws(ApusError) in
    try object(context, ContextHandle.self, named: "context").run()
  }
}

@c @implementation
public func apus_context_output(
  _ context: OpaquePointer?, _ name: UnsafePointer<CChar>?,
  _ tensor: UnsafeMutablePointer<apus_tensor>?
) -> apus_status {
  status { () throws(ApusError) in
    let context = try object(context, ContextHandle.self, named: "context")
    let name = try text(name, named: "name")
    let (value, dims) = try context.result(name)
    guard let tensor else { throw missing("tensor") }
    guard let content = value.tensor else {
      throw ApusError(
        .typeMismatch, "the output '\(name)' is \(value.type), not a tensor",
        hint: "read it with apus_context_get_value")
    }
    describe(content, dims: dims, into: tensor)
  }
}

@c @implementation
public func apus_context_get_value(
  _ context: OpaquePointer?, _ name: UnsafePointer<CChar>?,
  _ value: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    let context = try object(context, ContextHandle.self, named: "context")
    let (result, _) = try context.result(try text(name, named: "name"))
    guard let value else { throw missing("value") }
    value.pointee = handle(ValueHandle(try result.copied()))
  }
}

@c @implementation
public func apus_context_destroy(_ context: OpaquePointer?) {
  release(context, ContextHandle.self)
}

extension RuntimeValue {
  /// The same value with every tensor in memory of its own.
  fileprivate func copied() throws(ApusError) -> RuntimeValue {
    switch self {
    case .tensor(let tensor): return .tensor(try tensor.copied())
    case .sequence(let items, let type):
      var copies: [RuntimeValue] = []
      for item in items { copies.append(try item.copied()) }
      return .sequence(copies, of: type)
    case .optional(let item, let type):
      guard let item else { return self }
      return .optional(try item.copied(), of: type)
    }
  }
}
