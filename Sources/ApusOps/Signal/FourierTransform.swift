// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// A complex number.
struct Complex {
  var real: Double
  var imaginary: Double

  init(_ real: Double, _ imaginary: Double) {
    self.real = real
    self.imaginary = imaginary
  }

  /// `e^(i angle)`
  init(angle: Double) { self.init(cos(angle), sin(angle)) }

  static func + (a: Complex, b: Complex) -> Complex {
    Complex(a.real + b.real, a.imaginary + b.imaginary)
  }
  static func - (a: Complex, b: Complex) -> Complex {
    Complex(a.real - b.real, a.imaginary - b.imaginary)
  }
  static func * (a: Complex, b: Complex) -> Complex {
    Complex(
      a.real * b.real - a.imaginary * b.imaginary, a.real * b.imaginary + a.imaginary * b.real)
  }
}

/// The discrete Fourier transform in time n log n: halving for powers of two (Cooley and Tukey), other
/// lengths as a convolution whose length is one (Bluestein).
enum FourierTransform {
  /// The transform of `x`; the inverse is divided by the length.
  static func run(_ x: [Complex], isInverse: Bool) -> [Complex] {
    let sign = isInverse ? 1.0 : -1.0
    var result = x.count & (x.count - 1) == 0 ? powerOfTwo(x, sign) : anyLength(x, sign)
    if isInverse {
      let factor = 1 / Double(max(1, x.count))
      for index in result.indices {
        result[index] = Complex(result[index].real * factor, result[index].imaginary * factor)
      }
    }
    return result
  }

  private static func powerOfTwo(_ x: [Complex], _ sign: Double) -> [Complex] {
    let count = x.count
    guard count > 1 else { return x }
    var a = x
    var reversed = 0
    for index in 1..<count {
      var bit = count >> 1
      while reversed & bit != 0 {
        reversed ^= bit
        bit >>= 1
      }
      reversed ^= bit
      if index < reversed { a.swapAt(index, reversed) }
    }
    let roots = (0..<(count / 2)).map { Complex(angle: sign * 2 * .pi * Double($0) / Double(count)) }
    var half = 1
    while half < count {
      let step = count / (2 * half)
      for start in stride(from: 0, to: count, by: 2 * half) {
        for k in 0..<half {
          let odd = a[start + half + k] * roots[k * step]
          let even = a[start + k]
          a[start + k] = even + odd
          a[start + half + k] = even - odd
        }
      }
      half *= 2
    }
    return a
  }

  private static func anyLength(_ x: [Complex], _ sign: Double) -> [Complex] {
    let count = x.count
    var size = 1
    while size < 2 * count - 1 { size *= 2 }
    // Squares modulo twice the length keep the angles small and exact.
    let chirp = (0..<count).map { n in
      Complex(angle: sign * .pi * Double((n * n) % (2 * count)) / Double(count))
    }
    var a = [Complex](repeating: Complex(0, 0), count: size)
    var b = a
    for n in 0..<count {
      a[n] = x[n] * chirp[n]
      let conjugate = Complex(chirp[n].real, -chirp[n].imaginary)
      b[n] = conjugate
      if n > 0 { b[size - n] = conjugate }
    }
    let product = zip(powerOfTwo(a, -1), powerOfTwo(b, -1)).map { $0 * $1 }
    let back = powerOfTwo(product, 1)
    let factor = 1 / Double(size)
    return (0..<count).map { n in
      Complex(back[n].real * factor, back[n].imaginary * factor) * chirp[n]
    }
  }
}
