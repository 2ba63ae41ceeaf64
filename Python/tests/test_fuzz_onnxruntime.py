# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Random graphs give what ONNX Runtime gives for them.

APUS_DIFF_FUZZ_COUNT sets the number of graphs, APUS_DIFF_FUZZ_SEED the first seed.
"""

import os

import numpy as np
import onnx
import onnxruntime

import apus
from model_fuzzer import GraphFuzzer

COUNT = int(os.environ.get("APUS_DIFF_FUZZ_COUNT", "1500"))
FIRST = int(os.environ.get("APUS_DIFF_FUZZ_SEED", "1"))


def expected_outputs(model, feed):
    """What ONNX Runtime computes without optimisations; None when it refuses the graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip([port.name for port in session.get_outputs()], session.run(None, feed)))
    except Exception:
        return None


def disagreement(name, got, want, quantised):
    """Why two arrays differ by more than rounding explains; None when they agree."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"{name} is {got.dtype}{got.shape}, not {want.dtype}{want.shape}"
    if want.dtype.kind != "f":
        if quantised and want.dtype.kind in "iub":
            return None  # rounding may have moved what decides
        return None if np.array_equal(got, want) else f"{name} differs: {got} and {want}"
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(got)):
        return f"{name}: other elements are not finite"
    if not finite.any():
        return None
    difference = np.abs(got[finite] - want[finite])
    # Sums lose what their largest term's last place is worth.
    allowed = 2e-4 * np.abs(want[finite]) + 2e-5 * max(1.0, np.abs(want[finite]).max())
    if quantised:
        # A number beside a tie moves by a whole step, and what is computed from it.
        share = np.mean(difference > allowed)
        scale = max(1.0, np.abs(want[finite]).max())
        return None if difference.max() <= 0.3 * scale or share < 0.05 else f"{name}: {share:.1%} differ"
    if (difference <= allowed).all():
        return None
    worst = int(np.argmax(difference - allowed))
    return f"{name}[{worst}] is {got[finite][worst]!r}, not {want[finite][worst]!r}"


def check(seed):
    """Why the graph of a seed disagrees: None for agreement, "refused" when ONNX Runtime cannot say."""
    fuzzer = GraphFuzzer(seed)
    model, feed = fuzzer.build()
    want = expected_outputs(model, feed)
    if want is None:
        return "refused"
    try:
        got = apus.build(model.SerializeToString(), threads=1, level=0).run(feed)
    except apus.ApusError as error:
        return f"{error}"
    for name, array in want.items():
        reason = disagreement(name, got[name], np.asarray(array), fuzzer.is_quantised)
        if reason:
            return reason
    return None


def test_random_graphs():
    refused, wrong = 0, []
    for seed in range(FIRST, FIRST + COUNT):
        reason = check(seed)
        if reason == "refused":
            refused += 1
        elif reason:
            wrong.append(seed)
            model, _ = GraphFuzzer(seed).build()
            print(f"seed {seed}: {reason}\n{onnx.printer.to_text(model.graph)[:3000]}")
    assert not wrong, f"graphs that differ, by seed: {wrong}"
    assert refused <= COUNT // 10, f"ONNX Runtime refused {refused} of {COUNT} graphs"
