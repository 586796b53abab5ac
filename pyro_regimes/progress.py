"""A bar on stderr for work that takes long: on a terminal, after a second, and gone at the end.

A function that may take long opens one, and loops below it tell how far they are. Where stderr is
no terminal, nothing is shown. Only one bar is shown at a time; a bar within another is silent.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

Tell = Callable[[int, int], None]  #: of the number of parts that are done, and of all

_PATIENCE = 1.0  # seconds before a bar appears
_BETWEEN_REFRESHES = 0.1  # seconds


def bars(console: Console) -> Progress:
    """Bars of one look. No thread refreshes them: it would not survive the fork of a process."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        auto_refresh=False,
    )


class _Bar:
    """One bar, which appears if it is told of something after a second."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._next = time.monotonic() + _PATIENCE

    def tell(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _BETWEEN_REFRESHES
        if self._bars is None or self._task is None:
            from rich.console import Console

            self._bars = bars(Console(stderr=True, markup=False, emoji=False))
            self._task = self._bars.add_task(self._title, total=total)
            self._bars.start()
        self._bars.update(self._task, completed=done, total=total)
        self._bars.refresh()

    def end(self) -> None:
        if self._bars is not None:
            self._bars.stop()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


_is_shown: ContextVar[bool] = ContextVar("_is_shown", default=False)
_present: ContextVar[_Bar | None] = ContextVar("_present", default=None)


@contextmanager
def nothing_else() -> Iterator[None]:
    """No bars within it, as something else shows the progress."""
    shown, present = _is_shown.set(True), _present.set(None)
    try:
        yield
    finally:
        _present.reset(present)
        _is_shown.reset(shown)


@contextmanager
def bar(title: str, *, of_loops: bool = True) -> Iterator[Tell]:
    """Show a bar, and give a function that moves it.

    :param title: what is being done.
    :param of_loops: whether :func:`teller` gives this function to the loops below. If not, only
        the caller moves the bar.
    """
    if _is_shown.get() or not _is_terminal():
        with nothing_else():
            yield lambda done, total: None
        return
    shown = _Bar(title)
    with nothing_else():
        present = _present.set(shown if of_loops else None)
        try:
            yield shown.tell
        finally:
            shown.end()
            _present.reset(present)


def teller() -> Tell | None:
    """The function that moves the bar that is shown; None if no bar waits for loops."""
    present = _present.get()
    return None if present is None else present.tell
