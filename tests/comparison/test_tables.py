"""A comparison as text."""

from __future__ import annotations

import math

import pytest
from rich.console import Console

from pyro_regimes.comparison import Comparison
from pyro_regimes.comparison.tables import speed_up_line, tables
from tests.comparison.made_runs import make_run

EM = make_run("EM", "likelihood", [-30.0, -11.0, -10.0])
ADAM = make_run("SVI, Adam(0.03)", "likelihood", [-30.0, -20.0, -15.0, -10.05])
GONE = dict(log_likelihood=math.nan, diverged=True)


def rows(comparison: Comparison) -> list[list[str]]:
    console = Console(width=80)
    with console.capture() as captured:
        for table in tables(comparison, "made"):
            console.print(table)
    return [line.split() for line in captured.get().splitlines() if line.strip()]


def test_what_diverged_has_a_row_that_says_so() -> None:
    diverged = make_run("SVI, Adam(1)", "likelihood", [-30.0, -12.0], **GONE)
    lost = make_run("SVI, AutoNormal(1)", "ELBO", [-40.0, -50.0], **GONE)
    found = rows(Comparison([EM, ADAM, diverged, lost]))
    assert ["EM", "-10.00", "0.00", "3", "2.00", "2.00"] in found
    assert ["Adam(0.03)", "-10.05", "0.05", "4", "3.00", "3.00"] in found
    assert ["Adam(1)", "diverged", "2", "1.00", "never"] in found
    assert ["AutoNormal", "diverged", "1.00"] in found


def test_the_caption_says_whose_seconds_were_shared() -> None:
    mode = make_run("EM, MAP", "joint", [-30.0, -11.0])
    guide = make_run("SVI, AutoNormal(0.03)", "ELBO", [-40.0, -12.0])
    for is_beside in (False, True):
        lines = rows(Comparison([mode, guide._replace(is_beside=is_beside)]))
        (said,) = [" ".join(line) for line in lines if line[:1] == ["seconds:"]]
        assert said.startswith("seconds: without compilation and evaluation; ")
        how = "EM alone, the others two at a time" if is_beside else "one method at a time"
        assert said.endswith(how)
    (said,) = [line for line in rows(Comparison([EM, ADAM])) if line[:1] == ["seconds:"]]
    assert " ".join(said).endswith("one method at a time")


FAST = make_run("EM, SQUAREM", "likelihood", [-30.0, -10.0])
LBFGS = make_run("L-BFGS", "likelihood", [-30.0, -10.0])


@pytest.mark.parametrize(
    "runs, line",
    [
        (
            [EM, ADAM._replace(times=[0.0, 1.0, 2.0, 8.0])],
            r"^EM came .* 4.0 times sooner than the fastest gradient method, Adam\(0.03\).$",
        ),
        ([EM, FAST, ADAM], r"^EM, SQUAREM came .* 3.0 times sooner than the .* Adam\(0.03\).$"),
        (
            [EM, ADAM, LBFGS],
            "^EM came .* in 2.00 s, the fastest gradient method, L-BFGS, in 1.00 s.$",
        ),
        (
            [EM, ADAM._replace(values=[-10.0] * 4)],
            r"EM came .* in 2.00 s, the fastest .*, Adam\(0.03\), in 0.00 s",
        ),
        (
            [EM._replace(values=[-10.0] * 3), ADAM],
            r"EM came .* in 0.00 s, the fastest .*, Adam\(0.03\), in 3.00 s",
        ),
        (
            [EM, ADAM._replace(values=[-30.0] * 4)],
            "no gradient method did, in up to 3.00 s, 2 times as long",
        ),
        (
            [EM._replace(values=[-30.0] * 3), LBFGS, ADAM],
            "^No EM came within 0.1 nats of the best log-likelihood; L-BFGS did, in 1.00 s.$",
        ),
        ([EM, FAST], "^$"),
        ([EM], "^$"),
        ([ADAM], "^$"),
    ],
)
def test_the_line_about_the_speed_up(runs, line) -> None:
    import re

    assert re.search(line, speed_up_line(Comparison(runs)))


def test_a_full_table_fits_a_terminal() -> None:
    run = make_run("SVI, ClippedAdam(0.03)", "likelihood", [-178793.32, -98793.32])
    run = run._replace(
        held_out=-120309.95, gradient_norm=1.3e3, distance_to_em=2e-2, num_passes=20000, seconds=9e3
    )
    console = Console(width=80)
    with console.capture() as captured:
        for table in tables(Comparison([run, run._replace(values=[-1e5, -9e4])]), "made"):
            console.print(table)
    assert "…" not in captured.get() and "-98793.32 8793.32 -120309.9" in captured.get()
