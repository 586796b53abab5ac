"""Intraday rows: nights and weekends take no room."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_regimes.estimator import plots
from pyro_regimes.estimator.plots.dates import has_nights

MINUTE = np.timedelta64(1, "m")


def _sessions(num_days: int, num_rows: int = 390) -> np.ndarray:
    """Minutes of a session from 14:30 on of each day from 30 December 2023 on."""
    days = np.datetime64("2023-12-30T14:30") + np.arange(num_days) * np.timedelta64(1, "D")
    return (days[:, None] + np.arange(num_rows) * MINUTE).ravel().astype("datetime64[s]")


@pytest.mark.parametrize(
    "time, expected",
    [
        (_sessions(3), True),
        (np.datetime64("2024-01-01T00:00") + np.arange(5000) * MINUTE, False),  # day and night
        (np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]"), False),
        (np.busday_offset("2024-01-01", np.arange(60), roll="forward"), False),  # weekends
        (np.arange(100), False),
        (_sessions(1, 2), False),
    ],
)
def test_nights_are_told(time, expected) -> None:
    assert has_nights(time) == expected


@pytest.mark.parametrize("num_days", [1, 2, 3, 30])
def test_rows_of_sessions_are_equally_far_from_each_other(num_days) -> None:
    time = _sessions(num_days) if num_days > 1 else np.delete(_sessions(1), np.s_[60:200])
    number = len(time)
    probs = np.tile([0.8, 0.2], (number, 1))
    figure = plots.plot_regimes(
        np.ones((number, 1)), np.zeros(number, int), probs, ["a", "b"], time
    )
    above, below = figure.axes
    np.testing.assert_array_equal(above.lines[0].get_xdata(), np.arange(number))
    assert above.get_xlim() == (-0.5, number - 0.5)
    figure.draw_without_rendering()
    texts = [label.get_text() for label in below.get_xticklabels()]
    rows = below.get_xticks().astype(int)
    assert 3 <= len(texts) <= 11
    if num_days < 3:
        assert texts[0] == "14:30\n2023-12-30"
        assert [text[:5] for text in texts] == [str(time[row])[11:16] for row in rows]
    else:
        assert texts[0] == "30 Dec\n2023" and "2024" in "".join(texts[1:])
        assert all(str(time[row])[11:] == "14:30:00" for row in rows)
        assert [text[:2] for text in texts] == [str(time[row])[8:10] for row in rows]
