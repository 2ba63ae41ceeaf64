// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusTensor
import Synchronization

/// The kernels and device constants of one engine, made on demand and shared by all its plans.
package final class KernelLibrary: Sendable {
  /// A kernel with how it came about.
  package struct Compiled: Sendable {
    package let kernel: any Kernel
    package let choice: TacticChoice
    package let inPlaceInputs: [Int]
    /// The packing that constant operands are wanted in, by operand number.
    package let packing: [Int: PackedLayout]
  }

  private struct ConstantKey: Hashable {
    let storage: ObjectIdentifier
    let offset: Int
    let byteCount: Int
    let packing: PackedLayout?
  }

  private struct State {
    var kernels: [String: Compiled] = [:]
    // The tensor is kept so that its storage's identity stays taken.
    var constants: [ConstantKey: (tensor: Tensor, memory: DeviceMemory)] = [:]
  }

  package let backend: any Backend
  package let selector: TacticSelector
  /// The choices the build made; problems met later get the best estimated choice.
  package let selections: TimingCache
  /// The device that the selections were made for, as the timing cache names it.
  package let selectionDevice: String
  /// The most workspace of kernels for shapes that were not tuned.
  let workspaceLimit: Int?
  private let state = Mutex(State())

  package init(
    backend: any Backend, selections: TimingCache, selectionDevice: String? = nil,
    workspaceLimit: Int? = nil
  ) {
    self.backend = backend
    self.workspaceLimit = workspaceLimit
    self.selections = selections
    let traits = backend.traits
    self.selectionDevice = selectionDevice ?? "\(traits.fingerprint)/\(traits.isa)/threads=\(traits.threadCount)"
    selector = TacticSelector(backend)
  }

  /// The device memory of a constant, packed if asked for; made once.
  package func memory(of constant: Tensor, packing: PackedLayout? = nil) throws(ApusError)
    -> DeviceMemory
  {
    let key = ConstantKey(
      storage: ObjectIdentifier(constant.storage), offset: constant.byteOffset,
      byteCount: constant.byteCount, packing: packing)
    if let known = state.withLock({ $0.constants[key] }) { return known.memory }
    let stored = try packing.map { layout throws(ApusError) in try layout.pack(constant) } ?? constant
    let memory = try backend.importConstant(stored)
    state.withLock { $0.constants[key] = (constant, memory) }
    return memory
  }

  /// The kernel for a node's problem: the build's choice, else the best estimate. Nodes with equal
  /// problems share a kernel, whatever their weights.
  ///
  /// - Throws: what compiling throws, with the node's location.
  package func compile(_ problem: Problem, _ node: Node) throws(ApusError) -> Compiled {
    let key = problem.storedKey
    if let known = state.withLock({ $0.kernels[key] }) { return known }
    do {
      let compiled = try compile(try choose(problem), problem)
      state.withLock { $0.kernels[key] = compiled }
      return compiled
    } catch {
      throw error.at(node.location).at(GraphLocation(node: node.name, operatorName: node.op.name))
    }
  }

  /// The build's choice for a problem, else the one estimated fastest.
  ///
  /// - Throws: `unsupported-operator` with every tactic's refusal.
  package func choose(_ problem: Problem) throws(ApusError) -> TacticChoice {
    let (choices, refusals) = selector.candidates(problem)
    let recorded = selections.entry(problem: problem.key, device: selectionDevice)
    let preferred = recorded.flatMap { entry in choices.first { $0.id == entry.winner } }
    if let preferred { return preferred }
    if let choice = try firstFitting(choices, problem) { return choice }
    let reasons = refusals.map { "\($0.tactic): \($0.reason)" }.joined(separator: "; ")
    throw ApusError(.unsupportedOperator, "no tactic takes \(problem.key): \(reasons)")
  }

  /// Whether the build chose to run the branches of a fork side by side.
  func runsSideBySide(_ fork: Fork, _ problem: (Int) -> Problem) -> Bool {
    selections.entry(problem: fork.key(problem), device: selectionDevice)?.winner == Fork.sideBySide
  }

  /// The first choice within the workspace limit; the portable tactic asks for none, so that it is the last resort.
  ///
  /// - Throws: `resource-limit` when all that take the weights as they were packed need more.
  private func firstFitting(_ choices: [TacticChoice], _ problem: Problem) throws(ApusError)
    -> TacticChoice?
  {
    guard let workspaceLimit else { return choices.first }
    var smallest = Int.max
    for choice in choices {
      do {
        let need = try compile(choice, problem).kernel.workspaceByteCount
        if need <= workspaceLimit { return choice }
        smallest = min(smallest, need)
      } catch where error.code == .resourceLimit || error.code == .notYetSupported {
        continue
      }
    }
    guard smallest < Int.max else { return choices.first }
    throw ApusError(
      .resourceLimit,
      "no kernel for a result of \(problem.outputs.map(\.shape)) fits the workspace of "
        + "\(workspaceLimit) bytes that the engine was built with",
      hint: "it takes \(smallest) bytes with the weights packed as they are; build the engine for such shapes, or with "
        + "more workspace")
  }

  /// Compiles a choice.
  package func compile(_ choice: TacticChoice, _ problem: Problem) throws(ApusError) -> Compiled {
    Compiled(
      kernel: try choice.tactic.compile(problem, choice.configuration), choice: choice,
      inPlaceInputs: choice.tactic.inPlaceInputs(problem),
      packing: choice.tactic.packing(problem, choice.configuration))
  }
}
