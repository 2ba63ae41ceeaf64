// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor
import Testing

import ApusCPU

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

@Suite struct RowKernelTests {
  private let pool = ThreadPool(threadCount: 2)
  private static let widths = [1, 2, 7, 8, 9, 15, 16, 17, 33, 64, 65, 128, 200, 768]

  private func rows(_ buffer: GuardedBuffer, _ columns: Int) -> [[Double]] {
    (0..<buffer.count / columns).map { row in
      (0..<columns).map { Double(buffer[row * columns + $0]) }
    }
  }

  @Test(arguments: testedISAs) func softmax(isa: ISA) throws {
    for columns in Self.widths {
      let input = GuardedBuffer(count: 5 * columns) { Float(($0 * 37) % 101 - 50) * 0.3 }
      let want = rows(input, columns).map { row -> [Double] in
        let top = row.max() ?? 0
        let powers = row.map { exp($0 - top) }
        let sum = powers.reduce(0, +)
        return powers.map { $0 / sum }
      }
      var address = UnsafeRawPointer(input.raw)
      for logarithm in [false, true] {
        let kernel = try RowKernel(
          columns: columns, operands: [.rows],
          steps: logarithm ? RowKernel.logSoftmax() : RowKernel.softmax(), isa: isa)
        let output = GuardedBuffer(count: 5 * columns)
        kernel.run(&address, result: output.raw, rows: 5, pool: pool)
        for (index, exact) in want.joined().enumerated() {
          let value = logarithm ? log(exact) : exact
          #expect(abs(Double(output[index]) - value) <= 1e-6 * max(1, abs(value)), "\(columns)")
        }
      }
    }
  }

