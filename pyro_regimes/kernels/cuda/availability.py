"""Whether the Triton kernels can be used here."""

from __future__ import annotations

import functools

_LEAST_TRITON = (3, 6)


@functools.cache
def why_not() -> str:
    """Why the kernels cannot be used; empty where Triton is installed and new enough."""
    try:
        import triton
    except ImportError:
        return "Triton is not installed"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < _LEAST_TRITON:
        return f"Triton {triton.__version__} is older than {'.'.join(map(str, _LEAST_TRITON))}"
    return ""
