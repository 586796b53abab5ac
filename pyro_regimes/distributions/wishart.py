"""A Wishart distribution for use with variational guides and NUTS."""

from __future__ import annotations

import operator

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to, transform_to
from torch.distributions.transforms import Transform
from torch.types import _size


class _PositiveDefinite(type(constraints.positive_definite)):  # type: ignore[misc]
    """Positive definite matrices, with a bijection, which torch's constraint lacks."""


_positive_definite = _PositiveDefinite()


class PositiveDefiniteBijection(Transform):
    r"""From :math:`D (D + 1) / 2` numbers to a positive definite matrix :math:`L L^\top`.

    The numbers are the lower triangle of L, row by row, with logarithms on its diagonal.

    .. math::
        \log \left| \frac{\partial L L^\top}{\partial y} \right| =
            D \log 2 + \sum_{i=1}^D (D - i + 2) \log L_{ii}
    """

    domain = constraints.real_vector
    codomain = _positive_definite
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PositiveDefiniteBijection)

    def __hash__(self) -> int:
        return hash(type(self))

    def _call(self, x: Tensor) -> Tensor:
        factor = self._factor(x)
        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(y)
        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        moved = factor.tril(-1) + torch.diag_embed(diagonal.log())
        row, column = torch.tril_indices(*y.shape[-2:], device=y.device)
        return moved[..., row, column]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        size = y.shape[-1]
        logs = self._unflat(x).diagonal(dim1=-2, dim2=-1)
        powers = torch.arange(size + 1, 1, -1, dtype=x.dtype, device=x.device)
        total: Tensor = size * torch.log(x.new_tensor(2.0)) + (powers * logs).sum(-1)
        return total

    def forward_shape(self, shape: _size) -> torch.Size:
        return torch.Size(shape[:-1]) + (_side(shape[-1]),) * 2

    def inverse_shape(self, shape: _size) -> torch.Size:
        return torch.Size(shape[:-2]) + (shape[-1] * (shape[-1] + 1) // 2,)

    def _factor(self, x: Tensor) -> Tensor:
        moved = self._unflat(x)
        return moved.tril(-1) + torch.diag_embed(moved.diagonal(dim1=-2, dim2=-1).exp())

    def _unflat(self, x: Tensor) -> Tensor:
        size = _side(x.shape[-1])
        row, column = torch.tril_indices(size, size, device=x.device)
        lower = x.new_zeros(x.shape[:-1] + (size, size))
        lower[..., row, column] = x
        return lower


def _side(count: int) -> int:
    side = int(((8 * count + 1) ** 0.5 - 1) / 2 + 0.5)
    if side * (side + 1) // 2 != count:
        raise ValueError(f"expected a triangular number of entries, got {count}")
    return side


biject_to.register(_PositiveDefinite, lambda constraint: PositiveDefiniteBijection())
transform_to.register(_PositiveDefinite, lambda constraint: PositiveDefiniteBijection())


class Wishart(dist.Wishart):
    r"""The Wishart distribution of a precision matrix P, conjugate to Gaussian observations.

    .. math:: \log p(P) = \tfrac{\nu - D - 1}{2} \log |P| - \tfrac12 \mathrm{tr}(V^{-1} P) + c

    It differs from Pyro's only in its support, which has a bijection, so that guides such as
    ``AutoNormal`` and NUTS can be used. The arguments are those of
    :class:`torch.distributions.Wishart`.
    """

    support = _positive_definite

    def log_prob(self, value: Tensor) -> Tensor:
        # Sizes are tensors under torch.jit.trace, and their product with a float is a float32.
        self._event_shape = torch.Size(map(operator.index, self.event_shape))
        log_density: Tensor = super().log_prob(value)
        return log_density

    def rsample(
        self,
        sample_shape: _size = torch.Size(),  # noqa: B008 (immutable)
        max_try_correction: int | None = None,
    ) -> Tensor:
        """Sample by Bartlett's decomposition; torch treats all samples as singular and warns."""
        drawn: Tensor = self._bartlett_sampling(torch.Size(sample_shape))
        return drawn
