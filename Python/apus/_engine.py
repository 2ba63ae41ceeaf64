# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Engines and contexts."""

import ctypes
import json
import os
from typing import NamedTuple

from . import _library
from ._calibration import calibration_options
from ._errors import ApusError
from ._library import KIND_TENSOR, Handle, check, library
from ._options import config_of, made_of
from ._values import STRING, Described, as_array, from_value, numpy_dtype, to_value, view


class Port(NamedTuple):
    """One input or output of an engine."""

    name: str
    #: The numpy type; ``object`` for strings, None when numpy has no such type.
    dtype: object
    #: Sizes; a symbolic one is its name; None when the rank is known only at run time.
    shape: object
    #: ``tensor``, ``sequence`` or ``optional``.
    kind: str
    #: The whole type in words.
    type: str


def _dims(port):
    if port.rank < 0:
        return None
    names = [port.dim_names[index].decode() for index in range(port.rank)]
    return tuple(
        size if size >= 0 else (name or None)
        for size, name in zip(port.dims[: port.rank], names))


def _dtype_or_none(number):
    try:
        return numpy_dtype(number)
    except ApusError:
        return None


def _ports(count, read, engine):
    ports, raws = [], []
    for index in range(count(engine.pointer)):
        raw = _library.Port()
        check(read(engine.pointer, index, ctypes.byref(raw)))
        ports.append(Port(
            raw.name.decode(), _dtype_or_none(raw.dtype), _dims(raw),
            ("tensor", "sequence", "optional")[raw.kind], raw.type.decode()))
        raws.append((raw.name, raw.kind, raw.dtype))
    return tuple(ports), {port.name: raw for port, raw in zip(ports, raws)}


def build(model, *, directory=None, device=None, precision=None, threads=None, batch=None,
          shapes=None, workspace=None, timing_cache=None, level=None, time_budget=None,
          optimize=None, calibration=None, **options):
    """Builds a model into an engine.

    ``model`` is a path, the bytes of a model, or an ``onnx.ModelProto``; ``directory`` is where the
    external data of bytes lies. The options are those of ``apus build``; ``shapes`` maps input names
    to ``"MIN:OPT:MAX"`` or to one or three tuples. ``calibration`` is what ``--calibration`` takes, or
    anything that gives batches: dictionaries of arrays by input name. ``optimize="reference"`` leaves
    the model as it is and runs it with the reference interpreter.
    """
    options = dict(
        device=device, precision=precision, threads=threads, batch=batch, shapes=shapes,
        workspace=workspace, timing_cache=timing_cache, level=level, time_budget=time_budget,
        optimize=optimize, **options)
    with calibration_options(model, directory, calibration, options) as found:
        config = config_of({**options, **found})
        return Engine(made_of(
            model, directory, config, library.apus_engine_destroy, library.apus_build_file,
            library.apus_build_bytes))


class Engine:
    """A built network: immutable, and free to be used from several threads at once."""

    def __init__(self, handle):
        self._handle = handle
        self._inputs, self._raw_inputs = _ports(
            library.apus_engine_input_count, library.apus_engine_input, handle)
        self._outputs, self._raw_outputs = _ports(
            library.apus_engine_output_count, library.apus_engine_output, handle)
        self._idle = []

    @classmethod
    def load(cls, source, *, threads=None):
        """The engine in a file, which is mapped, or in bytes."""
        config = config_of({"threads": threads})
        destroy = library.apus_engine_destroy
        if isinstance(source, (bytes, bytearray, memoryview)):
            data = bytes(source)
            return cls(Handle.made_by(
                destroy, library.apus_engine_load_bytes, data, len(data), config.pointer))
        return cls(Handle.made_by(
            destroy, library.apus_engine_load, os.fsencode(source), config.pointer))

    def save(self, path):
        """Writes the engine to a file."""
        check(library.apus_engine_save(self._handle.pointer, os.fsencode(path)))

    def to_bytes(self):
        """What ``save`` writes."""
        return _library.report(library.apus_engine_serialize, self._handle.pointer)

    @property
    def inputs(self):
        """The inputs, in the model's order."""
        return self._inputs

    @property
    def outputs(self):
        """The outputs, in the model's order."""
        return self._outputs

    def inspect(self):
        """The graph, the kernels with their source nodes and tactics, the memory plan."""
        return json.loads(_library.report(library.apus_engine_inspect, self._handle.pointer))

    def context(self):
        """A new context: the state of one run at a time."""
        return Context(self)

    def run(self, inputs, outputs=None):
        """Runs once and returns arrays of its own for the outputs, or for those named.

        Several threads may call this at once; each call uses a context that no other one uses.
        """
        try:
            context = self._idle.pop()
        except IndexError:
            context = Context(self)
        try:
            return context.run(inputs, outputs)
        finally:
            self._idle.append(context)

    def __repr__(self):
        ports = [", ".join(f"{port.name}: {port.type}" for port in side)
                 for side in (self._inputs, self._outputs)]
        return f"<apus.Engine ({ports[0]}) -> ({ports[1]})>"


class Context:
    """Runs an engine, one run at a time; not for two threads at once."""

    def __init__(self, engine):
        self._engine = engine
        self._handle = Handle.made_by(
            library.apus_context_destroy, library.apus_context_create, engine._handle.pointer)

    def run(self, inputs, outputs=None, *, copy=True):
        """Runs once. With ``copy=False`` the arrays are views that the next run overwrites."""
        pointer = self._handle.pointer
        self._alive = []  # an output may be the memory of an input
        try:
            for name, value in dict(inputs).items():
                self._alive.append(self._set(pointer, name, value))
            check(library.apus_context_run(pointer))
        finally:
            library.apus_context_clear(pointer)
        names = [port.name for port in self._engine.outputs] if outputs is None else outputs
        return {name: self._get(pointer, name, copy) for name in names}

    def _set(self, pointer, name, value):
        encoded, kind, number = self._engine._raw_inputs.get(name, (name.encode(), KIND_TENSOR, 0))
        if kind == KIND_TENSOR and not isinstance(value, list):
            array = as_array(value, number)
            if array.dtype.kind not in "OUST":
                described = Described(array)
                check(library.apus_context_set_input(
                    pointer, encoded, ctypes.byref(described.tensor)))
                return described
        elif kind == KIND_TENSOR:
            return self._set(pointer, name, as_array(value, number))
        handle = to_value(value, kind, number)
        check(library.apus_context_set_value(pointer, encoded, handle.pointer))
        return handle

    def _get(self, pointer, name, copy):
        encoded, kind, number = self._engine._raw_outputs.get(name, (name.encode(), KIND_TENSOR, 0))
        if kind == KIND_TENSOR and number != STRING:
            tensor = _library.Tensor()
            check(library.apus_context_output(pointer, encoded, ctypes.byref(tensor)))
            array = view(tensor, self._handle)
            return array.copy() if copy else array
        return from_value(Handle.made_by(
            library.apus_value_destroy, library.apus_context_get_value, pointer, encoded))


def devices():
    """The devices of this machine."""
    return json.loads(_library.report(library.apus_devices))
