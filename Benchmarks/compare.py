#!/usr/bin/env python3
# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Compares two runs of `kernels`: compare.py BEFORE.json AFTER.json [--slower 1.05]

Prints before / after for each kernel and the geometric mean, and fails when the mean is slower than the limit.
Only runs on one machine, best interleaved, say anything.
"""

import argparse
import json
import math
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--slower", type=float, default=1.05, help="how much slower the mean may be")
    options = parser.parse_args()
    before, after = (
        {(row["name"], row["precision"]): row for row in json.load(open(path, encoding="utf-8"))}
        for path in (options.before, options.after))
    ratios = []
    for key in before:
        if key not in after:
            print(f"{'gone':>8}  {key[0]} {key[1]}")
            continue
        ratio = before[key]["microseconds"] / after[key]["microseconds"]
        ratios.append(ratio)
        print(f"{ratio:8.3f}  {key[0]} {key[1]}  {after[key]['microseconds']:.1f} us  {after[key]['tactic']}")
    for key in after.keys() - before.keys():
        print(f"{'new':>8}  {key[0]} {key[1]}")
    if not ratios:
        sys.exit("compare.py: the runs have no kernel in common")
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"{mean:8.3f}  geometric mean of before / after over {len(ratios)} kernels")
    sys.exit(1 if mean < 1 / options.slower else 0)


if __name__ == "__main__":
    main()
