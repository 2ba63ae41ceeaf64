# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Apus, an inference optimizer and runtime: a model in, an optimised engine out, results.

    engine = apus.build("model.onnx", threads=4)
    outputs = engine.run({"image": image})
"""

from ._calibration import Calibration, blame, entropy_threshold
from ._engine import Context, Engine, Port, build, devices
from ._errors import ApusError
from ._operators import register_operator
from ._version import __version__

__all__ = [
    "ApusError", "Calibration", "Context", "Engine", "Port", "__version__", "blame", "build", "devices",
    "entropy_threshold", "register_operator",
]
