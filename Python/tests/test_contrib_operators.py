# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Operators of the domain com.microsoft give what ONNX Runtime, whose they are, gives."""

import numpy as np
import onnx.helper as oh
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

import apus

RANDOM = np.random.default_rng(7)


def real(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def positive(*shape):
    return (RANDOM.random(shape) + 0.5).astype(np.float32)


def u8(*shape):
    return RANDOM.integers(0, 256, shape).astype(np.uint8)


def s8(*shape):
    # ONNX Runtime adds pairs of products in 16 bits where a CPU has nothing better than AVX2, and larger weights overflow
    # them there.
    return RANDOM.integers(-63, 64, shape).astype(np.int8)


def scale(value):
    return np.float32(value)


def i32(*values):
    return np.array(values, np.int32)


X = real(2, 5, 16)
W, B = (real(16, 48) * 0.3,), (real(48),)  # queries, keys and values side by side
PAST = real(2, 1, 6, 16)
PAST[1, :, 4:] = 0  # the second row's past is shorter, and what lies behind it means nothing
TURN = (np.cos(np.arange(12)[:, None] * 0.7 ** np.arange(2)).astype(np.float32),)
TURN8 = (np.cos(np.arange(12)[:, None] * 0.7 ** np.arange(8)).astype(np.float32),)
COTURN8 = (np.sin(np.arange(12)[:, None] * 0.7 ** np.arange(8)).astype(np.float32),)
COTURN = (np.sin(np.arange(12)[:, None] * 0.7 ** np.arange(2)).astype(np.float32),)
# name: (operator, operands (None: omitted; a tuple holds a constant), attributes, number of results)
CASES = {
    "fast_gelu": ("FastGelu", [X, real(16)], {}, 1),
    "fast_gelu_plain": ("FastGelu", [X], {}, 1),
    "bias_gelu": ("BiasGelu", [X, real(16)], {}, 1),
    "gelu": ("Gelu", [X], {}, 1),
    "quick_gelu": ("QuickGelu", [X], {"alpha": 1.5}, 1),
    "skip_layer_norm": ("SkipLayerNormalization", [X, real(2, 5, 16), real(16), real(16), real(16)],
                        {"epsilon": 1e-4}, 1),
    "skip_simplified": ("SkipSimplifiedLayerNormalization", [X, real(2, 5, 16), real(16)], {}, 1),
    "embed": ("EmbedLayerNormalization",
              [RANDOM.integers(0, 9, (2, 5)).astype(np.int32), RANDOM.integers(0, 2, (2, 5)).astype(np.int32),
               real(9, 16), real(8, 16), real(2, 16), real(16), real(16)], {}, 2),
    "fused_conv": ("FusedConv", [real(1, 3, 8, 8), (real(4, 3, 3, 3),), (real(4),)],
                   {"activation": "Relu", "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}, 1),
    "fused_conv_sum": ("FusedConv", [real(1, 3, 8, 8), (real(4, 3, 1, 1),), (real(4),), real(1, 4, 8, 8)],
                       {"activation": "Relu", "kernel_shape": [1, 1]}, 1),
    "fused_gemm": ("FusedGemm", [real(3, 16), (real(16, 7),), (real(7),)],
                   {"activation": "LeakyRelu", "activation_alpha": 0.25, "alpha": 0.5}, 1),
    "fused_matmul": ("FusedMatMul", [X, real(2, 7, 16)], {"transB": 1, "alpha": 0.5}, 1),
    "qlinear_add": ("QLinearAdd", [u8(2, 8), (scale(0.1),), (np.uint8(3),), u8(2, 8), (scale(0.05),),
                                   (np.uint8(9),), (scale(0.2),), (np.uint8(5),)], {}, 1),
    "qlinear_mul": ("QLinearMul", [s8(2, 8), (scale(0.1),), (np.int8(3),), s8(1, 8), (scale(0.05),),
                                   (np.int8(-2),), (scale(0.3),), (np.int8(1),)], {}, 1),
    "qlinear_sigmoid": ("QLinearSigmoid", [u8(3, 8), (scale(0.05),), (np.uint8(128),), (scale(1 / 256),),
                                           (np.uint8(0),)], {}, 1),
    "qlinear_leaky_relu": ("QLinearLeakyRelu", [u8(3, 8), (scale(0.05),), (np.uint8(128),), (scale(0.04),),
                                                (np.uint8(100),)], {"alpha": 0.2}, 1),
    "qlinear_average": ("QLinearGlobalAveragePool", [u8(1, 4, 5, 5), (scale(0.05),), (np.uint8(12),),
                                                     (scale(0.04),), (np.uint8(10),)], {}, 1),
    "qlinear_concat": ("QLinearConcat", [(scale(0.1),), (np.uint8(7),), u8(2, 3), (scale(0.05),),
                                         (np.uint8(1),), u8(2, 5), (scale(0.2),), (np.uint8(9),)],
                       {"axis": 1}, 1),
    "qgemm": ("QGemm", [u8(3, 16), (scale(0.02),), (np.uint8(120),), (s8(7, 16),), (positive(7) * 0.01,),
                        (np.zeros(7, np.int8),), (RANDOM.integers(-500, 500, 7).astype(np.int32),),
                        (scale(0.1),), (np.uint8(128),)], {"transB": 1}, 1),
    "qgemm_float": ("QGemm", [u8(3, 16), (scale(0.02),), (np.uint8(120),), (s8(16, 7),), (scale(0.01),),
                              (np.int8(0),)], {}, 1),
    "integer_to_float": ("MatMulIntegerToFloat", [u8(3, 16), (s8(16, 7),), (scale(0.02),),
                                                  (positive(7) * 0.01,), (np.uint8(120),), None, (real(7),)],
                         {}, 1),
    "dynamic_quantize": ("DynamicQuantizeMatMul", [real(3, 16), (s8(16, 7),), (positive(7) * 0.01,), None,
                                                   (real(7),)], {}, 1),
    "trans_batch": ("FusedMatMul", [real(5, 2, 16), real(2, 7, 16)], {"transBatchA": 1, "transB": 1}, 1),
    "qlinear_average_pool": ("QLinearAveragePool", [u8(1, 4, 7, 7), (scale(0.05),), (np.uint8(12),),
                                                    (scale(0.04),), (np.uint8(10),)],
                             {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, 1),
    "qlinear_average_pool_last": ("QLinearAveragePool", [u8(1, 7, 7, 4), (scale(0.05),), (np.uint8(12),),
                                                         (scale(0.04),), (np.uint8(10),)],
                                  {"kernel_shape": [3, 3], "channels_last": 1}, 1),
    "nhwc_max_pool": ("NhwcMaxPool", [u8(1, 7, 7, 4)], {"kernel_shape": [3, 3], "strides": [2, 2]}, 1),
    "rotary": ("RotaryEmbedding", [real(2, 5, 16), np.arange(10).reshape(2, 5) % 12, TURN, COTURN],
               {"num_heads": 4}, 1),
    "rotary_offset": ("RotaryEmbedding", [real(2, 4, 5, 4), np.array([3]), TURN, COTURN], {}, 1),
    "attention": ("Attention", [X, W, B], {"num_heads": 4}, 1),
    "attention_causal": ("Attention", [X, W, B], {"num_heads": 2, "unidirectional": 1, "scale": 0.3}, 1),
    "attention_lengths": ("Attention", [X, W, B, i32(3, 5)], {"num_heads": 4}, 1),
    "attention_ranges": ("Attention", [X, W, B, i32(3, 5, 0, 1)], {"num_heads": 4}, 1),
    "attention_mask": ("Attention", [X, W, B, np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], np.int32)],
                       {"num_heads": 4}, 1),
    "attention_rows": ("Attention", [X, W, B, RANDOM.integers(0, 2, (2, 5, 5)).astype(np.int32)],
                       {"num_heads": 4}, 1),
    "attention_past": ("Attention", [X, W, B, None, real(2, 2, 4, 3, 4)],
                       {"num_heads": 4, "unidirectional": 1}, 2),
    "attention_bias": ("Attention", [X, W, B, None, None, real(1, 4, 5, 5)], {"num_heads": 4}, 1),
    "attention_sizes": ("Attention", [X, (real(16, 8 + 8 + 12),), (real(28),)],
                        {"num_heads": 4, "qkv_hidden_sizes": [8, 8, 12]}, 1),
    "qattention": ("QAttention", [u8(2, 5, 16), (s8(16, 48),), B, (scale(0.02),), (scale(0.01),), None,
                                  (np.uint8(128),), (np.int8(0),)], {"num_heads": 4}, 1),
    "qattention_mask": ("QAttention", [u8(2, 5, 16), (s8(16, 48),), B, (scale(0.02),), (scale(0.01),),
                                       i32(5, 2), (np.uint8(128),), (np.int8(0),)], {"num_heads": 4}, 1),
    "multi_head": ("MultiHeadAttention", [X, real(2, 7, 16), real(2, 7, 16), real(48)], {"num_heads": 4}, 1),
    "multi_head_mask": ("MultiHeadAttention", [X, real(2, 7, 16), real(2, 7, 16), None,
                                               RANDOM.integers(0, 2, (2, 7)).astype(np.int32)],
                        {"num_heads": 4}, 1),
    "multi_head_past": ("MultiHeadAttention", [X, X, X, None, None, real(1, 1, 5, 8), real(2, 4, 3, 4),
                                               real(2, 4, 3, 4)], {"num_heads": 4}, 3),
    "grouped_prompt": ("GroupQueryAttention", [X, real(2, 5, 8), real(2, 5, 8), real(2, 1, 0, 8),
                                               real(2, 1, 0, 8), i32(4, 4), np.int32(5)],
                       {"num_heads": 2, "kv_num_heads": 1}, 3),
    "grouped_rotary": ("GroupQueryAttention", [real(2, 5, 32), real(2, 5, 16), real(2, 5, 16), None, None,
                                               i32(4, 4), np.int32(5), TURN8, COTURN8],
                       {"num_heads": 2, "kv_num_heads": 1, "do_rotary": 1}, 3),
    "grouped_step": ("GroupQueryAttention", [real(2, 1, 32), real(2, 1, 16), real(2, 1, 16), PAST, PAST,
                                             i32(6, 4), np.int32(7), TURN8, COTURN8],
                     {"num_heads": 2, "kv_num_heads": 1, "do_rotary": 1, "rotary_interleaved": 1}, 3),
    "grouped_packed": ("GroupQueryAttention", [real(2, 5, 32), None, None, None, None, i32(4, 4), np.int32(5)],
                       {"num_heads": 2, "kv_num_heads": 1, "local_window_size": 2, "softcap": 3.0}, 3),
    "four_bits": ("MatMulNBits", [real(3, 40), (u8(7, 3, 8),), (positive(7, 3),)],
                  {"K": 40, "N": 7, "block_size": 16, "bits": 4}, 1),
    "four_bits_zeros": ("MatMulNBits", [real(3, 40), (u8(7, 3, 8),), (positive(7, 3),), (u8(7, 2),)],
                        {"K": 40, "N": 7, "block_size": 16, "bits": 4}, 1),
    "four_bits_bias": ("MatMulNBits", [real(2, 3, 32), (u8(7, 1, 16),), (positive(7, 1),), (real(7, 1),), None,
                                       (real(7),)], {"K": 32, "N": 7, "block_size": 32, "bits": 4}, 1),
    "eight_bits": ("MatMulNBits", [real(3, 32), (u8(7, 2, 16),), (positive(7, 2),)],
                   {"K": 32, "N": 7, "block_size": 16, "bits": 8}, 1),
}


def model(name):
    op, operands, attributes, count = CASES[name]
    names, inputs, tensors, feed = [], [], [], {}
    for index, operand in enumerate(operands):
        if operand is None:
            names.append("")
            continue
        names.append(f"i{index}")
        array = np.asarray(operand[0] if isinstance(operand, tuple) else operand)
        if isinstance(operand, tuple):
            tensors.append(numpy_helper.from_array(array, names[-1]))
        else:
            kind = oh.np_dtype_to_tensor_dtype(array.dtype)
            inputs.append(oh.make_tensor_value_info(names[-1], kind, array.shape))
            feed[names[-1]] = array
    outputs = [f"o{index}" for index in range(count)]
    node = oh.make_node(op, names, outputs, domain="com.microsoft", **attributes)
    kind = TensorProto.UINT8 if op.startswith("QLinear") or name == "qgemm" else TensorProto.FLOAT
    if name == "qlinear_mul":
        kind = TensorProto.INT8
    if op == "NhwcMaxPool":
        kind = TensorProto.UINT8
    second = TensorProto.INT32 if op.startswith("Embed") else kind
    ports = [oh.make_tensor_value_info(output, kind if output == "o0" else second, None)
             for output in outputs]
    graph = oh.make_graph([node], "g", inputs, ports, tensors)
    ids = [oh.make_opsetid("", 17), oh.make_opsetid("com.microsoft", 1)]
    return oh.make_model(graph, opset_imports=ids, ir_version=8).SerializeToString(), feed


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_onnxruntime(name):
    proto, feed = model(name)
    expected = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"]).run(None, feed)
    results = list(apus.build(proto, level=0).run(feed).values())
    for got, want in zip(results, expected):
        assert got.dtype == want.dtype and got.shape == want.shape
        if want.dtype.kind in "iu":  # a number beside a tie may be rounded to the other side
            assert np.abs(got.astype(int) - want.astype(int)).max() <= 1
        else:
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=3e-4)


def test_weights_of_four_bits_stay_so():
    proto, feed = model("four_bits_zeros")
    engine = apus.build(proto, level=1)
    kept = engine.inspect()["weights_by_type"]
    assert "u4" in kept or kept["f32"] >= 4 * 40 * 7, kept
    wide = apus.build(proto, optimize="reference").run(feed)["o0"]
    np.testing.assert_allclose(engine.run(feed)["o0"], wide, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packed", ["all", "pairs"])
def test_operands_side_by_side_are_the_same_attention(packed):
    """ONNX Runtime takes these forms on GPUs only."""
    q, k, v = real(2, 5, 4, 4), real(2, 5, 4, 4), real(2, 5, 4, 4)
    flat = [np.reshape(x, (2, 5, 16)) for x in (q, k, v)]
    CASES["apart"] = ("MultiHeadAttention", flat, {"num_heads": 4}, 1)
    operands = [np.stack([q, k, v], 3)] if packed == "all" else [flat[0], np.stack([k, v], 3)]
    CASES["together"] = ("MultiHeadAttention", operands, {"num_heads": 4}, 1)
    try:
        (apart,), (together,) = (
            apus.build(proto, level=0).run(feed).values() for proto, feed in map(model, ["apart", "together"]))
    finally:
        del CASES["apart"], CASES["together"]
    np.testing.assert_allclose(together, apart, rtol=1e-6, atol=1e-6)
