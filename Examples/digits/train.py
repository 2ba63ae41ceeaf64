#!/usr/bin/env python3
# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Trains the digits classifier and writes every file of this folder.

The network is a small Inception: a 3x3 stem, two modules with four sibling branches each, global
average pooling and a dense layer. It is trained in Keras on scikit-learn's digits and written twice:

* ``saved_model/``  the TensorFlow SavedModel, channels last, variables not frozen;
* ``digits.onnx``   the same weights the way an exporter writes them: NCHW, a symbolic batch ``N``,
  Conv + BatchNormalization + Relu left apart, the sibling 1x1 convolutions left apart.

Beside them lie ``digits_test.npz`` (held out) and ``digits_calib.npz`` (a part of the training set).
Seeds are fixed; another TensorFlow version or another processor may still change the last digits.

    python -m pip install -r requirements.txt
    python train.py
"""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import onnx
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

FOLDER = pathlib.Path(__file__).resolve().parent
SEED = 7
EPOCHS = 60
EPSILON = 1e-3

# Output channels of each branch: 1x1; 1x1 then KxK; 1x1 then 5x5 or two 3x3; pooling then 1x1.
STEM = 24
MODULES = [
    {"name": "mixed1", "one": 16, "three": (16, 24), "wide": (8, 12), "wide_kernels": [5],
     "pool": ("max", 12)},
    {"name": "mixed2", "one": 24, "three": (24, 32), "wide": (12, 16), "wide_kernels": [3, 3],
     "pool": ("average", 16)},
]


def load_split():
    """The images as [N, 8, 8, 1] floats in 0...1, split by class: (train, test)."""
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[..., np.newaxis]
    labels = digits.target.astype(np.int64)
    return train_test_split(images, labels, test_size=360, random_state=SEED, stratify=labels)


# The Keras model ----------------------------------------------------------------------------------


def conv_unit(x, name, channels, kernel):
    layers = tf.keras.layers
    x = layers.Conv2D(channels, kernel, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(epsilon=EPSILON, momentum=0.9, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def inception(x, module):
    layers, name = tf.keras.layers, module["name"]
    one = conv_unit(x, f"{name}_one", module["one"], 1)
    three = conv_unit(x, f"{name}_three_reduce", module["three"][0], 1)
    three = conv_unit(three, f"{name}_three", module["three"][1], 3)
    wide = conv_unit(x, f"{name}_wide_reduce", module["wide"][0], 1)
    for index, kernel in enumerate(module["wide_kernels"]):
        wide = conv_unit(wide, f"{name}_wide{index}", module["wide"][1], kernel)
    kind, channels = module["pool"]
    pooling = layers.MaxPooling2D if kind == "max" else layers.AveragePooling2D
    pool = pooling(3, strides=1, padding="same", name=f"{name}_pool")(x)
    pool = conv_unit(pool, f"{name}_pool_project", channels, 1)
    return layers.Concatenate(name=f"{name}_concat")([one, three, wide, pool])


def make_model():
    layers = tf.keras.layers
    image = tf.keras.Input((8, 8, 1), name="image")
    x = conv_unit(image, "stem", STEM, 3)
    x = inception(x, MODULES[0])
    x = layers.MaxPooling2D(2, name="reduce")(x)
    x = inception(x, MODULES[1])
    x = layers.GlobalAveragePooling2D(name="average")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    x = layers.Dense(10, name="classifier")(x)
    x = layers.Softmax(name="probability")(x)
    return tf.keras.Model(image, x, name="digits")


def shifted(images, generator):
    """Each image moved by at most one pixel, the augmentation of every epoch."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    result = np.empty_like(images)
    for index, (row, column) in enumerate(generator.integers(0, 3, (len(images), 2))):
        result[index] = padded[index, row:row + 8, column:column + 8]
    return result


