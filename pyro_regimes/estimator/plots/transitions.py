"""The transition matrix as a diagram of circles and arrows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.plots.figure import (
    INK,
    color_on,
    cut,
    figure_of,
    panels_for,
    regime_colors,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_IN_A_ROW, _AROUND = (5.0, 2.2), (5.0, 4.2)  # inches, width and height of a figure
_LEAST = 0.0005  # a probability that is shown; less is 0.0 %
_RADIUS = 0.35  # of a circle, in units of :func:`_places`
_CURVE = 0.16  # of an arrow: the height of its arc, by the distance of its ends
_THIN, _THICK = 0.8, 3.5  # points
_MOST_LETTERS = 12  # of a name in a circle
_MARGIN = 0.1
_LABEL = 0.4  # of the way along an arrow
_ASIDE = 0.07  # of a label from its arrow


def plot_transitions(
    transition_matrix: npt.ArrayLike,
    regime_names: Sequence[str],
    *,
    ax: Axes | None = None,
) -> Figure:
    """Draw the transition matrix: a circle for each regime, an arrow for each change.

    A circle has the name of its regime and the probability of staying in it at one step. An arrow
    has the probability of the change at one step, and is thicker the larger this is. Probabilities
    below 0.05 % have no arrow.

    :param transition_matrix: ``(K, K)``, (old, new).
    :param regime_names: K names.
    :param ax: a matplotlib Axes to draw in. None makes a figure.
    :return: a matplotlib figure, of ``ax`` if it is given.
    :raises ImportError: if matplotlib is not installed.
    :raises ValueError: if the shape does not agree with the names, or ``ax`` is no Axes.
    """
    matrix, names = np.asarray(transition_matrix, dtype=np.float64), list(regime_names)
    if matrix.shape != (len(names), len(names)):
        raise ValueError(
            f"expected transition_matrix to have shape {(len(names), len(names))}, got "
            f"{matrix.shape}"
        )
    panel = panels_for(ax, 1, _IN_A_ROW if len(names) <= 2 else _AROUND, 1)[0]
    places = _places(len(names))
    radius = min(_RADIUS, 0.42 * _nearest(places))
    for old, new in np.argwhere(matrix >= _LEAST):
        if old != new:
            _draw_arrow(panel, places[old], places[new], matrix[old, new], radius)
    for name, place, color, stay in zip(
        names, places, regime_colors(len(names)), np.diagonal(matrix), strict=True
    ):
        _draw_circle(panel, place, radius, color, name, stay)
    least, most = places.min(0) - radius - _MARGIN, places.max(0) + radius + _MARGIN
    arc = _CURVE * 2 if len(names) == 2 else _CURVE  # arrows beyond the circles
    panel.set(xlim=(least[0] - arc, most[0] + arc), ylim=(least[1] - arc, most[1] + arc))
    panel.set_aspect("equal")
    panel.set_axis_off()
    return figure_of(panel)


def _places(number: int) -> Array:
    """The centres of the circles, ``(K, 2)``: beside each other, or on a circle from the left."""
    if number == 1:
        return np.zeros((1, 2))
    if number == 2:
        return np.array([[-1.0, 0.0], [1.0, 0.0]])
    angles = np.pi * (1 + 1 / number) - 2 * np.pi * np.arange(number) / number
    if number % 2:
        angles = np.pi * (1 / 2 + 2 / number) - 2 * np.pi * np.arange(number) / number
    return np.stack([1.5 * np.cos(angles), 1.2 * np.sin(angles)], -1)


def _nearest(places: Array) -> float:
    """The least distance of two centres."""
    distances = np.linalg.norm(places[:, None] - places, axis=-1)
    apart = distances[distances > 0]
    return float(apart.min()) if len(apart) else 1.0


def _draw_arrow(panel: Axes, start: Array, end: Array, probability: float, radius: float) -> None:
    """An arc to the left of the straight line, so that both directions have one of their own."""
    from matplotlib.patches import FancyArrowPatch

    along = end - start
    length = np.linalg.norm(along)
    aside = np.array([-along[1], along[0]]) / length
    control = (start + end) / 2 + 2 * _CURVE * length * aside / 2
    first, last = (
        centre + (radius + 0.03) * (control - centre) / np.linalg.norm(control - centre)
        for centre in (start, end)
    )
    # The curve that matplotlib draws has its control point at this share of the distance.
    middle = (first + last) / 2
    distance = np.linalg.norm(last - first)
    bend = float((control - middle) @ aside / distance)
    panel.add_patch(
        FancyArrowPatch(
            tuple(first),
            tuple(last),
            connectionstyle=f"arc3,rad={-bend}",
            arrowstyle="-|>",
            mutation_scale=11,
            shrinkA=0,
            shrinkB=0,
            linewidth=_THIN + (_THICK - _THIN) * probability**0.5,
            color=INK,
        )
    )
    # On a quadratic curve, nearer to its start, so that labels of several arrows stand apart.
    share = _LABEL
    where = (1 - share) ** 2 * first + 2 * share * (1 - share) * control + share**2 * last
    where = where + _ASIDE * aside
    text = panel.text(where[0], where[1], _percent(probability), size=9)
    text.set(ha=_side(aside[0]), va=_height(aside[1]))


def _side(across: float) -> str:
    return "center" if abs(across) < 0.5 else "left" if across > 0 else "right"


def _height(up: float) -> str:
    return "center" if abs(up) < 0.5 else "bottom" if up > 0 else "top"


def _draw_circle(
    panel: Axes, place: Array, radius: float, color: str, name: str, stay: float
) -> None:
    from matplotlib.patches import Circle

    panel.add_patch(Circle(tuple(place), radius, facecolor=color, edgecolor=INK, linewidth=0.8))
    short = cut(name, _MOST_LETTERS)
    size = 9.5 if len(short) <= 10 and radius > 0.3 else 7.5
    panel.text(
        place[0],
        place[1],
        f"{short}\n{_percent(stay)}",
        ha="center",
        va="center",
        size=size,
        color=color_on(color),
        parse_math=False,
    )


def _percent(probability: float) -> str:
    """In percent: with two decimals near 0 and 1, so that they do not seem to be exact."""
    near = min(probability, 1 - probability)
    return f"{probability:.2%}" if 0 < near < 0.01 else f"{probability:.1%}"
