// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusOps
import ApusTensor
import Testing

@Suite struct ResamplingTests {
  @Test func resizes() throws {
    let x = try f([1, 2, 3, 4], [1, 1, 2, 2])
    let twice = try f([1, 1, 2, 2], [4])
    let nearest = try run(Resize(), [x, nil, twice])[0]
    #expect(nearest.floats() == [1, 1, 2, 2, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3, 4, 4])
    let line = try f([0, 4], [2])
    let sized = try run(Resize(mode: .linear), [line, nil, nil, i([4], [1])])[0]
    #expect(sized.floats() == [0, 1, 3, 4])
    let aligned = Resize(mode: .linear, coordinates: .alignCorners)
    #expect(try run(aligned, [line, nil, nil, i([5], [1])])[0].floats() == [0, 1, 2, 3, 4])
    let asymmetric = Resize(mode: .nearest, coordinates: .asymmetric, nearest: .floor)
    #expect(try run(asymmetric, [line, nil, f([2], [1])])[0].floats() == [0, 0, 4, 4])
    let some = try run(Resize(axes: [1]), [f([1, 2], [1, 2]), nil, f([2], [1])])[0]
    #expect(some.floats() == [1, 1, 2, 2])
    let smooth = Resize(mode: .linear, antialias: true)
    #expect(try run(smooth, [f([0, 0, 8, 8], [4]), nil, f([0.5], [1])])[0].floats() == [1, 7])
    let fitted = Resize(keepAspectRatio: .notLarger)
    #expect(try run(fitted, [x, nil, nil, i([1, 1, 4, 6], [4])])[0].shape == [1, 1, 2, 2])
    let crop = Resize(mode: .linear, coordinates: .tfCropAndResize, extrapolationValue: 9)
    #expect(try run(crop, [line, f([0, 2], [2]), nil, i([3], [1])])[0].floats() == [0, 4, 9])
    #expect(
      try run(Resize(), [i([5, 6], [2], .uint8), nil, f([2], [1])])[0].integers() == [5, 5, 6, 6])
    #expect(try run(Resize(), [line, nil, f([0.1], [1])])[0].shape == [0])
  }

  @Test func refusesResizing() throws {
    let x = try f([1, 2], [2])
    #expect(refuses(Resize(), [x]))
    #expect(refuses(Resize(), [x, nil, try f([2], [1]), try i([4], [1])]))
    #expect(refuses(Resize(), [x, nil, try f([-2], [1])]))
    #expect(refuses(Resize(), [x, nil, try f([.nan], [1])]))
    #expect(refuses(Resize(), [x, nil, try f([3e38], [1])]))
    #expect(refuses(Resize(), [x, nil, nil, try i([.max], [1])]))
    #expect(refuses(Resize(), [x, nil, nil, try i([1, 2], [2])]))
    #expect(refuses(Resize(axes: [3]), [x, nil, try f([2], [1])]))
    #expect(refuses(Resize(), [try f([], [0]), nil, nil, try i([2], [1])]))
    #expect(refuses(Resize(coordinates: .tfCropAndResize), [x, nil, try f([2], [1])]))
  }

  @Test func samplesGrids() throws {
    let x = try f([1, 2, 3, 4], [1, 1, 2, 2])
    let centre = try f([0, 0], [1, 1, 1, 2])
    #expect(try run(GridSample(), [x, centre])[0].floats() == [2.5])
    let corner = try f([1, 1], [1, 1, 1, 2])
    #expect(try run(GridSample(), [x, corner])[0].floats() == [1])
    #expect(try run(GridSample(alignCorners: true), [x, corner])[0].floats() == [4])
    #expect(try run(GridSample(padding: .border), [x, corner])[0].floats() == [4])
    let outside = try f([2, 0.5], [1, 1, 1, 2])
    #expect(try run(GridSample(mode: .nearest), [x, outside])[0].floats() == [0])
    #expect(
      try run(GridSample(mode: .nearest, padding: .reflection), [x, outside])[0].floats() == [4])
    let odd = try f([.nan, .infinity], [1, 1, 1, 2])
    for padding in [GridSample.Padding.zeros, .border, .reflection] {
      #expect(try run(GridSample(mode: .cubic, padding: padding), [x, odd])[0].count == 1)
    }
    #expect(refuses(GridSample(), [x, try f([0, 0, 0], [1, 1, 1, 3])]))
    #expect(refuses(GridSample(), [try f([], [1, 1, 0, 2]), centre]))
  }

  @Test func alignsRegions() throws {
    let x = try f([1, 2, 3, 4], [1, 1, 2, 2])
    let whole = try f([0, 0, 2, 2], [1, 4])
    let op = RoiAlign(outputHeight: 2, outputWidth: 2, samplingRatio: 1)
    #expect(try run(op, [x, whole, i([0], [1])])[0].floats() == [1, 2, 3, 4])
    let one = RoiAlign(samplingRatio: 2)
    #expect(try run(one, [x, whole, i([0], [1])])[0].shape == [1, 1, 1, 1])
    #expect(refuses(op, [x, whole, try i([1], [1])]))
    #expect(refuses(op, [x, whole, try i([0, 0], [2])]))
    #expect(refuses(RoiAlign(outputHeight: 0), [x, whole, try i([0], [1])]))
    #expect(refuses(op, [x, try f([.nan, 0, 1, 1], [1, 4]), try i([0], [1])]))
    #expect(refuses(RoiAlign(), [x, try f([0, 0, 1e30, 1e30], [1, 4]), try i([0], [1])]))
  }

  @Test func suppressesBoxes() throws {
    let boxes = try f([0, 0, 1, 1, 0, 0.1, 1, 1.1, 0, 10, 1, 11], [1, 3, 4])
    let scores = try f([0.8, 0.9, 0.5], [1, 1, 3])
    let two = try i([2], [])
    let chosen = try run(NonMaxSuppression(), [boxes, scores, two, f([0.5], [])])[0]
    #expect(chosen.shape == [2, 3] && chosen.integers() == [0, 0, 1, 0, 0, 2])
    let strict = try run(NonMaxSuppression(), [boxes, scores, two, f([0.5], []), f([0.6], [])])[0]
    #expect(strict.integers() == [0, 0, 1])
    #expect(try run(NonMaxSuppression(), [boxes, scores])[0].shape == [0, 3])
    #expect(refuses(NonMaxSuppression(), [boxes, try f([1, 1], [1, 1, 2])]))
    #expect(refuses(NonMaxSuppression(), [boxes, try f([1, 1, 1], [3])]))
  }

  @Test func drawsNumbers() throws {
    let a = try run(RandomNormal(shape: [1000], mean: 3, scale: 2, seed: 1), [])[0].doubles()
    #expect(try run(RandomNormal(shape: [1000], mean: 3, scale: 2, seed: 1), [])[0].doubles() == a)
    #expect(try run(RandomNormal(shape: [1000], mean: 3, scale: 2, seed: 2), [])[0].doubles() != a)
    let mean = a.reduce(0, +) / 1000
    #expect(abs(mean - 3) < 0.3 && a.allSatisfy(\.isFinite))
    let uniform = try run(RandomUniform(shape: [100], low: 2, high: 4, dataType: .float64), [])[0]
    #expect(uniform.doubles().allSatisfy { $0 >= 2 && $0 < 4 })
    let x = try f([0, 1], [2])
    #expect(try run(RandomNormalLike(dataType: .float16), [x])[0].dataType == .float16)
    #expect(try run(RandomUniformLike(), [x])[0].shape == [2])
    #expect(try run(Bernoulli(dataType: .bool), [x])[0].integers() == [0, 1])
    let classes = try f([-100, 0, -100], [1, 3])
    #expect(try run(Multinomial(sampleSize: 3, seed: 1), [classes])[0].integers() == [1, 1, 1])
    #expect(refuses(Multinomial(), [try f([], [1, 0])]))
    #expect(refuses(RandomNormal(shape: [-1]), []))
    #expect(refuses(RandomUniform(shape: [1], dataType: .int8), []))
    #expect(refuses(RandomNormal(shape: [.max, 2]), []))
  }
}
