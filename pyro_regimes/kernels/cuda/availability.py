"""Whether the Triton kernels can be used here."""

from __future__ import annotations

import functools
import warnings

_LEAST_TRITON = (3, 6)


@functools.cache
def is_available() -> bool:
    """Whether Triton is installed and new enough; warns once about an older version."""
    try:
        import triton
    except ImportError:
        return False
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < _LEAST_TRITON:
        least = ".".join(map(str, _LEAST_TRITON))
        warnings.warn(
            f"Triton {triton.__version__} is older than {least}: on CUDA devices the recursions "
            "run as plain tensor code, which is slower",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
