// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import Testing

import ApusCPU

/// A convolution given by its input and window; `pad` is top, left, bottom, right.
func convShape(
  _ batch: Int, _ size: (Int, Int), _ channels: (Int, Int), kernel: (Int, Int),
  stride: (Int, Int) = (1, 1), dilation: (Int, Int) = (1, 1),
  pad: (Int, Int, Int, Int) = (0, 0, 0, 0), groups: Int = 1
) -> ConvShape {
  let outHeight = (size.0 + pad.0 + pad.2 - (kernel.0 - 1) * dilation.0 - 1) / stride.0 + 1
  let outWidth = (size.1 + pad.1 + pad.3 - (kernel.1 - 1) * dilation.1 - 1) / stride.1 + 1
  return ConvShape(
    batch: batch, inHeight: size.0, inWidth: size.1, inChannels: channels.0, outHeight: outHeight,
    outWidth: outWidth, outChannels: channels.1, kernelHeight: kernel.0, kernelWidth: kernel.1,
    strideHeight: stride.0, strideWidth: stride.1, dilationHeight: dilation.0,
    dilationWidth: dilation.1, padTop: pad.0, padLeft: pad.1, groups: groups)
}

/// The convolution in double precision.
func convReference(
  _ s: ConvShape, _ input: GuardedBuffer, _ weights: GuardedBuffer
) -> [Double] {
  let inputs = s.inChannels / s.groups
  let outputs = s.outChannels / s.groups
  var result: [Double] = []
  for image in 0..<s.batch {
    for y in 0..<s.outHeight {
      for x in 0..<s.outWidth {
        var pixel = [Double](repeating: 0, count: s.outChannels)
        for ky in 0..<s.kernelHeight {
          let row = y * s.strideHeight + ky * s.dilationHeight - s.padTop
          if row < 0 || row >= s.inHeight { continue }
          for kx in 0..<s.kernelWidth {
            let column = x * s.strideWidth + kx * s.dilationWidth - s.padLeft
            if column < 0 || column >= s.inWidth { continue }
            let place = ((image * s.inHeight + row) * s.inWidth + column) * s.inChannels
            for i in 0..<inputs {
              let weight = ((ky * s.kernelWidth + kx) * inputs + i) * s.outChannels
              for o in 0..<s.outChannels {
                pixel[o] +=
                  Double(input[place + o / outputs * inputs + i]) * Double(weights[weight + o])
              }
            }
          }
        }
        result += pixel
      }
    }
  }
  return result
}

/// What the battery does not know of convolutions and pooling: NaN among the elements.
@Suite struct ConvTests {
  private let pool = ThreadPool(threadCount: 2)

  @Test(arguments: testedISAs) func poolingAtTheEdges(isa: ISA) throws {
    for channels in [1, 9, 16, 33] {
      let shapes = [
        convShape(1, (9, 9), (channels, channels), kernel: (3, 3), stride: (2, 2), pad: (1, 1, 1, 1)),
        convShape(2, (8, 7), (channels, channels), kernel: (2, 2), stride: (2, 2), pad: (0, 0, 0, 1)),
        convShape(1, (7, 7), (channels, channels), kernel: (7, 7)),
        convShape(1, (6, 20), (channels, channels), kernel: (3, 3), dilation: (2, 2), pad: (2, 2, 2, 2)),
      ]
      for s in shapes {
        let input = GuardedBuffer.random(s.batch * s.inHeight * s.inWidth * channels)
        input.pointer[input.count / 2] = .nan
        for mode in [WindowPlan.Mode.maximum, .average, .averageOver(9)] {
          let plan = try WindowPlan(mode, s, isa: isa)
          let output = GuardedBuffer(count: s.batch * s.outHeight * s.outWidth * channels)
          plan.run(input: input.raw, output: output.raw, pool: pool)
          var index = 0
          for image in 0..<s.batch {
            for y in 0..<s.outHeight {
              for x in 0..<s.outWidth {
                for c in 0..<channels {
                  var (largest, sum, count) = (-Float.infinity, Float(0), 0)
                  for ky in 0..<s.kernelHeight {
                    let row = y * s.strideHeight + ky * s.dilationHeight - s.padTop
                    for kx in 0..<s.kernelWidth where row >= 0 && row < s.inHeight {
                      let column = x * s.strideWidth + kx * s.dilationWidth - s.padLeft
                      if column < 0 || column >= s.inWidth { continue }
                      let value = input[
                        ((image * s.inHeight + row) * s.inWidth + column) * channels + c]
                      largest = largest.isNaN || value.isNaN ? .nan : max(largest, value)
                      sum += value
                      count += 1
                    }
                  }
                  let want: Float =
                    switch mode {
                    case .maximum: largest
                    case .average: sum / Float(count)
                    default: sum / 9
                    }
                  let got = output[index]
                  #expect(got.isNaN && want.isNaN || abs(got - want) < 1e-5)
                  index += 1
                }
              }
            }
          }
        }
      }
    }
  }
}
