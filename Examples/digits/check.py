#!/usr/bin/env python3
# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Checks that ``digits.onnx`` in ONNX Runtime and ``saved_model/`` in TensorFlow agree."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import onnxruntime
import tensorflow as tf

FOLDER = pathlib.Path(__file__).resolve().parent


def main():
    test = np.load(FOLDER / "digits_test.npz")
    session = onnxruntime.InferenceSession(
        FOLDER / "digits.onnx", providers=["CPUExecutionProvider"])
    (from_onnx,) = session.run(["probability"], {"image": test["image"]})
    loaded = tf.saved_model.load(str(FOLDER / "saved_model"))
    serve = loaded.signatures["serving_default"]
    from_tensorflow = serve(image=test["image"].reshape(-1, 8, 8, 1))["probability"].numpy()
    difference = np.abs(from_onnx - from_tensorflow).max()
    for name, probability in [("ONNX Runtime", from_onnx), ("TensorFlow", from_tensorflow)]:
        print(f"{name}: accuracy {100 * np.mean(probability.argmax(1) == test['label']):.2f} %")
    print(f"largest difference of a probability: {difference:.2e}")
    assert difference < 1e-5


if __name__ == "__main__":
    main()
