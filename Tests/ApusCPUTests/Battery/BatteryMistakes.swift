// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusCPU
import ApusEngine
import ApusGraph
import ApusKernel
import ApusOps
import ApusTensor
import ApusX86
import Testing

extension TacticBattery {
  /// The battery notices what kernels do wrong, and tactics that are never tried.
  @Suite struct Mistakes {
    /// Copies single-precision numbers, with or without a mistake.
    private struct CopyTactic: Tactic {
      enum Mistake: Sendable {
        case none, readsBehind, readsBefore, writesBehind, leavesLast, writesOperand,
          dependsOnPlace, isNotANumber
      }

      var mistake = Mistake.none
      var lacks: String?
      let name = "cpu.copy.mistaken"
      let source = "native"
      func support(_ problem: Problem) -> Support { .yes }
      func estimateSeconds(_ problem: Problem, _ configuration: TacticConfiguration) -> Double { 0 }
      func compile(_ problem: Problem, _ configuration: TacticConfiguration) throws(ApusError)
        -> any Kernel
      { CopyKernel(mistake: mistake, count: problem.outputs[0].count) }
    }

    private struct CopyKernel: Kernel {
      let mistake: CopyTactic.Mistake
      let count: Int
      var workspaceByteCount: Int { 0 }

      func launch(_ arguments: UnsafePointer<DeviceAddress>, on stream: any ExecutionStream)
        throws(ApusError)
      {
        guard let x = UnsafeMutablePointer<Float>(bitPattern: UInt(arguments[0].bits)),
          let y = UnsafeMutablePointer<Float>(bitPattern: UInt(arguments[1].bits))
        else { return }
        // What was in memory before stands there still.
        for index in 0..<(mistake == .leavesLast ? count - 1 : count) { y[index] = x[index] }
        switch mistake {
        case .none, .leavesLast: break
        case .readsBehind: y[0] = x[count] == 0.5 ? 0.25 : y[0]
        case .readsBefore: y[0] = x[-1] == 0.5 ? 0.25 : y[0]
        case .writesBehind: if arguments[1].bits % 64 == 4 { y[count] = 1 }
        case .writesOperand: x[1] = 3
        case .dependsOnPlace: if arguments[1].bits % 64 == 4 { y[2] = y[2].nextUp }
        case .isNotANumber:
          y[1] = .nan
          y[2] = y[2].nextUp
        }
      }
    }

    private static func outcome(_ mistake: CopyTactic.Mistake) throws -> TacticTrial.Outcome {
      var make = ProblemMaker(seed: 4)
      let sample = try make.problem(
        Pointwise(expression: .input(0), resultType: .float32),
        [try make.operand(.float32, [7, 8])])
      let trial = try TacticTrial(sample, CPUBackend.shared(threadCount: 1))
      let tactic = CopyTactic(mistake: mistake)
      return trial.run(
        tactic, TacticConfiguration(), other: tactic, placements: Placement.allCases)
    }

    @Test func mistakesAreFound() throws {
      #expect(try Self.outcome(.none).failure == nil)
      #expect(try Self.outcome(.writesBehind).failure?.contains("memory beside result 0") == true)
      #expect(try Self.outcome(.leavesLast).failure?.contains("element 55") == true)
      #expect(try Self.outcome(.writesOperand).failure?.contains("operand 0 was written") == true)
      #expect(try Self.outcome(.dependsOnPlace).failure?.contains("element 2 of result 0") == true)
      #expect(try Self.outcome(.isNotANumber).failure?.contains("element 1 is nan") == true)
    }

    #if os(Linux)
      @Test func aFaultNamesTheKernel() async throws {
        let behind = try await #require(
          processExitsWith: .failure, observing: [\.standardErrorContent]
        ) {
          FaultReport.install()
          _ = try TacticBattery.Mistakes.outcome(.readsBehind)
        }
        let before = try await #require(
          processExitsWith: .failure, observing: [\.standardErrorContent]
        ) {
          FaultReport.install()
          _ = try TacticBattery.Mistakes.outcome(.readsBefore)
        }
        #expect(
          Self.text(behind).contains("cpu.copy.mistaken.default")
            && Self.text(behind).contains("beforeGuard"))
        #expect(
          Self.text(before).contains("cpu.copy.mistaken.default")
            && Self.text(before).contains("behindGuard"))
      }

      private static func text(_ result: ExitTest.Result) -> String {
        String(decoding: result.standardErrorContent, as: UTF8.self)
      }
    #endif

    @Test func whatIsNeverTriedDoesNotPass() {
      var table = BatteryTable(
        [CopyTactic(), CopyTactic(lacks: "needs what is not there"), CopyTactic()], isa: "none")
      #expect(table.rows.map(\.passes) == [false, true, false])
      #expect(table.rows[0].verdict == "NEVER TRIED")
      table[0].problems += 1
      table[1].problems += 1
      #expect(table.rows.map(\.passes) == [true, false, false])
      table[0].failures.append("element 0 is wrong")
      #expect(!table.rows[0].passes && "\(table)".contains("1 FAILED"))
    }

    /// On a machine with AVX-512, code of it must not pass for code of AVX2.
    @Test(.enabled(if: CPUFeatures.host.families.contains(.avx512)))
    func codeForAnotherInstructionSetIsRefused() throws {
      for (isa, isRefused) in [(ISA.avx512, true), (.avx2, false)] {
        let result = Result {
          try InstructionExtension.$refused.withValue([.avx512, .avxVNNI]) {
            try PointwiseKernel(.input(0) * .const(2), operands: [.contiguous], isa: isa)
          }
        }
        #expect((try? result.get()) == nil ? isRefused : !isRefused)
      }
    }
  }
}
