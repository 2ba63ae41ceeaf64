// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor

extension ONNXOperatorTable {
  /// Resampling and detection.
  mutating func addVision() {
    on("Resize", since: 10) { (node) throws(ApusError) in
      // Version 10 had scales only, and read positions as version 11 calls asymmetric.
      let op = Resize(
        mode: try node.choice("mode", Resize.Mode.nearest), coordinates: .asymmetric, nearest: .floor)
      return try node.result(op, [try node.operand(0), nil, try node.operand(1)])
    }
    on("Resize", since: 11) { (node) throws(ApusError) in
      try node.result(try node.resize(), (0..<4).map { node.given($0) })
    }
    on("Upsample", since: 7) { (node) throws(ApusError) in
      let scales = try node.attributes.floats("scales")
      let operand = node.add(try Tensor(scales, .float32, shape: [scales.count]))
      return try node.upsample(operand)
    }
    on("Upsample", since: 9) { (node) throws(ApusError) in
      try node.upsample(try node.operand(1))
    }
    op("GridSample", since: 16) { (node) throws(ApusError) in
      let name = try node.attributes.string("mode", "linear")
      let names = ["bilinear": "linear", "bicubic": "cubic"]
      guard let mode = GridSample.Mode(rawValue: names[name] ?? name) else {
        throw ApusError(.invalidAttribute, "'mode' is '\(name)', not linear, nearest or cubic")
      }
      return GridSample(
        mode: mode, padding: try node.choice("padding_mode", GridSample.Padding.zeros),
        alignCorners: try node.attributes.flag("align_corners", false))
    }
    op("RoiAlign", since: 10) { (node) throws(ApusError) in
      try node.roiAlign(.outputHalfPixel)
    }
    op("RoiAlign", since: 16) { (node) throws(ApusError) in
      try node.roiAlign(
        try node.choice("coordinate_transformation_mode", RoiAlign.Coordinates.halfPixel))
    }
    op("ImageDecoder", since: 20) { (node) throws(ApusError) in
      ImageDecoder(format: try node.choice("pixel_format", ImageDecoder.PixelFormat.rgb))
    }
    op("AffineGrid", since: 20) { (node) throws(ApusError) in
      AffineGrid(alignCorners: try node.attributes.flag("align_corners", false))
    }
    op("NonMaxSuppression", since: 10) { (node) throws(ApusError) in
      NonMaxSuppression(centerPointBox: try node.attributes.flag("center_point_box", false))
    }
  }
}

extension NodeImport {
  /// An attribute that is one of an enumeration's words.
  func choice<Choice: RawRepresentable & CaseIterable>(_ name: String, _ fallback: Choice)
    throws(ApusError) -> Choice where Choice.RawValue == String
  {
    let word = try attributes.string(name, fallback.rawValue)
    guard let choice = Choice(rawValue: word) else {
      let words = Choice.allCases.map(\.rawValue).joined(separator: ", ")
      throw ApusError(.invalidAttribute, "'\(name)' is '\(word)', not one of \(words)")
    }
    return choice
  }

  /// An optional operand; one without elements, as old exporters write it, counts as omitted.
  fileprivate func given(_ index: Int) -> ValueID? {
    guard let value = optional(index) else { return nil }
    if case .tensor(let type) = type(of: value), type.shape == [0] { return nil }
    return value
  }

  fileprivate func resize() throws(ApusError) -> Resize {
    Resize(
      mode: try choice("mode", Resize.Mode.nearest),
      coordinates: try choice("coordinate_transformation_mode", Resize.Coordinates.halfPixel),
      nearest: try choice("nearest_mode", Resize.Nearest.roundPreferFloor),
      cubicCoefficient: try attributes.float("cubic_coeff_a", -0.75),
      excludeOutside: try attributes.flag("exclude_outside", false),
      extrapolationValue: try attributes.float("extrapolation_value", 0),
      antialias: try attributes.flag("antialias", false), axes: try attributes.optionalInts("axes"),
      keepAspectRatio: try choice("keep_aspect_ratio_policy", Resize.AspectRatio.stretch))
  }

  fileprivate func upsample(_ scales: ValueID) throws(ApusError) -> [ValueID] {
    let op = Resize(
      mode: try choice("mode", Resize.Mode.nearest), coordinates: .asymmetric, nearest: .floor)
    return try result(op, [try operand(0), nil, scales])
  }

  fileprivate func roiAlign(_ coordinates: RoiAlign.Coordinates) throws(ApusError) -> RoiAlign {
    RoiAlign(
      mode: try choice("mode", RoiAlign.Mode.avg),
      outputHeight: try attributes.int("output_height", 1),
      outputWidth: try attributes.int("output_width", 1),
      samplingRatio: try attributes.int("sampling_ratio", 0),
      spatialScale: try attributes.float("spatial_scale", 1), coordinates: coordinates)
  }
}
