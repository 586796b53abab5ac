"""The Gaussian hidden Markov model with weak conjugate priors: for MAP, VI and NUTS."""

from __future__ import annotations

from typing import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_regimes.distributions import RegimeHMM, Wishart


def prior_model(
    num_states: int, num_series: int, covariance_type: str, mean: Tensor, scale: Tensor
) -> Callable[[Tensor], None]:
    """A Pyro model with a latent site for each parameter.

    Initial and transition probabilities are uniform on the simplex; locations are
    ``Normal(mean, 3 scale)``; precisions ``Gamma(2, scale^2)``, and precision matrices
    ``Wishart(D + 2, diag(scale^-2) / (D + 2))``, whose mean is that of independent series.

    :param covariance_type: "full", "diag", "spherical" or "tied".
    :param mean: of each series, ``(D,)``.
    :param scale: standard deviation of each series, ``(D,)``.
    """
    simplex = torch.ones(num_states, dtype=mean.dtype, device=mean.device)
    states = (num_states,) if covariance_type != "tied" else ()
    variance = scale.square()

    def model(x: Tensor) -> None:
        initial_probs = pyro.sample("initial_probs", dist.Dirichlet(simplex))
        rows = dist.Dirichlet(simplex.expand(num_states, num_states)).to_event(1)
        transition_probs = pyro.sample("transition_probs", rows)
        about = dist.Normal(mean, 3 * scale).expand([num_states, num_series])
        loc = pyro.sample("loc", about.to_event(2))
        observation_dist: dist.TorchDistribution
        if covariance_type in {"full", "tied"}:
            freedom = torch.full_like(mean[0], num_series + 2)
            inverse = torch.diag(1 / variance) / (num_series + 2)
            wishart = Wishart(freedom, covariance_matrix=inverse).expand(states)
            precision = pyro.sample("precision_matrix", wishart.to_event(len(states)))
            observation_dist = dist.MultivariateNormal(loc, precision_matrix=precision)
        else:
            rate = variance.mean() if covariance_type == "spherical" else variance
            size = 1 if covariance_type == "spherical" else num_series
            gamma = dist.Gamma(torch.full_like(rate, 2.0), rate).expand([num_states, size])
            precision = pyro.sample("precision", gamma.to_event(2))
            observation_dist = dist.Normal(loc, precision.rsqrt()).to_event(1)
        hmm = RegimeHMM(
            initial_probs=initial_probs,
            transition_probs=transition_probs,
            observation_dist=observation_dist,
        )
        pyro.sample("observations", hmm, obs=x)

    return model


def site_values(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values of the sites of :func:`prior_model` at parameters of the likelihood.

    :param arguments: as :func:`.spec.to_arguments` makes them of one set of parameters.
    """
    values = dict(arguments)
    if "covariance_matrix" in values:
        factor = torch.linalg.cholesky(values.pop("covariance_matrix"))
        values["precision_matrix"] = torch.cholesky_inverse(factor)
    if "scale" in values:
        values["precision"] = values.pop("scale") ** -2
    return values
