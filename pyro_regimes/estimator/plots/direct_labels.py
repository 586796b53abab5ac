"""Names written into stacked areas, where there is room for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

import numpy as np

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.plots.bands import Bands
from pyro_regimes.estimator.plots.figure import color_on, height_of, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = 8  # points
_LETTER, _LINE, _EDGE = 0.62, 1.5, 1.5  # times this: width of a letter, of a line, of both margins


def label_areas(panel: Axes, bands: Bands, names: Sequence[str], colors: list[str]) -> None:
    """Write each name into the highest rectangle of its area that is wide enough for it."""
    position = bands.edges.astype(float)
    per_band = width_of(panel) * 72 / (len(position) - 1)  # points
    tops = np.minimum(bands.probs.cumsum(-1), 1.0)
    bottoms = tops - bands.probs
    for k, (name, color) in enumerate(zip(names, colors, strict=True)):
        wide = int(np.ceil((_LETTER * len(name) + _EDGE) * _SIZE / per_band))
        if wide > len(tops):
            continue
        low, high = _room(bottoms[:, k], tops[:, k], wide)
        first = int((high - low).argmax())
        if (high - low)[first] * height_of(panel) * 72 < _LINE * _SIZE:
            continue
        middle = (position[first] + position[first + wide]) / 2
        across = middle.astype("int64").astype(bands.edges.dtype)
        panel.text(
            across if bands.edges.dtype.kind == "M" else middle,
            (low[first] + high[first]) / 2,
            name,
            size=_SIZE,
            color=color_on(color),
            ha="center",
            va="center",
            parse_math=False,
        )


def _room(bottoms: Array, tops: Array, wide: int) -> tuple[Array, Array]:
    """The lower and the upper edge of what is free in ``wide`` bands from each band on."""
    windows = np.lib.stride_tricks.sliding_window_view
    return windows(bottoms, wide).max(-1), windows(tops, wide).min(-1)
