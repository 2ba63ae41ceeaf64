# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""The one exception of the package."""


class ApusError(RuntimeError):
    """An error of Apus: where, what, and on a line beginning with ``hint:`` what to do about it.

    ``code`` names the kind, for example ``unsupported-operator`` or ``file-access``.
    """

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code

    def __reduce__(self):
        return ApusError, (self.code, str(self))
