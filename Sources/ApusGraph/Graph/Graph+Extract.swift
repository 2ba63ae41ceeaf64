// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusTensor

extension Graph {
  /// A graph of its own made of some nodes: `inputs` become its inputs, `outputs` its results.
  ///
  /// Constants that the nodes use come along. Names are kept.
  package func extracting(
    nodes: [NodeID], inputs: [ValueID], outputs: [ValueID], name: String
  ) -> Graph {
    var part = Graph(name: name)
    part.isBody = isBody
    var mapped: [ValueID: ValueID] = [:]
    for input in inputs {
      let id = part.addInput(self[input].name, self[input].type)
      part[id].symbolic = self[input].symbolic
      mapped[input] = id
    }
    func map(_ value: ValueID) -> ValueID? {
      if let known = mapped[value] { return known }
      guard let constant = self[value].constant else { return nil }
      let id = part.addConstant(self[value].name, constant, packing: self[value].packing)
      part[id].type = self[value].type
      mapped[value] = id
      return id
    }
    for id in nodes {
      let node = self[id]
      let new = part.addNode(
        node.op, node.inputs.map { $0.flatMap(map) }, types: node.outputs.map { self[$0].type },
        outputNames: node.outputs.map { self[$0].name }, name: node.name, location: node.location,
        sources: node.sources)
      for (old, fresh) in zip(node.outputs, part[new].outputs) {
        part[fresh].symbolic = self[old].symbolic
        mapped[old] = fresh
      }
    }
    for output in outputs { if let id = map(output) { part.addOutput(id, name: self[output].name) } }
    return part
  }
}
