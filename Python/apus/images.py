# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Turns a folder of images into calibration data.

    python3 -m apus.images FOLDER calibration.npz --input image \\
        --preprocess resize=256,crop=224,scale=255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225

Images are read by Pillow (``pip install pillow``): PNG, JPEG and what else it knows. The steps, each
left out unless given: ``resize=S`` scales the shorter side to S, ``size=WxH`` scales to exactly that,
``crop=S`` or ``crop=WxH`` cuts the centre out, ``scale=D`` divides by D, then ``mean`` is subtracted
and divided by ``std``, ``gray`` makes one channel, ``bgr`` turns the channels around, ``layout=NHWC``
leaves the channels last (default NCHW).
"""

import argparse
import os
import pathlib
import sys

import numpy

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


class Preprocess:
    """What is done to each image, read from its text form."""

    def __init__(self, text=""):
        self.resize = self.size = self.crop = self.mean = self.std = None
        self.scale, self.gray, self.bgr, self.layout = 1.0, False, False, "NCHW"
        for step in filter(None, text.split(",")):
            name, _, value = step.partition("=")
            try:
                self._set(name.strip(), value.strip())
            except ValueError as error:
                raise ValueError(f"'{step}' is no step of preprocessing: {error}") from None

    def _set(self, name, value):
        if name == "resize":
            self.resize = int(value)
        elif name in ("size", "crop"):
            sizes = [int(part) for part in value.split("x")]
            setattr(self, name, (sizes[0], sizes[-1]))
        elif name == "scale":
            self.scale = float(value)
        elif name in ("mean", "std"):
            setattr(self, name, numpy.array([float(part) for part in value.split(":")], numpy.float32))
        elif name in ("gray", "bgr") and not value:
            setattr(self, name, True)
        elif name == "layout" and value in ("NCHW", "NHWC"):
            self.layout = value
        else:
            raise ValueError("use resize, size, crop, scale, mean, std, gray, bgr or layout")

    def __call__(self, path):
        """The array of one image, without an axis for the batch."""
        from PIL import Image

        with Image.open(path) as opened:
            image = opened.convert("L" if self.gray else "RGB")
        if self.resize:
            share = self.resize / min(image.size)
            image = image.resize([max(1, round(side * share)) for side in image.size], Image.BILINEAR)
        if self.size:
            image = image.resize(self.size, Image.BILINEAR)
        if self.crop:
            left, top = [(side - wanted) // 2 for side, wanted in zip(image.size, self.crop)]
            if left < 0 or top < 0:
                raise ValueError(f"{image.size} is smaller than the crop {self.crop}")
            image = image.crop((left, top, left + self.crop[0], top + self.crop[1]))
        array = numpy.asarray(image, numpy.float32) / numpy.float32(self.scale)
        array = array[:, :, None] if self.gray else array[:, :, ::-1] if self.bgr else array
        if self.mean is not None:
            array = array - self.mean
        if self.std is not None:
            array = array / self.std
        return numpy.ascontiguousarray(array if self.layout == "NHWC" else array.transpose(2, 0, 1))


def load(folder, preprocess="", *, skip_bad=False):
    """The images of a folder in the order of their names as one array, and how many were left out.

    Raises ``ValueError`` naming the file for one that cannot be read, or when there are none.
    """
    steps = preprocess if callable(preprocess) else Preprocess(preprocess)
    paths = sorted(p for p in pathlib.Path(folder).iterdir() if p.suffix.lower() in SUFFIXES)
    arrays, skipped = [], 0
    for path in paths:
        try:
            arrays.append(steps(path))
        except (OSError, ValueError) as error:
            if not skip_bad:
                raise ValueError(f"{path}: {error}") from error
            skipped += 1
    if not arrays:
        raise ValueError(f"{folder}: there are no images that can be used")
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"{folder}: the images differ in size; give crop=S or size=WxH")
    return numpy.stack(arrays), skipped


def main(arguments=None):
    """The command."""
    parser = argparse.ArgumentParser(prog="apus.images", description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("output", help="the .npz file to write")
    parser.add_argument("--input", default="input", help="the name of the network's input")
    parser.add_argument("--preprocess", default="", help="steps, separated by commas")
    parser.add_argument("--skip-bad", action="store_true", help="leave out files that cannot be read")
    options = parser.parse_args(arguments)
    try:
        array, skipped = load(options.folder, options.preprocess, skip_bad=options.skip_bad)
    except (ImportError, ValueError, OSError) as error:
        sys.exit(f"apus.images: {error}")
    numpy.savez(options.output, **{options.input: array})
    left = f", {skipped} left out" if skipped else ""
    print(f"{os.fspath(options.output)}: {array.shape[0]} images {array.shape[1:]}{left}")


if __name__ == "__main__":
    main()
