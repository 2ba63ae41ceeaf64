#!/usr/bin/env python3
# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Writes Tests/ApusX86Tests/GoldenTable.swift: what GNU as makes of every instruction that
EncodingCases.swift names. Run it from the root of the repository after adding a case."""
import re
import subprocess
import tempfile
from pathlib import Path

tests = Path("Tests/ApusX86Tests")
cases = re.findall(r'^\s*\("([^"]+)", \{', (tests / "EncodingCases.swift").read_text(), re.M)
rows = []
with tempfile.TemporaryDirectory() as folder:
    source, binary = Path(folder) / "a.s", Path(folder) / "a.o"
    source.write_text(".intel_syntax noprefix\n" + "".join(f"{text}\n" for text in cases))
    listing = subprocess.run(
        ["as", "--64", "-al", "--listing-lhs-width=4", "-o", binary, source],
        check=True, capture_output=True, text=True).stdout
for line in listing.splitlines():
    match = re.match(r"\s*\d+ [0-9a-f]{4} ([0-9A-F ]+?)\s*\t(.*)$", line)
    if match:
        rows.append((match[2].strip(), match[1].replace(" ", "").lower()))
assert [text for text, _ in rows] == cases, (len(rows), len(cases))
out = """// Part of Apus, an inference optimizer and runtime.
// SPDX-License-Identifier: Apache-2.0

// Written by Utilities/x86-golden.py; do not edit.

/// The bytes GNU as gives each instruction of `encodingCases`.
let goldenBytes: [String: String] = [
"""
out += "".join(f'  "{text}": "{code}",\n' for text, code in rows) + "]\n"
(tests / "GoldenTable.swift").write_text(out)
print(f"{len(rows)} instructions")
