"""Factorisations of a covariance with entries left out, one for all rows that miss the same."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.kernels import ops

_MOST_BITS = 62  # of an int64, for the missing entries of a row


def is_constant(argument: Tensor, dim: int) -> bool:
    """Whether an argument has no dim for time, or one of size 1."""
    return argument.dim() < -dim or argument.shape[dim] == 1


class Patterns(NamedTuple):
    """The factorisations of a covariance with the missing entries left out, and each row's place.

    The patterns stand in the place of time. If the covariance varies in time, each step has its
    own factorisation.
    """

    seen: Tensor  #: 1 for observed entries and 0 for missing ones, ``(..., P, 1, D)``
    #: the inverse of the Cholesky factor, 0 for missing entries, ``(..., P, K, D, D)``
    whitening: Tensor
    log_scale: Tensor  #: half of the log determinant, ``(..., P, K)``
    place: Tensor | None  #: the pattern of each row, ``(..., T)``; None if each has its own

    @classmethod
    def of(cls, missing: Tensor, covariance: Tensor) -> Patterns:
        """Factorise a covariance.

        :param missing: ``(..., T, D)``.
        :param covariance: ``(..., 1 or T, K, D, D)``.
        """
        place = None
        # The number of distinct rows depends on values.
        if ops.can_be_seen(missing) and is_constant(covariance, -4):
            missing, place = distinct(missing)
        seen = (~missing).to(covariance.dtype).unsqueeze(-2)
        kept = covariance * seen.unsqueeze(-1) * seen.unsqueeze(-2) + torch.diag_embed(1 - seen)
        factor = torch.linalg.cholesky(kept)
        eye = torch.diag_embed(seen).expand(factor.shape)
        whitening = torch.linalg.solve_triangular(factor, eye, upper=False)
        log_scale = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return cls(seen, whitening, log_scale, place)

    def of_rows(self, each: Tensor, num_dims: int) -> Tensor:
        """What each row has of the patterns' values, ``(..., P, *rest)`` to ``(..., T, *rest)``.

        :param num_dims: the number of dims of the rest.
        """
        if self.place is None:
            return each
        if self.place.dim() == 1:
            return each.index_select(-1 - num_dims, self.place)
        place = self.place.reshape(self.place.shape + (1,) * num_dims)
        place = place[(None,) * (each.dim() - place.dim())]
        each = each[(None,) * (place.dim() - each.dim())]
        return torch.take_along_dim(each, place, dim=-1 - num_dims)

    def over_rows(self, weights: Tensor) -> Tensor:
        """The weights ``(..., T, K)``, summed over the rows of each pattern: ``(..., P, K)``."""
        if self.place is None:
            return weights
        sums = weights.new_zeros(weights.shape[:-2] + (self.seen.shape[-3], weights.shape[-1]))
        place = self.place.unsqueeze(-1).expand(weights.shape)
        return sums.scatter_add(-2, place, weights)


def distinct(missing: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows, ``(P, D)``, and the number of each row's, ``(...)``."""
    size = missing.shape[-1]
    if size > _MOST_BITS:
        rows, place = missing.reshape(-1, size).unique(dim=0, return_inverse=True)
        return rows, place.reshape(missing.shape[:-1])
    bits = 2 ** torch.arange(size, device=missing.device)
    codes, place = (missing * bits).sum(-1).unique(return_inverse=True)
    return (codes.unsqueeze(-1) & bits) != 0, place
