"""The covariances of Gaussian regimes: as matrices, or as variances of independent series.

:class:`Matrices` are one for each regime ("full") or one for all ("tied"); :class:`Variances` are
one for each series ("diag") or one for all of them ("spherical"). Both say the same things of
themselves, which :class:`.Gaussian` asks; nothing else in the package tells the types apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes.distributions import Wishart
from pyro_regimes.estimator.floors import EigenvaluesFrom, ScalesFrom
from pyro_regimes.estimator.parameters import Array

#: A cluster with less than this share of the overall variance gets the overall covariance.
_SINGULAR = 1e-3


class Matrices(NamedTuple):
    """Covariance matrices ``(..., K, D, D)``, or one for all regimes ``(..., D, D)``."""

    shared: bool  #: whether one matrix serves all regimes
    argument: str = "covariance_matrix"  #: of the distribution
    equal_units: bool = False  #: whether they keep their form only if all series have one unit
    needs_regular_data: bool = True  #: whether a singular covariance of all data is refused

    def shape(self, num_regimes: int, num_series: int) -> tuple[int, ...]:
        """Of the array that a user sees."""
        matrix = (num_series, num_series)
        return matrix if self.shared else (num_regimes, *matrix)

    def num_free(self, num_regimes: int, num_series: int) -> int:
        """The number of free parameters."""
        return (1 if self.shared else num_regimes) * (num_series * (num_series + 1) // 2)

    def full(self, covariances: Array, shape: tuple[int, int]) -> Array:
        """Covariance matrices ``(K, D, D)``; ``shape`` is (K, D)."""
        return np.broadcast_to(covariances, shape + shape[1:])

    def select(self, covariances: Array, order: npt.NDArray[np.int64]) -> Array:
        """With the regimes in another order."""
        return covariances if self.shared else covariances[order]

    def squares(self, unit: Array) -> Array:
        """By which a change of unit multiplies them."""
        return np.outer(unit, unit)

    def add_to_variances(self, covariances: Array, amount: float) -> Array:
        """With ``amount`` added to every variance."""
        return covariances + amount * np.eye(covariances.shape[-1])

    def least(self, covariances: Array, num_starts: int) -> Array:
        """The least variance in any direction, of any regime, of each start: ``(starts,)``."""
        return np.linalg.eigvalsh(covariances).reshape(num_starts, -1).min(-1)

    def raised(self, covariances: Array, floor: float) -> Array:
        """With every eigenvalue at least ``floor``."""
        each = covariances.reshape(-1, *covariances.shape[-2:])
        return np.stack([raise_eigenvalues(one, floor) for one in each]).reshape(covariances.shape)

    def from_scatters(self, scatters: Array, counts: Array, overall: Array, floor: float) -> Array:
        """Covariances of clusters, the overall one in place of any that is nearly singular.

        :param scatters: the covariance matrix of each cluster, ``(K, D, D)``.
        :param counts: the number of observations of each cluster, ``(K,)``.
        :param overall: the covariance matrix of all observations, ``(D, D)``.
        """
        if self.shared:
            scatters = np.average(scatters, axis=0, weights=counts)[None]
        least = np.linalg.eigvalsh(scatters)[:, 0]
        singular = least < _SINGULAR * np.linalg.eigvalsh(overall)[0]
        chosen = np.where(singular[:, None, None], overall, scatters)
        raised = np.stack([raise_eigenvalues(each, floor) for each in chosen])
        return raised[0] if self.shared else raised

    def collapsed(self, z: Array, dtype: torch.dtype) -> float:
        """The variance at which a regime has collapsed; see :meth:`.Spec.collapsed_variance`."""
        values = np.linalg.eigvalsh(np.cov(z, rowvar=False, bias=True).reshape(z.shape[1], -1))
        return max(1e-6 * float(values[0]), 100 * torch.finfo(dtype).eps * float(values[-1]))

    def to_argument(self, covariances: Array) -> Array:
        """What the distribution takes, behind the starts; one for all has a dim of one regime."""
        several = self.shared and covariances.ndim > 2
        return np.expand_dims(covariances, -3) if several else covariances

    def from_argument(self, argument: Array) -> Array:
        """The inverse, but for the shape."""
        return argument

    def constraint(self, floor: float) -> constraints.Constraint:
        """Of the argument, with eigenvalues of at least ``floor``."""
        return EigenvaluesFrom(floor) if floor else constraints.positive_definite

    def distribution(self, loc: Tensor, argument: Tensor) -> dist.TorchDistribution:
        """Of one observation in each regime."""
        return dist.MultivariateNormal(loc, covariance_matrix=argument)

    def sample_distribution(self, loc: Tensor, variance: Tensor) -> dist.TorchDistribution:
        """The same with ``Wishart(D + 2, diag(1 / variance) / (D + 2))`` precisions."""
        num_regimes, num_series = loc.shape[-2:]
        regimes = () if self.shared else (num_regimes,)
        freedom = torch.full_like(variance[0], num_series + 2)
        inverse = torch.diag(1 / variance) / (num_series + 2)
        wishart = Wishart(freedom, covariance_matrix=inverse).expand(regimes)
        precision = pyro.sample("precision_matrix", wishart.to_event(len(regimes)))
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def site_value(self, argument: Tensor) -> tuple[str, Tensor]:
        """The site of :meth:`sample_distribution` and its value at an argument."""
        return "precision_matrix", torch.cholesky_inverse(torch.linalg.cholesky(argument))


class Variances(NamedTuple):
    """Variances of independent series ``(..., K, D)``, or one for all series ``(..., K)``."""

    equal: bool  #: whether all series of a regime have the same variance
    argument: str = "scale"
    needs_regular_data: bool = False

    @property
    def equal_units(self) -> bool:
        """Whether they keep their form only if all series have one unit."""
        return self.equal

    def shape(self, num_regimes: int, num_series: int) -> tuple[int, ...]:
        """Of the array that a user sees."""
        return (num_regimes,) if self.equal else (num_regimes, num_series)

    def num_free(self, num_regimes: int, num_series: int) -> int:
        """The number of free parameters."""
        return num_regimes * (1 if self.equal else num_series)

    def full(self, covariances: Array, shape: tuple[int, int]) -> Array:
        """Covariance matrices ``(K, D, D)``; ``shape`` is (K, D)."""
        variances = covariances[:, None] if self.equal else covariances
        return np.broadcast_to(variances, shape)[:, :, None] * np.eye(shape[1])

    def select(self, covariances: Array, order: npt.NDArray[np.int64]) -> Array:
        """With the regimes in another order."""
        return covariances[order]

    def squares(self, unit: Array) -> Array:
        """By which a change of unit multiplies them."""
        return np.square(unit[0] if self.equal else unit)

    def add_to_variances(self, covariances: Array, amount: float) -> Array:
        """With ``amount`` added to every variance."""
        return covariances + amount

    def least(self, covariances: Array, num_starts: int) -> Array:
        """The least variance of any regime and series, of each start: ``(starts,)``."""
        return covariances.reshape(num_starts, -1).min(-1)

    def raised(self, covariances: Array, floor: float) -> Array:
        """With every variance at least ``floor``."""
        return np.maximum(covariances, floor)

    def from_scatters(self, scatters: Array, counts: Array, overall: Array, floor: float) -> Array:
        """As :meth:`Matrices.from_scatters`."""
        variances = np.diagonal(scatters, axis1=-2, axis2=-1)  # (K, D)
        reference = np.diagonal(overall)
        if self.equal:
            variances, reference = variances.mean(-1), reference.mean()
        return np.maximum(np.where(variances < _SINGULAR * reference, reference, variances), floor)

    def collapsed(self, z: Array, dtype: torch.dtype) -> float:
        """The variance at which a regime has collapsed; see :meth:`.Spec.collapsed_variance`."""
        return 1e-6 * float(z.var(0).mean() if self.equal else z.var(0).min())

    def to_argument(self, covariances: Array) -> Array:
        """What the distribution takes; one for all series is ``(..., K, 1)``."""
        return np.sqrt(covariances)[..., None] if self.equal else np.sqrt(covariances)

    def from_argument(self, argument: Array) -> Array:
        """The inverse, but for the shape."""
        return argument**2

    def constraint(self, floor: float) -> constraints.Constraint:
        """Of the argument, with variances of at least ``floor``."""
        return ScalesFrom(floor**0.5) if floor else constraints.positive

    def distribution(self, loc: Tensor, argument: Tensor) -> dist.TorchDistribution:
        """Of one observation in each regime."""
        return dist.Normal(loc, argument).to_event(1)

    def sample_distribution(self, loc: Tensor, variance: Tensor) -> dist.TorchDistribution:
        """The same with ``Gamma(2, variance)`` precisions."""
        num_regimes, num_series = loc.shape[-2:]
        rate = variance.mean() if self.equal else variance
        gamma = dist.Gamma(torch.full_like(rate, 2.0), rate)
        gamma = gamma.expand([num_regimes, 1 if self.equal else num_series])
        precision = pyro.sample("precision", gamma.to_event(2))
        return dist.Normal(loc, precision.rsqrt()).to_event(1)

    def site_value(self, argument: Tensor) -> tuple[str, Tensor]:
        """The site of :meth:`sample_distribution` and its value at an argument."""
        return "precision", argument**-2


def raise_eigenvalues(covariance: Array, floor: float) -> Array:
    """A covariance matrix with every eigenvalue at least ``floor``."""
    values, vectors = np.linalg.eigh(covariance)
    if values[0] >= floor:
        return covariance
    raised = (vectors * np.maximum(values, floor)) @ vectors.T
    return (raised + raised.T) / 2
