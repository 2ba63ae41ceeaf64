// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusTensor

/// Decision trees whose leaves' weights are added up for each target (ai.onnx.ml `TreeEnsemble`).
public struct TreeEnsemble: Operator {
  public static let name = "TreeEnsemble"

  /// How the weights that reach one target become one number.
  public enum Aggregate: Int, Sendable { case average, sum, minimum, maximum }

  /// The comparison of a node: at most, below, at least, above, equal, different, one of a set.
  public enum Comparison: Int, Sendable {
    case atMost, below, atLeast, above, equal, different, member
  }

  /// The tables that describe the trees, one element a node or leaf.
  public struct Tables: Sendable {
    public var features: [Int] = []
    public var comparisons: [Int] = []
    public var splits: [Double] = []
    public var trueNodes: [Int] = []
    public var falseNodes: [Int] = []
    public var trueIsLeaf: [Int] = []
    public var falseIsLeaf: [Int] = []
    /// Whether a missing value goes the true way; empty for never.
    public var missingIsTrue: [Int] = []
    /// The sets of `member` nodes, in the order of the nodes, each ended by NaN.
    public var members: [Double] = []
    public var leafTargets: [Int] = []
    public var leafWeights: [Double] = []
    public var roots: [Int] = []

    /// Creates empty tables.
    public init() {}
  }

  public var tables: Tables
  public var targets: Int
  public var aggregate: Aggregate

  /// Creates the operator.
  ///
  /// - Throws: `invalid-attribute` for tables that contradict each other.
  public init(tables: Tables, targets: Int, aggregate: Aggregate = .sum) throws(ApusError) {
    self.tables = tables
    self.targets = targets
    self.aggregate = aggregate
    try check()
  }

  public init(reading attributes: inout AttributeReader) throws(ApusError) {
    var tables = Tables()
    tables.features = try attributes.ints("features")
    tables.comparisons = try attributes.ints("comparisons")
    tables.splits = try attributes.floats("splits")
    tables.trueNodes = try attributes.ints("true_nodes")
    tables.falseNodes = try attributes.ints("false_nodes")
    tables.trueIsLeaf = try attributes.ints("true_is_leaf")
    tables.falseIsLeaf = try attributes.ints("false_is_leaf")
    tables.missingIsTrue = try attributes.ints("missing_is_true", [])
    tables.members = try attributes.floats("members", [])
    tables.leafTargets = try attributes.ints("leaf_targets")
    tables.leafWeights = try attributes.floats("leaf_weights")
    tables.roots = try attributes.ints("roots")
    guard let aggregate = Aggregate(rawValue: try attributes.int("aggregate", 1)) else {
      throw ApusError(.invalidAttribute, "attribute 'aggregate' is not 0 to 3")
    }
    try self.init(tables: tables, targets: try attributes.int("targets"), aggregate: aggregate)
  }

  public var attributes: Attributes {
    [
      "features": .ints(tables.features), "comparisons": .ints(tables.comparisons),
      "splits": .floats(tables.splits), "true_nodes": .ints(tables.trueNodes),
      "false_nodes": .ints(tables.falseNodes), "true_is_leaf": .ints(tables.trueIsLeaf),
      "false_is_leaf": .ints(tables.falseIsLeaf), "missing_is_true": .ints(tables.missingIsTrue),
      "members": .floats(tables.members), "leaf_targets": .ints(tables.leafTargets),
      "leaf_weights": .floats(tables.leafWeights), "roots": .ints(tables.roots),
      "targets": .int(targets), "aggregate": .int(aggregate.rawValue),
    ]
  }

