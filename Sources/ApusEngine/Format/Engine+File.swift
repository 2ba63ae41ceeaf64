// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor

extension Engine {
  /// Writes the engine to a file that `load(path:)` maps; the file replaces an older one in one step.
  ///
  /// - Throws: `file-access`.
  public func save(path: String) throws(ApusError) {
    try write { (chunks) throws(ApusError) in try FileIO.write(chunks, to: path) }
  }

  /// The bytes that `save` writes.
  public func serialized() throws(ApusError) -> [UInt8] {
    var bytes: [UInt8] = []
    try write { (chunks) throws(ApusError) in
      bytes.reserveCapacity(chunks.reduce(0) { $0 + $1.count })
      for chunk in chunks { bytes += chunk }
    }
    return bytes
  }

  private func write(to sink: ([UnsafeRawBufferPointer]) throws(ApusError) -> Void)
    throws(ApusError)
  {
    var writer = TextWriter(sink: ConstantTable())
    let text = try writer.write(graph)
    let constants = writer.sink.tensors
    var table: [UInt8] = []
    var chunks: [UnsafeRawBufferPointer] = []
    let zeros = [UInt8](repeating: 0, count: 64)
    var offset = 0
    for tensor in constants {
      guard tensor.dataType != .string else {
        throw ApusError(.notYetSupported, "engines cannot hold large string constants")
      }
      for value in [UInt64(offset), UInt64(tensor.byteCount)] {
        withUnsafeBytes(of: value.littleEndian) { table += $0 }
      }
      offset += (tensor.byteCount + 63) & ~63
    }
    let metadata = metadataText
    let selections = library.selections.text
    let report = report.text
    let result: Result<Void, ApusError> = zeros.withUnsafeBytes { padding in
      for tensor in constants {
        chunks.append(tensor.bytes)
        let rest = -tensor.byteCount & 63
        chunks.append(UnsafeRawBufferPointer(rebasing: padding[0..<rest]))
      }
      return withBytes(of: [Array(metadata.utf8), Array(text.utf8), Array(selections.utf8), table,
        Array(report.utf8)]) { parts in
        do throws(ApusError) {
          try EngineFile.write(
            [
              (.metadata, [parts[0]]), (.graph, [parts[1]]), (.selections, [parts[2]]),
              (.constantTable, [parts[3]]), (.report, [parts[4]]), (.constants, chunks),
            ], to: sink)
          return .success(())
        } catch { return .failure(error) }
      }
    }
    withExtendedLifetime(constants) {}
    try result.get()
  }

  private func withBytes<Result>(
    of arrays: [[UInt8]], _ body: ([UnsafeRawBufferPointer]) -> Result
  ) -> Result {
    func next(_ index: Int, _ buffers: [UnsafeRawBufferPointer]) -> Result {
      guard index < arrays.count else { return body(buffers) }
      return arrays[index].withUnsafeBytes { next(index + 1, buffers + [$0]) }
    }
    return next(0, [])
  }

  private var metadataText: String {
    let traits = library.backend.traits
    return """
      kind=\(traits.kind)
      fingerprint=\(traits.fingerprint)
      isa=\(traits.isa)
      selection_device=\(library.selectionDevice)
      reference=\(isReference)
      splits_batch=\(splitsBatch)

      """
  }

  /// Loads an engine, mapping its file: constants are used where they lie, without a copy.
  ///
  /// - Parameters:
  ///   - path: The file.
  ///   - threadCount: CPU threads one inference may use; 0 for all cores.
  ///   - backend: A device that Apus does not know by name; nil for the one the engine names.
  /// - Throws: `file-access`, `malformed-file` when the file is damaged, `incompatible` when it was
  ///   built by another version or for another device.
  public static func load(
    path: String, threadCount: Int = 0, backend: (any Backend)? = nil,
    registry: OperatorRegistry = .standard
  ) throws(ApusError) -> Engine {
    let file = try MappedFile(path: path)
    do {
      return try load(
        file.bytes, owner: file, threadCount: threadCount, backend: backend, registry: registry)
    } catch {
      throw error.at(GraphLocation(file: path))
    }
  }

