# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Operators written in Python."""

import ctypes
import json
import traceback
from ctypes import POINTER, c_char_p, c_int32, c_size_t, c_void_p

import numpy as np

from ._library import Handle, check, library
from ._values import from_value, to_value

_RUN = ctypes.CFUNCTYPE(
    c_int32, c_void_p, c_char_p, POINTER(c_void_p), c_size_t, POINTER(c_void_p), c_size_t)
_registered = {}


def register_operator(domain, name, *, results, since=1):
    """Makes the decorated function the operator ``name`` of ``domain``, for every model built and engine
    loaded afterwards in this process.

    The function is called with a list of arrays (``None`` for an omitted input; those at
    the end may be absent) and a dict of the node's attributes, and returns one array, or a list of one array per result. ``results`` describes
    the results' types: ``"#0"`` is the type and shape of input 0; an element type such as ``"f32"`` or
    ``"i64"`` leaves the shape to each run. ``since`` is the first version of the domain's operator set
    that the function holds for. The arrays are views that hold good during the call: copy what is
    to be kept.

        @apus.register_operator("my.domain", "Scale", results=["#0"])
        def scale(inputs, attributes):
            return inputs[0] * np.float32(attributes["factor"])
    """
    results = [results] if isinstance(results, str) else list(results)

    def register(function):
        callback = _callback(function, len(results))
        check(library.apus_register_operator(
            domain.encode(), name.encode(), since, ",".join(results).encode(), callback, None, None))
        _registered.setdefault((domain, name), []).append(callback)  # engines may still call older ones
        return function

    return register


def _callback(function, result_count):
    def run(_, attributes, inputs, input_count, outputs, output_count):
        try:
            arrays = [_borrow(inputs[index]) for index in range(input_count)]
            results = function(arrays, _attributes(attributes))
            results = list(results) if isinstance(results, (list, tuple)) else [results]
            if len(results) != result_count:
                raise ValueError(f"{len(results)} results were returned, {result_count} declared")
            for index, result in enumerate(results):
                # A copy: what was returned may be a view of an input, whose memory is used again.
                handle = to_value(np.array(result), 0, None)
                outputs[index], handle.pointer = handle.pointer.value, None
            return 0
        except BaseException as error:  # nothing may pass through the library
            place = traceback.extract_tb(error.__traceback__)[-1]
            return library.apus_fail(
                f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})".encode())

    return _RUN(run)


def _borrow(pointer):
    """The array, sequence or None behind a handle that the library keeps."""
    if not pointer:
        return None
    return from_value(Handle(lambda _: None, c_void_p(pointer)))


def _attributes(text):
    def decode(value):
        if isinstance(value, dict):
            return np.array(value["values"]).reshape(value["dims"])
        return value

    return {name: decode(value) for name, value in json.loads(text).items()}
