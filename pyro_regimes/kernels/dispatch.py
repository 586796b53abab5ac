"""Selection of the kernel: the compiled one for the tensors' device, or the reference.

Kernels are imported at their first use, because numba and Triton are slow to import.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

import torch
from torch import Tensor

from pyro_regimes.caller import levels_to_the_caller
from pyro_regimes.kernels import transforms

BACKENDS = ("reference", "cpu", "cuda")

#: With more states A does not fit the registers of a Triton program, and the steps of the reference
#: are large enough to use the whole device.
_MAX_CUDA_STATES = 128

_warned: set[str] = set()  #: the reasons for slow recursions that a warning has named

_chosen: ContextVar[str | None] = ContextVar("pyro_regimes_backend", default=None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every recursion within the block, in this thread, on one kernel.

    For tests and debugging::

        with backend("reference"):
            hmm.log_prob(x)

    :param name: "reference" for plain tensor code on any device, "cpu" for the compiled CPU kernel,
        "cuda" for the Triton kernels (on CPU tensors in Triton's interpreter).
    :raises ValueError: if the name is unknown.
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

    ``torch.compile`` cannot read the context. Under it the name is empty for a device that has a
    kernel, and :func:`kernel` decides when the compiled code runs. Forward mode over forward mode
    uses the reference, because torch does not propagate tangents within the ``jvp`` of a function.
    """
    device, num_states = observation_logits.device.type, observation_logits.shape[-1]
    if _num_forward_modes() > 1:
        return "reference"
    if torch.compiler.is_compiling():
        name = "" if device in ("cpu", "cuda") else "reference"
    else:
        name = _chosen.get() or _of_device(device, num_states)
    if num_states > _MAX_CUDA_STATES and (name or device) == "cuda":
        return "reference"
    return name


def _num_forward_modes() -> int:
    """The current number of nested ``jvp`` or ``jacfwd`` transforms."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return 0
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in levels)


def _of_device(device: str, num_states: int) -> str:
    if device == "cpu":
        return "cpu"
    reason = why_no_kernel(device, num_states)
    if not reason:
        return device
    if reason not in _warned and device != "meta":  # on which nothing is computed
        _warned.add(reason)
        warnings.warn(
            f"the recursions run as plain tensor code, which is slow, as {reason}",
            RuntimeWarning,
            stacklevel=levels_to_the_caller(),
        )
    return "reference"


def why_no_kernel(device: str, num_states: int) -> str:
    """Why there is no compiled kernel for tensors on a device; empty where there is one."""
    if device == "cpu":
        return ""
    if device != "cuda":
        return f"there are no kernels for {device} devices"
    if num_states > _MAX_CUDA_STATES:
        return f"the kernels for CUDA devices serve at most {_MAX_CUDA_STATES} states"
    from pyro_regimes.kernels.cuda import availability

    return availability.why_not()


def describe(device: str, num_states: int) -> str:
    """What computes the recursions of tensors on a device, for the reader of ``em.plan``."""
    chosen = _chosen.get()
    if chosen is not None:
        return f"{chosen}, as backend({chosen!r}) asks"
    reason = why_no_kernel(device, num_states)
    if reason:
        return f"plain tensor code, as {reason}"
    return f"compiled for {device}"


def kernel(name: str, device: torch.device) -> ModuleType:
    """The module of a kernel; without a name, that of the context or of the device."""
    name = name or _chosen.get() or device.type
    if name == "reference":
        from pyro_regimes.kernels import reference_kernel

        return reference_kernel
    if name == "cuda":
        from pyro_regimes.kernels.cuda import launch as cuda_launch

        return cuda_launch
    from pyro_regimes.kernels.cpu import launch as cpu_launch

    return cpu_launch


def decoder(*chain: Tensor | None) -> ModuleType | None:
    """The compiled CPU kernel of filter and paths, or None if tensor code is used.

    Tensor code is used on other devices and under transforms.

    :param chain: initial, transition and observation logits, and lengths.
    """
    observation_logits = chain[2]
    assert observation_logits is not None
    if choose(observation_logits) == "cpu" and transforms.is_plain(*chain):
        return kernel("cpu", observation_logits.device)
    return None


def is_reference_wanted() -> bool:
    """Whether the current code runs within ``backend("reference")``."""
    return _chosen.get() == "reference"
