// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusEngine
import ApusGraph
import ApusOps
import ApusTensor
import ApusTestSupport
import Testing

/// Reductions over any axes, and rows that are cut into parts, compared with the operators they compute.
@Suite struct ReductionTests {
  private static let shapes: [(shape: [Int], axes: [Int])] = [
    ([3, 17], [1]), ([1, 100_003], [1]), ([2, 70_000], [1]), ([5, 31], [0]), ([200, 257], [0]),
    ([3000, 70], [0]), ([30_001, 3], [0]), ([30_000, 3], [0]), ([4, 9, 33], [1]),
    ([3, 7, 5, 6], [0, 2]), ([3, 7, 50, 60], [0, 2, 3]), ([2, 49, 1000], [1]), ([40_000], [0]),
    ([1, 1, 5], [0, 2]), ([6, 1], [0]), ([2, 3, 4, 5, 6], [0, 2, 4]),
  ]
  private static let functions: [(Reduce.Function, ColumnKernel.Function)] = [
    (.sum, ColumnKernel.Function(.sum)), (.max, ColumnKernel.Function(.maximum)),
    (.min, ColumnKernel.Function(.minimum)), (.prod, ColumnKernel.Function(.product)),
    (
      .l2,
      ColumnKernel.Function(
        .sum, before: .input(0) * .input(0), after: .unary(.squareRoot, .input(0)))
    ),
    (.l1, ColumnKernel.Function(.sum, before: .unary(.absolute, .input(0)))),
  ]

  private func reduce(
    _ x: Tensor, _ axes: [Int], _ function: ColumnKernel.Function, _ isa: ISA, threads: Int
  ) throws -> [Float] {
    let guarded = try GuardedTensor(x)
    let plan = try ReductionPlan(
      shape: x.shape, isReduced: x.shape.indices.map { axes.contains($0) }, function: function,
      type: x.dataType, isa: isa)
    let count = x.shape.indices.reduce(1) { axes.contains($1) ? $0 : $0 * x.shape[$1] }
    let y = GuardedBuffer(count: count) { _ in .nan }
    let workspace = GuardedBuffer(count: plan.workspaceByteCount / 4) { _ in .nan }
    plan.run(
      guarded.raw, result: y.raw, workspace: workspace.raw, pool: ThreadPool(threadCount: threads))
    return (0..<count).map { y[$0] }
  }

  @Test(arguments: testedISAs) func reductionsOverAnyAxes(isa: ISA) throws {
    var generator = SeededGenerator(seed: 11)
    for (shape, axes) in Self.shapes {
      let x = try generator.tensor(.float32, shape: shape)
      for (reduction, function) in Self.functions {
        let op = Reduce(function: reduction, axes: axes)
        let want = try #require(try op.evaluate([.tensor(x)])[0].tensor).doubles()
        let got = try reduce(x, axes, function, isa, threads: 1)
        var (error, all) = (0.0, 1e-12)
        for (a, b) in zip(got, want) {
          error = max(error, abs(Double(a) - b))
          all = max(all, abs(b))
        }
        #expect(error <= 2e-5 * all, "\(isa) \(reduction) \(shape) \(axes): \(error) of \(all)")
        // The division into tasks does not depend on who does them.
        #expect(try reduce(x, axes, function, isa, threads: 2) == got)
      }
    }
  }

