// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import ApusBase
import ApusGraph
import ApusONNX
import ApusProto
import ApusTensor
import Testing

/// What people read when a model cannot be imported.
@Suite struct BadModelTests {
  private func failure(
    _ nodes: [ONNXNodeProto], tensors: [ONNXTensorProto] = [], inputs: [ONNXValueInfoProto]? = nil,
    outputs: [String] = ["y"], opset: Int64 = 17, functions: [ONNXFunctionProto] = [],
    domains: [String] = [], folder: String? = nil
  ) throws -> String {
    let graph = Make.graph(
      nodes, inputs: inputs ?? [Make.input("x", [2])], outputs: outputs, tensors: tensors)
    let bytes = try Make.model(graph, opset: opset, functions: functions, domains: domains)
    return Make.failure(bytes, folder: folder) ?? "no error"
  }

  @Test func unsupportedOperatorsAreListedTogether() throws {
    let body = Make.graph([Make.node("Wiggle", ["x"], ["b"])], inputs: [], outputs: ["b"])
    let text = try failure(
      [
        Make.node("Wobble", ["x"], ["a"], name: "first"),
        Make.node("Wobble", ["a"], ["b"]),
        Make.node("Fancy", ["b"], ["c"], name: "third", domain: "com.example"),
        Make.node("Mix", ["c"], ["y"], [Make.attribute("body", body)]),
      ], domains: ["com.example"])
    #expect(
      text == """
        error [unsupported-operator]: 3 operators in 4 nodes are not supported:
          ai.onnx.Wiggle-17: 1 node ('Mix_3.body/Wiggle_0')
          ai.onnx.Wobble-17: 2 nodes ('first', 'Wobble_1')
          com.example.Fancy-1: 1 node ('third')
        hint: 'apus ops' lists what is supported; register an operator of your own \
        (ONNXOperatorTable.register, apus.register_operator in Python), or export the model \
        with other operators
        """)
  }

  @Test func structuralErrors() throws {
    #expect(
      try failure([Make.node("Mix", ["ghost"], ["y"], name: "n")]) == """
        node 'n' (ai.onnx.Mix-17): error [invalid-graph]: input 0 is 'ghost', which nothing in \
        the graph provides
        hint: the model is incomplete; run onnx.checker.check_model on it
        """)
    #expect(
      try failure([Make.node("Mix", ["b"], ["y"]), Make.node("Mix", ["y"], ["b"])]) == """
        node 'Mix_0': error [invalid-graph]: the node depends on its own result
        hint: the graph has a cycle; ONNX graphs must not
        """)
    #expect(
      try failure([Make.node("Mix", ["x"], ["y"]), Make.node("Mix", ["x"], ["y"])]) == """
        node 'Mix_1': error [invalid-graph]: 'y' is computed by two nodes
        hint: every value of an ONNX graph has one producer; run onnx.checker.check_model
        """)
    #expect(try failure([Make.node("Mix", ["x"], ["z"])]).contains("'y' is never computed"))
    #expect(try failure([], outputs: []).contains("the graph has no outputs"))
    let twice = [Make.tensor("w", [1], [1]), Make.tensor("w", [1], [2])]
    #expect(
      try failure([Make.node("Mix", ["x"], ["y"])], tensors: twice).contains(
        "the name 'w' is given to two inputs or initializers"))
    #expect(
      try failure([Make.node("Mix", ["x"], ["x"])], outputs: ["x"]).contains(
        "depends on its own result"))
    #expect(
      try failure([Make.node("Mix", ["x"], ["y"])], opset: 6).contains(
        "ai.onnx.Mix-6: 1 node ('Mix_0'), known from version 7"))
  }

  @Test func attributeErrors() throws {
    var wrong = Make.attribute("kind", 1)
    wrong.type = .floats
    #expect(
      try failure([Make.node("Mix", ["x"], ["y"], name: "n", [wrong])]) == """
        node 'n' (ai.onnx.Mix-17): error [invalid-attribute]: attribute 'kind' is not an integer
        hint: check the model with onnx.checker.check_model(path, full_check=True)
        """)
    let kind = Make.attribute("kind", 1)
    #expect(
      try failure([Make.node("Mix", ["x"], ["y"], [kind, kind])]).contains("is given twice"))
    #expect(
      try failure([Make.node("Mix", ["x"], ["y"], [Make.attribute("kind", reference: "k")])])
        .contains("outside any function"))
  }

  @Test func recursiveFunctions() throws {
    let a = Make.function(
      "f", "A", ["p"], ["r"], [Make.node("B", ["p"], ["r"], domain: "f")], domains: ["f"])
    let b = Make.function(
      "f", "B", ["p"], ["r"], [Make.node("A", ["p"], ["r"], domain: "f")], domains: ["f"])
    let text = try failure(
      [Make.node("A", ["x"], ["y"], domain: "f")], functions: [a, b], domains: ["f"])
    #expect(text.contains("the function 'f.A' calls itself"), "\(text)")
  }

  @Test func tensorErrors() throws {
    func message(_ change: (inout ONNXTensorProto) -> Void, folder: String? = nil) throws -> String
    {
      var tensor = Make.tensor("w", [2], [1, 2])
      change(&tensor)
      return try failure(
        [Make.node("Mix", ["x", "w"], ["y"])], tensors: [tensor], folder: folder)
    }
    #expect(try message { $0.dims = [3] }.contains("tensor 'w': it has 2 values, f32[3] needs 3"))
    #expect(try message { $0.dims = [-1] }.contains("a dimension is -1"))
    #expect(try message { $0.dims = [1 << 40, 1 << 40] }.contains("not a possible tensor shape"))
    #expect(try message { $0.dims = [1 << 45] }.contains("is too large"))
    #expect(try message { $0.dataType = 77 }.contains("77 is not the number of an element type"))
    #expect(try message { $0.setRawData([1, 2, 3]) }.contains("it has 3 bytes of data"))
    func external(_ location: String, offset: String? = nil, length: String? = nil)
      -> (inout ONNXTensorProto) -> Void
    {
      { tensor in
        tensor.floatData = []
        tensor.dataLocation = .external
        for (key, value) in [("location", location), ("offset", offset), ("length", length)] {
          guard let value else { continue }
          var entry = ONNXStringStringEntryProto()
          entry.key = key
          entry.value = value
          tensor.externalData.append(entry)
        }
      }
    }
    for path in ["../secret", "/etc/passwd", "a/../../b", "", "..", "a\\..\\b"] {
      #expect(try message(external(path), folder: "/tmp").contains("leaves the model's folder"))
    }
    #expect(try message(external("w.bin")).contains("external file 'w.bin'"))
    #expect(try message(external("no-such-file"), folder: "/tmp").contains("file-access"))
    #expect(
      try message(external("w.bin", offset: "-4"), folder: "/").contains("file-access"))
  }

  @Test func externalDataIsChecked() throws {
    let folder = "/tmp/apus-external-\(Clock.seconds)"
    // A file beside the "model", in /tmp itself.
    let name = String((folder + ".bin").dropFirst(5))
    let values: [Float] = [1, 2, 3, 4]
    try FileIO.write(bytes: values.withUnsafeBytes { Array($0) }, to: folder + ".bin")
    func tensor(_ offset: String?, _ length: String?) -> ONNXTensorProto {
      var tensor = Make.tensor("w", [2], [])
      tensor.dataLocation = .external
      for (key, value) in [("location", name), ("offset", offset), ("length", length)] {
        guard let value else { continue }
        var entry = ONNXStringStringEntryProto()
        entry.key = key
        entry.value = value
        tensor.externalData.append(entry)
      }
      return tensor
    }
    let node = Make.node("Mix", ["x", "w"], ["y"])
    let graph = try ONNXImporter(table: TestTable.table).importModel(
      bytes: Make.model(
        Make.graph(
          [node], inputs: [Make.input("x", [2])], outputs: ["y"], tensors: [tensor("4", "8")])),
      directory: "/tmp")
    #expect(graph.value(named: "w").flatMap { graph[$0].constant }?.floats() == [2, 3])
    for (offset, length) in [
      ("12", "8"), ("99999999999", "8"), ("-1", nil), ("0", "7"), ("x", nil),
    ]
      as [(String, String?)]
    {
      let text = try failure([node], tensors: [tensor(offset, length)], folder: "/tmp")
      #expect(text.contains("malformed-file"), "\(text)")
    }
  }
}
