# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Arrays in and out: memory, layouts, element types, containers."""

import gc
import weakref

import numpy as np
import onnx
import pytest

import apus
from apus._values import Described, from_value, to_value


def identity(dtype, shape="N"):
    return apus.build(onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21]> g ({dtype}[{shape}] x) => ({dtype}[{shape}] y) '
        "{ y = Identity(x) }"))


def test_contiguous_arrays_are_read_in_place():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert Described(array).tensor.data == array.ctypes.data
    assert Described(array.T).tensor.data != array.ctypes.data


def test_values_borrow_and_give_back():
    array = np.arange(12, dtype=np.int64)
    alive = weakref.ref(array)
    value = to_value(array, 0, 7)
    result = from_value(value)
    assert result.ctypes.data == array.ctypes.data
    expected = array.copy()
    del array, value
    gc.collect()
    assert alive() is not None
    np.testing.assert_array_equal(result, expected)
    del result
    gc.collect()
    assert alive() is None


def test_strided_and_foreign_endian_inputs(digits, digits_test):
    image = digits_test["image"][:8]
    expected = digits.run({"image": image})["probability"]
    turned = np.ascontiguousarray(image.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    assert not turned.flags.c_contiguous
    for same in (turned, image.astype(">f4"), np.asfortranarray(image)):
        np.testing.assert_array_equal(digits.run({"image": same})["probability"], expected)


def test_lists_take_the_type_of_the_input():
    engine = identity("int32")
    result = engine.run({"x": [1, 2, 3]})["y"]
    assert result.dtype == np.int32 and result.tolist() == [1, 2, 3]


def test_input_is_not_changed_and_output_is_owned(digits, digits_test):
    image = digits_test["image"][:2].copy()
    before = image.copy()
    first = digits.run({"image": image})["probability"]
    kept = first.copy()
    digits.run({"image": image[::-1]})
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0


def test_views_are_overwritten_by_the_next_run(digits, digits_test):
    context = digits.context()
    image = digits_test["image"]
    first = context.run({"image": image[:1]}, copy=False)["probability"]
    address = first.ctypes.data
    second = context.run({"image": image[1:2]}, copy=False)["probability"]
    assert second.ctypes.data == address
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name, dtype", [
    ("float", np.float32), ("double", np.float64), ("float16", np.float16), ("int8", np.int8),
    ("uint8", np.uint8), ("int16", np.int16), ("uint16", np.uint16), ("int32", np.int32),
    ("uint32", np.uint32), ("int64", np.int64), ("uint64", np.uint64), ("bool", np.bool_),
])
def test_element_types(name, dtype):
    array = np.array([0, 1, 2, 3, 100]).astype(dtype)
    result = identity(name).run({"x": array})["y"]
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, array)


@pytest.mark.parametrize(
    "name, dtype", [("bfloat16", "bfloat16"), ("int4", "int4"), ("uint4", "uint4"),
                    ("float8e4m3fn", "float8_e4m3fn"), ("float8e5m2", "float8_e5m2")])
def test_narrow_element_types(name, dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    wanted = np.dtype(getattr(ml_dtypes, dtype))
    low = -3 if dtype != "uint4" else 0
    array = np.arange(low, 6).astype(np.float32).astype(wanted)
    result = identity(name).run({"x": array})["y"]
    assert result.dtype == wanted
    np.testing.assert_array_equal(result.astype(np.float32), array.astype(np.float32))


def test_strings():
    array = np.array([["", "digit"], ["Straße", "数字"]], dtype=object)
    result = identity("string", "A, B").run({"x": array})["y"]
    assert result.dtype == object
    np.testing.assert_array_equal(result, array)


def test_empty_and_scalar():
    assert identity("float").run({"x": np.empty(0, np.float32)})["y"].shape == (0,)
    scalar = identity("float", "").run({"x": np.float32(2.5)})["y"]
    assert scalar.shape == () and scalar == 2.5


def test_sequences_round_trip_as_values():
    items = [np.zeros((2, 3), np.float32), np.ones(1, np.float32)]
    result = from_value(to_value(items, 1, 1))
    assert len(result) == 2
    for got, wanted in zip(result, items):
        np.testing.assert_array_equal(got, wanted)
    assert from_value(to_value([], 1, 1)) == []
    assert from_value(to_value(None, 2, 1)) is None
    np.testing.assert_array_equal(from_value(to_value(items[0], 2, 1)), items[0])
