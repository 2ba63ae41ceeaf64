# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Thresholds against the published algorithm, calibration from Python, and what int8 keeps of real
classifiers' answers."""

import ctypes
import os
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import apus
import apus.images

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("APUS_SHARED", ROOT.parent / "shared"))
needs_shared = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason="no folder of real models ('shared') beside the project")


def published_threshold(histogram, levels=128, smoothing=1e-4):
    """The number of bins that S. Migacz, "8-bit inference with TensorRT" (2017) keeps.

    For every candidate the distribution up to it, outliers in its last bin, is compared with its
    rounding to `levels` levels, each spread over the bins that the distribution has anything in.
    """
    histogram = np.asarray(histogram, float)
    occupied = np.flatnonzero(histogram)
    if len(occupied) == 0:
        return 0
    histogram = histogram[: occupied[-1] + 1]
    if len(histogram) <= levels:
        return len(histogram)
    divergences = []
    for size in range(levels, len(histogram) + 1):
        inside = histogram[:size]
        if inside.sum() == 0:
            divergences.append(np.inf)
            continue
        reference = inside.copy()
        reference[-1] += histogram[size:].sum()
        # A level joins size / levels bins, the last one the rest, too.
        starts = np.arange(levels) * (size // levels)
        lengths = np.diff(np.r_[starts, size])
        present = reference > 0
        spread = np.maximum(np.add.reduceat(inside, starts), smoothing)
        spread = spread / np.maximum(np.add.reduceat(present.astype(float), starts), 1)
        candidate = np.repeat(spread, lengths) * present
        p, q = reference / reference.sum(), candidate / inside.sum()
        present = p > 0
        divergences.append(np.sum(p[present] * np.log(p[present] / q[present])))
    divergences = np.array(divergences)
    # Of equal candidates the one that clips least.
    return levels + np.flatnonzero(divergences <= divergences.min() + 1e-11)[-1]


def synthetic_histograms():
    """Many shapes: smooth, heavy-tailed, with gaps, outliers, limits, few samples."""
    random = np.random.default_rng(7)
    draws = {
        "normal": lambda n: random.normal(size=n), "laplace": lambda n: random.laplace(size=n),
        "student": lambda n: random.standard_t(3, size=n), "uniform": lambda n: random.random(n),
        "lognormal": lambda n: random.lognormal(size=n),
        "limited": lambda n: np.minimum(random.exponential(2, n), 6),
        "outliers": lambda n: np.r_[random.normal(size=n), [40, -50]],
        "two humps": lambda n: np.r_[random.normal(size=n), random.normal(9, 0.1, n // 50)],
    }
    for name, draw in draws.items():
        for count in (300, 5_000, 200_000):
            for bins in (200, 2048):
                values = np.abs(draw(count))
                yield f"{name}-{count}-{bins}", np.histogram(values[values > 0], bins)[0]
    gaps = np.zeros(1500, int)
    gaps[::13] = 5
    yield "gaps", gaps
    yield "one", np.eye(1, 900, 899, dtype=int)[0]


HISTOGRAMS = list(synthetic_histograms())


def test_there_are_enough_histograms():
    assert len(HISTOGRAMS) >= 50


@pytest.mark.parametrize("name,histogram", HISTOGRAMS, ids=[name for name, _ in HISTOGRAMS])
def test_threshold_equals_the_published_algorithm(name, histogram):
    assert apus.entropy_threshold(histogram, 0.25) == published_threshold(histogram) * 0.25


@needs_shared
def test_threshold_of_real_activations():
    """Histograms of every rectifier of a real network."""
    ort = pytest.importorskip("onnxruntime")
    model = onnx.load(SHARED / "models/resnet20-cifar10/resnet20-cifar10.onnx")
    names = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    for name in names:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    results = session.run(names, {"input": cifar("calib")[0][:32]})
    assert len(results) >= 19
    for values in results:
        histogram = np.histogram(values[values > 0], 2048)[0]
        assert apus.entropy_threshold(histogram, 1.0) == published_threshold(histogram)


# MARK: The interface


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    random = np.random.default_rng(1)
    weights = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32) * scale, name)
        for name, shape, scale in (
            ("w1", (16, 4, 3, 3), 0.3), ("w2", (16, 16, 3, 3), 0.15), ("w3", (16, 6), 0.4))]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "rectified"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], "mean"),
        helper.make_node("Flatten", ["d"], ["e"], "flat"),
        helper.make_node("MatMul", ["e", "w3"], ["y"], "classes"),
    ]
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 10, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])], weights)
    path = tmp_path_factory.mktemp("calibration") / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def batches(count, size=4, seed=0):
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield {"x": random.normal(size=(size, 4, 10, 10)).astype(np.float32)}


