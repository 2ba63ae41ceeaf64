# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""The digits model and small models made here, compared with ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime
import pytest

import apus

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
# name: (inputs with their shapes, constants with their shapes, output, body). Dimension N is 3.
MODELS = {
    "mlp": ("x[N,20]", "a[20,30] b[30] c[30,10]", "y",
            "t = Gemm(x, a, b) u = Relu(t) y = MatMul(u, c)"),
    "gemm_transposed": ("x[20,N]", "a[7,20] b[7]", "y",
                        "y = Gemm <alpha: float = 0.5, beta: float = 2.0, transA: int = 1, "
                        "transB: int = 1> (x, a, b)"),
    "batched_matmul": ("x[N,4,9,17] z[N,4,17,5]", "", "y", "y = MatMul(x, z)"),
    "conv_padded": ("x[N,5,11,13]", "w[7,5,3,3] b[7]", "y",
                    "y = Conv <pads: ints = [1, 0, 2, 1], strides: ints = [2, 1]> (x, w, b)"),
    "conv_dilated": ("x[N,4,12,12]", "w[6,4,3,3]", "y",
                     "y = Conv <dilations: ints = [2, 2], pads: ints = [2, 2, 2, 2]> (x, w)"),
    "conv_grouped": ("x[N,6,9,9]", "w[9,2,3,3]", "y", "y = Conv <group: int = 3> (x, w)"),
    "conv_depthwise": ("x[N,19,8,8]", "w[19,1,3,3] b[19]", "y",
                       "t = Conv <group: int = 19, pads: ints = [1, 1, 1, 1]> (x, w, b) "
                       "y = Relu(t)"),
    "conv_1d": ("x[N,3,30]", "w[8,3,5]", "y", "y = Conv <strides: ints = [2]> (x, w)"),
    "conv_bn_relu_add": ("x[N,8,7,7]", "w[8,8,3,3] s[8] b[8] m[8] v[8]", "y",
                         "t = Conv <pads: ints = [1, 1, 1, 1]> (x, w) "
                         "u = BatchNormalization(t, s, b, m, v) r = Add(u, x) y = Relu(r)"),
    "sibling_1x1": ("x[N,16,6,6]", "p[8,16,1,1] q[4,16,1,1] r[12,16,1,1]", "y",
                    "a = Conv(x, p) b = Relu(a) c = Conv(x, q) d = Relu(c) e = Conv(x, r) "
                    "f = Relu(e) y = Concat <axis: int = 1> (b, d, f)"),
    "pools": ("x[N,4,9,9]", "", "y",
              "a = MaxPool <kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1], "
              "strides: ints = [2, 2]> (x) "
              "b = AveragePool <kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1], "
              "strides: ints = [2, 2]> (x) c = Sub(a, b) y = GlobalAveragePool(c)"),
    "softmax": ("x[N,5,33]", "", "y", "y = Softmax <axis: int = 1> (x)"),
    "layer_norm": ("x[N,6,24]", "s[24] b[24]", "y", "y = LayerNormalization(x, s, b)"),
    "attention": ("q[N,2,10,8] k[N,2,10,8] v[N,2,10,8]", "", "y",
                  "t = Transpose <perm: ints = [0, 1, 3, 2]> (k) a = MatMul(q, t) "
                  "s = Softmax(a) y = MatMul(s, v)"),
    "activations": ("x[N,40]", "", "y",
                    "a = Sigmoid(x) b = Mul(x, a) c = Tanh(b) d = Exp(c) e = Erf(d) "
                    "f = HardSwish(e) g = LeakyRelu <alpha: float = 0.1> (f) y = Elu(g)"),
    "broadcast": ("x[N,1,6] z[5,1]", "", "y", "a = Add(x, z) b = Mul(a, x) y = Div(b, a)"),
    "reductions": ("x[N,5,7]", "", "y",
                   "a = ReduceMean <axes: ints = [1], keepdims: int = 1> (x) "
                   "b = ReduceMax <axes: ints = [2], keepdims: int = 1> (x) y = Add(a, b)"),
    "movement": ("x[N,4,6]", "", "y",
                 "a = Transpose <perm: ints = [2, 0, 1]> (x) b = Flatten <axis: int = 1> (a) "
                 "y = Concat <axis: int = 0> (b, b)"),
}


def model(name):
    """The model with constants filled from its name, and one feed per input."""
    inputs, constants, output, body = MODELS[name]
    generator = np.random.default_rng(len(name))
    ports = ", ".join(f"float{port[1:]} {port[0]}" for port in inputs.split())
    declared = f"g ({ports}) => (float[] {output})"
    graph = onnx.parser.parse_model(f"{HEADER} {declared} {{ {body} }}")
    graph.graph.output[0].type.tensor_type.ClearField("shape")
    for constant in constants.split():
        shape = [int(size) for size in constant[2:-1].split(",")]
        array = generator.uniform(0.1, 1, shape).astype(np.float32)
        if len(shape) > 1:
            array -= np.float32(0.5)
        graph.graph.initializer.append(onnx.numpy_helper.from_array(array, constant[0]))
    feeds = {}
    for port in inputs.split():
        shape = [3 if size == "N" else int(size) for size in port[2:-1].split(",")]
        feeds[port[0]] = generator.standard_normal(shape).astype(np.float32)
    return graph, feeds


def expected(source, feeds):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.mark.parametrize("name", MODELS)
def test_small_model(name):
    graph, feeds = model(name)
    (wanted,) = expected(graph.SerializeToString(), feeds)
    for options in ({"threads": 1}, {"threads": 2}, {"optimize": "reference"}):
        (result,) = apus.build(graph, **options).run(feeds).values()
        assert result.shape == wanted.shape
        np.testing.assert_allclose(result, wanted, rtol=2e-4, atol=2e-5)


def test_digits(digits, digits_path, digits_test):
    feeds = {"image": digits_test["image"]}
    (wanted,) = expected(str(digits_path), feeds)
    np.testing.assert_allclose(
        digits.run(feeds)["probability"], wanted, rtol=1e-4, atol=1e-6)
