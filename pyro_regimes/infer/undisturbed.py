"""Restores global state and the store when an exception ends a call.

A ``with`` statement alone does not do this for an interrupt (Ctrl-C). It may occur between any two
instructions, even while Pyro enters or exits a handler. Then a handler stays on Pyro's stack, a
plate stays allocated, or gradients stay off.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Callable

import torch
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger

from pyro_regimes.infer.isolation import PYRO_LOCK, State, release_fully


class Undisturbed:
    """One call of the package, entered twice::

        call = Undisturbed()
        with call, call:
            call.undo = ...

    After an exception it restores Pyro's handlers and plates, the lock, grad mode and inference
    mode, and then calls ``undo``, which restores what the call has changed. The call may replace
    ``undo`` as it proceeds. All of this may run twice: after an interrupt within the first exit the
    second one still runs. Inference mode, which prevents differentiation, is off inside.
    """

    def __init__(self) -> None:
        self.undo: Callable[[], None] = lambda: None
        self._recording = torch.is_grad_enabled()
        self._inference = torch.is_inference_mode_enabled()
        self._is_nested = PYRO_LOCK._is_owned()  # type: ignore[attr-defined]
        self._normal: Any = None
        self._before: State | None = None
        self._depth = 0

    def __enter__(self) -> Undisturbed:
        self._depth += 1
        if self._depth < 2:
            return self  # the following lines need an exit that is guaranteed
        with PYRO_LOCK:
            self._before = State.read()
        if self._inference:
            self._normal = torch.inference_mode(False)
            self._normal.__enter__()
            torch.set_grad_enabled(self._recording)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            if self._before and PYRO_LOCK._is_owned():  # type: ignore[attr-defined]
                self._before.write()
            if not self._is_nested:
                release_fully()
            self.undo()
        if self._normal is not None:
            self._normal.__exit__(None, None, None)
            self._normal = None
        torch.set_grad_enabled(self._recording)


def check_leaves(leaves: dict[str, torch.Tensor]) -> None:
    """Check that parameters can be changed in place.

    :raises ValueError: if some cannot, with their names.
    """
    names = [name for name, leaf in leaves.items() if leaf.is_inference()]
    if names:
        raise ValueError(
            f"expected parameters that can be set in place, got {names}, which were made under "
            "torch.inference_mode(): make them outside of it"
        )


def explained(error: RuntimeError) -> Exception:
    """Replace an error of a run of the model by a clearer one if the caller's context causes it."""
    if "nference tensor" in str(error):
        return ValueError(
            "expected tensors that can be differentiated, got one that the model reads and that "
            "was made under torch.inference_mode(): clone() it outside of that mode"
        )
    around = any(isinstance(each, TraceMessenger) for each in _PYRO_STACK)
    if around and "Multiple sample sites" in str(error):
        return ValueError(
            "expected no poutine.trace around EM (SVI, EM and other inference trace a model too), "
            "as it runs its model several times: put a poutine.block() around EM"
        )
    return error
