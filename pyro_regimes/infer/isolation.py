"""Locks and isolates Pyro's global state: handlers, plates and the parameter store.

:data:`PYRO_LOCK` is held while a model runs or the store is accessed. :class:`Alone` holds it for a
block. :func:`isolated` runs a block without the caller's handlers and plates, and with another
parameter store. :func:`plain_torch` runs a block without the caller's modes of torch.

In a forked process the lock is free, and Pyro has the state from before any other thread's block.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, NamedTuple

import pyro
import torch
from pyro.params.param_store import ParamStoreDict
from pyro.poutine import runtime

PYRO_LOCK = threading.RLock()
"""Held while a model is traced or the parameter store is accessed; both are global state."""


class State(NamedTuple):
    """Pyro's global state. Read and write it under the lock."""

    handlers: list[Any]  #: outermost first
    plates: list[str | None]  #: the plates that have a dim, from the right
    store: dict[str, Any]  #: the dict of the parameter store's attributes
    parts: dict[str, Any]  #: the attributes, which a ``scope()`` of the store replaces

    @classmethod
    def read(cls) -> State:
        """The present state."""
        store = vars(pyro.get_param_store())
        plates = list(runtime._DIM_ALLOCATOR._stack)
        return cls(list(runtime._PYRO_STACK), plates, store, dict(store))

    def write(self) -> None:
        """Restore this state; may be called twice. The lists stay the same objects."""
        runtime._PYRO_STACK[:] = self.handlers
        runtime._DIM_ALLOCATOR._stack[:] = self.plates
        pyro.get_param_store().__dict__ = self.store
        self.store.update(self.parts)


_outside: list[State] = []  # the state that each open block found, outermost first


class Alone:
    """Hold :data:`PYRO_LOCK` for a block of :class:`.Undisturbed`. Blocks may be nested.

    After an exception Pyro's state is restored before other threads continue.
    """

    def __enter__(self) -> Alone:
        is_nested = PYRO_LOCK._is_owned()  # type: ignore[attr-defined]
        PYRO_LOCK.acquire()
        if not is_nested:
            _outside.clear()  # of what an interrupt has left
        self._depth, self._before = len(_outside), State.read()
        _outside.append(self._before)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del _outside[self._depth :]
        if kind is not None:
            self._before.write()
        PYRO_LOCK.release()


@contextmanager
def _remembered(is_nested: bool) -> Iterator[None]:
    if not is_nested:
        _outside.clear()  # of what an interrupt has left
    depth = len(_outside)
    try:
        _outside.append(State.read())
        yield
    finally:
        del _outside[depth:]


@contextmanager
def _section() -> Iterator[None]:
    """Hold :data:`PYRO_LOCK`, also nested. An interrupt during entry releases it, too."""
    is_nested = PYRO_LOCK._is_owned()  # type: ignore[attr-defined]
    with PYRO_LOCK, _remembered(is_nested):
        yield


def release_fully() -> None:
    """Release the lock as often as this thread holds it, for use after an interrupt."""
    while PYRO_LOCK._is_owned():  # type: ignore[attr-defined]
        PYRO_LOCK.release()


@contextmanager
def isolated(store: ParamStoreDict) -> Iterator[None]:
    """Hold the lock, with no handlers, no plates, and the content of ``store`` in Pyro's store.

    Changes of the parameter store in the block apply to ``store``. Afterwards, also after an error,
    the caller's handlers, plates and parameters are restored as the same objects.
    """
    with _section():
        outside = State.read()
        try:
            try:
                State([], [], vars(store), dict(vars(store))).write()
                yield
            finally:
                outside.write()
        finally:
            outside.write()  # repeated, as an interrupt may have stopped the first


def copy_of_store() -> ParamStoreDict:
    """A store with the caller's tensors. New parameters are added only to this store."""
    copy = ParamStoreDict()
    vars(copy).update({name: dict(part) for name, part in vars(pyro.get_param_store()).items()})
    return copy


@contextmanager
def plain_torch(device: torch.device) -> Iterator[None]:
    """A context with gradients, no inference mode, no autocast, and this default ``device``."""
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for kind in {"cpu", device.type}:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device != torch.empty(0, device=device).device:  # "cuda" is "cuda:0"
            modes.enter_context(device)
        yield


def _renew_in_child() -> None:
    """Restore lock and state in a forked child, which lacks the thread that held the lock."""
    if PYRO_LOCK.acquire(blocking=False):  # free, or held by the thread that forked
        PYRO_LOCK.release()
        return
    PYRO_LOCK._at_fork_reinit()  # type: ignore[attr-defined]
    if _outside:
        _outside[0].write()
        _outside.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
