"""Random models: EM's loss is the model's, no step raises it, and L-BFGS gains nothing at its end.

``python -m tests.infer.random_models`` checks any number of them.
"""

from __future__ import annotations

import pyro
import pytest

from tests import seeds
from tests.infer.random_checks import GAIN, check
from tests.infer.random_losses import gain_of_lbfgs, leaves_of_the_store, own_loss
from tests.infer.random_models import draw_model


@pytest.mark.slow
@pytest.mark.parametrize("number", range(30))
def test_what_em_promises_of_any_model(number: int) -> None:
    report = check(draw_model(seeds.seed(number)), num_steps=400)
    assert not report.failures, f"seed {seeds.seed(number)} [{report.description}] {report.summary}"


def test_a_model_is_its_seed() -> None:
    losses = []
    for _ in range(2):
        with pyro.get_param_store().scope():
            losses.append(own_loss(draw_model(seeds.seed(5))))
    assert losses[0] == losses[1]
    assert draw_model(seeds.seed(5)).description == draw_model(seeds.seed(5)).description


@pytest.mark.parametrize("number", range(3))
def test_lbfgs_gains_where_em_has_not_been(number: int) -> None:
    """What the check of the end would say of a wrong one; and it leaves the store as it was."""
    drawn = draw_model(seeds.seed(number))
    before = own_loss(drawn)
    gain = gain_of_lbfgs(drawn, list(leaves_of_the_store()))
    # Far above what the check takes for nothing; some starts happen to be good ones.
    assert gain > 10 * GAIN[drawn.dtype] * (1 + abs(before))
    assert own_loss(drawn) == pytest.approx(before, rel=1e-6)
