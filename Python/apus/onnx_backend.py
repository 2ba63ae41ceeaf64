# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Apus as an ONNX backend: ``onnx.backend.base.Backend``, for ONNX's own test suite and its users.

    import apus.onnx_backend as backend
    outputs = backend.run_model(model, [image])
"""

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep, Device, DeviceType, namedtupledict

from ._engine import build, devices


class ApusBackendRep(BackendRep):
    """An engine that takes its inputs in the model's order."""

    def __init__(self, engine):
        self.engine = engine

    def run(self, inputs, **kwargs):
        """The outputs as a tuple that also has names. ``inputs``: one array, several, or a dict."""
        if isinstance(inputs, (np.ndarray, np.generic)):
            inputs = [inputs]
        names = [port.name for port in self.engine.inputs]
        if not isinstance(inputs, dict):
            if len(inputs) > len(names):
                raise ValueError(f"{len(inputs)} inputs for a model with {len(names)}")
            inputs = dict(zip(names, inputs))
        outputs = self.engine.run(inputs)
        return namedtupledict("Outputs", list(outputs))(*outputs.values())


class ApusBackend(Backend):
    """Builds every model with ``options``, those of :func:`apus.build`."""

    options = {}

    @classmethod
    def prepare(cls, model, device="CPU", **kwargs):
        """An engine for the model; further arguments are options of :func:`apus.build`."""
        wanted = Device(device)
        name = "cpu" if wanted.type == DeviceType.CPU else f"cuda:{wanted.device_id}"
        return ApusBackendRep(build(model, **{"device": name, **cls.options, **kwargs}))

    @classmethod
    def run_model(cls, model, inputs, device="CPU", **kwargs):
        """Builds and runs once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(cls, node, inputs, device="CPU", outputs_info=None, **kwargs):
        """Runs one node on the arrays given for its inputs, in their order."""
        opset = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        arrays = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        names = [name for name in node.input if name]
        values = [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, map(np.asarray, arrays))
        ]
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "node", values, outputs)
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid(node.domain, opset)])
        return cls.run_model(onnx.shape_inference.infer_shapes(model), arrays, device, **kwargs)

    @classmethod
    def supports_device(cls, device):
        """Whether this machine has the device and this build can use it."""
        kind = device.split(":")[0].lower()
        return any(entry.get("kind") == kind for entry in devices())


class ReferenceBackend(ApusBackend):
    """The same with the reference interpreter instead of an optimised engine."""

    options = {"optimize": "reference"}


is_compatible = ApusBackend.is_compatible
prepare = ApusBackend.prepare
run_model = ApusBackend.run_model
run_node = ApusBackend.run_node
supports_device = ApusBackend.supports_device
