"""Detection of tensors that torch records, transforms or traces.

A compiled kernel can be called directly only on plain tensors. Other tensors need an operator that
is registered with torch.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd import Function, forward_ad


def apply(function: type[Function], *args: Any, operator: Any = None) -> Any:
    """``function.apply(*args)``, which otherwise looks up the names of its arguments each time.

    That takes as long as a short kernel, and only function transforms need it. A graph uses the
    operator, with derivatives in reverse mode, because torch.compile rejects a function with a
    ``jvp``.
    """
    if torch.compiler.is_compiling() and operator is not None:
        return operator(*args)
    if are_transforms_active():
        return function.apply(*args)
    return super(Function, function).apply(*args)  # type: ignore[misc]


def are_transforms_active() -> bool:
    """Whether operations on plain tensors are recorded, too, as in ``torch.func.jvp``."""
    active: bool = torch._C._are_functorch_transforms_active()
    return active


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether nothing records or transforms what is done to these tensors.

    Then a kernel can be called directly. Otherwise it must be an operator registered with torch.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return is_untransformed(*tensors)


def is_untransformed(*tensors: Tensor | None) -> bool:
    """As :func:`is_plain`, whether or not a graph is made."""
    given = [tensor for tensor in tensors if tensor is not None]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return False
    if forward_ad._current_level >= 0 and any(map(has_tangent, given)):
        return False
    return all(
        type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not is_batched(tensor)
        for tensor in given
    )


def has_tangent(tensor: Tensor) -> bool:
    """Whether it is a dual number of ``torch.autograd.forward_ad``, outside of transforms."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None


def without_tangents(run: Callable[..., Any]) -> Callable[..., Any]:
    """An operator that refuses dual numbers, whose tangents it would drop without a word.

    The functions above the operators have rules for them, and turn forward mode off below.
    """

    @functools.wraps(run)
    def checked(*args: Any) -> Any:
        if torch._C._is_fwd_grad_enabled():
            if any(isinstance(arg, Tensor) and has_tangent(arg) for arg in args):
                raise NotImplementedError(
                    "expected no forward-mode tangents in a traced or compiled graph: its "
                    "operators have derivatives in reverse mode alone; call the function that was "
                    "traced"
                )
        return run(*args)

    return checked


def is_batched(tensor: Tensor) -> bool:
    """Whether it is one of many cotangents (``is_grads_batched``, ``vectorize=True``)."""
    if torch.compiler.is_compiling():
        return False
    found: bool = torch._C._functorch.is_legacy_batchedtensor(tensor)
    return found


def can_be_seen(*tensors: Tensor) -> bool:
    """Whether Python may look at their numbers: not under transforms, nor while a graph is made."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not any(
        tensor.device.type == "meta"
        or isinstance(tensor, FakeTensor)
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        or torch._C._functorch.is_legacy_batchedtensor(tensor)
        for tensor in tensors
    )