  @Test(.enabled(if: testedISAs.contains(.avx512))) func columnsOfBytes() throws {
    var generator = SeededGenerator(seed: 19)
    let shapes: [(shape: [Int], axes: [Int])] = [
      ([1, 1, 2, 9], [1, 2]), ([2, 7, 7, 37], [1, 2]), ([1, 14, 14, 480], [1, 2]), ([3, 112, 112, 8], [1, 2]),
      ([1, 56, 56, 96], [1, 2]), ([3, 7, 5, 16], [0, 2]), ([5, 300], [0]),
    ]
    for type in [DataType.uint8, .int8] {
      for (shape, axes) in shapes {
        let x = try generator.tensor(type, shape: shape)
        for (reduction, function) in Self.functions where ![.prod, .l2].contains(reduction) {
          let op = Reduce(function: reduction, axes: axes, sumType: .float32)
          let want = try #require(try op.evaluate([.tensor(x)])[0].tensor)
          // Sums of so few bytes are exact.
          for threads in [1, 2] {
            let got = try reduce(x, axes, function, .avx512, threads: threads)
            #expect(got.map(Double.init) == want.doubles(), "\(type) \(reduction) \(shape) \(axes)")
          }
        }
      }
    }
    #expect(throws: ApusError.self) {
      try ReductionPlan(
        shape: [4, 9], isReduced: [false, true], function: ColumnKernel.Function(.sum), type: .uint8)
    }
  }

  @Test(.enabled(if: CPUFeatures.host.avx512BF16 && testedISAs.contains(.avx512)))
  func columnsOfShortFloats() throws {
    var generator = SeededGenerator(seed: 23)
    for (shape, axes) in [([2, 7, 7, 37], [1, 2]), ([1, 56, 56, 96], [1, 2]), ([3, 1, 2, 16], [2]), ([900, 5], [0])] {
      let x = try generator.tensor(.bfloat16, shape: shape)
      let op = Reduce(function: .sum, axes: axes, sumType: .float32)
      let want = try #require(try op.evaluate([.tensor(x)])[0].tensor)
      let got = try reduce(x, axes, ColumnKernel.Function(.sum), .avx512, threads: 1)
      let y = try Tensor(got, shape: want.shape)
      #expect(TensorDifference(y, want).relativeL2 < 1e-6, "\(shape)")
      #expect(try reduce(x, axes, ColumnKernel.Function(.sum), .avx512, threads: 2) == got)
    }
  }

  @Test(arguments: testedISAs) func numbersThatAreNoneStay(isa: ISA) throws {
    for (shape, axes) in [([1, 100_003], [1]), ([3000, 70], [0])] {
      var values = [Float](repeating: 1, count: shape.reduce(1, *))
      values[values.count / 2] = .nan
      let x = try Tensor(values, shape: shape)
      for reduction in [RowKernel.Reduction.maximum, .minimum, .sum] {
        let got = try reduce(x, axes, ColumnKernel.Function(reduction), isa, threads: 2)
        #expect(got.filter(\.isNaN).count == 1)
      }
    }
  }

  @Test(arguments: testedISAs) func longRowsInParts(isa: ISA) throws {
    var generator = SeededGenerator(seed: 5)
    for (rows, columns) in [(1, 16384), (1, 20_001), (3, 8193), (2, 8192), (1, 5)] {
      let x = try generator.tensor(.float32, shape: [rows, columns])
      let scale = try generator.tensor(.float32, shape: [columns])
      let bias = try generator.tensor(.float32, shape: [columns])
      let problems: [(any Operator, [Tensor], [RowKernel.Step])] = [
        (Softmax(axis: -1), [x], RowKernel.softmax()),
        (LogSoftmax(axis: -1), [x], RowKernel.logSoftmax()),
        (
          LayerNormalization(axis: -1, epsilon: 1e-5), [x, scale, bias],
          RowKernel.layerNormalization(
            columns: columns, epsilon: 1e-5, operandCount: 3, scale: 1, bias: 2)
        ),
        (
          LayerNormalization(axis: -1, epsilon: 1e-5), [x, scale],
          RowKernel.layerNormalization(
            columns: columns, epsilon: 1e-5, operandCount: 2, scale: 1, bias: nil)
        ),
      ]
      for (op, operands, steps) in problems {
        let want = try #require(try op.evaluate(operands.map { .tensor($0) })[0].tensor)
        let plan = try SplitRowPlan(
          columns: columns, rows: rows,
          operands: [.rows] + operands.dropFirst().map { _ in .perColumn }, steps: steps, isa: isa)
        let guarded = try operands.map { try GuardedTensor($0) }
        var results: [[Float]] = []
        for threads in [1, 2] {
          let y = GuardedBuffer(count: x.count) { _ in .nan }
          let workspace = GuardedBuffer(count: plan.workspaceByteCount / 4) { _ in .nan }
          plan.run(
            guarded.map { UnsafeRawPointer($0.raw) }, result: y.raw, workspace: workspace.raw,
            pool: ThreadPool(threadCount: threads))
          results.append((0..<x.count).map { y[$0] })
        }
        #expect(results[0] == results[1])
        let difference = TensorDifference(try Tensor(results[0], shape: x.shape), want)
        #expect(
          difference.relativeL2 < 1e-5, "\(isa) \(op.name) \(rows) x \(columns) \(difference)")
      }
    }
  }

  @Test(arguments: testedISAs) func softmaxInParts(isa: ISA) throws {
    var generator = SeededGenerator(seed: 6)
    for (rows, columns) in [(1, 16384), (2, 20_001), (3, 4097), (1, 4096), (1, 5)] {
      var values = try generator.tensor(.float32, shape: [rows, columns]).floats().map { $0 * 20 }
      // A part without a finite element, as masks make them.
      for index in 0..<min(4096, columns - 1) { values[index] = -.infinity }
      let x = try Tensor(values, shape: [rows, columns])
      let want = try #require(try Softmax(axis: -1).evaluate([.tensor(x)])[0].tensor)
      let plan = try SplitSoftmaxPlan(columns: columns, rows: rows, isa: isa)
      let guarded = try GuardedTensor(x)
      var results: [[Float]] = []
      for threads in [1, 2] {
        let y = GuardedBuffer(count: x.count) { _ in .nan }
        let workspace = GuardedBuffer(count: plan.workspaceByteCount / 4) { _ in .nan }
        plan.run(
          guarded.raw, result: y.raw, workspace: workspace.raw,
          pool: ThreadPool(threadCount: threads))
        results.append((0..<x.count).map { y[$0] })
      }
      #expect(results[0] == results[1])
      let difference = TensorDifference(try Tensor(results[0], shape: x.shape), want)
      #expect(difference.relativeL2 < 1e-5, "\(isa) \(rows) x \(columns) \(difference)")
    }
  }

  @Test(arguments: testedISAs) func oneThatIsNoneMakesAllOfARowSo(isa: ISA) throws {
    for columns in [40, 9000] {
      for place in [0, 17, columns - 1] {
        let input = GuardedBuffer(count: columns) { $0 == place ? .nan : Float($0 % 7) }
        let split = try SplitSoftmaxPlan(columns: columns, rows: 1, isa: isa)
        let whole = try RowKernel(
          columns: columns, operands: [.rows], steps: RowKernel.softmax(), isa: isa)
        let y = GuardedBuffer(count: columns)
        let z = GuardedBuffer(count: columns)
        let workspace = GuardedBuffer(count: split.workspaceByteCount / 4)
        let pool = ThreadPool(threadCount: 1)
        split.run(input.raw, result: y.raw, workspace: workspace.raw, pool: pool)
        var operand = UnsafeRawPointer(input.raw)
        whole.run(&operand, result: z.raw, rows: 1, pool: pool)
        #expect((0..<columns).allSatisfy { y[$0].isNaN && z[$0].isNaN })
      }
    }
  }

  @Test func placesOfExtremes() throws {
    var generator = SeededGenerator(seed: 9)
    for (shape, axis) in [
      ([3, 40_000], 1), ([1, 21, 9, 7], 1), ([3, 21, 1030], 1), ([70_001], 0), ([200, 3], 0),
      ([2, 1], 1),
    ] {
      let numbers = try generator.tensor(.float32, shape: shape).floats()
      // Many equal elements, both zeros, and some that are no numbers.
      let coarse = numbers.map { ($0 * 3).rounded() }
      var odd = coarse
      for index in stride(from: 5, to: odd.count, by: 37) {
        odd[index] = index % 2 == 0 ? .nan : -.nan
      }
      for values in [numbers, coarse, odd] {
        let x = try Tensor(values, shape: shape)
        for last in [false, true] {
          let ops: [any Operator] = [
            ArgMax(axis: axis, selectLastIndex: last), ArgMin(axis: axis, selectLastIndex: last),
          ]
          for op in ops {
            var b = GraphBuilder("places")
            let input = b.input("x", .float32, shape.map { Dim($0) })
            let graph = try b.finish(outputs: [("y", try b.apply(op, [input]))])
            let want = try #require(try op.evaluate([.tensor(x)])[0].tensor).integers()
            for threads in [1, 2] {
              var configuration = BuilderConfiguration()
              configuration.threadCount = threads
              let engine = try Builder(configuration).build(graph)
              #expect(try engine.makeContext().run(["x": x])["y"]?.integers() == want)
            }
          }
        }
      }
    }
  }
}
