"""The Gaussian hidden Markov model with weak priors, for variational inference and NUTS."""

from __future__ import annotations

from typing import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_regimes.distributions import RegimeHMM


def prior_model(
    num_states: int, num_series: int, covariance_type: str, mean: Tensor, scale: Tensor
) -> Callable[[Tensor], None]:
    """A Pyro model with a latent site for each parameter.

    Initial and transition probabilities are uniform on the simplex; locations are
    ``Normal(mean, 3 scale)``, standard deviations ``LogNormal(log scale, 1)``, and correlations
    uniform over correlation matrices (``LKJCholesky(1)``; a single series has none).

    :param covariance_type: "full", "diag", "spherical" or "tied".
    :param mean: of each series, ``(D,)``.
    :param scale: standard deviation of each series, ``(D,)``.
    """
    simplex = torch.ones(num_states, dtype=mean.dtype, device=mean.device)
    states = (num_states,) if covariance_type != "tied" else ()

    def model(x: Tensor) -> None:
        initial_probs = pyro.sample("initial_probs", dist.Dirichlet(simplex))
        rows = dist.Dirichlet(simplex.expand(num_states, num_states)).to_event(1)
        transition_probs = pyro.sample("transition_probs", rows)
        about = dist.Normal(mean, 3 * scale).expand([num_states, num_series])
        loc = pyro.sample("loc", about.to_event(2))
        if covariance_type == "spherical":
            spread = dist.LogNormal(scale.mean().log(), 1.0).expand([num_states, 1])
        else:
            spread = dist.LogNormal(scale.log(), 1.0).expand([*states, num_series])
        held = pyro.sample("scale", spread.to_event(len(spread.batch_shape)))
        observation_dist: dist.TorchDistribution
        if covariance_type in {"full", "tied"} and num_series > 1:
            correlated = dist.LKJCholesky(num_series, torch.ones_like(mean[0])).expand(states)
            factor = pyro.sample("corr_tril", correlated.to_event(len(states)))
            observation_dist = dist.MultivariateNormal(loc, scale_tril=held.unsqueeze(-1) * factor)
        else:
            observation_dist = dist.Normal(loc, held).to_event(1)
        hmm = RegimeHMM(
            initial_probs=initial_probs,
            transition_probs=transition_probs,
            observation_dist=observation_dist,
        )
        pyro.sample("observations", hmm, obs=x)

    return model


def site_values(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values of the sites of :func:`prior_model` at parameters of the likelihood.

    :param arguments: as :func:`.gaussian_hmm.to_arguments` makes them of one set of parameters.
    """
    values = dict(arguments)
    if "covariance_matrix" in values:
        factor = torch.linalg.cholesky(values.pop("covariance_matrix"))
        values["scale"] = factor.square().sum(-1).sqrt()
        if factor.shape[-1] > 1:
            values["corr_tril"] = factor / values["scale"].unsqueeze(-1)
    return values
