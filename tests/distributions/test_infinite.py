"""Infinite observations have probability zero, and no derivative of it is NaN."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_regimes import RegimeHMM
from pyro_regimes.distributions import Columns

INITIAL = torch.tensor([0.4, 0.6], dtype=torch.float64)
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
MIXED = torch.full((2, 2), 0.5, dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)

Made = Callable[[Tensor, Tensor], dist.TorchDistribution]


def both(part: Tensor) -> Tensor:
    """``(2, 2)``, of two columns or components."""
    return torch.stack([part, part + 0.25], -1)


NUMBERS: dict[str, Made] = {
    "Normal": dist.Normal,
    "StudentT": lambda loc, scale: dist.StudentT(3.0, loc, scale),
    "Laplace": dist.Laplace,
    "Cauchy": dist.Cauchy,  # of no family
    "Logistic": dist.Logistic,  # whose own density is NaN at -inf
    "VonMises": dist.VonMises,
    "MixtureSameFamily": lambda loc, scale: dist.MixtureSameFamily(
        dist.Categorical(MIXED), dist.Normal(both(loc), both(scale))
    ),
}
POSITIVE: dict[str, Made] = {
    "LogNormal": dist.LogNormal,
    "Gamma": lambda loc, scale: dist.Gamma(loc.exp(), scale),
    "InverseGamma": lambda loc, scale: dist.InverseGamma(loc.exp(), scale),
    "Exponential": lambda loc, scale: dist.Exponential(loc.exp() * scale),
    "Weibull": lambda loc, scale: dist.Weibull(loc.exp(), scale),
    "HalfNormal": lambda loc, scale: dist.HalfNormal(loc.exp() * scale),
}
VECTORS: dict[str, Made] = {
    "Independent": lambda loc, scale: dist.Normal(both(loc), both(scale)).to_event(1),
    "MultivariateNormal": lambda loc, scale: dist.MultivariateNormal(
        both(loc), scale[:, None, None] * EYE
    ),
    "LowRankMultivariateNormal": lambda loc, scale: dist.LowRankMultivariateNormal(
        both(loc), both(scale)[..., None], both(scale)
    ),
    "MultivariateStudentT": lambda loc, scale: dist.MultivariateStudentT(
        torch.tensor(3.0).double(), both(loc), scale[:, None, None] * EYE
    ),
    "Columns": lambda loc, scale: Columns(
        [(dist.StudentT(3.0, loc, scale), 0), (dist.Laplace(loc, scale), 1)]
    ),
}
CASES = [
    *[(name, make, (), sign) for name, make in NUMBERS.items() for sign in (1, -1)],
    *[(name, make, (), 1) for name, make in POSITIVE.items()],
    *[(name, make, (2,), sign) for name, make in VECTORS.items() for sign in (1, -1)],
]
IDS = [f"{name} {'+-'[sign < 0]}" for name, _, _, sign in CASES]


@pytest.mark.parametrize("step", [0, 3, 5])
@pytest.mark.parametrize("name, make, event, sign", CASES, ids=IDS)
def test_a_sequence_with_an_infinite_observation(
    name: str, make: Made, event: tuple[int, ...], sign: int, step: int
) -> None:
    """It has probability zero; the other sequence of the batch is as it is alone."""
    leaves = [torch.tensor(each).double().requires_grad_() for each in ([0.1, 0.4], [0.7, 1.3])]
    hmm = RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=make(*leaves)
    )
    finite = torch.full((6,) + event, 0.5).double()
    x = finite.clone()
    x[(step,) + (0,) * len(event)] = sign * torch.inf
    assert hmm.log_prob(x) == -torch.inf
    slopes = torch.autograd.grad(hmm.log_prob(x), leaves, retain_graph=True)
    assert all(not each.any() for each in slopes)
    with torch.no_grad():
        assert hmm.log_prob(x) == -torch.inf
    together = hmm.log_prob(torch.stack([finite, x]))
    alone = hmm.log_prob(finite)
    assert together[1] == -torch.inf
    torch.testing.assert_close(together[0], alone, rtol=1e-12, atol=0.0)
    expected = torch.autograd.grad(alone, leaves, retain_graph=True)
    for found, own in zip(torch.autograd.grad(together.sum(), leaves), expected, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-10, atol=1e-12)
    assert not hmm.smoothed_probs(x).any() and (hmm.viterbi(x) == -1).all()


@pytest.mark.parametrize("make", VECTORS.values(), ids=VECTORS)
def test_an_infinite_entry_beside_missing_ones(make: Made) -> None:
    leaves = [torch.tensor(each).double().requires_grad_() for each in ([0.1, 0.4], [0.7, 1.3])]
    hmm = RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=make(*leaves),
        missing="marginalise",
    )  # fmt: skip
    x = torch.full((6, 2), 0.5).double()
    x[1], x[3, 0], x[3, 1], x[4, 1] = torch.nan, torch.inf, torch.nan, torch.nan
    log_prob = hmm.log_prob(x)
    assert log_prob == -torch.inf
    assert all(not each.any() for each in torch.autograd.grad(log_prob, leaves))


def test_a_distribution_that_has_a_density_there_keeps_it() -> None:
    """One without a family may stand for what is censored."""

    class Censored(dist.Cauchy):  # type: ignore[misc]
        def log_prob(self, value: Tensor) -> Tensor:
            beyond = value == torch.inf
            density = super().log_prob(value.masked_fill(beyond, 0.0))
            return torch.where(beyond, torch.tensor(0.25).double().log(), density)

    loc = torch.tensor([0.0, 1.0]).double()
    hmm = RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION,
        observation_dist=Censored(loc, torch.ones_like(loc)),
    )  # fmt: skip
    x = torch.tensor([0.3, torch.inf]).double()
    expected = hmm.log_prob(x[:1]) + torch.tensor(0.25).double().log()
    torch.testing.assert_close(hmm.log_prob(x), expected)
    assert hmm.log_prob(torch.tensor([0.3, -torch.inf]).double()) == -torch.inf
