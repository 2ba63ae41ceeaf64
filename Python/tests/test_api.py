# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Building, saving, loading, running and looking at engines."""

import pathlib

import numpy as np
import onnx
import pytest

import apus


def accuracy(probability, test):
    return np.mean(probability.argmax(1) == test["label"])


def test_versions():
    assert apus.__version__ == apus._library.library.apus_version().decode()


def test_ports(digits):
    (image,) = digits.inputs
    assert (image.name, image.dtype, image.kind) == ("image", np.float32, "tensor")
    assert image.shape == ("N", 1, 8, 8)
    (probability,) = digits.outputs
    assert (probability.name, probability.dtype) == ("probability", np.float32)
    assert probability.shape == ("N", 10)
    assert "image" in repr(digits) and "probability" in repr(digits)


def test_accuracy(digits, digits_test):
    outputs = digits.run({"image": digits_test["image"]})
    assert list(outputs) == ["probability"]
    assert outputs["probability"].shape == (360, 10)
    assert accuracy(outputs["probability"], digits_test) >= 0.975


def test_every_batch_size(digits, digits_test):
    whole = digits.run({"image": digits_test["image"]})["probability"]
    for count in (1, 2, 3, 7, 32):
        part = digits.run({"image": digits_test["image"][:count]})["probability"]
        np.testing.assert_allclose(part, whole[:count], rtol=1e-4, atol=1e-6)


def test_bytes_model_and_path_agree(digits, digits_path, digits_test):
    image = digits_test["image"][:4]
    expected = digits.run({"image": image})["probability"]
    data = pathlib.Path(digits_path).read_bytes()
    for model in (data, bytearray(data), onnx.load(digits_path), str(digits_path)):
        engine = apus.build(model, threads=1)
        result = engine.run({"image": image})["probability"]
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_reference_agrees(digits, digits_path, digits_test):
    image = digits_test["image"][:16]
    reference = apus.build(digits_path, optimize="reference")
    np.testing.assert_allclose(
        digits.run({"image": image})["probability"],
        reference.run({"image": image})["probability"], rtol=1e-4, atol=1e-6)


def test_save_and_load(digits, digits_test, tmp_path):
    image = digits_test["image"][:8]
    expected = digits.run({"image": image})["probability"]
    path = tmp_path / "digits.plan"
    digits.save(path)
    for engine in (apus.Engine.load(path), apus.Engine.load(str(path), threads=1),
                   apus.Engine.load(path.read_bytes()), apus.Engine.load(digits.to_bytes())):
        assert [port[:3] for port in engine.inputs] == [port[:3] for port in digits.inputs]
        np.testing.assert_array_equal(engine.run({"image": image})["probability"], expected)


def test_engine_outlives_its_file(digits, digits_test, tmp_path):
    path = tmp_path / "digits.plan"
    digits.save(path)
    engine = apus.Engine.load(path)
    path.unlink()
    assert engine.run({"image": digits_test["image"]})["probability"].shape == (360, 10)


def test_batch_is_tuned_for_and_others_still_run(digits_path, digits_test):
    engine = apus.build(digits_path, batch=4, threads=1)
    for count in (4, 5):
        assert engine.run({"image": digits_test["image"][:count]})["probability"].shape == (count, 10)


def test_timing_cache(digits_path, tmp_path):
    cache = tmp_path / "timing.txt"
    apus.build(digits_path, timing_cache=cache, batch=1, threads=1)
    assert cache.stat().st_size > 0
    apus.build(digits_path, timing_cache=cache, batch=1, threads=1)


def test_inspect(digits):
    report = digits.inspect()
    assert isinstance(report, dict) and report


def test_devices():
    assert any(device["kind"] == "cpu" for device in apus.devices())


def test_outputs_by_name(digits, digits_test):
    image = digits_test["image"][:1]
    assert list(digits.run({"image": image}, ["probability"])) == ["probability"]
    with pytest.raises(apus.ApusError, match="logits"):
        digits.run({"image": image}, ["logits"])
