"""What a call borrows of the process and of the store, given back when an exception ends it.

A ``with`` statement alone does not do that for an interrupt (Ctrl-C). It may come between any two
instructions, also while Pyro enters or leaves a handler, and then a handler stays on Pyro's stack,
a plate stays allocated, or gradients stay off.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Callable

import torch

from pyro_regimes.infer.isolation import PYRO_LOCK, State, release_fully


class Undisturbed:
    """One call of the package, entered twice::

        call = Undisturbed(undo)
        with call, call:
            ...

    After an exception everything is as it was before: Pyro's surroundings, the lock, grad mode and
    inference mode; then ``undo`` is called. All of this may be done twice: a second interrupt, or
    one within the first exit, finds the other still to come. Inference mode, in which nothing can
    be differentiated, is off inside.

    :param undo: puts back what the call has changed. It may be exchanged as the call goes on.
    """

    def __init__(self, undo: Callable[[], None]) -> None:
        self.undo = undo
        self._recording = torch.is_grad_enabled()
        self._inference = torch.is_inference_mode_enabled()
        self._is_nested = PYRO_LOCK._is_owned()  # type: ignore[attr-defined]
        self._normal: Any = None
        self._depth = 0
        with PYRO_LOCK:
            self._before = State.read()

    def __enter__(self) -> Undisturbed:
        self._depth += 1
        if self._depth == 2 and self._inference:
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
            if PYRO_LOCK._is_owned():  # type: ignore[attr-defined]
                self._before.write()
            if not self._is_nested:
                release_fully()
            self.undo()
        if self._normal is not None:
            self._normal.__exit__(None, None, None)
            self._normal = None
        torch.set_grad_enabled(self._recording)
