# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""numpy arrays, lists and None to the library's tensors and values, and back."""

import ctypes
from ctypes import c_char_p, c_int64, c_size_t, c_void_p

import numpy as np

from ._errors import ApusError
from ._library import KIND_OPTIONAL, KIND_SEQUENCE, Handle, Tensor, check, library

STRING = 8
# The numbers of ONNX's TensorProto.DataType and numpy's own types.
_NUMPY = {
    1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64,
    9: np.bool_, 10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64, 14: np.complex64,
    15: np.complex128,
}
# Types that the package ml_dtypes adds to numpy.
_ML_DTYPES = {
    16: "bfloat16", 17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2",
    20: "float8_e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4_e2m1fn", 24: "float8_e8m0fnu",
    25: "uint2", 26: "int2",
}
# Bits of the types that the library packs and numpy does not.
_PACKED = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}
_NUMBER_BY_NAME = {np.dtype(dtype).name: number for number, dtype in _NUMPY.items()}
_NUMBER_BY_NAME.update({name: number for number, name in _ML_DTYPES.items()})


def numpy_dtype(number):
    """The numpy type of an element type's number; ``object`` for strings."""
    if number == STRING:
        return np.dtype(object)
    if number in _NUMPY:
        return np.dtype(_NUMPY[number])
    try:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, _ML_DTYPES[number]))
    except (ImportError, AttributeError, KeyError) as error:
        name = _ML_DTYPES.get(number, f"number {number}")
        raise ApusError(
            "not-yet-supported",
            f"numpy has no type {name}\nhint: install or update the package ml_dtypes") from error


def dtype_number(dtype):
    """The number of a numpy type."""
    if dtype.kind in "OUST":
        return STRING
    try:
        return _NUMBER_BY_NAME[dtype.name]
    except KeyError:
        raise ApusError("invalid-argument", f"arrays of {dtype} have no element type here") from None


def _pack(array, bits):
    """One byte per element to ``8 / bits`` elements per byte, lowest bits first."""
    per_byte = 8 // bits
    flat = array.view(np.uint8).reshape(-1) & ((1 << bits) - 1)
    flat = np.concatenate([flat, np.zeros(-flat.size % per_byte, np.uint8)])
    packed = np.zeros(flat.size // per_byte, np.uint8)
    for position in range(per_byte):
        packed |= flat[position::per_byte] << np.uint8(position * bits)
    return packed


def _unpack(packed, bits, dtype, shape):
    per_byte = 8 // bits
    fields = np.empty(packed.size * per_byte, np.uint8)
    for position in range(per_byte):
        fields[position::per_byte] = (packed >> np.uint8(position * bits)) & ((1 << bits) - 1)
    fields = fields[: int(np.prod(shape, dtype=np.int64))]
    if dtype.name.startswith("int"):  # numpy keeps the sign in the unused bits
        sign = np.uint8(1 << (bits - 1))
        fields = ((fields ^ sign) - sign).astype(np.uint8)
    return fields.view(dtype).reshape(shape)


class Described:
    """An ``apus_tensor`` over an array's memory, and what must stay alive with it."""

    __slots__ = ("_dims", "array", "tensor")

    def __init__(self, array):
        number = dtype_number(array.dtype)
        shape = array.shape
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        array = np.ascontiguousarray(array)
        if number in _PACKED:
            array = _pack(array, _PACKED[number])
        self.array = array
        self._dims = (c_int64 * len(shape))(*shape)
        self.tensor = Tensor(number, len(shape), self._dims, array.ctypes.data, array.nbytes)


def _strings(array):
    texts = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel()]
    return Handle.made_by(
        library.apus_value_destroy, library.apus_value_make_strings, array.ndim,
        (c_int64 * array.ndim)(*array.shape), (c_char_p * len(texts))(*texts),
        (c_size_t * len(texts))(*map(len, texts)))


def _keep_alive(described):
    """A release function for the library that holds the array until it is called."""
    key = id(described)
    _borrowed[key] = described
    return key


_borrowed = {}


@ctypes.CFUNCTYPE(None, c_void_p)
def _release(key):
    _borrowed.pop(key, None)


_release_pointer = ctypes.cast(_release, c_void_p)


def to_value(value, kind, number):
    """A handle to a value of any kind."""
    destroy = library.apus_value_destroy
    if isinstance(value, (list, tuple)) and kind != KIND_OPTIONAL:
        items = [to_value(item, KIND_SEQUENCE if isinstance(item, list) else 0, number)
                 for item in value]
        pointers = (c_void_p * len(items))(*[item.pointer.value for item in items])
        return Handle.made_by(
            destroy, library.apus_value_make_sequence, number, pointers, len(items))
    if kind == KIND_OPTIONAL:
        item = None
        if value is not None:
            item = to_value(value, KIND_SEQUENCE if isinstance(value, (list, tuple)) else 0, number)
        return Handle.made_by(
            destroy, library.apus_value_make_optional, number, item and item.pointer)
    array = as_array(value, number)
    if dtype_number(array.dtype) == STRING:
        return _strings(array)
    described = Described(array)
    key = _keep_alive(described)
    try:
        return Handle.made_by(
            destroy, library.apus_value_make_tensor, ctypes.byref(described.tensor),
            _release_pointer, key)
    except ApusError:
        _release(key)
        raise


def as_array(value, number):
    """The value as an array; plain Python numbers and lists take the type that is wanted."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        return np.asarray(value)
    return np.asarray(value, numpy_dtype(number))


def view(tensor, owner):
    """An array over an ``apus_tensor``'s memory that keeps ``owner`` alive."""
    dtype = numpy_dtype(tensor.dtype)
    shape = tuple(tensor.dims[: tensor.rank])
    if tensor.byte_count == 0:
        return np.empty(shape, dtype)
    memory = (ctypes.c_uint8 * tensor.byte_count).from_address(tensor.data)
    memory._owner = owner
    array = np.frombuffer(memory, np.uint8)
    if tensor.dtype in _PACKED:
        return _unpack(array, _PACKED[tensor.dtype], dtype, shape)
    return array.view(dtype).reshape(shape)


def from_value(handle):
    """A value as an array, a list, or None for an empty optional."""
    kind = library.apus_value_get_kind(handle.pointer)
    if kind in (KIND_SEQUENCE, KIND_OPTIONAL):
        count = library.apus_value_item_count(handle.pointer)
        items = [
            from_value(Handle.made_by(
                library.apus_value_destroy, library.apus_value_get_item, handle.pointer, index))
            for index in range(count)
        ]
        return items if kind == KIND_SEQUENCE else (items[0] if items else None)
    tensor = Tensor()
    check(library.apus_value_get_tensor(handle.pointer, ctypes.byref(tensor)))
    if tensor.dtype != STRING:
        return view(tensor, handle)
    shape = tuple(tensor.dims[: tensor.rank])
    array = np.empty(int(np.prod(shape, dtype=np.int64)), object)
    bytes_out, count_out = c_void_p(), c_size_t()
    for index in range(array.size):
        check(library.apus_value_get_string(
            handle.pointer, index, ctypes.byref(bytes_out), ctypes.byref(count_out)))
        array[index] = ctypes.string_at(bytes_out, count_out.value).decode(errors="replace")
    return array.reshape(shape)
