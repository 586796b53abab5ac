"""Statistics of every family add up over chunks: EM on chunks is EM on all data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, Chunks, RegimeHMM
from tests.emissions import battery, test_continuous, test_ragged
from tests.emissions.test_battery import Model, hmm_of

STEPS = 3


def assert_same_fits(model: Callable[..., None], x: Tensor, chunks: Chunks) -> None:
    fits = []
    for data in (x, chunks):
        pyro.clear_param_store()
        result = EM(model, min_eigenvalue=1e-6).run(data, num_steps=STEPS, tol=None)
        fits.append((result.history, dict(pyro.get_param_store())))
    assert fits[0][0] == pytest.approx(fits[1][0], rel=1e-10)
    for name, value in fits[0][1].items():
        assert_close(fits[1][1][name], value, rtol=1e-10, atol=1e-12)


class Batch(Model):
    """The model of a case, for any number of sequences, or for one in pieces."""

    def __call__(self, x: Tensor) -> None:
        observed = self.case.distribution(self.params(), self.event)
        if x.dim() == 1 + len(self.event) + len(self.case.event):
            pyro.sample("x", hmm_of(observed), obs=x)
            return
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm_of(observed), obs=x)


@pytest.mark.parametrize("case", battery.CASES.values(), ids=battery.CASES)
def test_families_of_the_battery(case):
    x = case.sample()
    model = Batch(case, case.start(seed=3))
    assert_same_fits(model, x, Chunks(x.split([1, 3]), continues=False))
    series = x.flatten(0, 1)
    assert_same_fits(model, series, Chunks(series.split(47), continues=True))


def simple(build: Callable[[], Any], dim: int) -> Callable[[Tensor], None]:
    """A model of sequences, or of one sequence without a batch.

    :param dim: the dims of one sequence.
    """

    def model(x: Tensor) -> None:
        hmm = RegimeHMM(
            initial_probs=torch.tensor([0.5, 0.5]).double(),
            transition_probs=torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double(),
            observation_dist=build(),
            missing="marginalise",
        )
        if x.dim() == dim:
            pyro.sample("x", hmm, obs=x)
            return
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm, obs=x)

    return model


@pytest.mark.parametrize("name", test_continuous.CASES)
def test_continuous_families(name):
    case = test_continuous.CASES[name]

    def build() -> Any:
        given = {
            each: pyro.param(
                each, torch.tensor(case.starts[each]).double(), constraint=constraint
            )
            for each, constraint in case.constraints.items()
        }
        return case.make(**given)

    state = torch.arange(160) // 20 % 2
    torch.manual_seed(0)
    drawn = test_continuous.build(case, case.arguments, torch.float64).sample((4, 160))
    x = drawn.gather(-1, state.expand(4, -1).unsqueeze(-1)).squeeze(-1)
    x[:, 5] = torch.nan
    model = simple(build, 1)
    assert_same_fits(model, x, Chunks(x.split([1, 3]), continues=False))
    series = x.flatten()
    assert_same_fits(model, series, Chunks(series.split(300), continues=True))


@pytest.mark.parametrize("build", test_ragged.FAMILIES)
@pytest.mark.parametrize("with_gaps", [False, True])
def test_vectors(build, with_gaps):
    x = test_ragged.data()
    if with_gaps:
        x[:, 3] = torch.nan
        x[:, ::7, 0] = torch.nan
    model = simple(build, 2)
    assert_same_fits(model, x, Chunks(x.split([1, len(x) - 1]), continues=False))
    series = x.flatten(0, 1)
    assert_same_fits(model, series, Chunks(series.split(50), continues=True))
