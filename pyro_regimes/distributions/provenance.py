"""Calls of kernels with tensors that carry Pyro's provenance.

Pyro finds the dependencies of a model by running it on a subclass of Tensor that records the origin
of its values. Kernels accept plain tensors only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pyro.ops.provenance import ProvenanceTensor, get_provenance, track_provenance

_Result = TypeVar("_Result")


def call(kernel: Callable[..., _Result], *args: Any, **kwargs: Any) -> _Result:
    """Call ``kernel(*args, **kwargs)``; its results carry the provenance of all its arguments.

    :param kernel: a function of tensors and of other objects without provenance.
    """
    if not any(isinstance(each, ProvenanceTensor) for each in args):
        return kernel(*args, **kwargs)
    tracked = [each for each in args if isinstance(each, ProvenanceTensor)]
    plain = [each._t if isinstance(each, ProvenanceTensor) else each for each in args]
    found: _Result = track_provenance(kernel(*plain, **kwargs), get_provenance(tracked))
    return found
