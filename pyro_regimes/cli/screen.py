"""What the command prints: results on stdout; notes and progress on stderr."""

from __future__ import annotations

from typing import Any

import rich.progress
from rich.console import Console

# Names of series and of files are printed as they are, with square brackets and colons.
out = Console(markup=False, emoji=False)
err = Console(markup=False, emoji=False, highlight=False, stderr=True)


def note(text: str) -> None:
    """Print a note to the user."""
    err.print(f"note: {plain(text)}", soft_wrap=True)


def show_warning(message: Any, *rest: Any, **more: Any) -> None:
    """Print a warning as a note; takes the place of ``warnings.showwarning``."""
    note(str(message))


def plain(text: object) -> str:
    """Text without control characters, which a terminal would obey; lines stay lines."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in str(text))


def progress_bars(auto_refresh: bool = True) -> rich.progress.Progress:
    """Transient progress bars on stderr, so that stdout can be piped."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        console=err,
        transient=True,
        auto_refresh=auto_refresh,
    )