def relative_error(engine, model):
    x = next(batches(1, 8, seed=9))
    ours = engine.run(x)["y"]
    exact = apus.build(model, optimize="reference").run(x)["y"]
    return np.linalg.norm(ours - exact) / np.linalg.norm(exact)


def test_int8_from_an_iterator(small_model):
    engine = apus.build(small_model, precision="int8", calibration=batches(6), calibrator="mse", level=0)
    assert 0 < relative_error(engine, small_model) < 0.05
    assert engine.inspect()["build"]["precision"] == "int8"


def test_a_table_is_the_cache(small_model, tmp_path):
    calibration = apus.Calibration(small_model, calibrator="percentile:99.9", level=0)
    for batch in batches(5):
        calibration.add(batch)
    table = calibration.table()
    assert "calibrator\tpercentile:99.9" in table and "samples\t20" in table
    cache = tmp_path / "ranges.txt"
    cache.write_text(table)
    from_cache = apus.build(small_model, precision="int8", calibration_cache=cache, level=0)
    from_table = apus.build(small_model, precision="int8", calibration_table=table, level=0)
    x = next(batches(1, 3, seed=2))
    assert np.array_equal(from_cache.run(x)["y"], from_table.run(x)["y"])


def test_auto_keeps_the_budget_and_says_why(small_model):
    engine = apus.build(
        small_model, precision="auto", accuracy_metric="noise", accuracy_budget=0.05,
        calibration=batches(12), level=0)
    report = engine.inspect()["build"]
    assert report["notes"][0].startswith("budget 0.05")
    assert 100 * relative_error(engine, small_model) ** 2 < 0.15
    assert all(layer["reason"] for layer in report["layers"])


def spoilt_table(model, factor):
    """A calibration in which the range of tensor b is too small."""
    calibration = apus.Calibration(model, level=0)
    for batch in batches(5):
        calibration.add(batch)
    lines = calibration.table().splitlines()
    for index, line in enumerate(lines):
        fields = line.split("\t")
        if fields[:2] == ["tensor", "b"]:
            fields[3] = str(float(fields[3]) / factor)
            lines[index] = "\t".join(fields)
    return "\n".join(lines) + "\n"


def test_ranges_are_refined_with_an_iterator(small_model, tmp_path):
    cache = tmp_path / "ranges.txt"
    cache.write_text(spoilt_table(small_model, 3))
    options = {"precision": "int8", "calibration_cache": cache, "level": 0}
    spoilt = apus.build(small_model, **options)
    if not any(kernel["problem"].count("u8") for kernel in spoilt.inspect()["kernels"]):
        pytest.skip("this machine has no kernels on bytes")
    refined = apus.build(small_model, calibration=batches(6), refine_ranges=True, **options)
    assert relative_error(refined, small_model) < 0.5 * relative_error(spoilt, small_model)
    assert "\trefined\n" in cache.read_text()
    with pytest.raises(apus.ApusError, match="calibration data"):
        cache.write_text(spoilt_table(small_model, 3))
        apus.build(small_model, refine_ranges=True, **options)


