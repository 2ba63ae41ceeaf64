# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""What the user reads when something is wrong."""

import pickle

import numpy as np
import onnx
import pytest

import apus


def raises(code, match=None):
    return pytest.raises(apus.ApusError, match=match, check=lambda error: error.code == code)


def test_missing_file(tmp_path):
    with raises("file-access", "nothing-here.onnx"):
        apus.build(tmp_path / "nothing-here.onnx")
    with raises("file-access", "nothing-here.plan"):
        apus.Engine.load(tmp_path / "nothing-here.plan")


@pytest.mark.parametrize("data", [b"", b"not a model", bytes(1000), b"\xff" * 64])
def test_garbage(data):
    with pytest.raises(apus.ApusError):
        apus.build(data)
    with pytest.raises(apus.ApusError):
        apus.Engine.load(data)


def test_truncated_model(digits_path):
    data = digits_path.read_bytes()
    for size in (1, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(apus.ApusError):
            apus.build(data[:size])


def test_damaged_engine(digits):
    data = bytearray(digits.to_bytes())
    with pytest.raises(apus.ApusError):
        apus.Engine.load(data[: len(data) // 2])
    data[len(data) // 2] ^= 0x40
    with pytest.raises(apus.ApusError):
        apus.Engine.load(data)


def test_unsupported_operators_are_all_named():
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17, "com.example": 1]>
        g (float[N] x) => (float[N] z) {
          y = com.example.Twirl(x)
          v = com.example.Whirl(y)
          z = com.example.Twirl(v)
        }""")
    with raises("unsupported-operator") as caught:
        apus.build(model)
    assert "Twirl" in str(caught.value) and "Whirl" in str(caught.value)


def test_wrong_inputs(digits):
    good = np.zeros((1, 1, 8, 8), np.float32)
    for bad, word in [
        ({}, "image"),
        ({"picture": good}, "picture"),
        ({"image": good, "extra": good}, "extra"),
        ({"image": good.astype(np.float64)}, "image"),
        ({"image": good[0]}, "image"),
        ({"image": np.zeros((1, 3, 8, 8), np.float32)}, "image"),
    ]:
        with pytest.raises(apus.ApusError, match=word):
            digits.run(bad)
    assert digits.run({"image": good})["probability"].shape == (1, 10)


def test_bad_options(digits_path):
    for options in ({"level": 9}, {"threads": -1}, {"device": "abacus"}, {"nonsense": 1},
                    {"shapes": {"image": "what"}}, {"shapes": {"picture": (1, 1, 8, 8)}}):
        with pytest.raises(apus.ApusError):
            apus.build(digits_path, **options)


def test_precision_is_never_silently_ignored(digits_path):
    try:
        engine = apus.build(digits_path, precision="int8")
    except apus.ApusError as error:
        assert error.code in ("not-yet-supported", "invalid-argument")
    else:
        assert "int8" in str(engine.inspect())


def test_four_bits_are_said_or_refused(digits_path, digits_test):
    engine = apus.build(digits_path, precision="int4", int4_group=32, level=0)
    report = engine.inspect()
    assert report["build"]["precision"] == "int4"
    if "StoreWeightsInFourBits" in report["build"]["rewrites"]:
        assert report["weights_by_type"]["u4"] > 0
    probability = engine.run({"image": digits_test["image"]})["probability"]
    assert (probability.argmax(1) == digits_test["label"]).mean() > 0.95
    with pytest.raises(apus.ApusError, match="32, 64 or 128"):
        apus.build(digits_path, precision="int4", int4_group=48)


def test_error_pickles():
    error = pickle.loads(pickle.dumps(apus.ApusError("file-access", "text")))
    assert (error.code, str(error)) == ("file-access", "text")
