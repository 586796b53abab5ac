"""Compilation of the CPU kernels by numba, and their distribution over threads.

A kernel releases the GIL and processes a range of sequences (or of time steps). :func:`spread`
divides the whole range over a small pool of threads. numba's own ``parallel=True`` is not used,
because its default threading layer ends the process if two Python threads enter it.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import numba
import numpy as np
import numpy.typing as npt
import torch

from pyro_regimes.kernels.cpu.cache import KernelCache, is_kernel

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, and keep the machine code for later processes.

    A product and a sum may be fused. Otherwise arithmetic is as written: sums keep their order, NaN
    and infinities their meaning.
    """
    dispatcher: Any = numba.njit(**_OPTIONS)(function)
    if is_kernel(function) and hasattr(dispatcher, "enable_caching"):  # JIT is not disabled
        dispatcher._cache = KernelCache(function)  # what enable_caching does, with numba's own
    return dispatcher


_LOCK = threading.Lock()
_pool: tuple[int, ThreadPoolExecutor] | None = None  # the process that made it, and the pool


def _forget_pool() -> None:
    """In a forked child: the threads stayed behind, and so may have the lock's owner."""
    global _pool, _LOCK
    _pool, _LOCK = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _threads() -> ThreadPoolExecutor:
    global _pool
    with _LOCK:
        if _pool is None:
            workers = max((os.cpu_count() or 2) - 1, 1)
            _pool = (os.getpid(), ThreadPoolExecutor(workers, thread_name_prefix="pyro_regimes"))
        return _pool[1]


def spread(task: Callable[[int, int], Any], count: int, grain: int) -> None:
    """Run ``task(first, last)`` over pieces of ``range(count)``, on as many threads as torch uses.

    :param grain: the fewest elements that are worth a thread.
    """
    pieces = min(torch.get_num_threads(), count // max(grain, 1))
    if pieces <= 1:
        task(0, count)
        return
    _run_pieces(task, [count * piece // pieces for piece in range(pieces + 1)])


def spread_rows(
    task: Callable[[int, int], Any],
    lengths: npt.NDArray[np.int64],
    grain: int,
    first: int = 0,
    last: int | None = None,
) -> None:
    """The same over sequences, in pieces with about as many rows.

    :param lengths: the number of rows of each sequence.
    :param grain: the fewest rows that are worth a thread.
    :param first: of the sequences, those from this one to ``last``.
    """
    last = len(lengths) if last is None else last
    threads = torch.get_num_threads()
    if threads == 1 or last - first < 2:
        task(first, last)
        return
    rows = lengths[first:last].cumsum()
    pieces = min(threads, int(rows[-1]) // grain)
    if pieces <= 1:
        task(first, last)
        return
    inner = first + np.searchsorted(rows, [rows[-1] * piece / pieces for piece in range(1, pieces)])
    _run_pieces(task, sorted({first, *inner.tolist(), last}))


def _run_pieces(task: Callable[[int, int], Any], edges: list[int]) -> None:
    """Run the first piece in this thread, and each of the others in one of the pool."""
    pool = _threads()
    others = [pool.submit(task, *piece) for piece in zip(edges[1:-1], edges[2:], strict=True)]
    try:
        task(edges[0], edges[1])
    finally:
        # The outputs are the caller's: nothing may write them once this has returned.
        for each in others:
            each.exception()
    for each in others:
        each.result()