def test_blame_names_the_spoilt_layer(small_model):
    table = spoilt_table(small_model, 30)
    engine = apus.build(small_model, precision="int8", calibration_table=table, level=0)
    if not any(kernel["problem"].count("u8") for kernel in engine.inspect()["kernels"]):
        pytest.skip("this machine has no kernels on bytes")
    found = apus.blame(small_model, next(batches(1, 8, seed=3)), engine=engine, wanted=30, level=0)
    assert found["layers"][0]["name"] == "second" and found["layers"][0]["share"] > 0.9
    assert found["raise"]["layers"][0] == "second"
    tensor = next(entry for entry in found["tensors"] if entry["name"] == "b")
    assert tensor["saturated"] > 0 and tensor["nan"] == 0


@pytest.mark.parametrize("batch,text", [
    ({"x": np.full((1, 4, 10, 10), np.nan, np.float32)}, "NaN or infinite"),
    ({"x": np.zeros((1, 3, 10, 10), np.float32)}, "shape"),
    ({"y": np.zeros((1, 4, 10, 10), np.float32)}, "no input named 'y'"),
    ({"x": np.zeros((0, 4, 10, 10), np.float32)}, "empty"),
])
def test_bad_batches_are_named(small_model, batch, text):
    calibration = apus.Calibration(small_model, level=0)
    with pytest.raises(apus.ApusError, match=text):
        calibration.add(batch)
    with pytest.raises(apus.ApusError, match="no calibration data"):
        calibration.table()


def test_a_cache_of_another_model_is_refused(small_model, digits_path):
    calibration = apus.Calibration(small_model, level=0)
    calibration.add(next(batches(1)))
    with pytest.raises(apus.ApusError, match="another model"):
        apus.build(digits_path, precision="int8", calibration_table=calibration.table(), level=0)


# MARK: Images


