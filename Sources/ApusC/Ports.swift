// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import CApus

/// The inputs or outputs of an engine with stable addresses for C.
final class PortTable: @unchecked Sendable {
  private let ports: [Port]

  init(_ ports: [(name: String, type: ValueType)]) {
    self.ports = ports.map(Port.init)
  }

  /// The number of ports.
  var count: Int { ports.count }

  /// Fills the C description of one port.
  func describe(_ index: Int, into out: UnsafeMutablePointer<apus_port>?) throws(ApusError) {
    guard let out else { throw missing("port") }
    guard ports.indices.contains(index) else {
      throw ApusError(.invalidArgument, "port \(index) of \(ports.count)")
    }
    out.pointee = ports[index].description
  }
}

/// One port; immutable, so that its addresses stay valid.
private final class Port {
  private let name: CText
  private let type: CText
  private let kind: apus_value_kind
  private let tensor: TensorType?
  private let dims: CDims
  private let dimNames: [CText]
  private let dimNamePointers: UnsafeMutableBufferPointer<UnsafePointer<CChar>?>

  init(name: String, type: ValueType) {
    self.name = CText(name)
    self.type = CText(type.description)
    kind = ApusC.kind(of: type)
    tensor = type.innermostTensor
    let sizes = tensor?.dims ?? []
    dims = CDims(sizes.map { Int64($0.value ?? -1) })
    dimNames = sizes.map { CText($0.value == nil ? $0.description : "") }
    dimNamePointers = .allocate(capacity: max(1, sizes.count))
    _ = dimNamePointers.initialize(from: dimNames.map(\.pointer))
  }

  var description: apus_port {
    apus_port(
      name: name.pointer, type: type.pointer, kind: kind,
      dtype: apus_dtype(tensor?.dataType.rawValue ?? 0),
      rank: tensor?.rank.map(Int32.init) ?? -1, dims: dims.pointer,
      dim_names: UnsafePointer(dimNamePointers.baseAddress))
  }

  deinit { dimNamePointers.deallocate() }
}

extension ValueType {
  /// The type of the tensors inside containers.
  fileprivate var innermostTensor: TensorType? {
    switch self {
    case .tensor(let type): type
    case .sequence(let element), .optional(let element): element.innermostTensor
    }
  }
}
