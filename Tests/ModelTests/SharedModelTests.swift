// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

import Apus
import ApusTestSupport
import Testing

/// Models that lie beside the project, when they do: what needs no Python. The comparison with recorded
/// outputs is in `Python/tests/test_models.py`.
@Suite(.enabled(if: SharedFolder.isPresent)) struct SharedModelTests {
  @Test(arguments: [
    "mnist/mnist.onnx", "mobilenetv2/mobilenetv2.onnx", "resnet20-cifar10/resnet20-cifar10.onnx",
    "ultraface-rfb320/version-RFB-320.onnx", "dtln-onnx/model_1.onnx",
  ])
  func enginesAgreeWithTheReference(_ model: String) throws {
    let path = "\(try #require(SharedFolder.path))/models/\(model)"
    let graph = try Model.load(path: path)
    var configuration = BuilderConfiguration()
    configuration.level = 1
    let engine = try Builder(configuration).build(graph)
    let inputs = try engine.sampleInputs()
    let got = try engine.makeContext().run(inputs)
    let expected = try ReferenceInterpreter.run(
      graph, inputs: graph.inputs.map { id in inputs[graph[id].name].map { .tensor($0) } })
    for (name, value) in zip(graph.outputNames, expected) {
      let difference = TensorDifference(
        try #require(got[name]), try #require(value.tensor))
      #expect(difference.relativeL2 <= 1e-4, "\(name): \(difference)")
    }
  }
}
