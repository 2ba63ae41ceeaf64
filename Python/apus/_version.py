# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""The version of the package; the library reports the same one."""

__version__ = "0.1.0"
