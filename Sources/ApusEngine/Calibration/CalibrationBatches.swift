// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Reads calibration data and cuts it into batches that a network takes.
struct CalibrationBatches {
  /// The network's inputs.
  let inputs: [Engine.Binding]
  /// The batch where the network leaves it open.
  let openBatch: Int

  /// Cuts what one file holds.
  ///
  /// An array of the input's rank is a row of samples along its first axis; one of a rank more is a row
  /// of batches.
  ///
  /// - Throws: `invalid-argument` naming the input that is missing or does not fit.
  func batches(of arrays: [NumPy.NamedTensor]) throws(ApusError) -> [[String: Tensor]] {
    var parts: [[String: Tensor]] = []
    for (index, input) in inputs.enumerated() {
      let array = try array(for: input, in: arrays)
      let pieces = try pieces(of: array, for: input)
      if index == 0 { parts = Array(repeating: [:], count: pieces.count) }
      guard pieces.count == parts.count else {
        throw ApusError(
          .invalidArgument,
          "the calibration data has \(pieces.count) batches for input '\(input.name)' but \(parts.count) for '\(inputs[0].name)'")
      }
      for (part, piece) in pieces.enumerated() { parts[part][input.name] = piece }
    }
    return parts
  }

  private func array(for input: Engine.Binding, in arrays: [NumPy.NamedTensor]) throws(ApusError)
    -> Tensor
  {
    if let named = arrays.first(where: { $0.name == input.name }) { return named.tensor }
    // One array for the one input needs no name.
    if inputs.count == 1, arrays.count == 1 { return arrays[0].tensor }
    let names = arrays.map { "'\($0.name)'" }.joined(separator: ", ")
    throw ApusError(
      .invalidArgument, "the calibration data has no array for input '\(input.name)'",
      hint: "the arrays are \(names); name them like the network's inputs")
  }

  private func pieces(of array: Tensor, for input: Engine.Binding) throws(ApusError) -> [Tensor] {
    guard let type = input.type.tensor, let dims = type.dims else { return [array] }
    guard array.dataType == type.dataType else {
      throw ApusError(
        .invalidArgument,
        "the calibration data for input '\(input.name)' is \(array.dataType), the network wants \(type)",
        hint: "convert the data to \(type.dataType)")
    }
    if array.rank == dims.count + 1 {
      return try slices(of: array, length: 1) { Array($0.dropFirst()) }
    }
    guard array.rank == dims.count, fits(array.shape, dims) else {
      throw ApusError(
        .invalidArgument,
        "the calibration data for input '\(input.name)' has shape \(array.shape), the network wants \(type)")
    }
    guard let first = dims.first, array.count > 0 else { return [array] }
    let length = first.value ?? min(openBatch, array.shape[0])
    guard length > 0 else {
      throw ApusError(
        .invalidArgument, "the network's input '\(input.name)' has a batch of \(length): \(type)")
    }
    if array.shape[0] % length != 0, first.value != nil {
      Log.warning(
        "\(array.shape[0] % length) samples of input '\(input.name)' do not fill a batch of \(length) and are left out")
    }
    return try slices(of: array, length: length, keepsRest: first.value == nil) { $0 }
  }

  /// Whether all sizes but the first are the network's.
  private func fits(_ shape: [Int], _ dims: [Dim]) -> Bool {
    zip(shape, dims).dropFirst().allSatisfy { $1.value == nil || $1.value == $0 }
  }

  /// Parts along the first axis, which share the array's memory.
  private func slices(
    of array: Tensor, length: Int, keepsRest: Bool = false, shape: ([Int]) -> [Int]
  ) throws(ApusError) -> [Tensor] {
    let count = array.shape[0]
    guard count > 0, length > 0 else { return [array] }
    let row = array.byteCount / count
    var result: [Tensor] = []
    for start in stride(from: 0, to: count, by: length) {
      let size = min(length, count - start)
      if size < length && !keepsRest { break }
      let part = UnsafeRawBufferPointer(rebasing: array.bytes[start * row..<(start + size) * row])
      let view = TensorStorage(viewing: part, owner: Keeper(array))
      result.append(
        try Tensor(array.dataType, shape: shape([size] + array.shape.dropFirst()), storage: view))
    }
    return result
  }

  /// Keeps the memory of a cut array.
  private final class Keeper {
    let array: Tensor
    init(_ array: Tensor) { self.array = array }
  }
}