  /// Loads an engine from bytes that `owner` keeps alive.
  public static func load(
    _ bytes: UnsafeRawBufferPointer, owner: AnyObject, threadCount: Int = 0,
    backend chosenBackend: (any Backend)? = nil, registry: OperatorRegistry = .standard
  ) throws(ApusError) -> Engine {
    let sections = try EngineFile.sections(of: bytes)
    let metadata = parseMetadata(try text(.metadata, sections))
    let kind = metadata["kind"] ?? "cpu"
    let named = chosenBackend == nil ? try Devices.backend(for: kind, threadCount: threadCount) : nil
    guard let backend = chosenBackend ?? named else {
      throw ApusError(.internalError, "no backend for '\(kind)'")
    }
    try checkDevice(metadata, backend.traits)
    let constants = try constantReader(sections, owner: owner)
    var reader = TextReader(try text(.graph, sections), registry: registry, constant: constants)
    let graph = try reader.read()
    let selections = try TimingCache(parsing: try text(.selections, sections))
    let report = BuildReport(parsing: try text(.report, sections))
    let library = KernelLibrary(
      backend: backend, selections: selections, selectionDevice: metadata["selection_device"],
      workspaceLimit: report.workspaceLimit)
    return Engine(
      graph: graph, library: library, report: report,
      isReference: metadata["reference"] == "true",
      splitsBatch: metadata["splits_batch"] == "true")
  }

  private static func text(
    _ kind: EngineFile.Kind, _ sections: [EngineFile.Kind: UnsafeRawBufferPointer]
  ) throws(ApusError) -> String {
    guard let bytes = sections[kind] else {
      throw EngineFile.damaged("the section '\(kind)' is missing")
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  private static func parseMetadata(_ text: String) -> [String: String] {
    var values: [String: String] = [:]
    for line in text.split(separator: "\n") {
      guard let mark = line.firstIndex(of: "=") else { continue }
      values[String(line[..<mark])] = String(line[line.index(after: mark)...])
    }
    return values
  }

  private static func checkDevice(_ metadata: [String: String], _ traits: DeviceTraits)
    throws(ApusError)
  {
    guard metadata["fingerprint"] == traits.fingerprint, metadata["isa"] == traits.isa else {
      throw ApusError(
        .incompatible,
        "the engine was built for '\(metadata["fingerprint"] ?? "?")' (\(metadata["isa"] ?? "?")); "
          + "this device is '\(traits.fingerprint)' (\(traits.isa))",
        hint: "build the model again on this device")
    }
  }

  private static func constantReader(
    _ sections: [EngineFile.Kind: UnsafeRawBufferPointer], owner: AnyObject
  ) throws(ApusError) -> (Int, TensorType, PackedLayout?) throws(ApusError) -> Tensor {
    guard let table = sections[.constantTable], let bytes = sections[.constants],
      table.count % 16 == 0
    else { throw EngineFile.damaged("the constants are missing") }
    return { (index: Int, type: TensorType, packing: PackedLayout?) throws(ApusError) -> Tensor in
      guard index >= 0, index < table.count / 16 else {
        throw EngineFile.damaged("constant \(index) does not exist")
      }
      let offset = EngineFile.load(table, index * 16)
      let length = EngineFile.load(table, index * 16 + 8)
      guard offset <= UInt64(bytes.count), length <= UInt64(bytes.count) - offset else {
        throw EngineFile.damaged("constant \(index) lies outside the file")
      }
      let part = UnsafeRawBufferPointer(rebasing: bytes[Int(offset)..<(Int(offset) + Int(length))])
      guard let shape = try packing.map({ p throws(ApusError) in [try checkedElements(p)] }) ?? type.shape else {
        throw EngineFile.damaged("constant \(index) has an open shape")
      }
      let stored = packing?.storedType(type.dataType) ?? type.dataType
      return try Tensor(stored, shape: shape, storage: TensorStorage(viewing: part, owner: owner))
    }
  }

  private static func checkedElements(_ packing: PackedLayout) throws(ApusError) -> Int {
    // Sizes of transformed weights are below 2^31, so the scales behind the panels do not overflow.
    let panels = try Tensor.checkedCount([
      packing.batch, packing.panelCount, packing.storedRows, packing.width,
    ])
    let (count, overflow) = panels.addingReportingOverflow(packing.scaleElementCount)
    guard !overflow else { throw EngineFile.damaged("packed weights are too large") }
    return count
  }
}
