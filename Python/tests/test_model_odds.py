# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Peculiarities of models as exporters and tools leave them."""

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto, numpy_helper

import apus

X = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)


def port(name, shape=("N", 4), dtype=TensorProto.FLOAT):
    return oh.make_tensor_value_info(name, dtype, shape)


def model(nodes, inputs=None, outputs=None, tensors=(), opset=17, ir=9, opsets=(), **more):
    graph = oh.make_graph(
        nodes, "g", inputs or [port("x")], outputs or [port("y", None)], list(tensors), **more)
    ids = [oh.make_opsetid("", opset), *[oh.make_opsetid(*entry) for entry in opsets]]
    return oh.make_model(graph, opset_imports=ids, ir_version=ir)


def run(proto, **feed):
    return apus.build(proto.SerializeToString(), level=0).run(feed or {"x": X})["y"]


def add_weights(**more):
    weights = numpy_helper.from_array(np.full(4, 3, np.float32), "w")
    return model([oh.make_node("Add", ["x", "w"], ["y"])], tensors=[weights], **more)


@pytest.mark.parametrize("ir", range(3, 14))
def test_every_ir_version(ir):
    proto = add_weights(ir=ir, opset=7 if ir < 8 else 17)
    if ir == 3:  # there initialisers are inputs too
        proto.graph.input.append(port("w", (4,)))
    np.testing.assert_array_equal(run(proto), X + 3)


def test_unused_and_repeated_initialisers():
    proto = add_weights()
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(9, np.int8), "nobody"))
    proto.graph.initializer.append(proto.graph.initializer[0])
    np.testing.assert_array_equal(run(proto), X + 3)


def test_initialisers_that_contradict_each_other():
    proto = add_weights()
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.float32), "w"))
    with pytest.raises(apus.ApusError, match="'w'"):
        run(proto)


def test_names_left_out():
    proto = model([oh.make_node("Relu", ["x"], ["a"]), oh.make_node("Neg", ["a"], ["y"])])
    for node in proto.graph.node:
        node.name = ""
    proto.graph.name = ""
    np.testing.assert_array_equal(run(proto), -np.maximum(X, 0))


def test_repeated_node_names():
    proto = model([oh.make_node("Relu", ["x"], ["a"], name="n"),
                   oh.make_node("Neg", ["a"], ["y"], name="n")])
    np.testing.assert_array_equal(run(proto), -np.maximum(X, 0))


def test_empty_optional_inputs():
    high = numpy_helper.from_array(np.array(1, np.float32), "high")
    proto = model([oh.make_node("Clip", ["x", "", "high"], ["y"])], tensors=[high])
    np.testing.assert_array_equal(run(proto), np.minimum(X, 1))


def test_imports_that_no_node_uses():
    proto = add_weights(opsets=[("com.nobody", 7), ("ai.onnx.ml", 3)])
    np.testing.assert_array_equal(run(proto), X + 3)


def test_the_standard_domain_by_its_long_name():
    proto = add_weights()
    proto.graph.node[0].domain = "ai.onnx"
    np.testing.assert_array_equal(run(proto), X + 3)


@pytest.mark.parametrize("kind", ["value", "value_floats", "sparse_value"])
def test_constant_nodes(kind):
    values = np.array([0, 5, 0, 7], np.float32)
    if kind == "value":
        constant = oh.make_node("Constant", [], ["w"], value=numpy_helper.from_array(values))
    elif kind == "value_floats":
        constant = oh.make_node("Constant", [], ["w"], value_floats=values.tolist())
    else:
        sparse = oh.make_sparse_tensor(
            numpy_helper.from_array(values[[1, 3]], "w"),
            numpy_helper.from_array(np.array([1, 3], np.int64), "i"), [4])
        constant = oh.make_node("Constant", [], ["w"], sparse_value=sparse)
    proto = model([constant, oh.make_node("Add", ["x", "w"], ["y"])])
    np.testing.assert_array_equal(run(proto), X + values)


def test_dropout_and_batch_normalization_as_training_left_them():
    tensors = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in
               [("s", [1, 2]), ("b", [0, 1]), ("m", [0.5, 0]), ("v", [1, 4]), ("ratio", 0.3)]]
    nodes = [oh.make_node("BatchNormalization", ["i", "s", "b", "m", "v"], ["n"], epsilon=0.0),
             oh.make_node("Dropout", ["n", "ratio"], ["y", "mask"])]
    proto = model(nodes, [port("i", ("N", 2, 2))], [port("y", None)], tensors)
    x = X.reshape(2, 2, 2)
    scale, bias, mean, var = (numpy_helper.to_array(t).reshape(1, 2, 1) for t in tensors[:4])
    np.testing.assert_allclose(
        run(proto, i=x), (x - mean) / np.sqrt(var) * scale + bias, rtol=1e-6)


def test_shape_arithmetic_as_pytorch_exports_it():
    """view(x.size(0), -1) becomes Shape, Gather, Unsqueeze, Concat, Reshape."""
    tensors = [numpy_helper.from_array(np.array(0, np.int64), "zero"),
               numpy_helper.from_array(np.array([-1], np.int64), "rest"),
               numpy_helper.from_array(np.array([0], np.int64), "axes")]
    nodes = [oh.make_node("Shape", ["i"], ["s"]), oh.make_node("Gather", ["s", "zero"], ["n"]),
             oh.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
             oh.make_node("Concat", ["n1", "rest"], ["t"], axis=0),
             oh.make_node("Reshape", ["i", "t"], ["y"])]
    proto = model(nodes, [port("i", ("batch", 2, "width"))], tensors=tensors)
    engine = apus.build(proto.SerializeToString(), level=0)
    for shape in [(2, 2, 2), (1, 2, 7)]:
        x = np.random.default_rng(0).random(shape, np.float32)
        expected = x.reshape(shape[0], 2 * shape[2])
        np.testing.assert_array_equal(engine.run({"i": x})["y"], expected)


@pytest.mark.parametrize("shape", [(0, 4), (4,), (1, 0, 4), ()])
def test_zero_sizes_and_scalars(shape):
    proto = model([oh.make_node("Exp", ["x"], ["e"]), oh.make_node("Mul", ["e", "x"], ["y"])],
                  [port("x", [f"d{axis}" for axis in range(len(shape))])])
    x = np.random.default_rng(1).random(shape, np.float32)
    np.testing.assert_allclose(run(proto, x=x), np.exp(x) * x, rtol=1e-5)


def test_an_input_that_is_an_output():
    proto = model([oh.make_node("Relu", ["x"], ["y"])], outputs=[port("y"), port("x")])
    results = apus.build(proto.SerializeToString(), level=0).run({"x": X})
    np.testing.assert_array_equal(results["x"], X)
    np.testing.assert_array_equal(results["y"], np.maximum(X, 0))


def test_external_data_beyond_two_gigabytes(tmp_path):
    """The last weights lie behind 2 GiB of a sparse file."""
    offset = (1 << 31) + 4096
    with open(tmp_path / "weights.bin", "wb") as file:
        file.seek(offset)
        file.write(np.full(4, 3, np.float32).tobytes())
    proto = add_weights()
    weights = proto.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in [("location", "weights.bin"), ("offset", offset), ("length", 16)]:
        entry = weights.external_data.add()
        entry.key, entry.value = key, str(value)
    onnx.save(proto, tmp_path / "model.onnx")
    result = apus.build(tmp_path / "model.onnx", level=0).run({"x": X})["y"]
    np.testing.assert_array_equal(result, X + 3)
