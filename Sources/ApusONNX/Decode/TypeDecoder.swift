// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusProto
import ApusTensor

/// Turns serialised types into types.
enum TypeDecoder {
  /// The element type with an ONNX number.
  static func dataType(_ code: Int32) throws(ApusError) -> DataType {
    // The numbers of `DataType` are ONNX's own.
    guard let raw = UInt8(exactly: code), let type = DataType(rawValue: raw) else {
      throw ApusError(
        .malformedFile, "\(code) is not the number of an element type",
        hint: "the model is damaged or newer than this version of Apus")
    }
    return type
  }

  /// The type; sizes without a name get one from `name`.
  static func type(_ proto: ONNXTypeProto, name: String) throws(ApusError) -> ValueType {
    switch proto.value {
    case .tensorType(let tensor):
      let type = try dataType(tensor.elemType)
      guard tensor.hasShape else { return .tensor(TensorType(type, nil)) }
      var dims: [Dim] = []
      for (index, dim) in tensor.shape.dim.enumerated() {
        dims.append(try self.dim(dim, "\(name).\(index)"))
      }
      return .tensor(TensorType(type, dims))
    case .sequenceType(let sequence):
      return .sequence(try type(sequence.elemType, name: name))
    case .optionalType(let optional):
      return .optional(try type(optional.elemType, name: name))
    case .mapType: throw unsupported(name, "a map")
    case .sparseTensorType: throw unsupported(name, "a sparse tensor")
    case nil:
      throw ApusError(
        .malformedFile, "'\(name)' has no type",
        hint: "run onnx.shape_inference.infer_shapes on the model")
    }
  }

  private static func unsupported(_ name: String, _ what: String) -> ApusError {
    ApusError(.notYetSupported, "'\(name)' is \(what), which Apus cannot compute with")
  }

  private static func dim(_ proto: ONNXTensorShapeProto.Dimension, _ fallback: String)
    throws(ApusError) -> Dim
  {
    switch proto.value {
    case .dimValue(let value) where value >= 0 && value <= 1 << 40: return Dim(Int(value))
    case .dimValue(let value) where value > 0:
      throw ApusError(.resourceLimit, "'\(fallback)' is a dimension of \(value)")
    case .dimParam(let name) where !name.isEmpty: return .symbol(name)
    default: return .symbol(fallback)
    }
  }
}
