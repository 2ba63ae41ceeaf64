# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the library and declares the functions of ``apus.h``."""

import ctypes
import os
import pathlib
import sys
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_size_t, c_uint64, c_void_p

from ._errors import ApusError

ABI_VERSION = 1
KIND_TENSOR, KIND_SEQUENCE, KIND_OPTIONAL = 0, 1, 2


class Tensor(ctypes.Structure):
    """``apus_tensor``"""

    _fields_ = [
        ("dtype", c_int32),
        ("rank", c_int32),
        ("dims", POINTER(c_int64)),
        ("data", c_void_p),
        ("byte_count", c_size_t),
    ]


class Port(ctypes.Structure):
    """``apus_port``"""

    _fields_ = [
        ("name", c_char_p),
        ("type", c_char_p),
        ("kind", c_int32),
        ("dtype", c_int32),
        ("rank", c_int32),
        ("dims", POINTER(c_int64)),
        ("dim_names", POINTER(c_char_p)),
    ]


# name: (result, arguments); a result of None marks a function that returns an apus_status.
STATUS = None
HANDLE_OUT = POINTER(c_void_p)
FUNCTIONS = {
    "apus_last_error": (c_char_p, []),
    "apus_last_error_code": (c_char_p, []),
    "apus_version": (c_char_p, []),
    "apus_abi_version": (c_int32, []),
    "apus_report_data": (c_void_p, [c_void_p]),
    "apus_report_size": (c_size_t, [c_void_p]),
    "apus_value_make_tensor": (STATUS, [POINTER(Tensor), c_void_p, c_void_p, HANDLE_OUT]),
    "apus_value_make_strings": (
        STATUS, [c_int32, POINTER(c_int64), POINTER(c_char_p), POINTER(c_size_t), HANDLE_OUT]),
    "apus_value_make_sequence": (STATUS, [c_int32, POINTER(c_void_p), c_size_t, HANDLE_OUT]),
    "apus_value_make_optional": (STATUS, [c_int32, c_void_p, HANDLE_OUT]),
    "apus_value_get_kind": (c_int32, [c_void_p]),
    "apus_value_get_tensor": (STATUS, [c_void_p, POINTER(Tensor)]),
    "apus_value_get_string": (STATUS, [c_void_p, c_size_t, POINTER(c_void_p), POINTER(c_size_t)]),
    "apus_value_item_count": (c_size_t, [c_void_p]),
    "apus_value_get_item": (STATUS, [c_void_p, c_size_t, HANDLE_OUT]),
    "apus_register_operator": (
        STATUS, [c_char_p, c_char_p, c_int32, c_char_p, c_void_p, c_void_p, c_void_p]),
    "apus_fail": (c_int32, [c_char_p]),
    "apus_config_create": (STATUS, [HANDLE_OUT]),
    "apus_config_set": (STATUS, [c_void_p, c_char_p, c_char_p]),
    "apus_build_file": (STATUS, [c_char_p, c_void_p, HANDLE_OUT]),
    "apus_build_bytes": (STATUS, [c_char_p, c_size_t, c_char_p, c_void_p, HANDLE_OUT]),
    "apus_engine_load": (STATUS, [c_char_p, c_void_p, HANDLE_OUT]),
    "apus_engine_load_bytes": (STATUS, [c_char_p, c_size_t, c_void_p, HANDLE_OUT]),
    "apus_engine_save": (STATUS, [c_void_p, c_char_p]),
    "apus_engine_serialize": (STATUS, [c_void_p, HANDLE_OUT]),
    "apus_engine_input_count": (c_size_t, [c_void_p]),
    "apus_engine_output_count": (c_size_t, [c_void_p]),
    "apus_engine_input": (STATUS, [c_void_p, c_size_t, POINTER(Port)]),
    "apus_engine_output": (STATUS, [c_void_p, c_size_t, POINTER(Port)]),
    "apus_engine_inspect": (STATUS, [c_void_p, HANDLE_OUT]),
    "apus_calibration_create": (STATUS, [c_char_p, c_void_p, HANDLE_OUT]),
    "apus_calibration_create_bytes": (STATUS, [c_char_p, c_size_t, c_char_p, c_void_p, HANDLE_OUT]),
    "apus_calibration_set_input": (STATUS, [c_void_p, c_char_p, POINTER(Tensor)]),
    "apus_calibration_add": (STATUS, [c_void_p]),
    "apus_calibration_finish": (STATUS, [c_void_p, HANDLE_OUT]),
    "apus_entropy_threshold": (STATUS, [POINTER(c_uint64), c_size_t, c_double, POINTER(c_double)]),
    "apus_blame": (STATUS, [c_char_p, c_void_p, c_void_p, c_char_p, c_double, HANDLE_OUT]),
    "apus_devices": (STATUS, [HANDLE_OUT]),
    "apus_context_create": (STATUS, [c_void_p, HANDLE_OUT]),
    "apus_context_set_input": (STATUS, [c_void_p, c_char_p, POINTER(Tensor)]),
    "apus_context_set_value": (STATUS, [c_void_p, c_char_p, c_void_p]),
    "apus_context_run": (STATUS, [c_void_p]),
    "apus_context_output": (STATUS, [c_void_p, c_char_p, POINTER(Tensor)]),
    "apus_context_get_value": (STATUS, [c_void_p, c_char_p, HANDLE_OUT]),
}
NOTHING = {
    "apus_report_destroy", "apus_value_destroy", "apus_config_destroy", "apus_engine_destroy",
    "apus_context_destroy", "apus_context_clear", "apus_calibration_destroy",
}


