"""One start for every implementation, and the Pyro model that EM fits from it."""

from typing import Callable, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes import RegimeHMM

KINDS = ("full", "diag", "spherical", "tied")


class Start(NamedTuple):
    """Parameters before the first step; ``covariance`` in hmmlearn's shape for its kind."""

    kind: str
    initial: np.ndarray
    transition: np.ndarray
    loc: np.ndarray
    covariance: np.ndarray


def start_of(data: np.ndarray, kind: str, num_states: int = 3) -> Start:
    """States by quantiles of the absolute mean over series, then moments of each."""
    size = np.abs(data.mean(1))
    edges = np.quantile(size, np.arange(1, num_states) / num_states)
    state = np.searchsorted(edges, size, side="left")
    parts = [data[state == k] for k in range(num_states)]
    full = np.stack([np.cov(part.T, bias=True) for part in parts])
    variances = np.stack([np.diag(each) for each in full])
    return Start(
        kind,
        np.full(num_states, 1 / num_states),
        np.full((num_states, num_states), 0.1 / (num_states - 1))
        + (0.9 - 0.1 / (num_states - 1)) * np.eye(num_states),
        np.stack([part.mean(0) for part in parts]),
        {
            "full": full,
            "diag": variances,
            "spherical": variances.mean(-1),
            "tied": np.cov(data.T, bias=True),
        }[kind],
    )


def model_of(start: Start) -> Callable[[Tensor], None]:
    """A Pyro model with parameters ``initial, transition, loc`` and ``covariance`` or ``scale``."""
    initial, transition, loc, covariance = map(torch.tensor, start[1:])

    def model(data: Tensor) -> None:
        means = pyro.param("loc", loc)
        if start.kind in ("full", "tied"):
            matrix = pyro.param("covariance", covariance, constraint=constraints.positive_definite)
            observation_dist = dist.MultivariateNormal(means, covariance_matrix=matrix)
        else:
            scale = covariance.sqrt()
            scale = scale.unsqueeze(-1) if start.kind == "spherical" else scale
            scale = pyro.param("scale", scale, constraint=constraints.positive)
            observation_dist = dist.Normal(means, scale).to_event(1)
        hmm = RegimeHMM(
            initial_probs=pyro.param("initial", initial, constraint=constraints.simplex),
            transition_probs=pyro.param("transition", transition, constraint=constraints.simplex),
            observation_dist=observation_dist,
        )
        pyro.sample("x", hmm, obs=data)

    return model


def fitted(kind: str) -> Start:
    """What the parameter store holds now."""
    store = pyro.get_param_store()
    if kind in ("full", "tied"):
        covariance = store["covariance"].detach()
    else:
        covariance = store["scale"].detach() ** 2
        covariance = covariance.squeeze(-1) if kind == "spherical" else covariance
    values = [store[name].detach().numpy() for name in ("initial", "transition", "loc")]
    return Start(kind, *values, covariance.numpy())
