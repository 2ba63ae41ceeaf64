#!/usr/bin/env python3
# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Prints the polynomial coefficients of Sources/ApusCPU/Kernels/ExpressionEmitter+Functions.swift and of
ErrorFunctionTable.swift: weighted minimax fits (iteratively reweighted least squares), highest power
first."""
import math
import numpy as np


def fit(name, target, low, high, degree, weight=None):
    """Fits target(x) by a polynomial, minimising the largest weight(x) * error."""
    x = (low + high) / 2 + (high - low) / 2 * np.cos(np.linspace(0, np.pi, 4001))
    y = np.array([target(v) for v in x])
    w = np.ones_like(x) if weight is None else np.abs(np.array([weight(v) for v in x]))
    basis = np.polynomial.chebyshev.Chebyshev.basis
    scaled = (x - (low + high) / 2) / ((high - low) / 2)
    matrix = np.stack([basis(i)(scaled) for i in range(degree + 1)], 1)
    lawson = np.ones_like(x)
    for _ in range(60):
        s = np.sqrt(lawson) * w
        c, *_ = np.linalg.lstsq(matrix * s[:, None], y * s, rcond=None)
        error = np.abs((matrix @ c - y) * w)
        lawson = lawson * (error + 1e-30)
        lawson /= lawson.sum()
    poly = np.polynomial.chebyshev.Chebyshev(c, domain=[low, high]).convert(
        kind=np.polynomial.Polynomial)
    print(f"{name}: error {error.max():.2e}")
    print("  [" + ", ".join(f"{v:.9e}" for v in poly.coef[::-1]) + "]")


half = math.log(2) / 2 * 1.01
fit("exp(r) = 1 + r + r^2 P(r)", lambda r: (math.expm1(r) - r) / r**2 if abs(r) > 1e-4 else
    0.5 + r / 6 + r * r / 24, -half, half, 4, lambda r: r * r / math.exp(r))
fit("log(1+f) = f - f^2/2 + f^3 P(f)", lambda f: (math.log1p(f) - f + f * f / 2) / f**3
    if abs(f) > 1e-3 else 1 / 3 - f / 4 + f * f / 5 - f**3 / 6, math.sqrt(0.5) - 1 - 1e-4,
    math.sqrt(2) - 1 + 1e-4, 8, lambda f: f**3 / (math.log1p(f) or 1))
fit("tanh(x) = x + x z P(z), z = x^2", lambda z: (math.tanh(math.sqrt(z)) / math.sqrt(z) - 1) / z
    if z > 1e-5 else -1 / 3 + 2 / 15 * z, 0, 0.625**2, 4,
    lambda z: z)
fit("erf(x) = x P(z), z = x^2", lambda z: math.erf(math.sqrt(z)) / math.sqrt(z) if z > 0 else
    2 / math.sqrt(math.pi), 0, 1.0, 6)
fit("log(erfc(x)) = P(x)", lambda x: math.log(math.erfc(x)), 0.98, 4.0, 6,
    lambda x: math.erfc(x))


def fit_powers(r, y, weight, powers):
    """Coefficients c with sum(c[i] * r**powers[i]) close to y, the largest weight * error minimised."""
    size = np.abs(r).max()
    matrix = np.stack([(r / size)**p for p in powers], 1)
    lawson = np.ones_like(r)
    for _ in range(40):
        s = np.sqrt(lawson) * weight
        c, *_ = np.linalg.lstsq(matrix * s[:, None], y * s, rcond=None)
        lawson = lawson * (np.abs((matrix @ c - y) * weight) + 1e-30)
        lawson /= lawson.sum()
    return [v / size**p for v, p in zip(c, powers)]


def error_function_table(step=0.25, intervals=16, degree=5):
    """erf(i step + r), |r| <= step / 2, as a polynomial of r for each i, row by row of coefficients."""
    rows = np.zeros((degree + 1, intervals))
    for i in range(intervals):
        low, high = (0 if i == 0 else -step / 2), step / 2
        r = (low + high) / 2 + (high - low) / 2 * np.cos(np.linspace(0, np.pi, 801))
        r = r[np.abs(r) > 1e-6]
        y = np.array([math.erf(i * step + v) for v in r])
        # The constant is rounded first, so that the others make up for it. None at zero: the relative
        # error counts there.
        rows[0, i] = np.float32(math.erf(i * step))
        rows[1:, i] = fit_powers(r, y - rows[0, i], 1 / y, range(1, degree + 1))
    # The last polynomial's end stands for everything behind it: it rounds to one.
    rows[degree, -1] += 2e-8 / (step / 2)**degree
    for row in rows[::-1]:
        print("    [")
        for first in range(0, intervals, 4):
            print("      " + ", ".join(f"{v:.9e}" for v in row[first:first + 4]) + ",")
        print("    ],")


error_function_table()
