"""The bar on stderr for work that takes long."""

import io

import numpy as np
import pytest
from rich.console import Console

from pyro_regimes import RegimeModel, progress, select


@pytest.fixture
def screen(monkeypatch):
    """What a terminal receives, if bars appear at once."""
    written = io.StringIO()
    make = progress.bars
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(progress, "_BETWEEN_REFRESHES", 0.0)
    terminal = Console(file=written, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "bars", lambda console: make(terminal))
    return written


def returns(num_rows=300):
    rng = np.random.RandomState(4)
    spread = np.where(np.arange(num_rows) // 50 % 2, 3.0, 1.0)
    return (rng.standard_normal(num_rows) * spread)[:, None]


def test_what_takes_long_says_how_far_it_is(screen):
    x = returns()
    model = RegimeModel(2, n_init=2, random_state=0).fit(x)
    assert "fit, iterations" in screen.getvalue()
    model.conf_int(x)
    model.conf_int(x, method="bootstrap", n_bootstrap=3)
    select(x, (1, 2), folds=0, n_init=1)
    shown = screen.getvalue()
    assert "second derivatives" in shown and "3 refits, iterations" in shown
    assert "models" in shown and "2/2" in shown
    assert shown.endswith("\x1b[2K")  # nothing is left of the last bar


def test_nothing_is_written_where_stderr_is_no_terminal(capsys):
    model = RegimeModel(2, n_init=2, random_state=0).fit(returns())
    model.conf_int(returns())
    assert capsys.readouterr() == ("", "")


def test_only_the_outer_bar_is_shown(screen):
    with progress.bar("outer", of_loops=False) as tell:
        assert progress.teller() is None
        with progress.bar("inner") as other:
            assert progress.teller() is None
            other(1, 2)
        tell(1, 2)
    assert "outer" in screen.getvalue() and "inner" not in screen.getvalue()


def test_an_error_ends_the_bar(screen):
    with pytest.raises(KeyError), progress.bar("some") as tell:
        assert progress.teller() == tell
        tell(1, 2)
        raise KeyError
    assert progress.teller() is None
    with progress.bar("other") as tell:
        tell(1, 2)
    assert "other" in screen.getvalue()


def test_a_bar_that_is_over_within_a_second_does_not_appear(screen, monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 1e6)
    with progress.bar("quick") as tell:
        tell(1, 2)
    assert screen.getvalue() == ""
