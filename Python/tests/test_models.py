# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Real pretrained models against the outputs and accuracies recorded with them.

They lie in a folder `shared` beside the project, or where APUS_SHARED says; without it these tests are
skipped.
"""

import json
import os
import pathlib

import numpy as np
import pytest

import apus

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("APUS_SHARED", ROOT.parent / "shared"))
MODELS, DATA = SHARED / "models", SHARED / "data"

pytestmark = pytest.mark.skipif(
    not MODELS.is_dir(), reason="no folder of real models ('shared') beside the project")

#: Model file and reference tensors (without .json/.npz), relative to the folder of models.
PAIRS = [
    ("mnist/mnist.onnx", "mnist/ref"),
    ("mobilenetv2/mobilenetv2.onnx", "mobilenetv2/ref"),
    ("squeezenet1.1/squeezenet1.1.onnx", "squeezenet1.1/ref"),
    ("resnet20-cifar10/resnet20-cifar10.onnx", "resnet20-cifar10/ref"),
    ("ultraface-rfb320/version-RFB-320.onnx", "ultraface-rfb320/ref"),
    ("silero-vad-16k/silero_vad_16k_op15.onnx", "silero-vad-16k/ref"),
    ("dtln-onnx/model_1.onnx", "dtln-onnx/ref_model_1"),
    ("dtln-onnx/model_2.onnx", "dtln-onnx/ref_model_2"),
    ("stories260k/stories260k.onnx", "stories260k/ref"),
    ("stories260k/stories260k.onnx", "stories260k/ref_batch2"),
    ("basic-pitch/nmp.onnx", "basic-pitch/ref"),
]

#: The reference of basic-pitch names the tensors of the SavedModel, which the ONNX file calls otherwise.
RENAMED = {
    "input_2": "serving_default_input_2:0", "contour": "StatefulPartitionedCall:0",
    "note": "StatefulPartitionedCall:1", "onset": "StatefulPartitionedCall:2",
}


def engine_of(model, **options):
    return apus.build(str(MODELS / model), threads=1, level=1, **options)


def relative_error(got, expected):
    """The Euclidean norm of the difference over that of the expected tensor."""
    difference = np.linalg.norm(got.astype(np.float64) - expected)
    return difference / max(np.linalg.norm(expected.astype(np.float64)), 1e-30)


@pytest.mark.parametrize("model, reference", PAIRS, ids=[pair[1] for pair in PAIRS])
def test_reference_outputs(model, reference):
    names = json.loads((MODELS / (reference + ".json")).read_text())
    tensors = np.load(MODELS / (reference + ".npz"))
    engine = engine_of(model)
    known = {port.name for port in engine.inputs + engine.outputs}

    def name(entry):
        return entry["name"] if entry["name"] in known else RENAMED[entry["name"]]

    results = engine.run({name(entry): tensors[entry["key"]] for entry in names["inputs"]})
    for entry in names["outputs"]:
        got, expected = results[name(entry)], tensors[entry["key"]]
        assert got.shape == expected.shape
        assert relative_error(got, expected) <= 1e-4, entry["name"]
        if model.split("/")[0] in ("mnist", "mobilenetv2", "squeezenet1.1", "resnet20-cifar10"):
            assert (got.argmax(-1) == expected.argmax(-1)).all()


def test_silero_sequence():
    """400 steps of speech detection, the state carried from step to step."""
    sequence = np.load(MODELS / "silero-vad-16k/sequence.npz")
    engine = engine_of("silero-vad-16k/silero_vad_16k_op15.onnx")
    state = np.zeros((2, 1, 128), np.float32)
    probabilities = []
    for frame in sequence["frames"]:
        results = engine.run(
            {"input": frame[None], "state": state, "sr": np.array(16000, np.int64)})
        state = results["stateN"]
        probabilities.append(results["output"].item())
    assert relative_error(np.array(probabilities), sequence["prob"]) <= 1e-4


def test_dtln_sequence():
    """200 blocks of speech enhancement by two models in a chain, states carried, overlap-add."""
    sequence = np.load(MODELS / "dtln-onnx/sequence.npz")
    noisy = sequence["noisy"]
    mask_model, block_model = engine_of("dtln-onnx/model_1.onnx"), engine_of("dtln-onnx/model_2.onnx")
    states = [np.zeros((1, 2, 128, 2), np.float32) for _ in range(2)]
    window, result = np.zeros(512, np.float32), np.zeros(512, np.float32)
    denoised = np.zeros_like(noisy)
    for start in range(0, len(noisy) - 127, 128):
        window = np.concatenate([window[128:], noisy[start:start + 128]])
        spectrum = np.fft.rfft(window)
        first = mask_model.run({
            "input_2": np.abs(spectrum).astype(np.float32)[None, None], "input_3": states[0]})
        states[0] = first["tf_op_layer_stack_2"]
        masked = np.fft.irfft(first["activation_2"][0, 0] * np.exp(1j * np.angle(spectrum))
                              * np.abs(spectrum))
        second = block_model.run(
            {"input_4": masked.astype(np.float32)[None, None], "input_5": states[1]})
        states[1] = second["tf_op_layer_stack_5"]
        result = np.concatenate([result[128:], np.zeros(128, np.float32)])
        result += second["conv1d_3"][0, 0]
        denoised[start:start + 128] = result[:128]
    expected = sequence["denoised"]
    error = min(
        relative_error(denoised[shift:], expected[:len(expected) - shift]) for shift in (0, 384))
    assert error <= 1e-3


def test_stories_greedy():
    """A prompt continued token by token: every length is a new shape."""
    recorded = json.loads((MODELS / "stories260k/greedy.json").read_text())
    expected = recorded["greedy_tokens"][:40]
    tokens = expected[:recorded["prompt_tokens"]]
    engine = engine_of("stories260k/stories260k.onnx")
    while len(tokens) < len(expected):
        logits = engine.run({"tokens": np.array([tokens], np.int64)})["logits"]
        tokens.append(int(logits[0, -1].argmax()))
    assert tokens == expected


MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def normalised(images):
    return ((images / np.float32(255) - MEAN) / DEVIATION).transpose(0, 3, 1, 2).astype(np.float32)


def top1(engine, images, labels, batch):
    (port,), (result,) = engine.inputs, engine.outputs
    right = 0
    for start in range(0, len(images), batch):
        scores = engine.run({port.name: images[start:start + batch]})[result.name]
        right += (scores.reshape(len(scores), -1).argmax(1) == labels[start:start + batch]).sum()
    return 100 * right / len(images)


def test_accuracy_on_digits():
    """98.94 % of the 4800 evaluation images, as the model's README records."""
    images = np.frombuffer((DATA / "mnist/images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    labels = np.frombuffer((DATA / "mnist/labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    images = images.reshape(-1, 1, 28, 28)[200:].astype(np.float32)
    engine = engine_of("mnist/mnist.onnx")
    assert round(top1(engine, images, labels[200:], 1), 2) == 98.94


def test_accuracy_on_cifar10():
    """79.10 %, as the model's README records."""
    images = normalised(np.load(DATA / "cifar10/eval_images_u8.npy"))
    labels = np.load(DATA / "cifar10/eval_labels_u8.npy")
    engine = engine_of("resnet20-cifar10/resnet20-cifar10.onnx", batch=50)
    assert round(top1(engine, images, labels, 50), 2) == 79.10


@pytest.mark.parametrize("model", ["mobilenetv2/mobilenetv2.onnx", "squeezenet1.1/squeezenet1.1.onnx"])
def test_accuracy_on_imagenet_sample(model):
    """The classes that onnxruntime gives for the same 200 crops, all of them."""
    onnxruntime = pytest.importorskip("onnxruntime")
    images = normalised(np.load(DATA / "imagenet-sample/crops224_eval_u8.npy"))
    labels = np.load(DATA / "imagenet-sample/crops224_eval_labels.npy")
    engine = engine_of(model, batch=8)
    session = onnxruntime.InferenceSession(
        str(MODELS / model), providers=["CPUExecutionProvider"])
    (port,), (result,) = engine.inputs, engine.outputs
    right = expected = 0
    for start in range(0, len(images), 8):
        part = images[start:start + 8]
        ours = engine.run({port.name: part})[result.name].reshape(len(part), -1).argmax(1)
        theirs = session.run(None, {port.name: part})[0].reshape(len(part), -1).argmax(1)
        right += (ours == labels[start:start + 8]).sum()
        expected += (theirs == labels[start:start + 8]).sum()
    assert right == expected


def test_light_models():
    """The structures of real networks with constant weights, against the outputs beside them."""
    onnx = pytest.importorskip("onnx")
    for path in sorted((MODELS / "onnx-light").glob("*.onnx")):
        engine = apus.build(str(path), threads=1, level=0)
        inputs = {
            port.name: np.ones([1 if isinstance(d, str) else d for d in port.shape], np.float32)
            for port in engine.inputs if port.shape and len(port.shape) == 4}
        (result,) = engine.run(inputs).values()
        tensor = onnx.TensorProto()
        tensor.ParseFromString(path.with_name(path.stem + "_output_0.pb").read_bytes())
        expected = onnx.numpy_helper.to_array(tensor)
        assert relative_error(result.reshape(expected.shape), expected) <= 1e-4, path.name
