// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Blocks of an image added up where they lie (ONNX `Col2Im`): operands the blocks `[N, C * block size,
/// places]`, the image's and the blocks' spatial sizes.
public struct Col2Im: DataDependentShape {
  public static let name = "Col2Im"
  public var strides: [Int]
  public var dilations: [Int]
  public var pads: [Int]

  /// Creates the operator.
  public init(strides: [Int] = [], dilations: [Int] = [], pads: [Int] = []) {
    self.strides = strides
    self.dilations = dilations
    self.pads = pads
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    strides = try attributes.ints("strides", [])
    dilations = try attributes.ints("dilations", [])
    pads = try attributes.ints("pads", [])
  }

  public var attributes: Attributes {
    ["strides": .ints(strides), "dilations": .ints(dilations), "pads": .ints(pads)]
  }

  public func shapeDecidingInputs(count: Int) -> [Int] { [1, 2] }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    try inputs.requireInteger(1, "the image's size")
    try inputs.requireInteger(2, "the blocks' size")
    guard let dims = x.dims, let image = inputs.dims(1) else { return [typed(x.dataType, nil)] }
    guard dims.count == 3 else { throw ApusError(.typeMismatch, "blocks are \(x)") }
    var channels = inputs.freshDim("channels")
    if let block = inputs.ints(2)?.reduce(1, &*), block > 0, let all = dims[1].value {
      channels = Dim(all / block)
    }
    return [typed(x.dataType, [dims[0], channels] + image)]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let x = try inputs.required(0)
    let image = try inputs.required(1).ints()
    let block = try inputs.required(2).ints()
    guard x.rank == 3, x.dataType.isFloat || x.dataType.isInteger, image.count == block.count,
      !block.isEmpty, image.allSatisfy({ $0 >= 0 }), block.allSatisfy({ $0 > 0 })
    else { throw ApusError(.typeMismatch, "blocks \(x.type) of \(block) in an image of \(image)") }
    // The places of the blocks are those of a window over the image.
    let window = try Window(
      input: image, kernel: block, strides: strides, dilations: dilations, pads: pads,
      autoPad: .notset)
    let size = try Tensor.checkedCount(block)
    let places = try Tensor.checkedCount(window.output)
    guard size > 0, x.shape[1] % size == 0, x.shape[2] == places else {
      throw ApusError(.typeMismatch, "blocks \(x.type) do not fit \(places) places of \(size) elements")
    }
    let channels = x.shape[1] / size
    let pixels = try Tensor.checkedCount(image)
    let shape = [x.shape[0], channels] + image
    var result = [Double](repeating: 0, count: try Tensor.checkedCount(shape))
    let values = x.doubles()
    for row in 0..<(x.shape[0] * channels) {
      for element in 0..<size {
        for place in 0..<places {
          guard let pixel = pixel(window, image, element, place) else { continue }
          result[row * pixels + pixel] += values[(row * size + element) * places + place]
        }
      }
    }
    return [.tensor(try Tensor(result, x.dataType, shape: shape))]
  }

  /// The pixel that an element of the block at a place lies on; nil outside the image.
  private func pixel(_ window: Window, _ image: [Int], _ element: Int, _ place: Int) -> Int? {
    var (inner, outer, index, step) = (element, place, 0, 1)
    for axis in image.indices.reversed() {
      let at =
        outer % window.output[axis] * window.strides[axis] - window.begin[axis]
        + inner % window.kernel[axis] * window.dilations[axis]
      guard at >= 0, at < image[axis] else { return nil }
      inner /= window.kernel[axis]
      outer /= window.output[axis]
      index += at * step
      step *= image[axis]
    }
    return index
  }
}
