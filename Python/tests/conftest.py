# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the example model and small models made on the spot."""

import collections
import os
import pathlib
import re
import tempfile

# ONNX's suite writes files for its larger models; they go away with the machine's temporary files.
os.environ.setdefault("ONNX_HOME", tempfile.mkdtemp(prefix="apus-onnx-"))

import numpy as np
import pytest

import apus

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIGITS = ROOT / "Examples" / "digits"


@pytest.fixture(scope="session")
def digits_path():
    return DIGITS / "digits.onnx"


@pytest.fixture(scope="session")
def digits_test():
    with np.load(DIGITS / "digits_test.npz") as data:
        return dict(data)


@pytest.fixture(scope="session")
def digits(digits_path):
    return apus.build(digits_path, threads=1)


def pytest_terminal_summary(terminalreporter):
    """How many cases of ONNX's suite ran, and what stopped the rest."""
    stats = terminalreporter.stats
    ours = {outcome: [report for report in stats.get(outcome, [])
                      if "test_onnx_backend" in report.nodeid]
            for outcome in ("passed", "failed", "skipped")}
    if not any(ours.values()):
        return
    terminalreporter.section("ONNX backend suite")
    terminalreporter.line(", ".join(f"{len(reports)} {key}" for key, reports in ours.items()))
    causes = collections.Counter()
    for report in ours["skipped"]:
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        code = re.search(r"error \[([a-z-]+)\]: ([^\n]*)", text)
        causes[f"{code[1]}: {code[2][:90]}" if code else text.splitlines()[0][:90]] += 1
    for cause, count in causes.most_common(40):
        terminalreporter.line(f"{count:5} {cause}")
