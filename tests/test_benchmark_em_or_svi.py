"""The benchmark of EM beside its rivals: its data, its fits, and what it says of who wins."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import em_or_svi
from pyro_regimes.comparison import LIKELIHOOD_METHODS, Comparison
from tests.comparison.made_runs import make_run


def test_simulated_data_are_those_of_the_chain() -> None:
    means = np.array([[0.0, 0.0], [10.0, 5.0]])
    x = em_or_svi.simulate(0, (40, 50), means, 0.9)
    assert x.shape == (40, 50, 2)
    states = x[..., 0] > 5
    assert 0.4 < states.mean() < 0.6
    assert (states[:, 1:] == states[:, :-1]).mean() == pytest.approx(0.9, abs=0.03)
    assert (x - means[states.astype(int)]).std() == pytest.approx(1.0, abs=0.05)
    assert (em_or_svi.simulate(0, (40, 50), means, 0.9) == x).all()


@pytest.mark.parametrize("name", [each.name for each in em_or_svi.WORKLOADS])
def test_all_methods_of_a_workload_have_one_start(name: str) -> None:
    (workload,) = [each for each in em_or_svi.WORKLOADS if each.name == name]

    def little(repeat: int) -> np.ndarray:
        x = workload.data(repeat)
        return x[:2_000] if x.ndim == 2 else x[:20]

    settings = dict(em_steps=3, svi_steps=2, learning_rates=[0.01])
    found = em_or_svi.fit(workload._replace(data=little), 0, **settings)
    assert len(found.runs) == len(LIKELIHOOD_METHODS)
    for run in found.runs:
        assert run.values[0] == pytest.approx(found.runs[0].values[0], rel=1e-9)
        assert run.values[-1] != run.values[0]
    text = em_or_svi.report(workload, [found, found])
    assert all(run.name in text for run in found.runs)


EM = make_run("EM", "likelihood", [-30.0, -11.0, -10.5, -10.0])
FAST = make_run("EM, SQUAREM", "likelihood", [-30.0, -10.0])
LBFGS = make_run("L-BFGS", "likelihood", [-30.0, -11.0, -10.0])


def test_it_says_where_a_rival_wins() -> None:
    first = Comparison([EM, FAST, LBFGS])
    second = Comparison([EM, FAST, LBFGS._replace(values=[-30.0, -11.0, -9.0])])
    assert em_or_svi.verdicts([first]) == ["L-BFGS is sooner than EM in 1 of 1 repeats"]
    assert em_or_svi.verdicts([first, second]) == [
        "L-BFGS is sooner than EM in 2 of 2 repeats",
        "L-BFGS ends higher than EM in 1 of 2 repeats",
        "L-BFGS is sooner than EM, SQUAREM in 1 of 2 repeats",
        "L-BFGS ends higher than EM, SQUAREM in 1 of 2 repeats",
    ]
    late = LBFGS._replace(values=[-30.0, -29.0, -28.0], log_likelihood=-28.0)
    assert em_or_svi.verdicts([Comparison([EM, FAST, late])]) == [
        "no rival comes close to the best sooner than EM, or ends higher"
    ]
    rows = [line.split("  ") for line in em_or_svi.table([first, second]).splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[1] == ["EM", "1 of 2", "0.50", "1.00", "3", "4", "3.00", "3", "3.00"]
    assert cells[3] == ["L-BFGS", "2 of 2", "0.00", "0.00", "2", "3", "2.00", "2", "2.00"]
    gone = LBFGS._replace(diverged=True)
    last = em_or_svi.table([Comparison([EM, gone])]).splitlines()[-1]
    assert "0 of 1" in last and "diverged" in last