def library_path():
    """APUS_LIBRARY, else the library in the package, else the one a source checkout has built."""
    if os.environ.get("APUS_LIBRARY"):
        return pathlib.Path(os.environ["APUS_LIBRARY"])
    name = "libApusC.dylib" if sys.platform == "darwin" else "libApusC.so"
    package = pathlib.Path(__file__).resolve().parent
    candidates = [package / "_lib" / name, package.parents[1] / ".build" / "release" / name]
    for path in candidates:
        if path.exists():
            return path
    raise ImportError(
        f"apus: the library {name} is missing; install the package with 'pip install ./Python', or "
        "point APUS_LIBRARY at a library built with 'swift build -c release --product ApusC'")


def check(status):
    """Raises the library's last error unless the status is 0."""
    if status != 0:
        text = (library.apus_last_error() or b"").decode(errors="replace")
        code = (library.apus_last_error_code() or b"").decode()
        raise ApusError(code, text)
    return status


def load():
    """The library with every function declared."""
    path = library_path()
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(f"apus: {path} cannot be loaded: {error}") from error
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(loaded, name)
        function.argtypes = arguments
        function.restype = c_int32 if result is STATUS else result
    for name in NOTHING:
        function = getattr(loaded, name)
        function.argtypes, function.restype = [c_void_p], None
    if loaded.apus_abi_version() != ABI_VERSION:
        raise ImportError(
            f"apus: {path} has interface version {loaded.apus_abi_version()}, this package needs "
            f"{ABI_VERSION}; install both from one source")
    return loaded


library = load()


class Handle:
    """Owns one handle of the library and destroys it once."""

    __slots__ = ("__weakref__", "_destroy", "pointer")

    def __init__(self, destroy, pointer):
        self._destroy, self.pointer = destroy, pointer

    @classmethod
    def made_by(cls, destroy, function, *arguments):
        """Calls a function whose last parameter receives a new handle."""
        pointer = c_void_p()
        check(function(*arguments, ctypes.byref(pointer)))
        return cls(destroy, pointer)

    def close(self):
        """Destroys the handle now."""
        pointer, self.pointer = self.pointer, None
        if pointer:
            self._destroy(pointer)

    def __del__(self):
        if getattr(self, "pointer", None):
            self.close()


def report(function, *arguments):
    """The bytes of a report that a function makes."""
    handle = Handle.made_by(library.apus_report_destroy, function, *arguments)
    size = library.apus_report_size(handle.pointer)
    return ctypes.string_at(library.apus_report_data(handle.pointer), size)
