// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusGraph
import ApusKernel
import ApusTensor

/// Finds the forks of a plan while its steps are laid out: parts of the network between two places where only one tensor
/// is alive, and of these parts the steps before a step that brings branches together.
struct ForkSearch {
  /// When a tensor is made and read. Concatenations in place are made by several steps, inputs by none.
  private struct Life {
    var makers: Set<Int> = []
    var last = -1
    var first: Int { makers.min() ?? -1 }
  }

  /// By the value that owns the memory.
  private var lives: [ValueID: Life] = [:]
  /// The owners of views.
  private var owners: [ValueID: ValueID] = [:]
  /// For each step, those it reads from.
  private var needs: [Set<Int>] = []
  /// What each step takes on one thread, roughly.
  private var seconds: [Double] = []

  /// About what it takes all threads to begin and end a kernel together.
  private static let togetherSeconds = 2e-6
  /// How much slower than one after the other branches may be by estimate and still be measured.
  private static let tolerance = 1.1

  init(_ graph: Graph) {
    for input in graph.inputs { lives[input] = Life() }
  }

  /// A kernel is the next step.
  mutating func addStep(_ node: Node, _ problem: Problem) {
    let step = needs.count
    var needed: Set<Int> = []
    for input in node.inputs.compactMap({ $0 }) {
      guard let life = lives[owner(input)] else { continue }
      needed.formUnion(life.makers)
      lives[owner(input)]?.last = step
    }
    needs.append(needed)
    seconds.append(Self.seconds(KernelWork(problem)))
    for output in node.outputs { lives[output] = Life(makers: [step], last: step) }
  }

  /// A node's results are parts of its first operand.
  mutating func addView(_ node: Node) {
    guard let source = node.inputs.first, let source else { return }
    for output in node.outputs { owners[output] = owner(source) }
  }

  /// A node's result is there when its operands are.
  mutating func addConcatenation(_ node: Node) {
    let parts = node.inputs.compactMap { $0.flatMap { lives[owner($0)] } }
    let makers = parts.reduce(into: Set<Int>()) { $0.formUnion($1.makers) }
    lives[node.outputs[0]] = Life(makers: makers, last: makers.max() ?? -1)
  }

  private func owner(_ value: ValueID) -> ValueID { owners[value] ?? value }

  /// The forks for a device with so many lanes, in order.
  func forks(lanes: Int) -> [Fork] {
    guard lanes > 1 else { return [] }
    var result: [Fork] = []
    let bounds = narrowPlaces() + [needs.count]
    for (begin, end) in zip(bounds, bounds.dropFirst()) {
      var start = begin
      while start < end {
        let joint = self.joint(start..<end)
        if let fork = fork(start..<joint, lanes) { result.append(fork) }
        start = max(joint, start + 1)
      }
    }
    return result
  }

  /// The steps before which no more than one tensor is alive.
  private func narrowPlaces() -> [Int] {
    var change = [Int](repeating: 0, count: needs.count + 2)
    for life in lives.values where life.last > life.first {
      change[life.first + 1] += 1
      change[life.last + 1] -= 1
    }
    var alive = 0
    return needs.indices.filter { step in
      alive += change[step]
      return step == 0 || alive <= 1
    }
  }

  /// The first step that reads from more than one branch of those before it.
  private func joint(_ steps: Range<Int>) -> Int {
    var branches = Branches()
    for step in steps {
      let own = needs[step].filter { steps.contains($0) }
      if Set(own.map { branches.root($0) }).count > 1 { return step }
      branches.add(step)
      for other in own { branches.unite(step, other) }
    }
    return steps.upperBound
  }

  /// The best fork that ends where these steps do, if it may be faster than the steps in turn: first steps that all
  /// branches need stay before it.
  private func fork(_ steps: Range<Int>, _ lanes: Int) -> Fork? {
    var branches = Branches()
    var readers: [Int: [Int]] = [:]
    for step in steps { for other in needs[step] { readers[other, default: []].append(step) } }
    func inTurn(_ steps: Range<Int>) -> Double {
      steps.reduce(0) { $0 + seconds[$1] / Double(lanes) + Self.togetherSeconds }
    }
    var best: (fork: Fork, seconds: Double)?
    for start in steps.reversed() {
      branches.add(start)
      for reader in readers[start] ?? [] { branches.unite(start, reader) }
      let members = Dictionary(grouping: start..<steps.upperBound, by: { branches.root($0) }).values
      guard members.count > 1 else { continue }
      let sorted = members.map { (steps: $0, seconds: $0.reduce(0) { $0 + seconds[$1] }) }
        .sorted { ($1.seconds, $0.steps[0]) < ($0.seconds, $1.steps[0]) }
      let time = inTurn(steps.lowerBound..<start) + Self.togetherSeconds + makespan(sorted.map(\.seconds), lanes)
      if time < best?.seconds ?? .infinity {
        best = (Fork(steps: start..<steps.upperBound, branches: sorted.map(\.steps)), time)
      }
    }
    guard let best, best.seconds < inTurn(steps) * Self.tolerance else { return nil }
    return best.fork
  }

  /// When the last lane ends if each takes the next branch.
  private func makespan(_ seconds: [Double], _ lanes: Int) -> Double {
    var ends = [Double](repeating: 0, count: lanes)
    for time in seconds {
      guard let next = ends.indices.min(by: { ends[$0] < ends[$1] }) else { break }
      ends[next] += time
    }
    return ends.max() ?? 0
  }

  /// By rates that a core of a server has, about.
  private static func seconds(_ work: KernelWork) -> Double {
    let rates: [DataType: Double] = [.float32: 1e11, .bfloat16: 2e11, .int8: 4e11]
    let computing = work.operationsByType.reduce(0) { $0 + $1.value / (rates[$1.key] ?? 1e11) }
    return max(computing, work.bytes / 5e10)
  }

  /// Which steps hang together: disjoint sets.
  private struct Branches {
    private var parents: [Int: Int] = [:]

    mutating func add(_ step: Int) { parents[step] = step }

    func root(_ step: Int) -> Int {
      var step = step
      while let parent = parents[step], parent != step { step = parent }
      return step
    }

    mutating func unite(_ a: Int, _ b: Int) {
      let (a, b) = (root(a), root(b))
      parents[max(a, b)] = min(a, b)
    }
  }
}
