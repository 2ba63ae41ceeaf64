# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Compiles and runs the C program that uses ``apus.h``, and compares the header with the package."""

import re
import shutil
import subprocess

import pytest

from apus import _library
from conftest import ROOT

HEADER = ROOT / "include" / "apus.h"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]


def compiler():
    found = next(filter(None, map(shutil.which, ("cc", "clang", "gcc"))), None)
    if found is None:
        pytest.skip("no C compiler on this machine")
    return found


def test_c_program(digits_path, tmp_path):
    library = _library.library_path().resolve()
    program = tmp_path / "interface"
    source = ROOT / "Tests" / "CInterface" / "interface.c"
    subprocess.run(
        [compiler(), "-std=c99", *WARNINGS, f"-I{HEADER.parent}", str(source), str(library), "-lm",
         f"-Wl,-rpath,{library.parent}", "-o", str(program)], check=True)
    result = subprocess.run(
        [str(program), str(digits_path), str(tmp_path / "digits.plan")], text=True,
        capture_output=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


def test_header_is_cpp_too(tmp_path):
    source = tmp_path / "header.cpp"
    source.write_text('#include "apus.h"\nint main() { return APUS_OK; }\n')
    subprocess.run(
        [compiler(), "-x", "c++", "-std=c++11", *WARNINGS, f"-I{HEADER.parent}", "-fsyntax-only",
         str(source)], check=True)


def test_package_declares_every_function():
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    declared = set(re.findall(r"\b(apus_\w+)\(", text))
    assert declared == set(_library.FUNCTIONS) | _library.NOTHING
    for name, number in re.findall(r"(APUS_ABI_VERSION) (\d+)", text):
        assert int(number) == _library.ABI_VERSION, name
