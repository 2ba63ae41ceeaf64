# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Operators registered from Python."""

import numpy as np
import onnx
import onnx.helper as oh
import pytest

import apus


def model(nodes, outputs=("y",), domains=("test.custom",)):
    """A model over x[N, 4]."""
    ports = [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 4])]
    results = [oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    graph = oh.make_graph(nodes, "g", ports, results)
    opsets = [oh.make_opsetid("", 17)] + [oh.make_opsetid(domain, 1) for domain in domains]
    made = oh.make_model(graph, opset_imports=opsets, ir_version=9)
    return made.SerializeToString()


@pytest.fixture
def x():
    return np.arange(12, dtype=np.float32).reshape(3, 4) - 5


def test_attributes_and_neighbours(x):
    seen = {}

    @apus.register_operator("test.custom", "Scale", results="#0")
    def scale(inputs, attributes):
        seen.update(attributes)
        return inputs[0] * np.float32(attributes["factor"])

    nodes = [
        oh.make_node("Relu", ["x"], ["a"]),
        oh.make_node("Scale", ["a"], ["b"], domain="test.custom", factor=2.5, names=["p", "q"],
                     table=onnx.numpy_helper.from_array(np.array([[1, 2]], np.int64))),
        oh.make_node("Neg", ["b"], ["y"]),
    ]
    engine = apus.build(model(nodes))
    np.testing.assert_array_equal(engine.run({"x": x})["y"], -(np.maximum(x, 0) * 2.5))
    assert seen["names"] == ["p", "q"]
    np.testing.assert_array_equal(seen["table"], [[1, 2]])


def test_shapes_that_data_decide(x):
    @apus.register_operator("test.custom", "Positive", results=["f32", "i64"])
    def positive(inputs, attributes):
        kept = inputs[0][inputs[0] > 0]
        return kept, np.array(kept.size)

    nodes = [
        oh.make_node("Positive", ["x"], ["kept", "count"], domain="test.custom"),
        oh.make_node("Exp", ["kept"], ["e"]),
        oh.make_node("Cast", ["count"], ["c"], to=onnx.TensorProto.FLOAT),
        oh.make_node("Div", ["e", "c"], ["y"]),
    ]
    engine = apus.build(model(nodes))
    for data in (x, x[:2], x * 0):
        kept = data[data > 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            np.testing.assert_allclose(
                engine.run({"x": data})["y"], np.exp(kept) / kept.size, rtol=1e-5)


def test_omitted_inputs_and_engine_files(x, tmp_path):
    @apus.register_operator("test.custom", "AddGiven", results="#0")
    def add_given(inputs, attributes):
        return sum(array for array in inputs if array is not None)

    nodes = [
        oh.make_node("AddGiven", ["x", "", "x"], ["a"], domain="test.custom"),
        oh.make_node("AddGiven", ["a", "x", ""], ["y"], domain="test.custom"),
    ]
    engine = apus.build(model(nodes))
    engine.save(tmp_path / "custom.plan")
    loaded = apus.Engine.load(tmp_path / "custom.plan")
    np.testing.assert_array_equal(loaded.run({"x": x})["y"], 3 * x)


def test_errors(x):
    with pytest.raises(apus.ApusError, match="register_operator") as refused:
        apus.build(model([oh.make_node("Nowhere", ["x"], ["y"], domain="test.custom")]))
    assert refused.value.code == "unsupported-operator"
    with pytest.raises(apus.ApusError, match="not the type of a result"):
        apus.register_operator("test.custom", "Bad", results="floats")(lambda i, a: i[0])

    apus.register_operator("test.custom", "Raises", results="#0")(lambda i, a: i[0][99])
    apus.register_operator("test.custom", "Lies", results="#0")(lambda i, a: i[0][:1])
    apus.register_operator("test.custom", "Retypes", results="i64")(lambda i, a: i[0])
    apus.register_operator("test.custom", "Forgets", results=["#0", "#0"])(lambda i, a: i[0])
    for name, message in [("Raises", "IndexError"), ("Lies", "like input 0"),
                          ("Retypes", "declared as i64"), ("Forgets", "1 results")]:
        outputs = ["y", "z"] if name == "Forgets" else ["y"]
        node = oh.make_node(name, ["x"], outputs, domain="test.custom", name="the_node")
        engine = apus.build(model([node], outputs))
        with pytest.raises(apus.ApusError, match=message) as failed:
            engine.run({"x": x})
        assert "the_node" in str(failed.value)
