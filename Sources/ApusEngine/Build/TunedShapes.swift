// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// The concrete input shapes a build tunes for: the configuration's, else the batch for leading
/// symbols and 1 for the others.
struct TunedShapes {
  private let configuration: BuilderConfiguration

  init(_ configuration: BuilderConfiguration) { self.configuration = configuration }

  /// The type of each input.
  ///
  /// - Throws: `invalid-argument` for a name or shape that does not fit.
  func types(of graph: Graph) throws(ApusError) -> [ValueType] {
    let names = Set(graph.inputs.map { graph[$0].name })
    for name in configuration.shapes.keys.sorted() where !names.contains(name) {
      throw InputCheck.unknown(name, graph)
    }
    let symbols = try symbolSizes(graph)
    return graph.inputs.map { id in
      guard case .tensor(let type) = graph[id].type, let dims = type.dims else {
        return graph[id].type
      }
      let shape = configuration.shapes[graph[id].name]?.optimum
      return .tensor(
        TensorType(
          type.dataType,
          dims.indices.map { axis in
            if let shape, axis < shape.count { return Dim(shape[axis]) }
            if dims[axis].value != nil { return dims[axis] }
            return dims[axis].symbolName.flatMap { symbols[$0] }.map { Dim($0) } ?? Dim(1)
          }))
    }
  }

  private func symbolSizes(_ graph: Graph) throws(ApusError) -> [String: Int] {
    var sizes: [String: Int] = [:]
    for id in graph.inputs {
      guard let dims = graph[id].type.tensor?.dims else { continue }
      let shape = configuration.shapes[graph[id].name]?.optimum
      if let shape, shape.count != dims.count {
        throw ApusError(
          .invalidArgument,
          "the shape \(shape) given for '\(graph[id].name)' does not fit \(graph[id].type)")
      }
      for (axis, dim) in dims.enumerated() {
        guard let symbol = dim.symbolName else { continue }
        if let shape {
          sizes[symbol] = shape[axis]
        } else if axis == 0, let batch = configuration.batch, sizes[symbol] == nil {
          sizes[symbol] = batch
        }
      }
    }
    return sizes
  }

  /// Checks the ranges of the configuration against the declared types.
  func checkRanges(_ graph: Graph) throws(ApusError) {
    for id in graph.inputs {
      guard let range = configuration.shapes[graph[id].name], let dims = graph[id].type.tensor?.dims
      else { continue }
      for (axis, dim) in dims.enumerated() {
        let sizes = [range.minimum, range.optimum, range.maximum].map {
          axis < $0.count ? $0[axis] : -1
        }
        let ordered = sizes[0] >= 0 && sizes[0] <= sizes[1] && sizes[1] <= sizes[2]
        guard ordered, dim.value == nil || sizes.allSatisfy({ $0 == dim.value }) else {
          throw ApusError(
            .invalidArgument,
            "the sizes \(sizes) given for axis \(axis) of '\(graph[id].name)' do not fit \(dim)",
            hint: "give MIN <= OPT <= MAX, and fixed sizes as they are in the model")
        }
      }
    }
    guard let batch = configuration.batch else { return }
    guard batch > 0 else {
      throw ApusError(.invalidArgument, "a batch of \(batch) is not possible")
    }
    let hasSymbol = graph.inputs.contains { id in
      graph[id].type.tensor?.dims?.first.map { $0.value == nil } ?? false
    }
    let isFixed = graph.inputs.contains { id in
      graph[id].type.tensor?.dims?.first?.value.map { $0 == batch } ?? false
    }
    guard hasSymbol || isFixed else {
      throw ApusError(
        .invalidArgument, "the model's batch size is fixed and not \(batch)",
        hint: "export the model with a symbolic batch dimension")
    }
  }
}
