# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""ONNX's own backend suite.

A case that needs an operator we lack is reported as skipped with the error as its reason, but only
when ``onnx_unsupported.txt`` names that operator: an operator that stops working fails here, and so
does one that is still in the list although it works. ``onnx_failing.txt`` names the cases that give a wrong
result; a case there that passes fails too, so that the list stays true.

APUS_ONNX_OPTIMIZE=reference runs the suite through the reference interpreter.
"""

import os
import pathlib
import unittest

import onnx.backend.test

import apus
from apus.onnx_backend import ApusBackend

HERE = pathlib.Path(__file__).resolve().parent
UNSUPPORTED_CODES = {"unsupported-operator", "not-yet-supported"}


def read_list(name):
    """The first word of every line that is not a comment, with the rest of its line."""
    lines = (HERE / name).read_text().splitlines()
    entries = [line.split(maxsplit=1) for line in lines if line.strip() and line[0] != "#"]
    return {entry[0]: entry[1] if len(entry) > 1 else "" for entry in entries}


UNSUPPORTED = read_list("onnx_unsupported.txt")
EXCLUDED = read_list("onnx_excluded.txt")
FAILING = read_list("onnx_failing.txt")


def operators(graph, functions):
    """The names of all operators a graph uses, in subgraphs and functions too."""
    names = set()
    for node in graph:
        names.add(f"{node.domain}.{node.op_type}" if node.domain else node.op_type)
        for attribute in node.attribute:
            for subgraph in [attribute.g, *attribute.graphs]:
                names |= operators(subgraph.node, {})
    for function in functions:
        names |= operators(function.node, {})
    return names


class SuiteBackend(ApusBackend):
    """Turns a missing operator into a skip when the list expects it."""

    options = {"threads": 1, "level": 1, "optimize": os.environ.get("APUS_ONNX_OPTIMIZE")}
    missing_seen = set()

    @classmethod
    def prepare(cls, model, device="CPU", **kwargs):
        try:
            return super().prepare(model, device, **kwargs)
        except apus.ApusError as error:
            expected = operators(model.graph.node, model.functions) & set(UNSUPPORTED)
            if error.code in UNSUPPORTED_CODES and expected:
                cls.missing_seen |= expected
                raise unittest.SkipTest(str(error)) from None
            raise

    @classmethod
    def supports_device(cls, device):
        return device == "CPU"


suite = onnx.backend.test.BackendTest(SuiteBackend, __name__)
for pattern in EXCLUDED:
    suite.exclude(f"^{pattern}_cpu$")
for pattern in FAILING:
    suite.xfail(f"^{pattern}_cpu$")
cases = suite.test_cases
for case in cases.values():
    for name in [name for name in vars(case) if name.endswith("_cuda")]:
        delattr(case, name)
globals().update(cases)


def test_list_has_no_stale_entry():
    """Runs after the cases above, which are classes and collected first."""
    stale = set(UNSUPPORTED) - SuiteBackend.missing_seen
    if not SuiteBackend.missing_seen and UNSUPPORTED:
        return  # the cases were deselected
    assert not stale, f"these work now: take them out of onnx_unsupported.txt: {sorted(stale)}"


def test_every_failure_is_documented():
    documented = (HERE.parents[1] / "Documentation" / "conformance.md").read_text()
    missing = [name for name in [*FAILING, *UNSUPPORTED, *EXCLUDED] if f"`{name}`" not in documented]
    assert not missing
