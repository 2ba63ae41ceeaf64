// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import CApus

/// An engine with descriptions of its inputs and outputs that C may point at.
final class EngineHandle: Sendable {
  let engine: Engine
  let inputs: PortTable
  let outputs: PortTable

  init(_ engine: Engine) {
    self.engine = engine
    inputs = PortTable(engine.inputs.map { ($0.name, $0.type) })
    outputs = PortTable(engine.outputs.map { ($0.name, $0.type) })
  }
}

/// Options being collected.
final class ConfigHandle {
  var configuration = BuilderConfiguration()
}

@c @implementation
public func apus_config_create(_ config: UnsafeMutablePointer<OpaquePointer?>?) -> apus_status {
  status { () throws(ApusError) in
    guard let config else { throw missing("config") }
    config.pointee = handle(ConfigHandle())
  }
}

@c @implementation
public func apus_config_set(
  _ config: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ value: UnsafePointer<CChar>?
) -> apus_status {
  status { () throws(ApusError) in
    let config = try object(config, ConfigHandle.self, named: "config")
    try config.configuration.set(
      try text(name, named: "name"), to: try text(value, named: "text"))
  }
}

@c @implementation
public func apus_config_destroy(_ config: OpaquePointer?) {
  release(config, ConfigHandle.self)
}

/// The options in a config; the defaults for NULL.
func configuration(_ config: OpaquePointer?) throws(ApusError) -> BuilderConfiguration {
  guard config != nil else { return BuilderConfiguration() }
  return try object(config, ConfigHandle.self, named: "config").configuration
}

/// A caller's bytes.
func memory(_ bytes: UnsafeRawPointer?, _ byteCount: Int) throws(ApusError)
  -> UnsafeRawBufferPointer
{
  guard bytes != nil || byteCount == 0 else { throw missing("bytes") }
  return UnsafeRawBufferPointer(start: bytes, count: byteCount)
}

@c @implementation
public func apus_build_file(
  _ path: UnsafePointer<CChar>?, _ config: OpaquePointer?,
  _ engine: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    let path = try text(path, named: "path")
    guard let engine else { throw missing("engine") }
    let builder = Builder(try configuration(config))
    engine.pointee = handle(EngineHandle(try builder.build(contentsOf: path, table: CustomOperators.table)))
  }
}

@c @implementation
public func apus_build_bytes(
  _ bytes: UnsafeRawPointer?, _ byte_count: Int, _ directory: UnsafePointer<CChar>?,
  _ config: OpaquePointer?, _ engine: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    let model = try memory(bytes, byte_count)
    guard let engine else { throw missing("engine") }
    let folder = directory.map { String(cString: $0) }
    let builder = Builder(try configuration(config))
    engine.pointee = handle(EngineHandle(try builder.build(model, directory: folder, table: CustomOperators.table)))
  }
}

@c @implementation
public func apus_engine_load(
  _ path: UnsafePointer<CChar>?, _ config: OpaquePointer?,
  _ engine: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    let path = try text(path, named: "path")
    guard let engine else { throw missing("engine") }
    let threads = try configuration(config).threadCount
    let loaded = try Engine.load(
      path: path, threadCount: threads, registry: CustomOperators.registry)
    engine.pointee = handle(EngineHandle(loaded))
  }
}

@c @implementation
public func apus_engine_load_bytes(
  _ bytes: UnsafeRawPointer?, _ byte_count: Int, _ config: OpaquePointer?,
  _ engine: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    let source = try memory(bytes, byte_count)
    guard let engine else { throw missing("engine") }
    let copy = try AlignedMemory(byteCount: source.count)
    if let first = source.baseAddress { copy.base.copyMemory(from: first, byteCount: source.count) }
    let owned = UnsafeRawBufferPointer(start: copy.base, count: source.count)
    let threads = try configuration(config).threadCount
    let loaded = try Engine.load(
      owned, owner: copy, threadCount: threads, registry: CustomOperators.registry)
    engine.pointee = handle(EngineHandle(loaded))
  }
}

@c @implementation
public func apus_engine_save(_ engine: OpaquePointer?, _ path: UnsafePointer<CChar>?) -> apus_status
{
  status { () throws(ApusError) in
    let engine = try object(engine, EngineHandle.self, named: "engine").engine
    try engine.save(path: try text(path, named: "path"))
  }
}

@c @implementation
public func apus_engine_serialize(
  _ engine: OpaquePointer?, _ bytes: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    let engine = try object(engine, EngineHandle.self, named: "engine").engine
    guard let bytes else { throw missing("bytes") }
    bytes.pointee = handle(CText(try engine.serialized()))
  }
}

@c @implementation
public func apus_engine_input_count(_ engine: OpaquePointer?) -> Int {
  (try? object(engine, EngineHandle.self, named: "engine"))?.inputs.count ?? 0
}

@c @implementation
public func apus_engine_output_count(_ engine: OpaquePointer?) -> Int {
  (try? object(engine, EngineHandle.self, named: "engine"))?.outputs.count ?? 0
}

@c @implementation
public func apus_engine_input(
  _ engine: OpaquePointer?, _ index: Int, _ port: UnsafeMutablePointer<apus_port>?
) -> apus_status {
  status { () throws(ApusError) in
    try object(engine, EngineHandle.self, named: "engine").inputs.describe(index, into: port)
  }
}

@c @implementation
public func apus_engine_output(
  _ engine: OpaquePointer?, _ index: Int, _ port: UnsafeMutablePointer<apus_port>?
) -> apus_status {
  status { () throws(ApusError) in
    try object(engine, EngineHandle.self, named: "engine").outputs.describe(index, into: port)
  }
}

@c @implementation
public func apus_engine_inspect(
  _ engine: OpaquePointer?, _ json: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    let engine = try object(engine, EngineHandle.self, named: "engine").engine
    guard let json else { throw missing("json") }
    json.pointee = handle(CText(try engine.inspect().text()))
  }
}

@c @implementation
public func apus_engine_destroy(_ engine: OpaquePointer?) {
  release(engine, EngineHandle.self)
}

@c @implementation
public func apus_devices(_ json: UnsafeMutablePointer<OpaquePointer?>?) -> apus_status {
  status { () throws(ApusError) in
    guard let json else { throw missing("json") }
    json.pointee = handle(CText(Devices.json.text()))
  }
}

/// The version of the library.
private let versionText = CText(Apus.version)

@c @implementation
public func apus_version() -> UnsafePointer<CChar>? { versionText.pointer }

@c @implementation
public func apus_abi_version() -> Int32 { Int32(APUS_ABI_VERSION) }
