// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// The type of a tensor in a graph: element type and, where the rank is known, dimensions.
public struct TensorType: Hashable, Sendable, CustomStringConvertible {
  /// The element type.
  public var dataType: DataType
  /// The dimensions; nil when even the rank is known only at run time.
  public var dims: [Dim]?

  /// Creates a type.
  public init(_ dataType: DataType, _ dims: [Dim]?) {
    self.dataType = dataType
    self.dims = dims
  }

  /// Creates a type of known shape.
  public init(_ dataType: DataType, shape: [Int]) {
    self.init(dataType, shape.map { Dim($0) })
  }

  /// The number of dimensions, when known.
  public var rank: Int? { dims?.count }

  /// The sizes, when all are known.
  public var shape: [Int]? {
    guard let dims else { return nil }
    var sizes: [Int] = []
    sizes.reserveCapacity(dims.count)
    for dim in dims {
      guard let size = dim.value else { return nil }
      sizes.append(size)
    }
    return sizes
  }

  public var description: String {
    guard let dims else { return "\(dataType)[*]" }
    return "\(dataType)[\(dims.map(\.description).joined(separator: ", "))]"
  }
}

/// The type of a graph value: a tensor, or a container of values.
public indirect enum ValueType: Hashable, Sendable, CustomStringConvertible {
  /// A tensor.
  case tensor(TensorType)
  /// A list of values of one type.
  case sequence(ValueType)
  /// A value that may be absent.
  case optional(ValueType)

  /// The tensor type, when this is a tensor.
  public var tensor: TensorType? {
    if case .tensor(let type) = self { return type }
    return nil
  }

  public var description: String {
    switch self {
    case .tensor(let type): type.description
    case .sequence(let element): "seq<\(element)>"
    case .optional(let element): "opt<\(element)>"
    }
  }
}
