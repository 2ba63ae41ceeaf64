// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Pooling of regions at sampled places between elements (ONNX `RoiAlign`; He et al., 2017):
/// operands X `[N, C, H, W]`, regions `[count, 4]` as x1, y1, x2, y2, and the image of each region.
public struct RoiAlign: Operator {
  public static let name = "RoiAlign"

  /// What becomes of the samples of one cell. `max` takes the largest weighted neighbour, as ONNX
  /// does.
  public enum Mode: String, Sendable, Hashable, CaseIterable { case avg, max }

  /// Whether places are shifted by half an element.
  public enum Coordinates: String, Sendable, Hashable, CaseIterable {
    case halfPixel = "half_pixel"
    case outputHalfPixel = "output_half_pixel"
  }

  public var mode: Mode
  public var outputHeight: Int
  public var outputWidth: Int
  /// Samples a cell and axis; zero lets the region's size decide.
  public var samplingRatio: Int
  public var spatialScale: Double
  public var coordinates: Coordinates

  /// Creates the operator.
  public init(
    mode: Mode = .avg, outputHeight: Int = 1, outputWidth: Int = 1, samplingRatio: Int = 0,
    spatialScale: Double = 1, coordinates: Coordinates = .halfPixel
  ) {
    self.mode = mode
    self.outputHeight = outputHeight
    self.outputWidth = outputWidth
    self.samplingRatio = samplingRatio
    self.spatialScale = spatialScale
    self.coordinates = coordinates
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    mode = try attributes.choice("mode", Mode.avg)
    outputHeight = try attributes.int("output_height", 1)
    outputWidth = try attributes.int("output_width", 1)
    samplingRatio = try attributes.int("sampling_ratio", 0)
    spatialScale = try attributes.float("spatial_scale", 1)
    coordinates = try attributes.choice("coordinates", Coordinates.halfPixel)
  }

  public var attributes: Attributes {
    [
      "mode": .string(mode.rawValue), "output_height": .int(outputHeight),
      "output_width": .int(outputWidth), "sampling_ratio": .int(samplingRatio),
      "spatial_scale": .float(spatialScale), "coordinates": .string(coordinates.rawValue),
    ]
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    let regions = try inputs.tensor(1)
    let images = try inputs.tensor(2)
    guard x.dataType.isFloat, regions.dataType.isFloat, images.dataType.isInteger,
      x.rank ?? 4 == 4, regions.rank ?? 2 == 2, images.rank ?? 1 == 1,
      regions.dims?[1].value ?? 4 == 4
    else {
      throw ApusError(.typeMismatch, "regions \(regions) of images \(images) of the input \(x)")
    }
    if let count = regions.dims?[0].value, let other = images.dims?[0].value, count != other {
      throw ApusError(.typeMismatch, "\(count) regions with \(other) image numbers")
    }
    guard outputHeight > 0, outputWidth > 0, samplingRatio >= 0, samplingRatio < 1 << 16 else {
      throw ApusError(
        .invalidAttribute, "an output of \(outputHeight) x \(outputWidth), \(samplingRatio) samples"
      )
    }
    let count = regions.dims?[0] ?? images.dims?[0] ?? inputs.freshDim("regions")
    let channels = x.dims?[1] ?? inputs.freshDim("channels")
    return [typed(x.dataType, [count, channels, Dim(outputHeight), Dim(outputWidth)])]
  }

  /// The four neighbours of a sample and their weights.
  private struct Sample {
    var positions: (Int, Int, Int, Int)
    var weights: (Double, Double, Double, Double)
  }

