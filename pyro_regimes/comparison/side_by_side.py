"""Methods two at a time: one in this process, the other in a forked one.

Every method has its own parameters and random numbers (:class:`.Workspace`), so its results do not
depend on the process. Its seconds do: cores that share resources slow each other down.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import pickle
import signal
import sys
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Callable

import torch

from pyro_regimes.comparison.runs import MethodRun
from pyro_regimes.comparison.task import Progress

#: Runs the method of this name.
Run = Callable[[str, Progress], list[MethodRun]]

_MESSAGES_PER_METHOD = 100


def can_fork(device: torch.device) -> bool:
    """Whether a method can run in a forked process.

    On other systems than Linux libraries may fail after a fork. Where there is an accelerator,
    torch's threads of autograd do not survive it. A daemonic process may have no child.
    """
    return (
        sys.platform == "linux"
        and device.type == "cpu"
        and not torch.cuda.is_available()
        and not multiprocessing.current_process().daemon
    )


def run_side_by_side(
    run: Run, names: Sequence[str], progress: Progress | None
) -> dict[str, list[MethodRun]]:
    """Run methods in this process and in a forked one; each takes the next name when it is free.

    :param names: the methods, the longest first.
    :param progress: called in this process, also for the steps of the other.
    :raises Exception: what a method raises in either process.
    """
    waiting = list(names)
    found: dict[str, list[MethodRun]] = {}
    with _Helper(run) as helper:

        def tell(*step: Any) -> None:
            if progress is not None:
                progress(*step)
            while helper.has_message():
                receive()

        def receive() -> None:
            kind, *content = helper.receive()
            if kind == "step":
                if progress is not None:
                    progress(*content)
                return
            if kind == "error":
                raise content[0]
            name, found[name] = content
            if waiting:
                helper.start(waiting.pop(0))

        helper.start(waiting.pop(0))
        while waiting:
            name = waiting.pop(0)
            found[name] = run(name, tell)
        while helper.is_busy:
            receive()
    return {name: [each._replace(is_beside=True) for each in found[name]] for name in names}


class _Helper:
    """A forked process that runs methods, one at a time."""

    def __init__(self, run: Run) -> None:
        context = multiprocessing.get_context("fork")
        self.is_busy = False
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(run, other, self._pipe), daemon=True
        )
        with warnings.catch_warnings():
            # Of other threads, which may hold locks: the process runs methods and nothing else.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        other.close()

    def __enter__(self) -> _Helper:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.join()
        self._pipe.close()

    def start(self, name: str) -> None:
        """Let the process run a method."""
        self.is_busy = True
        self._pipe.send_bytes(pickle.dumps(name))

    def has_message(self) -> bool:
        """Whether :meth:`receive` would not wait."""
        return self._pipe.poll()

    def receive(self) -> Any:
        """Wait for the next message, a tuple of its kind and its content.

        It is ``"step", *step``, ``"runs", name, runs`` or ``"error", error``.

        :raises RuntimeError: if the process has ended.
        """
        try:
            message = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, ConnectionError):
            self._process.join()
            raise RuntimeError(
                "expected the second process to run its methods, but it ended with exit code "
                f"{self._process.exitcode}; use processes=1"
            ) from None
        if message[0] != "step":
            self.is_busy = False
        return message


def _serve(run: Run, pipe: Connection, other: Connection) -> None:
    """Run the methods that the parent names, until it closes the pipe or ends."""
    other.close()
    # The threads of torch stayed behind at the fork, and a parallel operation would wait for them.
    torch.set_num_threads(1)
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt ends the parent, which ends this
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def send(*message: Any) -> None:
        # Not pipe.send(), which would pass tensors as shared memory that ends with this process.
        pipe.send_bytes(pickle.dumps(message))

    def tell(name: str, step: int, total: int, objective: float) -> None:
        if step % max(1, total // _MESSAGES_PER_METHOD) == 0 or step == total:
            send("step", name, step, total, objective)

    while True:
        try:
            name = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            send("runs", name, run(name, tell))
        except Exception as error:
            send("error", _as_sent(error))


def _end_with_parent() -> None:
    """Let the system end this process when its parent ends, however it does."""
    set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _as_sent(error: Exception) -> Exception:
    """An error as the parent receives it: a RuntimeError if it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
