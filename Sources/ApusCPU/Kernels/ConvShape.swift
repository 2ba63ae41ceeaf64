// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// The sizes of a channels-last convolution or pooling window: input `[batch, height, width,
/// channels]`, weights `[kernelHeight, kernelWidth, inChannels / groups, outChannels]`.
package struct ConvShape: Hashable, Sendable {
  package var batch: Int
  package var inHeight: Int
  package var inWidth: Int
  package var inChannels: Int
  package var outHeight: Int
  package var outWidth: Int
  package var outChannels: Int
  package var kernelHeight: Int
  package var kernelWidth: Int
  package var strideHeight: Int
  package var strideWidth: Int
  package var dilationHeight: Int
  package var dilationWidth: Int
  /// Zero rows above and columns left of the input; below and right follow from the output's size.
  package var padTop: Int
  package var padLeft: Int
  package var groups: Int

  /// Collects the sizes.
  package init(
    batch: Int, inHeight: Int, inWidth: Int, inChannels: Int, outHeight: Int, outWidth: Int,
    outChannels: Int, kernelHeight: Int, kernelWidth: Int, strideHeight: Int = 1,
    strideWidth: Int = 1, dilationHeight: Int = 1, dilationWidth: Int = 1, padTop: Int = 0,
    padLeft: Int = 0, groups: Int = 1
  ) {
    self.batch = batch
    self.inHeight = inHeight
    self.inWidth = inWidth
    self.inChannels = inChannels
    self.outHeight = outHeight
    self.outWidth = outWidth
    self.outChannels = outChannels
    self.kernelHeight = kernelHeight
    self.kernelWidth = kernelWidth
    self.strideHeight = strideHeight
    self.strideWidth = strideWidth
    self.dilationHeight = dilationHeight
    self.dilationWidth = dilationWidth
    self.padTop = padTop
    self.padLeft = padLeft
    self.groups = groups
  }

  /// Rows of input that the windows touch, zeros above and below included.
  package var paddedHeight: Int {
    (outHeight - 1) * strideHeight + (kernelHeight - 1) * dilationHeight + 1
  }
  /// Columns of input that the windows touch, zeros left and right included.
  package var paddedWidth: Int {
    (outWidth - 1) * strideWidth + (kernelWidth - 1) * dilationWidth + 1
  }
  /// Whether a window reaches outside the input.
  package var needsPadding: Bool {
    padTop > 0 || padLeft > 0 || paddedHeight > inHeight || paddedWidth > inWidth
  }
  /// Whether all sizes are positive and the groups divide the channels.
  package var isValid: Bool {
    let sizes = [
      batch, inHeight, inWidth, inChannels, outHeight, outWidth, outChannels, kernelHeight,
      kernelWidth, strideHeight, strideWidth, dilationHeight, dilationWidth, groups,
    ]
    return sizes.allSatisfy { $0 > 0 } && padTop >= 0 && padLeft >= 0
      && inChannels % groups == 0 && outChannels % groups == 0
  }
}
