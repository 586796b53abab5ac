"""The benchmark of the starts: its arithmetic by hand, and the whole program on a small problem."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import measure, starts, starts_memory, starts_problems
from pyro_regimes import RegimeModel
from pyro_regimes.estimator.starts import make_starts
from tests import seeds


def test_starts_of_few_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The whole program, on one small problem."""
    values = seeds.rng(0).standard_normal((120, 2)) * np.arange(1, 121)[:, None]
    problems = [starts_problems.Problem("simulated", "small", values, 2, "diag")]
    monkeypatch.setattr(starts_problems, "simulated", lambda: problems)
    monkeypatch.setattr(starts, "times", lambda repeats: [["full", "1", "2", "3", "4 %"]])
    page = tmp_path / "page.md"
    starts.main(["--group", "simulated", "--seeds", "3", "--markdown", str(page)])
    printed = capsys.readouterr().out
    assert "small, K=2 diag" in printed and "mean of 1" in printed
    assert printed.strip() in page.read_text()


def test_share_of_starts_that_find_the_best() -> None:
    """By hand: ten starts of two seeds, in nats below the best known."""
    former, present = np.full((2, 10), 9.0), np.full((2, 10), np.inf)
    former[0, 1] = 0.0  # one of ten random ones, of which a fit has five
    present[0, 0] = present[1, 1] = 0.4  # k-means, and random
    row = starts.Row(
        starts_problems.Problem("a", "b", np.zeros((5, 2)), 2, "full"), former, present
    )
    assert row.singles() == [0.0, 0.5, 0.1, 0.0]
    assert row.fits() == [1, 2]
    assert row.shares() == pytest.approx([0.5, 0.75])
    assert row.short() == pytest.approx([4.5, 0.4])
    assert row.cells()[-6:] == ["1/2", "2/2", "50 %", "75 %", "4.50", "0.40"]
    # Without the first seed 0 and 1, without the second 1 and 1.
    assert starts.summary([row, row])[-4] == "50.0 ± 35.4 %"
    assert starts.summary([row])[-3] == "75.0 ± 0.0 %"


def test_mean_of_best_is_that_of_the_combinations() -> None:
    pools = [seeds.rng(0).exponential(size=(3, 1)), seeds.rng(1).exponential(size=(3, 2))]
    mins = [
        min(one, *two)
        for one in pools[0].ravel()
        for two in itertools.combinations(pools[1].ravel(), 2)
    ]
    assert starts.mean_of_best(pools) == pytest.approx(np.mean(mins))
    assert starts.share_above(pools, 0.3) == pytest.approx(np.mean(np.array(mins) > 0.3))


def test_former_starts_are_ten_in_turn() -> None:
    prepared = starts.Prepared.of(seeds.rng(0).standard_normal((60, 2)), 3, "diag")
    made = prepared.make(starts.former_starts, 0)
    stay = made.transition_matrix.diagonal(axis1=-2, axis2=-1)
    assert ((np.abs(stay - 0.9) < 1e-12).all(1) == [True, False] * 5).all()
    assert np.isfinite(prepared.fit(made)).any()


@pytest.mark.slow
@pytest.mark.skipif(not measure.can_measure_memory(), reason="no /proc to read it from")
def test_memory_of_ten_starts() -> None:
    multiples = starts_memory.extra_multiples("full", num_steps=200_000)
    assert multiples is not None
    assert 1 < multiples < 40  # of short data the least amount of memory counts for more


def test_fits_are_those_of_regime_model() -> None:
    """The best of ten starts is the fit of a RegimeModel with the same seed."""
    x = 100.0 * seeds.rng(0).standard_normal((200, 2)) * [1.0, 3.0]
    prepared = starts.Prepared.of(x, 2, "diag")
    best = prepared.fit(prepared.make(make_starts, 7)).max()
    offset = prepared.spec.units(x, 0.0).log_jacobian(len(x))
    model = RegimeModel(2, "diag", n_init=starts.NUM_STARTS, random_state=7).fit(x)
    assert best - offset == pytest.approx(model.history_[-1], rel=1e-12)


@pytest.mark.parametrize("problems", [starts_problems.embedded, starts_problems.parts])
def test_problems_of_returns(problems: Callable[[], Iterator[starts_problems.Problem]]) -> None:
    made = list(problems())
    assert len({(each.name, each.n_regimes, each.covariance_type) for each in made}) == len(made)
    assert all(np.isfinite(each.values).all() and each.values.shape[1] == 7 for each in made)


def test_simulated_problems_are_reproducible() -> None:
    first, second = (list(starts_problems.simulated(2)) for _ in range(2))
    assert [each.covariance_type for each in first] == ["diag", "full"]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
