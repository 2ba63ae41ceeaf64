// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

/// Rounds weights one after the other, each error being taken back by the weights that follow.
///
/// What rounding does to a result is the sum of the weights' errors, each times the number it multiplies.
/// Where these numbers are alike (neighbouring pixels, channels that fire together) errors of the same sign
/// add up, and errors of opposite signs cancel. Given the second moments `E[x_k x_j]` of these numbers, the
/// error of a rounded weight is spread over the rest in the proportions that leave the smallest expected
/// square error of the result. This is the sequential rounding of E. Frantar et al., "GPTQ" (2022), after
/// B. Hassibi and D. Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon" (1993).
public struct SequentialRounding: Sendable {
  /// The number of weights that are rounded together.
  public let count: Int
  /// In which order they are rounded: what multiplies the largest numbers comes first, as long as there are
  /// many others to make up for it.
  private let order: [Int]
  /// `[k * count + j]`: the share of the error of the k-th that the j-th takes back, for j > k.
  private let shares: [Float]

  /// Plans the rounding of weights with these second moments.
  ///
  /// - Parameter moments: A positive definite matrix, row by row.
  /// - Returns: nil when it is none.
  public init?(moments: [Double]) {
    let count = Int(Double(moments.count).squareRoot().rounded())
    guard count > 0, count * count == moments.count, moments.allSatisfy(\.isFinite) else { return nil }
    let order = (0..<count).sorted { a, b in
      let (first, second) = (moments[a * count + a], moments[b * count + b])
      return first == second ? a < b : first > second
    }
    var upper = [Double](repeating: 0, count: count * count)
    for (i, a) in order.enumerated() {
      for (j, b) in order.enumerated() { upper[i * count + j] = moments[a * count + b] }
    }
    guard Self.factor(&upper, count) else { return nil }
    Self.invert(&upper, count)
    for k in 0..<count {
      let pivot = upper[k * count + k]
      for j in k..<count { upper[k * count + j] /= pivot }
    }
    shares = upper.map { Float($0) }
    guard shares.allSatisfy(\.isFinite) else { return nil }
    self.count = count
    self.order = order
  }

  /// The upper triangular `R` with `M = R R^T`, in place; false when `M` is not positive definite.
  private static func factor(_ matrix: inout [Double], _ count: Int) -> Bool {
    for j in stride(from: count - 1, through: 0, by: -1) {
      for i in stride(from: j, through: 0, by: -1) {
        var sum = matrix[i * count + j]
        for k in (j + 1)..<max(count, j + 1) { sum -= matrix[i * count + k] * matrix[j * count + k] }
        if i == j {
          guard sum > 0 else { return false }
          matrix[j * count + j] = sum.squareRoot()
        } else {
          matrix[i * count + j] = sum / matrix[j * count + j]
          matrix[j * count + i] = 0
        }
      }
    }
    return true
  }

  /// The inverse `U` of an upper triangular matrix, in place: `M^-1 = U^T U`.
  private static func invert(_ upper: inout [Double], _ count: Int) {
    for j in 0..<count {
      for i in 0..<j {
        var sum = 0.0
        for k in i..<j { sum += upper[i * count + k] * upper[k * count + j] }
        upper[i * count + j] = -sum / upper[j * count + j]
      }
      // Rows above still need what stands left of this column as it now is: the inverse's.
      upper[j * count + j] = 1 / upper[j * count + j]
    }
  }

  /// Rounds numbers to those that a type has.
  @inline(__always)
  func round(_ steps: UnsafeMutablePointer<Float>, to nearest: (Float) -> Float) {
    withUnsafeTemporaryAllocation(of: Float.self, capacity: count) { ordered in
      for (k, place) in order.enumerated() { ordered[k] = steps[place] }
      for k in 0..<count {
        let rounded = nearest(ordered[k])
        let error = ordered[k] - rounded
        ordered[k] = rounded
        guard error != 0 else { continue }
        let row = k * count
        for j in (k + 1)..<max(k + 1, count) { ordered[j] -= error * shares[row + j] }
      }
      for (k, place) in order.enumerated() { steps[place] = ordered[k] }
    }
  }
}