  @Test(arguments: testedISAs) func layerNormalization(isa: ISA) throws {
    for columns in Self.widths {
      let a = GuardedBuffer.random(4 * columns)
      let b = GuardedBuffer.random(4 * columns, seed: 2)
      let scale = GuardedBuffer.random(columns, seed: 3)
      let bias = GuardedBuffer.random(columns, seed: 4)
      let kernel = try RowKernel(
        columns: columns, operands: [.rows, .rows, .perColumn, .perColumn],
        steps: RowKernel.layerNormalization(
          columns: columns, epsilon: 1e-5, operandCount: 4, value: .input(0) + .input(1), scale: 2,
          bias: 3), isa: isa)
      var want: [Double] = []
      for (x, y) in zip(rows(a, columns), rows(b, columns)) {
        let sum = zip(x, y).map { $0 + $1 }
        let mean = sum.reduce(0, +) / Double(columns)
        let variance = sum.map { ($0 - mean) * ($0 - mean) }.reduce(0, +) / Double(columns)
        for (index, value) in sum.enumerated() {
          want.append(
            (value - mean) / (variance + 1e-5).squareRoot() * Double(scale[index])
              + Double(bias[index]))
        }
      }
      // The result takes the place of the first operand.
      let addresses = [a, b, scale, bias].map { UnsafeRawPointer($0.raw) }
      kernel.run(addresses, result: a.raw, rows: 4, pool: pool)
      for index in 0..<want.count { #expect(abs(Double(a[index]) - want[index]) < 1e-5) }
    }
  }

  /// Bytes are scaled and masked before, and the result is rounded to bytes.
  @Test(arguments: testedISAs) func bytesGoInAndOut(isa: ISA) throws {
    for columns in Self.widths + [RowKernel.scratchColumns + 7] {
      for (groups, size) in [(1, 1), (1, 5), (3, 4), (2, 9)] where columns < 1000 || size < 5 {
        let rows = groups * size
        let values = (0..<rows * columns).map { Int64(($0 * 73) % 251) }
        let mask = GuardedBuffer.random(groups * columns, seed: 7)
        let bytes = try GuardedTensor(Tensor(values, .uint8, shape: [rows, columns]))
        let x = ScalarExpr.cast(.input(0), .float32) * .const(0.05) + .input(1)
        let exact = (0..<rows).map { row in
          (0..<columns).map { column in
            Double(values[row * columns + column]) * 0.05
              + Double(mask[row / size * columns + column])
          }
        }
        let recomputing = columns > RowKernel.scratchColumns
        func check(_ steps: [RowKernel.Step], _ step: Double, zero: Double, _ want: [[Double]]) throws {
          let kernel = try RowKernel(
            columns: columns, operands: [.rows, .rowGroups(of: size)], types: [.uint8, .float32],
            steps: steps, result: .uint8, isa: isa)
          let result = try GuardedTensor(Tensor(.uint8, shape: [rows, columns]))
          kernel.run(
            [UnsafeRawPointer(bytes.raw), UnsafeRawPointer(mask.raw)], result: result.raw,
            rows: rows, pool: pool)
          let got = result.tensor.doubles()
          for (index, exact) in want.joined().enumerated() {
            let steps = min(255, max(0, exact / step + zero))
            #expect(abs(got[index] - steps) < 0.501, "\(columns) \(groups)x\(size) at \(index)")
          }
        }
        func rounded(_ step: Double, _ zero: Int) -> (ScalarExpr) -> ScalarExpr {
          { ScalarQuantization(steps: $0 * .const(1 / step), zeroPoint: zero, type: .uint8).expression }
        }
        try check(
          RowKernel.softmax(
            x, operandCount: 2, recomputing: recomputing, epilogue: rounded(0.004, 0)),
          0.004, zero: 0,
          exact.map { row in
            let sum = row.reduce(0) { $0 + exp($1 - (row.max() ?? 0)) }
            return row.map { exp($0 - (row.max() ?? 0)) / sum }
          })
        try check(
          RowKernel.layerNormalization(
            columns: columns, epsilon: 1e-3, operandCount: 2, value: x, scale: nil, bias: nil,
            recomputing: recomputing, epilogue: rounded(0.03, 128)),
          0.03, zero: 128,
          exact.map { row in
            let mean = row.reduce(0, +) / Double(columns)
            let variance = row.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(columns)
            return row.map { ($0 - mean) / (variance + 1e-3).squareRoot() }
          })
      }
    }
  }

  @Test func rowsThatCannotBeAreRefused() throws {
    let long = RowKernel.scratchColumns + 1
    #expect(throws: ApusError.self) {
      _ = try RowKernel(
        columns: long, operands: [.rows], steps: RowKernel.softmax(), result: .uint8, isa: .avx2)
    }
    #expect(throws: ApusError.self) {
      _ = try RowKernel(
        columns: 8, operands: [.rows], steps: [.storeAndReduce(.input(0), .sum)], result: .uint8,
        isa: .avx2)
    }
    #expect(throws: ApusError.self) {
      _ = try RowKernel(
        columns: 8, operands: [.rows, .rowGroups(of: 2), .rowGroups(of: 3)],
        steps: [.store(.input(0) + .input(1) + .input(2))], isa: .avx2)
    }
  }

  @Test(arguments: testedISAs) func reductions(isa: ISA) throws {
    let cases: [(RowKernel.Reduction, ([Double]) -> Double)] = [
      (.sum, { $0.reduce(0, +) }), (.product, { $0.reduce(1, *) }),
      (.maximum, { $0.max() ?? 0 }), (.minimum, { $0.min() ?? 0 }),
    ]
    for columns in Self.widths {
      let input = GuardedBuffer.random(3 * columns)
      var address = UnsafeRawPointer(input.raw)
      for (reduction, exact) in cases {
        let steps = RowKernel.reduction(reduction, after: .input(0) * .const(2))
        let kernel = try RowKernel(columns: columns, operands: [.rows], steps: steps, isa: isa)
        let output = GuardedBuffer(count: 3)
        kernel.run(&address, result: output.raw, rows: 3, pool: pool)
        for (index, row) in rows(input, columns).enumerated() {
          #expect(abs(Double(output[index]) - 2 * exact(row)) < 1e-4)
        }
      }
    }
    // A NaN anywhere is the largest and the smallest.
    let input = GuardedBuffer.random(40)
    var address = UnsafeRawPointer(input.raw)
    for place in [0, 3, 17, 39] {
      input.pointer[place] = .nan
      for reduction in [RowKernel.Reduction.maximum, .minimum] {
        let kernel = try RowKernel(
          columns: 40, operands: [.rows], steps: RowKernel.reduction(reduction), isa: isa)
        let output = GuardedBuffer(count: 1)
        kernel.run(&address, result: output.raw, rows: 1, pool: pool)
        #expect(output[0].isNaN)
      }
      input.pointer[place] = 0
    }
  }

  @Test(arguments: testedISAs) func neighboursNormalise(isa: ISA) throws {
    for columns in Self.widths + [64, 192] {
      for (before, after, exponent) in [(2, 2, 0.75), (0, 1, 0.75), (3, 2, 0.5), (8, 8, 1.25)] {
        let input = GuardedBuffer.random(3 * columns)
        let shape = NeighbourNormKernel.Shape(
          columns: columns, before: before, after: after, bias: 1.5, factor: 0.25,
          exponent: exponent, epilogue: .max(.input(0), .const(-0.5)))
        let kernel = try NeighbourNormKernel(shape, isa: isa)
        let output = GuardedBuffer(count: 3 * columns) { _ in .nan }
        kernel.run(input.raw, result: output.raw, rows: 3, pool: pool)
        for (row, values) in rows(input, columns).enumerated() {
          for column in 0..<columns {
            let window = values[max(0, column - before)...min(columns - 1, column + after)]
            let sum = window.reduce(0) { $0 + $1 * $1 }
            let exact = max(-0.5, values[column] * pow(1.5 + 0.25 * sum, -exponent))
            #expect(abs(Double(output[row * columns + column]) - exact) < 2e-6)
          }
        }
      }
    }
  }
}
