# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Builds the Swift library and puts it, with the Swift runtime it needs, inside the wheel.

APUS_LIBRARY        a library that is already built; nothing is compiled
APUS_SWIFT_SCRATCH  the build folder for Swift (default: .build beside Package.swift)
"""

import os
import pathlib
import shutil
import subprocess
import sys

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIBRARY = "libApusC.dylib" if sys.platform == "darwin" else "libApusC.so"


def swift_library():
    """The path of the library, compiled now unless the caller has one."""
    if os.environ.get("APUS_LIBRARY"):
        return pathlib.Path(os.environ["APUS_LIBRARY"]).resolve()
    if shutil.which("swift") is None:
        raise SystemExit("apus: 'swift' is not on the path; install Swift 6.3 or set APUS_LIBRARY")
    command = ["swift", "build", "-c", "release", "--package-path", str(ROOT)]
    if os.environ.get("APUS_SWIFT_SCRATCH"):
        command += ["--scratch-path", os.environ["APUS_SWIFT_SCRATCH"]]
    subprocess.check_call(command + ["--product", "ApusC"])
    folder = subprocess.check_output(command + ["--show-bin-path"], text=True).strip()
    return pathlib.Path(folder) / LIBRARY


def swift_runtime(library):
    """The libraries of the Swift toolchain that the library loads; they look beside themselves first."""
    if sys.platform == "darwin":
        return []  # part of the system
    listing = subprocess.check_output(["ldd", str(library)], text=True)
    paths = [line.split("=>")[1].split()[0] for line in listing.splitlines() if "=> /" in line]
    core = next((path for path in paths if path.endswith("/libswiftCore.so")), None)
    folder = pathlib.Path(core).parent if core else None
    return [path for path in map(pathlib.Path, paths) if path.parent == folder]


class BuildWithLibrary(build_py):
    """Adds the library to the package."""

    def run(self):
        super().run()
        target = pathlib.Path(self.build_lib) / "apus" / "_lib"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        library = swift_library()
        for path in [library, *swift_runtime(library)]:
            shutil.copy2(path.resolve(), target / path.name)


class PlatformWheel(bdist_wheel):
    """One wheel serves every Python 3, and only this platform."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel})
