// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCalibration
import ApusGraph
import ApusOps
import ApusTensor

/// Takes rows of numbers that a product's weights multiply out of the product's left side, some of each
/// sample, and sums up their moments.
package struct PatchSampler {
  /// The product, and its left side.
  package let node: String
  let operand: String
  package private(set) var sums: MomentSums
  private let conv: Conv?
  private let kernel: [Int]
  /// Samples of which rows were taken.
  private var sampleCount = 0

  /// Rows of a sample, spread over its places.
  private static let rowsPerSample = 32
  /// Enough rows: later samples are passed over.
  private static let rowLimit = 2048

  /// Nil for products whose windows are too large.
  package init?(_ node: Node, operand: String, weights: Tensor) {
    let conv = node.op as? Conv
    let kernel = conv == nil ? [] : Array(weights.shape.dropFirst(2))
    guard
      let blocks = MomentBlocks(
        groups: conv?.group ?? 1, channels: weights.shape[conv == nil ? 0 : 1],
        window: kernel.reduce(1, *))
    else { return nil }
    self.node = node.name
    self.operand = operand
    self.conv = conv
    self.kernel = kernel
    sums = MomentSums(blocks)
  }

  /// The state as text.
  var text: String { "\(sampleCount) \(sums.text)" }

  /// Takes over the state of an interrupted calibration; false when it is damaged or of other sizes.
  mutating func restore(_ text: String) -> Bool {
    let fields = text.split(separator: " ", maxSplits: 1)
    guard fields.count == 2, let samples = Int(fields[0]), (0...1 << 32).contains(samples),
      let sums = MomentSums(parsing: String(fields[1])), sums.blocks == self.sums.blocks
    else { return false }
    self.sums = sums
    sampleCount = samples
    return true
  }

  /// Adds rows of a batch, whose samples lie along the first axis.
  package mutating func add(_ tensor: Tensor) {
    guard sums.count < Self.rowLimit, tensor.dataType == .float32, tensor.rank > 0, tensor.count > 0 else {
      return
    }
    tensor.withElements(of: Float.self) { values in
      guard let base = values.baseAddress else { return }
      if let conv { addWindows(base, tensor.shape, conv) } else { addRows(base, tensor.shape) }
    }
  }

  /// Rows of a matrix as they are.
  private mutating func addRows(_ values: UnsafePointer<Float>, _ shape: [Int]) {
    let size = sums.blocks.columnCount
    guard shape.last == size else { return }
    let rows = shape[1..<max(1, shape.count - 1)].reduce(1, *)
    for sample in 0..<(shape.count > 1 ? shape[0] : 1) {
      for row in places(rows) { sums.add(values + (sample * rows + row) * size) }
    }
  }

  /// Windows of `[N, C, spatial...]`, as weights lie: channel by channel, zeros beyond the edges.
  private mutating func addWindows(_ values: UnsafePointer<Float>, _ shape: [Int], _ conv: Conv) {
    let spatial = Array(shape.dropFirst(2))
    let channels = sums.blocks.groups * sums.blocks.channels
    guard shape.count == kernel.count + 2, shape[1] == channels,
      let window = try? conv.window(input: spatial, kernel: kernel)
    else { return }
    let plane = spatial.reduce(1, *)
    let outputs = window.output.reduce(1, *)
    let size = kernel.reduce(1, *)
    var row = [Float](repeating: 0, count: channels * size)
    for sample in 0..<shape[0] {
      for place in places(outputs) {
        let offsets = Self.offsets(of: place, window, spatial)
        for channel in 0..<channels {
          let source = values + (sample * channels + channel) * plane
          for (index, offset) in offsets.enumerated() {
            row[channel * size + index] = offset < 0 ? 0 : source[offset]
          }
        }
        row.withUnsafeBufferPointer { if let base = $0.baseAddress { sums.add(base) } }
      }
    }
  }

  /// Where the elements of a window lie in a plane; -1 for those outside.
  private static func offsets(of place: Int, _ window: Window, _ spatial: [Int]) -> [Int] {
    var offsets = [0]
    var rest = place
    var corner = [Int](repeating: 0, count: spatial.count)
    for axis in spatial.indices.reversed() {
      corner[axis] = rest % window.output[axis] * window.strides[axis] - window.begin[axis]
      rest /= window.output[axis]
    }
    for axis in spatial.indices {
      offsets = offsets.flatMap { offset in
        (0..<window.kernel[axis]).map { step -> Int in
          let position = corner[axis] + step * window.dilations[axis]
          guard offset >= 0, position >= 0, position < spatial[axis] else { return -1 }
          return offset * spatial[axis] + position
        }
      }
    }
    return offsets
  }

  /// The places of the next sample that are looked at: spread evenly, elsewhere in each sample (by the
  /// golden ratio, which leaves no gaps), the same for the same data.
  private mutating func places(_ count: Int) -> [Int] {
    defer { sampleCount += 1 }
    guard sums.count < Self.rowLimit, count > 0 else { return [] }
    guard count > Self.rowsPerSample else { return Array(0..<count) }
    return (0..<Self.rowsPerSample).map { index in
      let position = Double(sampleCount * Self.rowsPerSample + index) * 0.618_033_988_749_894_9
      return min(count - 1, Int((position - position.rounded(.down)) * Double(count)))
    }
  }
}
