# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""One engine, several threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import apus


@pytest.mark.parametrize("threads", [1, 2])
def test_runs_from_several_threads(digits_path, digits_test, threads):
    engine = apus.build(digits_path, threads=threads)
    image = digits_test["image"]
    expected = engine.run({"image": image})["probability"]

    def one(index):
        start = index * 7 % 300
        result = engine.run({"image": image[start:start + 32]})["probability"]
        np.testing.assert_allclose(result, expected[start:start + 32], rtol=1e-4, atol=1e-6)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(60)))


def test_errors_stay_with_their_thread(digits):
    def fail(name):
        with pytest.raises(apus.ApusError) as caught:
            digits.run({name: np.zeros((1, 1, 8, 8), np.float32)})
        assert name in str(caught.value)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fail, [f"input{index}" for index in range(40)]))