def train(model, images, labels):
    batch = 64
    steps = EPOCHS * (len(images) // batch)
    schedule = tf.keras.optimizers.schedules.CosineDecay(3e-3, steps)
    model.compile(
        tf.keras.optimizers.Adam(schedule), tf.keras.losses.SparseCategoricalCrossentropy())
    generator = np.random.default_rng(SEED)
    for epoch in range(EPOCHS):
        order = generator.permutation(len(images))
        moved = shifted(images[order], generator) if epoch < EPOCHS - 10 else images[order]
        history = model.fit(moved, labels[order], batch, shuffle=False, verbose=0)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {history.history['loss'][0]:.4f}", flush=True)


# The ONNX file ------------------------------------------------------------------------------------


class Exporter:
    """Writes the trained layers as ONNX nodes in NCHW, one node per layer, nothing folded."""

    def __init__(self, model):
        self.model = model
        self.nodes = []
        self.initializers = []

    def constant(self, name, array):
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op, name, inputs, **attributes):
        output = f"/{name}/{op}_output_0"
        self.nodes.append(helper.make_node(op, inputs, [output], f"/{name}/{op}", **attributes))
        return output

    def conv_unit(self, x, name):
        layer = self.model.get_layer(f"{name}_conv")
        (kernel,) = layer.get_weights()
        size = kernel.shape[0]
        weight = self.constant(f"{name}.conv.weight", kernel.transpose(3, 2, 0, 1))
        x = self.node(
            "Conv", f"{name}/conv", [x, weight], kernel_shape=[size, size], strides=[1, 1],
            dilations=[1, 1], group=1, pads=[size // 2] * 4)
        scale, bias, mean, variance = self.model.get_layer(f"{name}_bn").get_weights()
        parameters = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": variance}
        names = [self.constant(f"{name}.bn.{key}", value) for key, value in parameters.items()]
        x = self.node("BatchNormalization", f"{name}/bn", [x] + names, epsilon=EPSILON)
        return self.node("Relu", f"{name}/relu", [x])

    def inception(self, x, module):
        name = module["name"]
        one = self.conv_unit(x, f"{name}_one")
        three = self.conv_unit(self.conv_unit(x, f"{name}_three_reduce"), f"{name}_three")
        wide = self.conv_unit(x, f"{name}_wide_reduce")
        for index in range(len(module["wide_kernels"])):
            wide = self.conv_unit(wide, f"{name}_wide{index}")
        op = "MaxPool" if module["pool"][0] == "max" else "AveragePool"
        pool = self.node(
            op, f"{name}/pool", [x], kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
        pool = self.conv_unit(pool, f"{name}_pool_project")
        return self.node("Concat", f"{name}", [one, three, wide, pool], axis=1)

    def export(self):
        x = self.conv_unit("image", "stem")
        x = self.inception(x, MODULES[0])
        x = self.node("MaxPool", "reduce", [x], kernel_shape=[2, 2], strides=[2, 2])
        x = self.inception(x, MODULES[1])
        x = self.node("GlobalAveragePool", "average", [x])
        x = self.node("Flatten", "flatten", [x], axis=1)
        kernel, bias = self.model.get_layer("classifier").get_weights()
        weight = self.constant("classifier.weight", kernel.T)
        x = self.node(
            "Gemm", "classifier", [x, weight, self.constant("classifier.bias", bias)], transB=1)
        self.nodes.append(
            helper.make_node("Softmax", [x], ["probability"], "/probability/Softmax", axis=-1))
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])
        probability = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N", 10])
        graph = helper.make_graph(
            self.nodes, "digits", [image], [probability], self.initializers,
            doc_string="A small Inception for 8x8 handwritten digits.")
        onnx_model = helper.make_model(
            graph, producer_name="apus-examples-digits", ir_version=8,
            opset_imports=[helper.make_opsetid("", 17)])
        onnx.checker.check_model(onnx_model, full_check=True)
        return onnx_model


# The files ----------------------------------------------------------------------------------------


def write_saved_model(model, path):
    """An inference-only SavedModel: variables stay variables, no optimiser state, no debug file."""
    signature = [tf.TensorSpec([None, 8, 8, 1], tf.float32, name="image")]

    @tf.function(input_signature=signature)
    def serve(image):
        return {"probability": model(image, training=False)}

    exported = tf.Module()
    exported.model_variables = [variable.value for variable in model.variables]
    exported.serve = serve
    options = tf.saved_model.SaveOptions(save_debug_info=False)
    tf.saved_model.save(exported, str(path), signatures={"serving_default": serve}, options=options)


def main():
    tf.keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    train_images, test_images, train_labels, test_labels = load_split()
    model = make_model()
    train(model, train_images, train_labels)
    write_saved_model(model, FOLDER / "saved_model")
    onnx.save(Exporter(model).export(), FOLDER / "digits.onnx")
    # One channel: NHWC and NCHW hold the same bytes, only the shape differs.
    np.savez(
        FOLDER / "digits_test.npz", image=test_images.reshape(-1, 1, 8, 8), label=test_labels)
    np.savez(FOLDER / "digits_calib.npz", image=train_images[:128].reshape(-1, 1, 8, 8))
    accuracy = np.mean(model.predict(test_images, verbose=0).argmax(1) == test_labels)
    print(f"parameters {model.count_params()}, test accuracy {100 * accuracy:.2f} %")
    assert accuracy >= 0.975, "the classifier should reach 97.5 %"


if __name__ == "__main__":
    main()
