// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// How the numbers that a row of a product's weights multiplies (the operand's channels, each with the places
/// of the window) are divided into blocks whose second moments are kept.
///
/// Blocks keep the matrices small: with 64 numbers in each, sums, text and rounding grow with the number of
/// weights and not with its square. On the classifiers it was measured on, whole rows took away hardly more
/// of the error.
public struct MomentBlocks: Sendable, Hashable {
  private static let usualSize = 64
  /// More numbers than any network has.
  private static let limit = 1 << 24

  /// Groups of a convolution; the channels that each reads.
  public let groups: Int
  public let channels: Int
  /// The places of the window; 1 for a matrix.
  public let window: Int

  /// Describes an operand; nil for windows that are too large, or sizes that are no sizes.
  public init?(groups: Int, channels: Int, window: Int) {
    guard groups > 0, channels > 0, (1...SequentialRounding.largestWindow).contains(window),
      groups <= Self.limit, channels <= Self.limit / groups, groups * channels <= Self.limit / window
    else { return nil }
    self.groups = groups
    self.channels = channels
    self.window = window
  }

  /// The numbers of all groups: what an operand's row holds.
  public var columnCount: Int { groups * rowCount }
  /// The numbers that one row of weights multiplies.
  public var rowCount: Int { channels * window }

  /// The blocks of a group's numbers, of whole windows and nearly the same size.
  public var ranges: [Range<Int>] {
    let most = max(1, Self.usualSize / window)
    let count = (channels + most - 1) / most
    return (0..<count).map { channels * $0 / count * window..<channels * ($0 + 1) / count * window }
  }

  /// The numbers that the upper triangles of all blocks have.
  var momentCount: Int { groups * ranges.reduce(0) { $0 + $1.count * ($1.count + 1) / 2 } }

  /// The fields of its text form, and from them.
  var text: String { "\(groups) \(channels) \(window)" }

  init?(parsing text: Substring) {
    let sizes = text.split(separator: " ").map { Int($0) }
    guard sizes.count == 3, let groups = sizes[0], let channels = sizes[1], let window = sizes[2] else {
      return nil
    }
    self.init(groups: groups, channels: channels, window: window)
  }
}
