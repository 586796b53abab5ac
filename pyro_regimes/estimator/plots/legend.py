"""The title and the legend above a panel, where they hide nothing."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.plots.bands import Bands
from pyro_regimes.estimator.plots.figure import Text, figure_of, height_of, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FULL = 0.55  #: opacity of a band that its regime holds alone
_MOST_COLUMNS = 5
_HALF_TITLE = 10  # points
_LEAST_HEIGHT = 0.4  # the share of a given axes' height that text above it leaves


def explain(
    panel: Axes,
    bands: Bands,
    path: npt.NDArray[Any],
    names: Sequence[str],
    colors: list[str],
    title: str,
    text: Text,
    of_path: str,
) -> None:
    """A legend above the panel, where it hides nothing, and a title above it.

    :param of_path: what the path is.
    """
    patches = _patches(bands, path, names, colors, text.is_short)
    shaded = f"Shaded: regime of each row ({of_path})"
    if bands.rows > 1:
        shaded = (
            f"Shaded: most frequent regime of each {bands.rows:.0f} rows ({of_path}), paler "
            "where other regimes are among them"
        )
    letters, title_letters = (int(each * width_of(panel)) for each in text.letters[:2])
    explained = [] if text.is_short else textwrap.wrap(shaded, max(20, letters))
    entries = [str(patch.get_label()).split("\n") for patch in patches]
    longest = (5 if text.is_short else 8) + max(len(line) for entry in entries for line in entry)
    columns = int(np.clip(letters // longest, 1, min(len(names), _MOST_COLUMNS)))
    panel.legend(
        handles=[patch for column in range(columns) for patch in patches[column::columns]],
        title="\n".join(explained) or None,
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        borderpad=0,
        frameon=False,
        ncols=columns,
        fontsize=text.legend,
        title_fontsize=text.legend,
        **({"handlelength": 1.2, "columnspacing": 1.0} if text.is_short else {}),
    )
    legend = panel.get_legend()
    for each in [] if legend is None else legend.get_texts():
        each.set_parse_math(False)
    rows = [entries[first : first + columns] for first in range(0, len(entries), columns)]
    lines = len(explained) + sum(max(map(len, row)) for row in rows)
    wrapped = textwrap.fill(title, max(15, title_letters))
    panel.set_title(wrapped, loc="left", fontsize=text.title, pad=6 + text.line * lines)
    if figure_of(panel).get_layout_engine() is None:
        _make_room(panel, text.line * lines + 15 * wrapped.count("\n"))


def _patches(
    bands: Bands,
    path: npt.NDArray[Any],
    names: Sequence[str],
    colors: list[str],
    is_short: bool,
) -> list[Any]:
    """A coloured field for each regime, with its name and its share of the rows."""
    from matplotlib.patches import Patch

    seen = np.isin(np.arange(len(names)), path)
    held = np.isin(np.arange(len(names)), bands.regimes) | ~seen
    shares = [(path == k).mean() for k in range(len(names))]
    labels = [
        f"{name} {share:.0%}"
        if is_short
        else f"{name}, {share:.0%} of rows"
        + ("" if held[k] else "\nin no band the most frequent")
        for k, (name, share) in enumerate(zip(names, shares, strict=True))
    ]
    each = zip(labels, colors, strict=True)
    return [Patch(color=color, alpha=FULL, label=label) for label, color in each]


def _make_room(panel: Axes, points: int) -> None:
    """Lower the upper edge of axes in a figure without a layout, as text stands above it.

    Between a panel and the one above, tick labels leave half of the room for a title.
    """
    kept = max(_LEAST_HEIGHT, 1 - (points + _HALF_TITLE) / 72 / height_of(panel))
    place = panel.get_position()
    panel.set_position((place.x0, place.y0, place.width, place.height * kept))
    panel.set_in_layout(True)  # which set_position() ends
