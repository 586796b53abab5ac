"""Constraints that let gradient methods reach a floor of variances."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to
from torch.distributions.transforms import Transform


class ScalesFrom(constraints.Constraint):
    r"""Standard deviations of at least :math:`s`, parametrised as :math:`s \cosh u`.

    Far above s this is approximately an exponential of u. The least value is at u = 0. If the
    likelihood would rise further below s, it has an ordinary maximum in u there, to which gradient
    ascent converges.
    """

    def __init__(self, least: float) -> None:
        self.least = least
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each value satisfies the constraint."""
        return value >= self.least


class EigenvaluesFrom(constraints.Constraint):
    r"""Covariance matrices with all eigenvalues at least :math:`f`.

    Parametrised as :math:`f I + L L^T`, L lower triangular with diagonal
    :math:`\sqrt f \sinh u`: in one dimension the square of :class:`ScalesFrom`.
    """

    event_dim = 2

    def __init__(self, floor: float) -> None:
        self.floor = floor
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each matrix satisfies the constraint."""
        symmetric: Tensor = constraints.symmetric.check(value)
        return symmetric & (torch.linalg.eigvalsh(value)[..., 0] >= self.floor)


class _ToScales(Transform):
    domain = constraints.real

    def __init__(self, constraint: ScalesFrom) -> None:
        super().__init__()
        self.codomain, self._least = constraint, constraint.least

    def _call(self, x: Tensor) -> Tensor:
        return self._least * x.cosh()

    def _inverse(self, y: Tensor) -> Tensor:
        return (y / self._least).clamp(min=1.0).arccosh()


class _ToCovariances(Transform):
    domain = constraints.independent(constraints.real, 2)

    def __init__(self, constraint: EigenvaluesFrom) -> None:
        super().__init__()
        self.codomain, self._floor = constraint, constraint.floor

    def _call(self, x: Tensor) -> Tensor:
        root = self._floor**0.5
        factor = x.tril(-1) + torch.diag_embed(root * x.diagonal(dim1=-2, dim2=-1).sinh())
        return factor @ factor.mT + self._multiple(x)

    def _inverse(self, y: Tensor) -> Tensor:
        root = self._floor**0.5
        factor = torch.linalg.cholesky(y - self._multiple(y))
        diagonal = (factor.diagonal(dim1=-2, dim2=-1) / root).arcsinh()
        return factor.tril(-1) + torch.diag_embed(diagonal)

    def _multiple(self, like: Tensor) -> Tensor:
        eye = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
        return self._floor * eye


transform_to.register(ScalesFrom, _ToScales)
transform_to.register(EigenvaluesFrom, _ToCovariances)
