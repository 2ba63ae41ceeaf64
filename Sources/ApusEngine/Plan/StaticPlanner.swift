// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusTensor

/// Turns a graph of known sizes into a `StaticPlan`: views instead of copies where a movement operator
/// only renames bytes, a kernel for every other node, one arena from lifetimes, results written where
/// the caller wants them, pointwise results over dying operands.
package struct StaticPlanner {
  /// Which forks of a network get memory for branches that run side by side.
  package enum Forks: Sendable {
    /// Those that the library's choices name.
    case chosen
    /// All, to measure them.
    case all
  }

  private let library: KernelLibrary
  private let forks: Forks

  package init(library: KernelLibrary, forks: Forks = .chosen) {
    self.library = library
    self.forks = forks
  }

  /// A storage location shared by all values that are views of it.
  private struct Buffer {
    var byteCount: Int
    var first: Int
    var last: Int
    /// The graph result that this buffer is, if any.
    var output: Int?
  }

  private enum Home {
    case buffer(Int, byteOffset: Int)
    case fixed(StaticPlan.Slot)
  }

  private struct PendingStep {
    var node: NodeID
    var compiled: KernelLibrary.Compiled
    var problem: Problem
    var workspace: Int?
    /// Packed copies of constants that the graph stores row-major.
    var packed: [Int: DeviceMemory]
  }

  private struct PendingCopy {
    var source: Home
    var output: Int
    var byteCount: Int
  }

  /// The nodes that become kernels, in order, with the problems they pose where their operands and results
  /// lie.
  ///
  /// - Throws: `internal` when a size is open.
  package func problems(of graph: Graph) throws(ApusError) -> [(node: NodeID, problem: Problem)] {
    let order = try graph.topologicalOrder()
    let views = Self.viewsByNode(graph, order)
    let hosted = try HostedValues(graph, order, views: Set(views.keys), selector: library.selector)
    var problems: [(node: NodeID, problem: Problem)] = []
    for id in order where views[id] == nil && !hosted.joined.contains(id) {
      problems.append((id, try hosted.problem(graph[id], in: graph)))
    }
    return problems
  }

  /// - Throws: `internal` when a size is open, or what compiling a kernel throws.
  package func plan(_ graph: Graph) throws(ApusError) -> StaticPlan {
    var buffers: [Buffer] = []
    var homes: [ValueID: Home] = [:]
    for (index, input) in graph.inputs.enumerated() { homes[input] = .fixed(.input(index, 0)) }
    for id in graph.values where !graph[id].consumers.isEmpty || graph.isOutput(id) {
      if let constant = graph[id].constant, constant.dataType != .string {
        homes[id] = .fixed(.constant(try library.memory(of: constant), 0))
      }
    }
    let order = try graph.topologicalOrder()
    let views = Self.viewsByNode(graph, order)
    let hosted = try HostedValues(graph, order, views: Set(views.keys), selector: library.selector)
    let lastUse = lastUses(graph, order, views, hosted)
    var pending: [PendingStep] = []
    var search = ForkSearch(graph)
    for id in order {
      let node = graph[id]
      if hosted.joined.contains(id) {
        search.addConcatenation(node)
        let result = node.outputs[0]
        let home = try self.home(of: result, hosted, graph, &homes, &buffers, at: pending.count)
        touch(home, at: pending.count, &buffers)
        continue
      }
      if let offsets = views[id] {
        search.addView(node)
        for (output, offset) in zip(node.outputs, offsets) {
          homes[output] = shifted(homes[node.inputs[0]!]!, by: offset)
          touch(homes[output]!, at: pending.count, &buffers)
        }
        continue
      }
      let problem = try hosted.problem(node, in: graph)
      let compiled = try library.compile(problem, node)
      let step = pending.count
      search.addStep(node, problem)
      for input in node.inputs.compactMap({ $0 }) { touch(homes[input]!, at: step, &buffers) }
      for (index, output) in node.outputs.enumerated() {
        let bytes = try byteCount(graph[output])
        if index == 0, hosted.places[output] == nil,
          let reused = inPlaceBuffer(compiled, node, graph, homes, hosted, buffers, lastUse, step, bytes)
        {
          buffers[reused].last = step
          homes[output] = .buffer(reused, byteOffset: 0)
        } else {
          touch(try home(of: output, hosted, graph, &homes, &buffers, at: step), at: step, &buffers)
        }
      }
      var workspace: Int?
      if compiled.kernel.workspaceByteCount > 0 {
        buffers.append(
          Buffer(
            byteCount: compiled.kernel.workspaceByteCount, first: step, last: step, output: nil))
        workspace = buffers.count - 1
      }
      pending.append(
        PendingStep(
          node: id, compiled: compiled, problem: problem, workspace: workspace,
          packed: try packedConstants(compiled, problem)))
    }
    let copies = try bindOutputs(graph, homes, &buffers)
    let forks = search.forks(lanes: library.backend.laneCount).filter { fork in
      self.forks == .all || library.runsSideBySide(fork) { pending[$0].problem }
    }
    keepTogether(forks, &buffers)
    return try assemble(graph, pending, homes, buffers, copies, forks)
  }

  /// What a branch needs at any time is kept all the time that the branches of its fork run.
  private func keepTogether(_ forks: [Fork], _ buffers: inout [Buffer]) {
    for fork in forks {
      for index in buffers.indices {
        if fork.steps.contains(buffers[index].first) { buffers[index].first = fork.steps.lowerBound }
        if fork.steps.contains(buffers[index].last) { buffers[index].last = fork.steps.upperBound - 1 }
      }
    }
  }

  /// Where a value is made: a part of its host's buffer, or a buffer of its own. The buffer is there from
  /// the first step that writes any part of it.
  private func home(
    of value: ValueID, _ hosted: HostedValues, _ graph: Graph, _ homes: inout [ValueID: Home],
    _ buffers: inout [Buffer], at step: Int
  ) throws(ApusError) -> Home {
    let place = hosted.places[value]
    let owner = place?.host ?? value
    if homes[owner] == nil {
      buffers.append(
        Buffer(byteCount: try byteCount(graph[owner]), first: step, last: step, output: nil))
      homes[owner] = .buffer(buffers.count - 1, byteOffset: 0)
    }
    guard let place, let home = homes[owner] else { return homes[owner]! }
    let bits = graph[value].type.tensor?.dataType.bitWidth ?? 0
    homes[value] = shifted(home, by: place.offset * (bits / 8))
    return homes[value]!
  }

  private func packedConstants(_ compiled: KernelLibrary.Compiled, _ problem: Problem)
    throws(ApusError) -> [Int: DeviceMemory]
  {
    var packed: [Int: DeviceMemory] = [:]
    for (index, layout) in compiled.packing {
      guard let input = problem.inputs[index], let constant = input.constant, input.packing == nil
      else { continue }
      packed[index] = try library.memory(of: constant, packing: layout)
    }
    return packed
  }

  private func byteCount(_ value: Value) throws(ApusError) -> Int {
    guard let type = value.type.tensor, let shape = type.shape,
      let bytes = type.dataType.byteCount(of: try Tensor.checkedCount(shape))
    else {
      throw ApusError(.internalError, "the size of '\(value.name)' is open: \(value.type)")
    }
    return bytes
  }

  private func shifted(_ home: Home, by byteCount: Int) -> Home {
    switch home {
    case .buffer(let index, let offset): .buffer(index, byteOffset: offset + byteCount)
    case .fixed(let slot): .fixed(slot.advanced(by: byteCount))
    }
  }

  private func touch(_ home: Home, at step: Int, _ buffers: inout [Buffer]) {
    guard case .buffer(let index, _) = home else { return }
    buffers[index].last = max(buffers[index].last, step)
  }

  /// For movement nodes whose results are contiguous pieces of operand 0: the pieces' byte offsets.
  private static func viewsByNode(_ graph: Graph, _ order: [NodeID]) -> [NodeID: [Int]] {
    var views: [NodeID: [Int]] = [:]
    for id in order {
      let node = graph[id]
      guard let op = node.op as? any MovementOperator, let first = node.inputs.first, let first,
        graph[first].packing == nil, let type = graph[first].type.tensor, !type.dataType.isPacked,
        let offsets = contiguousPieces(op, node, graph)
      else { continue }
      views[id] = offsets.map { $0 * type.dataType.bitWidth / 8 }
    }
    return views
  }

  private static func contiguousPieces(_ op: any MovementOperator, _ node: Node, _ graph: Graph) -> [Int]? {
    guard op.movedInputs(count: node.inputs.count) == [0] else { return nil }
    let operands = node.inputs.map { $0.flatMap { graph[$0].constant } }
    let shapes = node.inputs.map { $0.flatMap { graph[$0].type.tensor?.shape } }
    guard let plan = try? op.copyPlan(operands, shapes: shapes).simplified(), plan.fill == nil,
      plan.outputShapes.count == node.outputs.count
    else { return nil }
    var offsets = [Int?](repeating: nil, count: node.outputs.count)
    for copy in plan.copies {
      let isRun =
        copy.sizes.isEmpty
        || (copy.sizes.count == 1 && copy.sourceStrides == [1] && copy.targetStrides == [1])
      guard isRun, copy.targetOffset == 0, copy.sourceOffset >= 0, offsets[copy.output] == nil else {
        return nil
      }
      offsets[copy.output] = copy.sourceOffset
    }
    let result = offsets.compactMap { $0 }
    return result.count == offsets.count ? result : nil
  }

  /// The last step that reads each buffer-owning value, views and hosted values followed to their owner.
  private func lastUses(
    _ graph: Graph, _ order: [NodeID], _ views: [NodeID: [Int]], _ hosted: HostedValues
  ) -> [ValueID: Int] {
    var last: [ValueID: Int] = [:]
    var owner = hosted.places.mapValues(\.host)
    var step = 0
    for id in order {
      let node = graph[id]
      for input in node.inputs.compactMap({ $0 }) { last[owner[input] ?? input] = step }
      if views[id] != nil {
        for output in node.outputs { owner[output] = owner[node.inputs[0]!] ?? node.inputs[0]! }
      } else if !hosted.joined.contains(id) {
        step += 1
      }
    }
    for output in graph.outputs { last[owner[output] ?? output] = .max }
    return last
  }

  private func inPlaceBuffer(
    _ compiled: KernelLibrary.Compiled, _ node: Node, _ graph: Graph, _ homes: [ValueID: Home],
    _ hosted: HostedValues, _ buffers: [Buffer], _ lastUse: [ValueID: Int], _ step: Int, _ bytes: Int
  ) -> Int? {
    for index in compiled.inPlaceInputs {
      guard index < node.inputs.count, let input = node.inputs[index],
        case .buffer(let buffer, let offset)? = homes[input], offset == 0,
        buffers[buffer].byteCount == bytes, buffers[buffer].last <= step,
        let last = lastUse[input], last == step,
        node.inputs.filter({ $0 == input }).count == 1,
        // A view keeps the buffer alive under another name, and so does a part of it that is read, too.
        hosted.places[input] == nil, let producer = graph[input].producer,
        hosted.joined.contains(producer) || !isView(graph[producer], homes, input),
        node.inputs.allSatisfy({ other in
          other.map { $0 == input || !isIn(buffer, homes[$0]) } ?? true
        }),
        graph.useCount(input) == 1
      else { continue }
      return buffer
    }
    return nil
  }

  private func isIn(_ buffer: Int, _ home: Home?) -> Bool {
    guard case .buffer(buffer, _)? = home else { return false }
    return true
  }

  private func isView(_ node: Node, _ homes: [ValueID: Home], _ value: ValueID) -> Bool {
    guard node.op is any MovementOperator, let first = node.inputs.first, let first,
      case .buffer(let a, _)? = homes[first], case .buffer(let b, _)? = homes[value]
    else { return false }
    return a == b
  }

  /// Lets results be written in the caller's memory; those that cannot be are copied at the end.
  private func bindOutputs(_ graph: Graph, _ homes: [ValueID: Home], _ buffers: inout [Buffer])
    throws(ApusError) -> [PendingCopy]
  {
    var copies: [PendingCopy] = []
    for (index, output) in graph.outputs.enumerated() {
      let bytes = try byteCount(graph[output])
      guard let home = homes[output] else {
        throw ApusError(.internalError, "result '\(graph.outputNames[index])' has no storage")
      }
      if case .buffer(let buffer, 0) = home, buffers[buffer].output == nil,
        buffers[buffer].byteCount == bytes
      {
        buffers[buffer].output = index
      } else {
        touch(home, at: .max - 1, &buffers)
        copies.append(PendingCopy(source: home, output: index, byteCount: bytes))
      }
    }
    return copies
  }

  private func assemble(
    _ graph: Graph, _ pending: [PendingStep], _ homes: [ValueID: Home], _ buffers: [Buffer],
    _ copies: [PendingCopy], _ forks: [Fork]
  ) throws(ApusError) -> StaticPlan {
    let planned = buffers.indices.filter { buffers[$0].output == nil }
    let memory = MemoryPlanner.plan(
      planned.map { index in
        Lifetime(
          first: buffers[index].first, last: buffers[index].last,
          byteCount: buffers[index].byteCount)
      })
    var slots = buffers.map { StaticPlan.Slot.output($0.output ?? 0, 0) }
    for (position, index) in planned.enumerated() { slots[index] = .arena(memory.offsets[position]) }
    func slot(_ home: Home) -> StaticPlan.Slot {
      switch home {
      case .fixed(let slot): slot
      case .buffer(let index, let offset): slots[index].advanced(by: offset)
      }
    }
    let steps = pending.map { step in
      let node = graph[step.node]
      var arguments = node.inputs.map { $0.map { slot(homes[$0]!) } ?? .none }
      for (index, memory) in step.packed { arguments[index] = .constant(memory, 0) }
      arguments += node.outputs.map { slot(homes[$0]!) }
      arguments.append(step.workspace.map { slots[$0] } ?? .none)
      return StaticPlan.Step(
        kernel: step.compiled.kernel, slots: arguments, nodeName: node.name,
        operatorName: node.op.name, sources: node.sources, tacticID: step.compiled.choice.id,
        tacticSource: step.compiled.choice.tactic.source, problem: step.problem)
    }
    Log.debug(2, "plan of \(steps.count) kernels, \(memory.peakByteCount) bytes of activations")
    return StaticPlan(
      inputTypes: try types(graph, graph.inputs), outputTypes: try types(graph, graph.outputs),
      steps: steps,
      copies: copies.map {
        StaticPlan.Copy(source: slot($0.source), output: $0.output, byteCount: $0.byteCount)
      },
      memory: memory, forks: forks)
  }

  private func types(_ graph: Graph, _ values: [ValueID]) throws(ApusError) -> [TensorType] {
    var result: [TensorType] = []
    for value in values {
      guard let type = graph[value].type.tensor else {
        throw ApusError(.internalError, "'\(graph[value].name)' is not a tensor")
      }
      result.append(type)
    }
    return result
  }
}