def test_images_become_calibration_data(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(3).integers(0, 256, (3, 40, 50, 3), np.uint8)
    for index, array in enumerate(pixels):
        image.fromarray(array).save(tmp_path / f"{index}.png")
    output = tmp_path / "out.npz"
    command = [
        sys.executable, "-m", "apus.images", str(tmp_path), str(output), "--input", "x",
        "--preprocess", "crop=32,scale=255,mean=0.5:0.4:0.3,std=0.2:0.3:0.4"]
    subprocess.run(command, check=True, capture_output=True)
    made = np.load(output)["x"]
    wanted = (pixels[:, 4:36, 9:41] / np.float32(255) - np.array([0.5, 0.4, 0.3], np.float32))
    wanted = (wanted / np.array([0.2, 0.3, 0.4], np.float32)).transpose(0, 3, 1, 2)
    assert made.dtype == np.float32 and np.allclose(made, wanted, atol=1e-6)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode != 0 and "broken.jpg" in failed.stderr
    skipped = subprocess.run(command + ["--skip-bad"], capture_output=True, text=True, check=True)
    assert "1 left out" in skipped.stdout


IMAGE_STEPS = [
    "crop=64x40,scale=255", "resize=48,crop=40,scale=255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225",
    "size=32x50,bgr,mean=100:110:120,std=50", "gray,resize=100,crop=90,scale=255,mean=0.5",
    "size=40x30,scale=255,layout=NHWC",
]


def convolution(shape, last):
    """A convolution of images of this shape, whose channels may be last."""
    channels = shape[-1] if last else shape[0]
    weights = np.random.default_rng(1).standard_normal((4, channels, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["c", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    order = [0, 3, 1, 2] if last else [0, 1, 2, 3]
    nodes.insert(0, helper.make_node("Transpose", ["x"], ["c"], perm=order))
    graph = helper.make_graph(
        nodes, "images", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w")])
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_images_of_the_command_are_those_of_pillow(tmp_path):
    """Apus reads images by itself: the same pixels, or a step beside them, give the same ranges."""
    image = pytest.importorskip("PIL.Image")
    try:
        ctypes.CDLL("libturbojpeg.so.0"), ctypes.CDLL("libpng16.so.16")
    except OSError as error:
        pytest.skip(f"a library for images is not installed: {error}")
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(3).integers(0, 256, (6, 9, 12, 4), np.uint8)
    for index, array in enumerate(noise):
        large = image.fromarray(array).resize((90 + index, 70), image.BICUBIC)
        if index % 2:
            large.convert("RGB").save(tmp_path / f"images/{index}.jpg", quality=92)
        else:
            (large if index else large.convert("L")).save(tmp_path / f"images/{index}.png")
    for number, steps in enumerate(IMAGE_STEPS):
        made, _ = apus.images.load(tmp_path / "images", steps)
        model = convolution(made.shape[1:], "NHWC" in steps)
        tables = []
        np.savez(tmp_path / "arrays.npz", x=made)
        for given in ({"calibration": tmp_path / "arrays.npz"}, {"calibration": tmp_path / "images", "preprocess": steps}):
            cache = tmp_path / f"{number}.{len(tables)}.txt"
            apus.build(model, precision="int8", calibrator="minmax", calibration_cache=cache, level=0, **given)
            lines = [line.split("\t") for line in cache.read_text().splitlines()]
            tables.append({line[1]: [float(x) for x in line[2:4]] for line in lines if line[0] == "tensor"})
        assert tables[0].keys() == tables[1].keys() and tables[0]
        for name, limits in tables[0].items():
            np.testing.assert_allclose(tables[1][name], limits, atol=0.02 * max(map(abs, limits)))


def test_images_without_pillow_or_files_are_errors(tmp_path):
    failed = subprocess.run(
        [sys.executable, "-m", "apus.images", str(tmp_path), "out.npz"], capture_output=True, text=True)
    assert failed.returncode != 0 and "no images" in failed.stderr
    failed = subprocess.run(
        [sys.executable, "-m", "apus.images", str(tmp_path), "out.npz", "--preprocess", "blur=3"],
        capture_output=True, text=True)
    assert failed.returncode != 0 and "blur=3" in failed.stderr


# MARK: Real classifiers


def normalized(pixels):
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return np.ascontiguousarray(((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))


def cifar(split):
    folder = SHARED / "data/cifar10"
    return normalized(np.load(folder / f"{split}_images_u8.npy")), np.load(folder / f"{split}_labels_u8.npy")


def imagenet(split):
    folder = SHARED / "data/imagenet-sample"
    return (
        normalized(np.load(folder / f"crops224_{split}_u8.npy")),
        np.load(folder / f"crops224_{split}_labels.npy"))


def answers(engine, name, images):
    scores = [engine.run({name: images[start:start + 50]}) for start in range(0, len(images), 50)]
    return np.concatenate([next(iter(part.values())) for part in scores]).reshape(len(images), -1).argmax(1)


#: Model, its input, its data, and the least agreement with fp32's answers in percent. Two or three answers
#: of two hundred are chance.
CLASSIFIERS = [
    ("resnet20-cifar10/resnet20-cifar10.onnx", "input", cifar, {"int8": 97.5, "bf16": 98, "fp16": 99.5}),
    ("squeezenet1.1/squeezenet1.1.onnx", "data", imagenet, {"int8": 92, "bf16": 97, "fp16": 99.5}),
    ("mobilenetv2/mobilenetv2.onnx", "input", imagenet, {"int8": 95, "bf16": 97, "fp16": 99.5, "int4": 93}),
]


@needs_shared
@pytest.mark.parametrize("path,name,data,least", CLASSIFIERS, ids=[c[0].split("/")[0] for c in CLASSIFIERS])
def test_answers_that_narrow_types_keep(path, name, data, least):
    model = SHARED / "models" / path
    samples, _ = data("calib")
    images, labels = data("eval")
    exact = answers(apus.build(model, level=1), name, images)
    for precision, agreement in least.items():
        calibration = [{name: samples[start:start + 16]} for start in range(0, len(samples), 16)]
        options = {"calibration": calibration} if precision == "int8" else {}
        engine = apus.build(model, precision=precision, level=1, **options)
        rounded = answers(engine, name, images)
        assert 100 * np.mean(rounded == exact) >= agreement, precision
        assert 100 * np.mean(rounded == labels) >= 100 * np.mean(exact == labels) - 2, precision
