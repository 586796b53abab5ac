"""Perturbations of covariances in coordinates that do not depend on units, for three arguments."""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor

from pyro_regimes.emissions.arithmetic import divide_where_known, is_at_floor
from pyro_regimes.emissions.statistics import Spread


class Root(NamedTuple):
    r"""A root R of a covariance, :math:`\Sigma = R R^\top`.

    A spread is perturbed as :math:`\Sigma = R (I + (e + e^\top) / 2) R^\top`. The score in e is
    :math:`\tfrac12 (R^{-1} S R^{-\top} - n I)` for the scatter S, and the gain its squared
    Frobenius norm over n.
    """

    of: Callable[[Tensor], Tensor]  #: the root of a spread in the argument's parametrisation
    spread: Callable[[Tensor, Tensor], Tensor]  #: from R and the symmetric matrix (e + e') / 2

    def perturb(self, spread: Tensor, by: Tensor) -> Tensor:
        """The spread perturbed by e."""
        return self.spread(self.of(spread), (by + by.mT) / 2)

    def score(self, pooled: Spread, spread: Tensor) -> Tensor:
        """The derivative of the expected log density in e, symmetric."""
        weight, scatter = pooled
        root = self.of(spread)
        half = torch.linalg.solve(root, scatter)
        whitened = torch.linalg.solve(root, half.mT)
        eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
        return 0.25 * (whitened + whitened.mT) - 0.5 * weight * eye

    def gain(self, score: Tensor, pooled: Spread, spread: Tensor, floor: float) -> Tensor:
        """The predicted gain, without directions in which a variance at the floor would fall."""
        score = (score + score.mT) / 2
        if floor > 0:
            root = self.of(spread)
            values, vectors = torch.linalg.eigh(root @ root.mT)
            at_floor = is_at_floor(values, floor).unsqueeze(-2)
            held = (root.mT @ vectors) * (at_floor / values.clamp(min=floor).sqrt().unsqueeze(-2))
            inside, along = torch.linalg.eigh(held.mT @ score @ held)
            blocked = held @ ((along * inside.clamp(max=0.0).unsqueeze(-2)) @ along.mT) @ held.mT
            score = score - blocked
        return divide_where_known(score.square().sum((-2, -1)), pooled.weight[..., 0, 0])


def _unit_plus(symmetric: Tensor) -> Tensor:
    return symmetric + torch.eye(
        symmetric.shape[-1], dtype=symmetric.dtype, device=symmetric.device
    )


def _covariance_of_root(root: Tensor, by: Tensor) -> Tensor:
    return root @ _unit_plus(by) @ root.mT


def _factor_of_root(root: Tensor, by: Tensor) -> Tensor:
    return root @ torch.linalg.cholesky(_unit_plus(by))


COVARIANCE = Root(torch.linalg.cholesky, _covariance_of_root)
FACTOR = Root(torch.tril, _factor_of_root)


def _root_of_inverse(precision: Tensor) -> Tensor:
    eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    factor = torch.linalg.cholesky(precision)
    return torch.linalg.solve_triangular(factor.mT, eye.expand(factor.shape), upper=True)


def _precision_of_root(root: Tensor, by: Tensor) -> Tensor:
    inverse = torch.linalg.inv(root)
    return inverse.mT @ _unit_plus(-by) @ inverse


PRECISION = Root(_root_of_inverse, _precision_of_root)
