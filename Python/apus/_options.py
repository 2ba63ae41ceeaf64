# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Options and models, as the library takes them."""

import os

from ._library import Handle, check, library


def shape_text(shape):
    """``(1, 3)`` or a text as they are, or three of them for minimum, optimum and maximum."""
    if isinstance(shape, str):
        return shape
    if shape and not isinstance(shape[0], int):
        return ":".join(shape_text(part) for part in shape)
    return "x".join(str(size) for size in shape)


def config_of(options):
    """A config with the options that are not None; names are those of ``apus build``."""
    config = Handle.made_by(library.apus_config_destroy, library.apus_config_create)
    for name, value in options.items():
        if value is None:
            continue
        texts = [value]
        if name == "layer_precision":
            texts = [f"{key}={precision}" for key, precision in value.items()]
        elif isinstance(value, bool):
            texts = [str(value).lower()]
        elif name in ("shape", "shapes"):
            name, texts = "shape", [f"{key}={shape_text(shape)}" for key, shape in value.items()]
        for text in texts:
            text = os.fspath(text) if isinstance(text, os.PathLike) else str(text)
            check(library.apus_config_set(
                config.pointer, name.replace("_", "-").encode(), text.encode()))
    return config


def made_of(model, directory, config, destroy, from_file, from_bytes):
    """The handle that a function makes of a model: a path, bytes or an ``onnx.ModelProto``."""
    if hasattr(model, "SerializeToString"):
        model = model.SerializeToString()
    if isinstance(model, (bytes, bytearray, memoryview)):
        data = bytes(model)
        where = os.fsencode(directory) if directory is not None else None
        return Handle.made_by(destroy, from_bytes, data, len(data), where, config.pointer)
    return Handle.made_by(destroy, from_file, os.fsencode(model), config.pointer)
