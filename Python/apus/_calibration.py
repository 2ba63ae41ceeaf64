# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Ranges for int8, and the layers to blame for errors."""

import contextlib
import ctypes
import json
import os
import pathlib
import tempfile

import numpy

from . import _library
from ._library import check, library
from ._options import config_of, made_of
from ._values import Described


class Calibration:
    """Watches a model in single precision over batches and finds the ranges that int8 needs.

        calibration = apus.Calibration("model.onnx", calibrator="entropy")
        for batch in batches:
            calibration.add({"image": batch})
        engine = apus.build("model.onnx", precision="int8", calibration_table=calibration.table())

    What is kept of the batches does not grow with their number. The options are those of ``build``.
    """

    def __init__(self, model, *, directory=None, **options):
        config = config_of(options)
        self._handle = made_of(
            model, directory, config, library.apus_calibration_destroy,
            library.apus_calibration_create, library.apus_calibration_create_bytes)

    def add(self, inputs):
        """Runs a batch: arrays by input name."""
        alive = []
        for name, value in dict(inputs).items():
            alive.append(Described(numpy.ascontiguousarray(value)))
            check(library.apus_calibration_set_input(
                self._handle.pointer, name.encode(), ctypes.byref(alive[-1].tensor)))
        check(library.apus_calibration_add(self._handle.pointer))

    def table(self):
        """The ranges, as the text of a calibration cache."""
        return _library.report(library.apus_calibration_finish, self._handle.pointer).decode()


def entropy_threshold(bins, bin_width=1.0):
    """The threshold of the calibrator ``entropy`` for a histogram of magnitudes without zeros."""
    counts = numpy.ascontiguousarray(bins, numpy.uint64)
    threshold = ctypes.c_double()
    check(library.apus_entropy_threshold(
        counts.ctypes.data_as(ctypes.POINTER(ctypes.c_uint64)), counts.size, bin_width,
        ctypes.byref(threshold)))
    return threshold.value


def blame(model, inputs, *, engine=None, wanted=None, **options):
    """Which layers make the results differ from single precision, the worst first.

    ``model`` is the model's file. ``engine`` is an engine that was built of it; without one the
    options say what precision to look at, as for ``build``. ``inputs`` are arrays by input name, or
    files like calibration data. ``wanted`` is a signal-to-noise ratio in dB: the smallest set of layers
    to raise for it is found.
    """
    with contextlib.ExitStack() as stack:
        if not isinstance(inputs, (str, os.PathLike)):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            numpy.savez(os.path.join(folder, "inputs.npz"), **inputs)
            inputs = os.path.join(folder, "inputs.npz")
        calibration = options.pop("calibration", None)
        found = stack.enter_context(calibration_options(model, None, calibration, options))
        config = config_of({**options, **found})
        return json.loads(_library.report(
            library.apus_blame, os.fsencode(model), engine and engine._handle.pointer, config.pointer,
            os.fsencode(inputs), float(wanted or 0)))


@contextlib.contextmanager
def calibration_options(model, directory, calibration, options):
    """The options that stand for calibration data of any kind, for as long as a build takes."""
    if calibration is None:
        yield {}
    elif isinstance(calibration, (str, os.PathLike)):
        yield {"calibration": calibration}
    elif options.get("precision") == "auto" or str(options.get("refine_ranges")).lower() == "true":
        # Batches are read again: they must be somewhere.
        with tempfile.TemporaryDirectory() as folder:
            for index, batch in enumerate(calibration):
                numpy.savez(pathlib.Path(folder) / f"{index:08}.npz", **batch)
            yield {"calibration": folder}
    else:
        known = {name: options[name] for name in _CALIBRATION_OPTIONS if name in options}
        watching = Calibration(model, directory=directory, **known)
        for batch in calibration:
            watching.add(batch)
        yield {"calibration_table": watching.table()}


_CALIBRATION_OPTIONS = ("device", "threads", "batch", "shapes", "calibrator", "equalize")
