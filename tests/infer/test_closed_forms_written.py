"""Models as people write them: EM without an optimiser ends where L-BFGS does."""

from __future__ import annotations

import pyro
import pytest
import torch

from pyro_regimes import EM
from tests.infer.test_table import objective, run_lbfgs
from tests.infer.written import WRITTEN, Written, make_guide

table = pytest.mark.parametrize("each", WRITTEN, ids=lambda each: each.name)

TOLERANCE = 1e-6


def test_the_table_has_enough_models() -> None:
    assert len(WRITTEN) >= 18


@table
def test_ends_where_lbfgs_does(each: Written) -> None:
    """Both from the same start; then L-BFGS from EM's end, where it has nothing to gain."""
    guide = make_guide(each)
    em = EM(each.model, guide)
    start = float(objective(each.model, guide).detach())
    with pyro.get_param_store().scope():
        guide_there = make_guide(each)
        float(objective(each.model, guide_there).detach())
        theirs = run_lbfgs(lambda: objective(each.model, guide_there))
    result = em.run(num_steps=3000, tol=1e-9, acceleration=None)
    assert em.plan is not None and not em.plan.gradient
    losses = torch.tensor(result.history, dtype=torch.float64)
    assert losses[0] == pytest.approx(start, rel=1e-12) and losses[0] - losses[-1] > 1e-3
    assert (losses.diff() <= 1e-9 * (1 + losses[:-1].abs())).all()
    ours = float(objective(each.model, guide).detach())
    assert losses[-1] == pytest.approx(ours, rel=1e-10)
    assert ours == pytest.approx(theirs, rel=TOLERANCE)
    further = run_lbfgs(lambda: objective(each.model, guide))
    assert ours - further < TOLERANCE * abs(further)
