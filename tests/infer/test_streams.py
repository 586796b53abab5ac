"""Data of the shape of published fits, simulated: several streams of different families.

EM without an optimiser ends where L-BFGS ends on the model's own likelihood, from the same start.
"""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import biject_to

from pyro_regimes import EM, RegimeHMM, stationary_probs
from pyro_regimes.distributions import Columns, ZeroInflatedContinuous
from tests import seeds

POSITIVE, REAL, UNIT = constraints.positive, constraints.real, constraints.unit_interval
Params = dict[str, Tensor]


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Model:
    """A chain of free transitions, with the parameters of its observations by name."""

    def __init__(
        self,
        emission: Callable[[Params], dist.Distribution],
        truth: Params,
        constraint: dict[str, Any],
        is_stationary: bool,
    ) -> None:
        self.emission, self.truth, self.is_stationary = emission, truth, is_stationary
        self.constraints = dict.fromkeys(truth, POSITIVE) | {"rows": constraints.simplex}
        self.constraints |= constraint

    def hmm(self, params: Params, **settings: Any) -> RegimeHMM:
        rows = params["rows"]
        first = torch.full((len(rows),), 1 / len(rows)).double()
        return RegimeHMM(
            initial_probs=stationary_probs(rows) if self.is_stationary else first,
            transition_probs=rows, observation_dist=self.emission(params),
            missing="marginalise", **settings,
        )  # fmt: skip

    def sample(self, num_steps: int) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seeds.seed(1))
            return self.hmm(self.truth, duration=num_steps).sample()

    def start(self) -> Params:
        """Values near the truth."""
        found = {}
        for index, (name, value) in enumerate(self.truth.items()):
            transform = biject_to(self.constraints[name])
            free = transform.inv(value)
            noise = torch.randn(free.shape, generator=seeds.generator(index), dtype=torch.float64)
            found[name] = transform(free + 0.15 * noise)
        return found

    def __call__(self, x: Tensor) -> None:
        params = {
            name: pyro.param(name, value, constraint=self.constraints[name])
            for name, value in self.start().items()
        }
        pyro.sample("x", self.hmm(params), obs=x)

    def ascend(self, x: Tensor) -> float:
        """The log-likelihood where L-BFGS ends."""
        transforms = {name: biject_to(self.constraints[name]) for name in self.truth}
        first = {name: transforms[name].inv(value) for name, value in self.start().items()}

        def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
            at = torch.tensor(free, requires_grad=True)
            parts = at.split([each.numel() for each in first.values()])
            params = {
                name: transforms[name](part.reshape(first[name].shape))
                for name, part in zip(first, parts, strict=True)
            }
            found = -self.hmm(params).log_prob(x)
            (gradient,) = torch.autograd.grad(found, at)
            return float(found.detach()), gradient.numpy()

        at = torch.cat([each.flatten() for each in first.values()]).numpy()
        options = {"gtol": 1e-6, "ftol": 1e-13, "maxiter": 2000, "maxfun": 3000}
        found = minimize(loss, at, jac=True, method="L-BFGS-B", options=options)
        return -float(found.fun)


def agree(model: Model, x: Tensor) -> EM:
    em = EM(model)
    result = em.run(x, num_steps=3000, tol=1e-8)
    assert result.converged and not result.unconfirmed and not em.plan.gradient
    history = result.history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))
    assert -history[-1] == pytest.approx(model.ascend(x), rel=1e-7)
    return em


# ---- eleven streams of seven families ----------------------------------------------------------

STREAMS: Params = {
    "rows": tensor([0.9, 0.07, 0.03], [0.05, 0.9, 0.05], [0.04, 0.06, 0.9]),
    "df": tensor(6.0, 9.0, 5.0).unsqueeze(-1),
    "t_loc": tensor([0.0, 1.0], [3.0, -1.0], [-3.0, 4.0]),
    "t_scale": tensor([1.0, 0.5], [0.7, 1.0], [1.5, 0.8]),
    "shape": tensor([2.0, 4.0], [6.0, 2.0], [3.0, 9.0]),
    "rate": tensor([2.0, 1.0], [1.0, 3.0], [0.5, 2.0]),
    "angle": tensor(0.0, 2.0, -2.0),
    "kappa": tensor(3.0, 1.5, 5.0),
    "mean": tensor([1.0, 9.0], [4.0, 3.0], [12.0, 1.0]),
    "up": tensor(0.2, 0.5, 0.8),
    "one": tensor([2.0, 6.0], [5.0, 2.0], [2.0, 2.0]),
    "nought": tensor([5.0, 2.0], [2.0, 4.0], [3.0, 7.0]),
    "hazard": tensor(0.3, 1.0, 4.0),
}


def eleven(given: Params) -> Columns:
    return Columns(
        [
            (dist.StudentT(given["df"], given["t_loc"], given["t_scale"]).to_event(1), [0, 7]),
            (dist.Gamma(given["shape"], given["rate"]).to_event(1), [1, 2]),
            (dist.VonMises(given["angle"], given["kappa"]), 3),
            (dist.Poisson(given["mean"]).to_event(1), slice(4, 6)),
            (dist.Bernoulli(given["up"]), 6),
            (dist.Beta(given["one"], given["nought"]).to_event(1), [8, 10]),
            (dist.Exponential(given["hazard"]), 9),
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("is_stationary", [False, True], ids=["uniform", "stationary"])
def test_eleven_streams_of_seven_families_with_entries_missing(is_stationary: bool) -> None:
    real = {"t_loc": REAL, "angle": REAL, "up": UNIT}
    model = Model(eleven, STREAMS, real, is_stationary)
    x = model.sample(400)
    gone = torch.rand(x.shape, generator=seeds.generator(2)) < 0.25
    gone[50:120, [1, 2, 9]] = True  # an instrument that was off
    gone[200:210] = True  # and all of them
    em = agree(model, x.masked_fill(gone, torch.nan))
    assert len(em.plan.assignments) == len(STREAMS)


# ---- step lengths and turning angles -----------------------------------------------------------

TRACK: Params = {
    "rows": tensor([0.9, 0.1], [0.15, 0.85]),
    "gate": tensor(0.2, 0.02),
    "shape": tensor(1.5, 6.0),
    "rate": tensor(3.0, 1.5),
    "angle": tensor(3.0, 0.0),
    "kappa": tensor(0.7, 4.0),
}


def steps_and_angles(given: Params) -> Columns:
    steps = dist.Gamma(given["shape"], given["rate"])
    inflated = ZeroInflatedContinuous(steps, gate=given["gate"])
    return Columns([(inflated, 0), (dist.VonMises(given["angle"], given["kappa"]), 1)])


@pytest.mark.parametrize("is_stationary", [False, True], ids=["uniform", "stationary"])
def test_step_lengths_and_turning_angles_with_missing_rows(is_stationary: bool) -> None:
    """An angle takes two steps, both of a positive length."""
    model = Model(steps_and_angles, TRACK, {"gate": UNIT, "angle": REAL}, is_stationary)
    x = model.sample(500)
    x[torch.rand(500, generator=seeds.generator(3)) < 0.15] = torch.nan  # no fix
    undefined = x[:, 0].isnan() | (x[:, 0] == 0)
    undefined[1:] |= undefined[:-1].clone()
    x[undefined, 1] = torch.nan
    em = agree(model, x)
    assert len(em.plan.assignments) == len(TRACK)
