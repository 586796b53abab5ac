"""Data, starting values and pieces from which the models of these tests are made."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes import RegimeHMM
from tests import seeds

_RANDOM = seeds.generator(20)


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_RANDOM, dtype=torch.float64)


def _regimes(*shape: int) -> Tensor:
    """0 and 1 in runs of eight steps."""
    return (torch.arange(shape[-1]) // 8 % 2).double().expand(shape)


X = _regimes(64) * 2 - 1 + (0.4 + _regimes(64)) * _draw(64)  # (T,)
Y = _regimes(64).unsqueeze(-1) - 0.5 + (0.4 + _regimes(64).unsqueeze(-1)) * _draw(64, 3)  # (T, D)
XS = _regimes(4, 32) * 2 - 1 + _draw(4, 32)  # (N, T)
YS = _regimes(4, 32).unsqueeze(-1) * 2 - 1 + _draw(4, 32, 3)  # (N, T, D)
LENGTHS = torch.tensor([32, 20, 7, 1])
INITIAL = torch.tensor([0.6, 0.4], dtype=torch.float64)
TRANSITION = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)
LOC = torch.tensor([-0.6, 0.9], dtype=torch.float64)
SCALE = torch.tensor([1.1, 1.4], dtype=torch.float64)
LOCS = torch.tensor([[-0.6, -0.4, -0.5], [0.8, 0.9, 1.0]], dtype=torch.float64)  # (K, D)
COVARIANCES = torch.stack([torch.eye(3).double() + 0.1, 2 * torch.eye(3).double() + 0.3])
LEFT_TO_RIGHT = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.2, 0.0, 0.8]]).double()


def real(name: str, start: Tensor) -> Tensor:
    return pyro.param(name, start.clone().double())


def positive(name: str, start: Tensor) -> Tensor:
    return pyro.param(name, start.clone().double(), constraint=constraints.positive)


def probs(name: str, start: Tensor) -> Tensor:
    return pyro.param(name, start.clone().double(), constraint=constraints.simplex)


def loc() -> Tensor:
    return real("loc", LOC)


def scale() -> Tensor:
    return positive("scale", SCALE)


def covariance(start: Tensor = COVARIANCES) -> Tensor:
    return pyro.param("covariance", start, constraint=constraints.positive_definite)


def observe(
    *,
    loc: Tensor = LOC,
    scale: Tensor = SCALE,
    observation_dist: dist.Distribution | None = None,
    obs: Tensor = X,
    name: str = "x",
    **chain: Tensor,
) -> None:
    """A two-state Gaussian HMM, with constants for all that is not given."""
    if "initial_logits" not in chain:
        chain.setdefault("initial_probs", INITIAL)
    if "transition_logits" not in chain:
        chain.setdefault("transition_probs", TRANSITION)
    if observation_dist is None:
        observation_dist = dist.Normal(loc.double(), scale.double())
    pyro.sample(name, RegimeHMM(observation_dist=observation_dist, **chain), obs=obs)


def chain() -> dict[str, Tensor]:
    """Both arguments of the hidden chain as parameters."""
    return {
        "initial_probs": probs("initial", INITIAL),
        "transition_probs": probs("transition", TRANSITION),
    }


def normal_hmm(data: Tensor) -> None:
    observe(loc=loc(), scale=scale(), obs=data, **chain())
