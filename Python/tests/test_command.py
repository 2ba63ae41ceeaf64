# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""The command `apus` as scripts use it.

APUS_COMMAND names the built command; the default is the one in .build.
"""

import json
import os
import pathlib
import subprocess

import numpy as np
import onnx
import pytest

from conftest import DIGITS, ROOT

COMMAND = pathlib.Path(os.environ.get("APUS_COMMAND", ROOT / ".build" / "release" / "apus"))
MODEL = DIGITS / "digits.onnx"

pytestmark = pytest.mark.skipif(
    not COMMAND.exists(), reason="the command is not built: swift build -c release")


def apus(*arguments, code=0, knobs={}):
    """Runs the command, checks its exit code, returns the finished process."""
    result = subprocess.run(
        [str(COMMAND), *map(str, arguments)], text=True, capture_output=True, timeout=300,
        stdin=subprocess.DEVNULL, env={**os.environ, **knobs})
    assert result.returncode == code, f"{result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("command") / "digits.plan"
    apus("build", MODEL, "-o", path, "--threads", 1, "--level", 1)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory, digits_test):
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, image=digits_test["image"])
    return path


@pytest.mark.parametrize("source", ["engine", "model"])
def test_run(source, engine, images, digits, digits_test, tmp_path):
    output = tmp_path / "result.npz"
    apus("run", engine if source == "engine" else MODEL, "--inputs", images, "--output", output,
         "--threads", 1)
    with np.load(output) as results:
        assert results.files == ["probability"]
        result = results["probability"]
    expected = digits.run({"image": digits_test["image"]})["probability"]
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


def test_run_npy(engine, digits_test, tmp_path):
    np.save(tmp_path / "image.npy", digits_test["image"][:3])
    apus("run", engine, "--input", f"image={tmp_path / 'image.npy'}", "--output",
         tmp_path / "result.npz")
    with np.load(tmp_path / "result.npz") as results:
        assert results["probability"].shape == (3, 10)


def test_run_compressed(engine, digits_test, tmp_path):
    np.savez_compressed(tmp_path / "image.npz", image=digits_test["image"][:3])
    apus("run", engine, "--inputs", tmp_path / "image.npz", "--output", tmp_path / "result.npz")


def test_bench(engine):
    result = apus("bench", engine, "--json", "--seconds", 0.2, "--threads", 1, "--batch", 2)
    report = json.loads(result.stdout.splitlines()[-1])
    for key in ("median_ms", "mean_ms", "min_ms", "p90_ms", "p99_ms", "samples_per_s", "load_ms",
                "build_ms", "peak_memory_bytes"):
        assert isinstance(report[key], (int, float)), key
    assert (report["threads"], report["batch"]) == (1, 2)
    assert report["precision"] == "fp32" and "cpu" in report["device"]
    assert 0 < report["min_ms"] <= report["median_ms"] <= report["p99_ms"]


def test_compare(images):
    result = apus("compare", MODEL, "--inputs", images, "--threads", 1)
    assert "probability" in result.stdout


@pytest.mark.parametrize("arguments", [
    ["inspect", "ENGINE", "--json"], ["inspect", MODEL, "--json"], ["devices", "--json"]])
def test_json(arguments, engine):
    result = apus(*[engine if item == "ENGINE" else item for item in arguments])
    json.loads(result.stdout)


@pytest.mark.parametrize("arguments, word", [
    (["inspect", "ENGINE"], "Conv"), (["devices"], "cpu"), (["ops"], "Conv"),
    (["knobs"], "APUS_DEBUG"), (["--help"], "build"), (["help", "build"], "--timing-cache")])
def test_texts(arguments, word, engine):
    result = apus(*[engine if item == "ENGINE" else item for item in arguments])
    assert word in result.stdout


def test_inspect_prints_what_users_should_know(tmp_path):
    plan = tmp_path / "random.plan"
    result = apus("build", MODEL, "-o", plan, "--precision", "int8", "--calibration", "random:4", "--level", 0)
    assert "calibrated with random numbers" in result.stderr
    assert "calibrated with random numbers" in apus("inspect", plan).stdout


def test_failures_exit_with_1_and_name_the_file(engine, images, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(MODEL.read_bytes()[:1000])
    damaged = tmp_path / "damaged.plan"
    damaged.write_bytes(engine.read_bytes()[:-100])
    for arguments, word in [
        (["build", tmp_path / "none.onnx", "-o", tmp_path / "x.plan"], "none.onnx"),
        (["build", broken, "-o", tmp_path / "x.plan"], "broken.onnx"),
        (["run", damaged, "--inputs", images, "--output", tmp_path / "x.npz"], "damaged.plan"),
        (["run", engine, "--inputs", tmp_path / "none.npz", "--output", tmp_path / "x.npz"],
         "none.npz"),
        (["build", MODEL, "-o", tmp_path / "no" / "folder" / "x.plan"], "x.plan"),
        (["build", MODEL, "-o", tmp_path / "x.plan", "--precision", "int8"], "int8"),
    ]:
        assert word in apus(*arguments, code=1).stderr
    assert not (tmp_path / "x.plan").exists()


@pytest.mark.parametrize("arguments", [
    ["build"], ["bogus"], ["build", str(MODEL), "-o", "x.plan", "--colour", "blue"],
    ["bench", str(MODEL), "--threads", "many"]])
def test_usage_exits_with_64(arguments):
    apus(*arguments, code=64)


def test_the_documented_operators_are_those_of_the_command():
    documented = (ROOT / "Documentation" / "operators.md").read_text()
    assert documented == apus("ops", "--markdown").stdout, "stale: run make operators"


def test_placement():
    report = json.loads(apus("inspect", MODEL, "--json", "--level", 0).stdout)["placement"]
    assert sum(row["share"] for row in report["operators"]) == pytest.approx(1)
    assert report["portable_share"] < 0.01
    portable = json.loads(
        apus("inspect", MODEL, "--json", knobs={"APUS_TACTIC_SOURCES": "portable"}).stdout)
    assert portable["placement"]["portable_share"] == pytest.approx(1)


def test_knobs_that_watch_a_run(tmp_path):
    """A logarithm of zero is reported by kernel, and generated code has names for profilers."""
    node = onnx.helper.make_node("Log", ["x"], ["y"], name="ln")
    port = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [64])
    graph = onnx.helper.make_graph([node], "g", [port("x")], [port("y")])
    onnx.save(onnx.helper.make_model(graph, ir_version=10), tmp_path / "log.onnx")
    np.save(tmp_path / "x.npy", np.zeros(64, np.float32))
    listings = tmp_path / "code"
    listings.mkdir()
    result = apus(
        "run", tmp_path / "log.onnx", "--input", f"x={tmp_path / 'x.npy'}", "--output",
        tmp_path / "y.npz", "--threads", 1,
        knobs={"APUS_CHECK_NUMERICS": "1", "APUS_JIT_DUMP": str(listings)})
    assert "'ln'" in result.stderr and "64 infinite elements of 64" in result.stderr
    if "avx" in apus("devices").stdout.lower():
        assert any(path.stat().st_size > 0 for path in listings.glob("*pointwise*.bin"))
