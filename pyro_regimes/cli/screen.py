"""What the command prints: results on stdout; notes and progress on stderr."""

from __future__ import annotations

import math
import time
from typing import Any

import rich.progress
from rich.console import Console

from pyro_regimes.progress import bars, nothing_else

# Names of series and of files are printed as they are, with square brackets and colons.
out = Console(markup=False, emoji=False, highlight=False)
err = Console(markup=False, emoji=False, highlight=False, stderr=True)

_BETWEEN_REFRESHES = 0.1  # seconds between two refreshes of the bars
BETWEEN_LINES = 5.0  # seconds between two lines where there are no bars


def note(text: str) -> None:
    """Print a note to the user."""
    say(f"note: {plain(text)}")


def say(text: str) -> None:
    """Print on stderr. A terminal breaks lines between words; a file has one long line."""
    err.print(text, soft_wrap=not err.is_terminal)


def show_warning(message: Any, *rest: Any, **more: Any) -> None:
    """Print a warning as a note; takes the place of ``warnings.showwarning``."""
    note(str(message))


def plain(text: object) -> str:
    """Text without control characters, which a terminal would obey; lines stay lines."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in str(text))


class Progress:
    """Progress of methods on stderr, so that stdout can be piped.

    On a terminal there are bars, which go at the end; elsewhere a line now and then.
    """

    def __init__(self) -> None:
        self._bars, self._no_others = bars(err), nothing_else()
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._shown = time.monotonic()

    def __enter__(self) -> Progress:
        self._no_others.__enter__()
        if err.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if err.is_terminal:
            self._bars.stop()
        self._no_others.__exit__(None, None, None)

    def begin(self, name: str, total: int) -> None:
        """Show the bar of a method before its first step, as that may have to wait for compilers.

        Without a terminal nothing is shown.
        """
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        if err.is_terminal:
            self._bars.update(self._tasks[name], description=f"{name}, compiling")
            self._refresh()

    def tell(self, name: str, step: int, total: int, objective: float = math.nan) -> None:
        """Show the step of a method; step 0 announces it.

        :param total: the number of steps, which is ``step`` where the method has ended early.
        :param objective: NaN if there is none.
        """
        if step == 0 or name not in self._tasks:
            self.begin(name, total)
        if step == 0:
            if not err.is_terminal:
                say(f"{name}, up to {total} steps")
            return
        self._bars.update(self._tasks[name], description=name, completed=step, total=total)
        since = time.monotonic() - self._shown
        if err.is_terminal:
            if since >= _BETWEEN_REFRESHES or step >= total:
                self._refresh()
        elif since >= BETWEEN_LINES:
            self._shown = time.monotonic()
            value = "" if math.isnan(objective) else f", objective {objective:.2f}"
            say(f"{name}: step {step} of {total}{value}")

    def _refresh(self) -> None:
        self._shown = time.monotonic()
        self._bars.refresh()