  private func sample(_ y: Double, _ x: Double, _ height: Int, _ width: Int) -> Sample {
    guard y >= -1, y <= Double(height), x >= -1, x <= Double(width) else {
      return Sample(positions: (0, 0, 0, 0), weights: (0, 0, 0, 0))
    }
    func split(_ place: Double, _ size: Int) -> (low: Int, high: Int, part: Double) {
      let place = Swift.max(0, place)
      let low = Int(place)
      return low >= size - 1 ? (size - 1, size - 1, 0) : (low, low + 1, place - Double(low))
    }
    let (v, h) = (split(y, height), split(x, width))
    return Sample(
      positions: (
        v.low * width + h.low, v.low * width + h.high, v.high * width + h.low,
        v.high * width + h.high
      ),
      weights: (
        (1 - v.part) * (1 - h.part), (1 - v.part) * h.part, v.part * (1 - h.part), v.part * h.part
      ))
  }

  private func sampleCount(_ extent: Double, _ cells: Int) throws(ApusError) -> Int {
    if samplingRatio > 0 { return samplingRatio }
    let count = (extent / Double(cells)).rounded(.up)
    guard count < 4096 else { throw ApusError(.resourceLimit, "a region of size \(extent)") }
    return count > 0 ? Int(count) : 0
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    let inferred = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let regions = try inputs.required(1).doubles()
    let images = try inputs.required(2).ints()
    guard let shape = inferred[0].tensor?.shape else {
      throw ApusError(.typeMismatch, "the operands do not fit")
    }
    let values = x.doubles()
    let (channels, height, width) = (x.shape[1], x.shape[2], x.shape[3])
    var result = [Double](repeating: 0, count: try Tensor.checkedCount(shape))
    if result.isEmpty { return [.tensor(try Tensor(x.dataType, shape: shape))] }
    guard height > 0, width > 0 else {
      throw ApusError(.typeMismatch, "the input \(x.type) has no elements to sample")
    }
    let offset = coordinates == .halfPixel ? 0.5 : 0
    for (region, image) in images.enumerated() {
      guard image >= 0, image < x.shape[0] else {
        throw ApusError(.execution, "region \(region) is of image \(image) of \(x.shape[0])")
      }
      let corners = (0..<4).map { regions[region * 4 + $0] * spatialScale - offset }
      guard corners.allSatisfy(\.isFinite) else {
        throw ApusError(.execution, "region \(region) is not finite")
      }
      var (extentX, extentY) = (corners[2] - corners[0], corners[3] - corners[1])
      if coordinates == .outputHalfPixel {
        (extentX, extentY) = (Swift.max(extentX, 1), Swift.max(extentY, 1))
      }
      let rows = try sampleCount(extentY, outputHeight)
      let columns = try sampleCount(extentX, outputWidth)
      let (stepY, stepX) = (extentY / Double(outputHeight), extentX / Double(outputWidth))
      for cell in 0..<(outputHeight * outputWidth) {
        let (cellY, cellX) = cell.quotientAndRemainder(dividingBy: outputWidth)
        var samples: [Sample] = []
        for row in 0..<rows {
          let y = corners[1] + (Double(cellY) + (Double(row) + 0.5) / Double(rows)) * stepY
          for column in 0..<columns {
            let x = corners[0] + (Double(cellX) + (Double(column) + 0.5) / Double(columns)) * stepX
            samples.append(sample(y, x, height, width))
          }
        }
        for channel in 0..<channels {
          let base = (image * channels + channel) * height * width
          result[(region * channels + channel) * outputHeight * outputWidth + cell] =
            pooled(samples, values, base)
        }
      }
    }
    return [.tensor(try Tensor(result, x.dataType, shape: shape))]
  }

  private func pooled(_ samples: [Sample], _ values: [Double], _ base: Int) -> Double {
    var sum = 0.0
    var largest = -Double.infinity
    for sample in samples {
      let a = values[base + sample.positions.0] * sample.weights.0
      let b = values[base + sample.positions.1] * sample.weights.1
      let c = values[base + sample.positions.2] * sample.weights.2
      let d = values[base + sample.positions.3] * sample.weights.3
      sum += a + b + c + d
      largest = Swift.max(largest, a, b, c, d)
    }
    if mode == .max { return samples.isEmpty ? 0 : largest }
    return sum / Double(Swift.max(1, samples.count))
  }
}
