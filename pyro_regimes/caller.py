"""Where in the user's code the package was called, for warnings."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import torch

#: Files of torch and contextlib that stand between a caller and a decorated function.
_DECORATORS = (torch.utils._contextlib.__file__, contextlib.__file__)

_PACKAGE = str(Path(__file__).parent) + os.sep


def levels_to_the_caller(*others: str) -> int:
    """The ``stacklevel`` at which a warning points at a line outside the package.

    For ``warnings.warn`` in the function that asks.

    :param others: further files that stand between the caller and the package.
    """
    skipped = (*_DECORATORS, *others)
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(_PACKAGE) or frame.f_code.co_filename in skipped
    ):
        frame, level = frame.f_back, level + 1
    return level
