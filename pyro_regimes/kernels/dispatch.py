"""Which kernel runs: the compiled one of the tensors' device, or the reference.

The kernels are imported when they are first needed, as numba and Triton take their time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Callable

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

BACKENDS = ("reference", "cpu", "cuda")

#: Above this A no longer fits the registers of a Triton program, and the reference's steps are
#: large enough to keep a device busy by themselves.
_MAX_CUDA_STATES = 128

_chosen: ContextVar[str | None] = ContextVar("pyro_regimes_backend", default=None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every recursion within the block, in this thread, on one kernel.

    For tests and debugging::

        with backend("reference"):
            hmm.log_prob(x)

    :param name: "reference" for plain tensor code on any device, "cpu" for the compiled CPU kernel,
        "cuda" for the Triton kernels (on CPU tensors in Triton's interpreter).
    :raises ValueError: if the name is another.
    """
    if name not in BACKENDS:
        raise ValueError(f"expected backend to be one of {BACKENDS}, got {name!r}")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def choose(observation_logits: Tensor) -> str:
    """The name of the kernel for a problem.

    Under ``torch.compile``, which cannot read the context, it is empty for a device that has a
    kernel: :func:`kernel` decides when the compiled code runs. Forward mode over forward mode goes
    through the reference: torch follows no tangents within the ``jvp`` of a function.
    """
    device, num_states = observation_logits.device.type, observation_logits.shape[-1]
    if _num_forward_modes() > 1:
        return "reference"
    if torch.compiler.is_compiling():
        name = "" if device in ("cpu", "cuda") else "reference"
    else:
        name = _chosen.get() or _of_device(device)
    if num_states > _MAX_CUDA_STATES and (name or device) == "cuda":
        return "reference"
    return name


def _num_forward_modes() -> int:
    """How many ``jvp`` or ``jacfwd`` lie over one another here."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return 0
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in levels)


def _of_device(device: str) -> str:
    if device == "cuda":
        from pyro_regimes.kernels.cuda import launch

        return "cuda" if launch.is_available() else "reference"
    return "cpu" if device == "cpu" else "reference"


def kernel(name: str, device: torch.device) -> ModuleType:
    """The module of a kernel; without a name, that of the context or the device's own."""
    name = name or _chosen.get() or device.type
    if name == "reference":
        from pyro_regimes.kernels import reference_kernel

        return reference_kernel
    if name == "cuda":
        from pyro_regimes.kernels.cuda import launch as cuda_launch

        return cuda_launch
    from pyro_regimes.kernels.cpu import launch as cpu_launch

    return cpu_launch


def is_reference_wanted() -> bool:
    """Whether the code that runs now is within ``backend("reference")``."""
    return _chosen.get() == "reference"


def apply(function: type[Function], *args: Any, operator: Any = None) -> Any:
    """``function.apply(*args)``, which otherwise looks up the names of its arguments each time.

    That takes as long as a short kernel, and serves function transforms alone. A graph takes the
    operator, with derivatives in reverse mode: torch.compile refuses a function with a ``jvp``.
    """
    if torch.compiler.is_compiling() and operator is not None:
        return operator(*args)
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(Function, function).apply(*args)  # type: ignore[misc]


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether nothing records or transforms what is done to these tensors.

    Then a kernel may be called as it is; otherwise it must be an operator that torch knows.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
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
