"""Figures, axes and colours that all plots share."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From calm to turbulent, distinct in greyscale and for colour-blind readers.
_TEAL, _GREEN, _SAND, _RED, _PURPLE = "#2a9d8f", "#90be6d", "#e9c46a", "#c8553d", "#6d597a"
_COLORS = {
    1: [_TEAL],
    2: [_TEAL, _RED],
    3: [_TEAL, _SAND, _RED],
    4: [_TEAL, _SAND, _RED, _PURPLE],
    5: [_TEAL, _GREEN, _SAND, _RED, _PURPLE],
}
_MORE_COLORS = [*_COLORS[5], "#577590", "#b56576", "#4d4d4d"]

INK = "#222222"  #: of lines and text
_DARK, _BRIGHT = "#111111", "#fdfdfd"  # text on a colour
_BRIGHTNESS = (0.299, 0.587, 0.114)  # of red, green and blue
_DARK_FROM = 0.5  # the brightness of a colour on which text is dark


class Text(NamedTuple):
    """The size of the text of a panel."""

    is_short: bool
    legend: str
    title: str
    label: str  #: of axes and ticks
    line: int  #: points from one line of the legend to the next
    letters: tuple[int, int, int]  #: in an inch: of the legend, the title, the label


_FULL_TEXT = Text(False, "small", "large", "medium", 15, (13, 8, 14))
_SHORT_TEXT = Text(True, "x-small", "medium", "small", 11, (16, 11, 16))
_LARGE_PANEL = (4.5, 2.5)  # inches, the least width and height of a panel with all of the text


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches.

    :raises ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'pyro-regimes[app]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def regime_colors(num_regimes: int) -> list[str]:
    """One colour for each regime, in their order."""
    more = (_MORE_COLORS[k % len(_MORE_COLORS)] for k in range(num_regimes))
    return list(_COLORS.get(num_regimes, more))


def cut(name: str, most: int) -> str:
    """A name of at most so many letters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def color_on(color: str) -> str:
    """The colour of text that can be read on this one, ``"#rrggbb"``."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    brightness = sum(share * part for share, part in zip(_BRIGHTNESS, parts, strict=True))
    return _DARK if brightness >= _DARK_FROM else _BRIGHT


def given_axes(ax: Any, numbers: tuple[int, ...], expected: str) -> list[Axes]:
    """The axes that a user gives to draw in, one or several, in an array of any shape.

    :param numbers: how many there may be.
    :param expected: what is expected, for an error.
    :raises ImportError: if matplotlib is not installed.
    :raises ValueError: if they are others.
    """
    new_figure(1, 1)  # raises if matplotlib is not installed
    from matplotlib.axes import Axes

    is_one = isinstance(ax, Axes) or not isinstance(ax, Iterable)
    panels = [ax] if is_one else np.array(list(ax), dtype=object).ravel().tolist()
    if len(panels) not in numbers or not all(isinstance(each, Axes) for each in panels):
        raise ValueError(f"expected ax to be {expected}, got {ax!r}")
    return panels


def panels_for(ax: Any, number: int, size: tuple[float, float], most_columns: int) -> list[Axes]:
    """As many axes: the given ones, or those of a new figure in rows and columns.

    :param size: width and height of one panel, in inches.
    """
    if ax is not None:
        what = "one matplotlib Axes" if number == 1 else f"{number} matplotlib Axes"
        return given_axes(ax, (number,), what)
    columns = min(number, most_columns)
    rows = -(-number // columns)
    figure = new_figure(size[0] * columns, size[1] * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[number:]:
        panel.remove()
    return panels[:number]


def figure_of(panel: Axes) -> Figure:
    """The figure of an axes."""
    figure = panel.get_figure(root=True)
    assert figure is not None
    return figure


def width_of(panel: Axes) -> float:
    """In inches."""
    return panel.get_window_extent().width / figure_of(panel).dpi


def height_of(panel: Axes) -> float:
    """In inches."""
    return panel.get_window_extent().height / figure_of(panel).dpi


def text_of(panel: Axes) -> Text:
    """The sizes of text that suit a panel."""
    width, height = _LARGE_PANEL
    return _FULL_TEXT if width_of(panel) >= width and height_of(panel) >= height else _SHORT_TEXT


def label(panel: Axes, what: str, more: str, text: Text) -> None:
    """Label the vertical axis, in several lines where it is short."""
    lines = [what] if text.is_short or not more else [what, more]
    letters = max(12, int(text.letters[2] * height_of(panel)))
    label = "\n".join(textwrap.fill(line, letters) for line in lines)
    panel.set_ylabel(
        label,
        fontsize=text.label,
        labelpad=1 if text.is_short else None,
        parse_math=False,
    )
