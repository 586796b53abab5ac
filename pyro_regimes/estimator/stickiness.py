r"""A prior of regimes that last: a Dirichlet distribution of each row of the transition matrix.

.. math::
    A_i \sim \mathrm{Dirichlet}(1 + \kappa e_i), \qquad
    \log p(A) = \kappa \sum_i \log A_{ii} + \mathrm{const}

The mode of the posterior adds :math:`\kappa` to the expected number of times that each regime
stays, as if that many further steps had been seen (the finite form of the sticky prior of Fox,
Sudderth, Jordan and Willsky 2011). A diagonal entry that is 0 stays 0 and has no prior.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes.estimator.parameters import Array

#: The name of the latent site of the transition matrix; its parameter is ``transition_probs``.
SITE = "transition_matrix"


def row_prior(matrix: Tensor, stickiness: float) -> dist.Dirichlet:
    """The prior of the rows of a transition matrix ``(..., K, K)`` with the same zeros."""
    diagonal = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return dist.Dirichlet(1 + stickiness * torch.where(matrix.detach() > 0, diagonal, 0.0))


def sticky_rows(matrix: Tensor, stickiness: float) -> Tensor:
    """Sample a transition matrix from the prior, as one site.

    :param matrix: one of its shape, with its zeros.
    """
    rows = row_prior(matrix, stickiness)
    found: Tensor = pyro.sample(SITE, rows.to_event(len(rows.batch_shape)))
    return found


def sticky_guide(matrix: Tensor) -> Callable[..., None]:
    """A guide with the transition matrix as its one point, for the maximum of the posterior.

    :param matrix: its start.
    """

    def guide(*args: object, **kwargs: object) -> None:
        point = pyro.param("transition_probs", matrix.clone, constraint=constraints.simplex)
        pyro.sample(SITE, dist.Delta(point, event_dim=point.dim()))

    return guide


def log_normaliser(matrix: Array, stickiness: float) -> float:
    """The constant of the log density of all rows of one matrix."""
    if not stickiness:
        return 0.0
    concentration = row_prior(torch.from_numpy(matrix), stickiness).concentration
    constant = torch.lgamma(concentration.sum(-1)) - torch.lgamma(concentration).sum(-1)
    return float(constant.sum())


def log_prior(matrix: Array, stickiness: float) -> float:
    """The log density of one matrix without its constant."""
    diagonal = np.diagonal(matrix)
    return stickiness * float(np.log(diagonal[diagonal > 0]).sum()) if stickiness else 0.0
