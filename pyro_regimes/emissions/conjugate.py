r"""Conjugate priors, and the terms that they add to the pooled statistics of a parameter.

With a conjugate prior the maximiser of :math:`Q(\theta) + \log p(\theta)` is that of Q with
additional statistics (Dempster, Laird and Rubin 1977, section 3). Let n, s, S be the expected
weight, sum and scatter of the data:

========================  ===========================  ============================================
site                      prior                        maximum of the posterior density
========================  ===========================  ============================================
probabilities             Dirichlet(:math:`\alpha`)    counts plus :math:`\alpha - 1`, normalised
locations                 Normal(m, r)                 :math:`(s / \sigma^2 + m / r^2) \big/
                                                       (n / \sigma^2 + 1 / r^2)`
locations                 MultivariateNormal(m, R)     :math:`(n \Sigma^{-1} + R^{-1})^{-1}
                                                       (\Sigma^{-1} s + R^{-1} m)`
a variance                InverseGamma(a, b)           :math:`(S + 2b) / (n + 2a + 2)`
a precision               Gamma(a, b)                  :math:`(n + 2a - 2) / (S + 2b)`
a precision matrix        Wishart(:math:`\nu, V`)      :math:`(n + \nu - D - 1)(S + V^{-1})^{-1}`
a rate of counts          Gamma(a, b)                  :math:`(s + a - 1) / (n + b)`
a rate of waiting times   Gamma(a, b)                  :math:`(n + a - 1) / (s + b)`
a mean waiting time       InverseGamma(a, b)           :math:`(s + b) / (n + a + 1)`
a probability             Beta(a, b)                   successes plus :math:`a - 1`, failures plus
                                                       :math:`b - 1`, normalised
========================  ===========================  ============================================

The density is maximised **in the space of the site that carries the prior**, as with
``AutoDelta``. So equivalent priors, an inverse gamma on a variance and a gamma on a precision, have
different modes. A Dirichlet with a concentration below 1 has no mode inside the simplex and has no
closed form. With a gamma or a beta of a concentration below 1 a cell may have no maximum.

The functions take the prior, the shape of its site's value, the shape of the parameter (which has
the same entries in the same order) and the number of dims of a cell.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_regimes.emissions.base import Conjugate, blocks
from pyro_regimes.emissions.statistics import Counts, Spread, Totals, Trials, WeightedSum


def dirichlet(
    prior: dist.Dirichlet, given: torch.Size, shape: torch.Size, event_dim: int
) -> Counts:
    """The terms of a Dirichlet prior of probabilities."""
    return Counts(blocks(prior.concentration.expand(given).reshape(shape), event_dim) - 1)


def normal(
    prior: dist.Normal, given: torch.Size, shape: torch.Size, event_dim: int
) -> WeightedSum:
    """The terms of a Normal prior of locations."""
    loc, scale = (
        blocks(each.expand(given).reshape(shape), event_dim) for each in (prior.loc, prior.scale)
    )
    precision = scale**-2
    if event_dim == 0:
        return WeightedSum(precision, precision * loc, None)
    nothing = torch.zeros_like(loc[..., :1])
    return WeightedSum(nothing, precision * loc, torch.diag_embed(precision))


def multivariate_normal(
    prior: dist.MultivariateNormal, given: torch.Size, shape: torch.Size, event_dim: int
) -> WeightedSum:
    """The terms of a MultivariateNormal prior of locations."""
    loc = blocks(prior.loc.expand(given).reshape(shape), event_dim)
    matrix = prior.precision_matrix.expand(given + given[-1:])
    precision = blocks(matrix.reshape(shape + shape[-1:]), 2)
    total = (precision @ loc.unsqueeze(-1)).squeeze(-1)
    return WeightedSum(torch.zeros_like(loc[..., :1]), total, precision)


def _gamma_arguments(
    prior: dist.Gamma | dist.InverseGamma, given: torch.Size, shape: torch.Size, event_dim: int
) -> tuple[Tensor, Tensor]:
    concentration, rate = (
        blocks(each.expand(given).reshape(shape), event_dim)
        for each in (prior.concentration, prior.rate)
    )
    return concentration, rate


def inverse_gamma(
    prior: dist.InverseGamma, given: torch.Size, shape: torch.Size, event_dim: int
) -> Spread:
    """The terms of an InverseGamma prior of variances."""
    concentration, rate = _gamma_arguments(prior, given, shape, event_dim)
    return Spread(2 * concentration + 2, 2 * rate)


def gamma(prior: dist.Gamma, given: torch.Size, shape: torch.Size, event_dim: int) -> Spread:
    """The terms of a Gamma prior of precisions."""
    concentration, rate = _gamma_arguments(prior, given, shape, event_dim)
    return Spread(2 * concentration - 2, 2 * rate)


def wishart(prior: dist.Wishart, given: torch.Size, shape: torch.Size, event_dim: int) -> Spread:
    """The terms of a Wishart prior of precision matrices."""
    inverse = blocks(prior.precision_matrix.expand(given).reshape(shape), 2)
    freedom = prior.df[..., None, None].expand(given[:-2] + (1, 1)).reshape(-1, 1, 1)
    return Spread(freedom - shape[-1] - 1, inverse)


def gamma_of_count_rate(
    prior: dist.Gamma, given: torch.Size, shape: torch.Size, event_dim: int
) -> Totals:
    """The terms of a Gamma prior of rates of counts."""
    concentration, rate = _gamma_arguments(prior, given, shape, event_dim)
    return Totals(rate, concentration - 1)


def gamma_of_waiting_rate(
    prior: dist.Gamma, given: torch.Size, shape: torch.Size, event_dim: int
) -> Totals:
    """The terms of a Gamma prior of rates of waiting times."""
    concentration, rate = _gamma_arguments(prior, given, shape, event_dim)
    return Totals(concentration - 1, rate)


def inverse_gamma_of_waiting_mean(
    prior: dist.InverseGamma, given: torch.Size, shape: torch.Size, event_dim: int
) -> Totals:
    """The terms of an InverseGamma prior of mean waiting times."""
    concentration, rate = _gamma_arguments(prior, given, shape, event_dim)
    return Totals(concentration + 1, rate)


def beta(prior: dist.Beta, given: torch.Size, shape: torch.Size, event_dim: int) -> Trials:
    """The terms of a Beta prior of probabilities."""
    successes, failures = (
        blocks(each.expand(given).reshape(shape), event_dim) - 1
        for each in (prior.concentration1, prior.concentration0)
    )
    return Trials(successes + failures, successes, failures)


def beta_of_complement(
    prior: dist.Beta, given: torch.Size, shape: torch.Size, event_dim: int
) -> Trials:
    """The terms of a Beta prior of complements of probabilities."""
    weight, failures, successes = beta(prior, given, shape, event_dim)
    return Trials(weight, successes, failures)


#: The priors of any location.
LOCATION: dict[type, Conjugate] = {
    dist.Normal: normal,
    dist.MultivariateNormal: multivariate_normal,
}
