// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusKernel
import ApusOps

/// Values that are made inside the tensor they become a part of, so that their concatenation costs nothing.
///
/// A concatenation is joined when all of its operands can be made in place: along an axis with only ones
/// before it they are contiguous pieces of the result, along the last axis they are pieces of its rows. Where
/// they are pieces of rows, their producers must write, and their other readers read, with gaps between rows.
/// An operand may be a joined concatenation itself, and some of them one of their own.
///
/// What is decided follows from the graph and the backend's tactics alone: the tuner, the packing of constants
/// and every plan come to the same result.
struct HostedValues {
  /// Where a value is made.
  struct Place {
    /// The value in whose memory it is, which is not hosted itself.
    var host: ValueID
    /// Elements from the host's first to the value's first.
    var offset: Int
    /// Elements from one row to the next; nil where rows follow each other.
    var pitch: Int?
  }

  /// The hosted values.
  private(set) var places: [ValueID: Place] = [:]
  /// The concatenations that are done when their operands are.
  private(set) var joined: Set<NodeID> = []

  /// Finds the values of a graph of known sizes that are hosted. `views` are the nodes without a kernel.
  ///
  /// - Throws: `internal` when a size is open.
  init(_ graph: Graph, _ order: [NodeID], views: Set<NodeID>, selector: TacticSelector) throws(ApusError) {
    guard graph.nodes.contains(where: { graph[$0].op is Concat }) else { return }
    let search = Search(graph: graph, views: views, selector: selector)
    // The outermost of nested concatenations hosts them all, so the last one goes first.
    for id in order.reversed() where !joined.contains(id) {
      let node = graph[id]
      guard node.op is Concat, places[node.outputs[0]] == nil else { continue }
      _ = try join(id, at: Place(host: node.outputs[0], offset: 0, pitch: nil), search)
    }
  }

  /// The problem that a node poses where its operands and results lie.
  ///
  /// - Throws: `internal` when a size is open.
  func problem(_ node: Node, in graph: Graph) throws(ApusError) -> Problem {
    try Problem(node, in: graph, pitches: places.compactMapValues(\.pitch))
  }

  /// What does not change during the search.
  private struct Search {
    let graph: Graph
    let views: Set<NodeID>
    let selector: TacticSelector
    let known = KnownChoices()

    /// The choice estimated fastest.
    func best(_ problem: Problem) -> String? {
      let key = problem.storedKey
      if let id = known.ids[key] { return id }
      let id = selector.candidates(problem).choices.first?.id
      known.ids[key] = .some(id)
      return id
    }
  }

  /// Nodes of a network repeat problems.
  private final class KnownChoices { var ids: [String: String?] = [:] }

  /// Places all operands of a concatenation whose result is at `place`, or changes nothing.
  private mutating func join(_ id: NodeID, at place: Place, _ search: Search) throws(ApusError) -> Bool {
    let graph = search.graph
    let node = graph[id]
    guard let op = node.op as? Concat, !search.views.contains(id),
      let type = graph[node.outputs[0]].type.tensor, let shape = type.shape, !type.dataType.isPacked,
      shape.reduce(1, &*) > 0
    else { return false }
    let axis = op.axis < 0 ? op.axis + shape.count : op.axis
    let isContiguous = shape[..<axis].reduce(1, &*) == 1
    let isLast = axis == shape.count - 1
    guard isLast || (isContiguous && place.pitch == nil) else { return false }
    var parts: [(value: ValueID, place: Place)] = []
    var next = place
    next.pitch = isContiguous ? nil : place.pitch ?? shape[axis]
    for input in node.inputs {
      guard let input, let part = graph[input].type.tensor?.shape, part.count == shape.count else {
        return false
      }
      parts.append((input, next))
      next.offset += part[axis...].reduce(1, &*)
    }
    var trial = self
    trial.joined.insert(id)
    try trial.joinRuns(of: parts, axis: op.axis, search)
    for (value, place) in parts where try !trial.host(value, at: place, search) { return false }
    self = trial
    return true
  }

  /// Joins the concatenations of operands that are neighbours in another one, whose result then has theirs
  /// in it: networks that hand lists of tensors on concatenate ever longer ones.
  private mutating func joinRuns(
    of parts: [(value: ValueID, place: Place)], axis: Int, _ search: Search
  ) throws(ApusError) {
    let graph = search.graph
    for (index, part) in parts.enumerated() {
      for id in graph[part.value].consumers where !joined.contains(id) && !search.views.contains(id) {
        let node = graph[id]
        let result = node.outputs[0]
        guard let op = node.op as? Concat, op.axis == axis, places[result] == nil,
          !graph.isOutput(result), node.inputs == parts[index...].prefix(node.inputs.count).map(\.value)
        else { continue }
        var trial = self
        trial.places[result] = part.place
        trial.joined.insert(id)
        if try trial.canBeRead(result, search) { self = trial }
      }
    }
  }

  /// Places an operand of a concatenation if its producer and all other readers can do with it.
  private mutating func host(_ value: ValueID, at place: Place, _ search: Search)
    throws(ApusError) -> Bool
  {
    let graph = search.graph
    guard places[value] == nil, graph[value].constant == nil, !graph.isOutput(value),
      let producer = graph[value].producer, !search.views.contains(producer),
      graph[value].type.tensor?.shape?.contains(0) == false
    else { return false }
    places[value] = place
    guard try canBeRead(value, search) else { return false }
    if try join(producer, at: place, search) { return true }
    return try takes(producer, search)
  }

  /// Whether all readers of a placed value can do with its place.
  private func canBeRead(_ value: ValueID, _ search: Search) throws(ApusError) -> Bool {
    for reader in search.graph[value].consumers where !joined.contains(reader) {
      let isView = search.views.contains(reader)
      if isView ? places[value]?.pitch != nil : try !takes(reader, search) { return false }
    }
    return true
  }

  /// Whether a node loses nothing by where its operands and results are placed: the tactic that would be
  /// chosen without a measurement is there all the same.
  private func takes(_ id: NodeID, _ search: Search) throws(ApusError) -> Bool {
    let node = search.graph[id]
    let here = try problem(node, in: search.graph)
    let apart = try Problem(node, in: search.graph)
    return here.key == apart.key || search.best(here) == search.best(apart)
  }
}
