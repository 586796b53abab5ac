"""Puts to rest the threads that torch keeps awake after an operation on several threads.

They wait for the next one in a loop, for some milliseconds, and take a core from the threads of the
kernels here (:func:`.jit.spread`). On two cores the first iterations of EM took 1.6 times as long.
OpenMP ends such threads by ``omp_pause_resource_all``, and starts them again when they are needed.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch

_SOFT = 1  # omp_pause_soft: what is set stays set


@functools.cache
def _pause() -> Callable[[int], int] | None:
    """The function of the OpenMP library that torch has loaded; None if that is not GNU's."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return None
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            found: Callable[[int], int] = library.omp_pause_resource_all
        except (OSError, AttributeError):  # not loaded, or older than OpenMP 5
            continue
        return found
    return None


def rest_threads() -> bool:
    """Put torch's threads of the calling thread to rest; whether that was possible."""
    pause = _pause()
    return pause is not None and pause(_SOFT) == 0