  private func check() throws(ApusError) {
    let t = tables
    let count = t.features.count
    let lengths = [
      t.comparisons.count, t.splits.count, t.trueNodes.count, t.falseNodes.count,
      t.trueIsLeaf.count, t.falseIsLeaf.count,
    ]
    func fits(_ node: Int, _ isLeaf: Int) -> Bool {
      node >= 0 && node < (isLeaf != 0 ? t.leafWeights.count : count)
    }
    guard lengths.allSatisfy({ $0 == count }), t.missingIsTrue.isEmpty || t.missingIsTrue.count == count,
      t.leafTargets.count == t.leafWeights.count, targets > 0, targets < 1 << 24,
      t.leafTargets.allSatisfy({ $0 >= 0 && $0 < targets }),
      t.comparisons.allSatisfy({ Comparison(rawValue: $0) != nil }),
      t.roots.allSatisfy({ $0 >= 0 && $0 < count }), t.features.allSatisfy({ $0 >= 0 }),
      (0..<count).allSatisfy({
        fits(t.trueNodes[$0], t.trueIsLeaf[$0]) && fits(t.falseNodes[$0], t.falseIsLeaf[$0])
      }),
      t.comparisons.filter({ $0 == Comparison.member.rawValue }).count
        <= t.members.filter(\.isNaN).count
    else { throw ApusError(.invalidAttribute, "the tables of the trees contradict each other") }
  }

  public func infer(_ inputs: InferenceInputs) throws(ApusError) -> [ValueType] {
    let x = try inputs.tensor(0)
    try inputs.requireFloat(0)
    guard let dims = x.dims else { return [typed(x.dataType, nil)] }
    guard dims.count == 2 else { throw ApusError(.typeMismatch, "samples are \(x), expected rows") }
    return [typed(x.dataType, [dims[0], Dim(targets)])]
  }

  public func evaluate(_ inputs: [RuntimeValue?]) throws(ApusError) -> [RuntimeValue] {
    _ = try infer(InferenceInputs(types: inputs.map { $0?.type }))
    let x = try inputs.required(0)
    let (rows, width) = (x.shape[0], x.shape[1])
    guard tables.features.allSatisfy({ $0 < width }) else {
      throw ApusError(.typeMismatch, "the trees ask for more features than \(width)")
    }
    let sets = memberSets()
    let values = x.doubles()
    let start: Double =
      switch aggregate {
      case .average, .sum: 0
      case .minimum: .greatestFiniteMagnitude
      case .maximum: -.greatestFiniteMagnitude
      }
    var result = [Double](repeating: start, count: try Tensor.checkedCount([rows, targets]))
    for row in 0..<rows {
      for root in tables.roots {
        let leaf = try leaf(from: root, values, row * width, sets)
        let place = row * targets + tables.leafTargets[leaf]
        let weight = tables.leafWeights[leaf]
        switch aggregate {
        case .sum: result[place] += weight
        case .average: result[place] += weight / Double(tables.roots.count)
        case .minimum: result[place] = min(result[place], weight)
        case .maximum: result[place] = max(result[place], weight)
        }
      }
    }
    return [.tensor(try Tensor(result, x.dataType, shape: [rows, targets]))]
  }

  /// The set of each `member` node.
  private func memberSets() -> [Int: Set<Double>] {
    let sets = tables.members.split(omittingEmptySubsequences: false) { $0.isNaN }.map { Set($0) }
    let nodes = tables.comparisons.indices.filter {
      tables.comparisons[$0] == Comparison.member.rawValue
    }
    return Dictionary(uniqueKeysWithValues: zip(nodes, sets))
  }

  private func leaf(from root: Int, _ values: [Double], _ offset: Int, _ sets: [Int: Set<Double>])
    throws(ApusError) -> Int
  {
    var node = root
    for _ in 0...tables.features.count {
      let value = values[offset + tables.features[node]]
      let isTrue = value.isNaN && !tables.missingIsTrue.isEmpty && tables.missingIsTrue[node] != 0
        || matches(node, value, sets)
      let next = isTrue ? tables.trueNodes[node] : tables.falseNodes[node]
      if (isTrue ? tables.trueIsLeaf[node] : tables.falseIsLeaf[node]) != 0 { return next }
      node = next
    }
    throw ApusError(.invalidAttribute, "a tree leads back to itself")
  }

  private func matches(_ node: Int, _ value: Double, _ sets: [Int: Set<Double>]) -> Bool {
    let split = tables.splits[node]
    switch Comparison(rawValue: tables.comparisons[node]) {
    case .atMost: return value <= split
    case .below: return value < split
    case .atLeast: return value >= split
    case .above: return value > split
    case .equal: return value == split
    case .different: return value != split
    case .member: return sets[node]?.contains(value) ?? false
    case nil: return false
    }
  }
}
