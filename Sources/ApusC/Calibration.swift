// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import CApus

/// A calibration with the inputs of its next batch.
final class CalibrationHandle {
  private let calibration: Calibration
  private var inputs: [String: Tensor] = [:]

  init(_ network: Graph, _ configuration: BuilderConfiguration) throws(ApusError) {
    calibration = try Calibration(network, configuration)
  }

  func set(_ name: String, _ tensor: Tensor) { inputs[name] = tensor }

  func add() throws(ApusError) {
    defer { inputs = [:] }
    try calibration.add(inputs)
  }

  func finish() throws(ApusError) -> String { try calibration.finish().text }
}

@c @implementation
public func apus_calibration_create(
  _ path: UnsafePointer<CChar>?, _ config: OpaquePointer?,
  _ calibration: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    let path = try text(path, named: "path")
    guard let calibration else { throw missing("calibration") }
    let network = try Model.load(path: path, table: CustomOperators.table)
    calibration.pointee = handle(try CalibrationHandle(network, try configuration(config)))
  }
}

@c @implementation
public func apus_calibration_create_bytes(
  _ bytes: UnsafeRawPointer?, _ byte_count: Int, _ directory: UnsafePointer<CChar>?,
  _ config: OpaquePointer?, _ calibration: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    let model = try memory(bytes, byte_count)
    guard let calibration else { throw missing("calibration") }
    let folder = directory.map { String(cString: $0) }
    let network = try Model.load(model, directory: folder, table: CustomOperators.table)
    calibration.pointee = handle(try CalibrationHandle(network, try configuration(config)))
  }
}

@c @implementation
public func apus_calibration_set_input(
  _ calibration: OpaquePointer?, _ name: UnsafePointer<CChar>?,
  _ tensor: UnsafePointer<apus_tensor>?
) -> apus_status {
  status { () throws(ApusError) in
    let calibration = try object(calibration, CalibrationHandle.self, named: "calibration")
    calibration.set(try text(name, named: "name"), try borrowedTensor(tensor, owner: nil))
  }
}

@c @implementation
public func apus_calibration_add(_ calibration: OpaquePointer?) -> apus_status {
  status { () throws(ApusError) in
    try object(calibration, CalibrationHandle.self, named: "calibration").add()
  }
}

@c @implementation
public func apus_calibration_finish(
  _ calibration: OpaquePointer?, _ table: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    let calibration = try object(calibration, CalibrationHandle.self, named: "calibration")
    guard let table else { throw missing("table") }
    table.pointee = handle(CText(try calibration.finish()))
  }
}

@c @implementation
public func apus_calibration_destroy(_ calibration: OpaquePointer?) {
  release(calibration, CalibrationHandle.self)
}

@c @implementation
public func apus_entropy_threshold(
  _ bins: UnsafePointer<UInt64>?, _ bin_count: Int, _ bin_width: Double,
  _ threshold: UnsafeMutablePointer<Double>?
) -> apus_status {
  status { () throws(ApusError) in
    guard let bins, bin_count >= 0 else { throw missing("bins") }
    guard let threshold else { throw missing("threshold") }
    let counts = Array(UnsafeBufferPointer(start: bins, count: bin_count))
    threshold.pointee = EntropyThreshold.find(counts, binWidth: bin_width)
  }
}

@c @implementation
public func apus_blame(
  _ model: UnsafePointer<CChar>?, _ engine: OpaquePointer?, _ config: OpaquePointer?,
  _ inputs: UnsafePointer<CChar>?, _ wanted_decibels: Double,
  _ json: UnsafeMutablePointer<OpaquePointer?>?
) -> apus_status {
  status { () throws(ApusError) in
    let network = try Model.load(
      path: try text(model, named: "model"), table: CustomOperators.table)
    let configuration = try configuration(config)
    let built = try engine.map { pointer throws(ApusError) in
      try object(pointer, EngineHandle.self, named: "engine").engine
    }
    let source = try CalibrationSource(try text(inputs, named: "inputs"))
    guard let json else { throw missing("json") }
    let blame = try Blame(
      of: network, configuration, engine: built,
      batches: try source.batches(for: network, configuration),
      wantedError: wanted_decibels > 0 ? SignalToNoise.share(decibels: wanted_decibels) : nil)
    json.pointee = handle(CText(blame.json.text()))
  }
}
