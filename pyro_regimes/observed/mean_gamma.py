"""The gamma distribution by its mean."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.types import _size


class MeanGamma(dist.Gamma):
    r"""The gamma distribution with the mean m and the concentration a, of rate a / m.

    .. math:: p(x) = \frac{(a / m)^a}{\Gamma(a)} \, x^{a - 1} e^{-a x / m}

    The variance is :math:`m^2 / a`. It is the distribution of a generalised linear model, in which
    the mean has covariates and the concentration has none (McCullagh and Nelder 1989, chapter 8).

    :param Tensor mean: m, above 0.
    :param Tensor concentration: a, above 0; it broadcasts with the mean.
    :param bool validate_args: whether to check arguments and values.
    :raises ValueError: if arguments are invalid.

    >>> import torch
    >>> MeanGamma(torch.tensor(2.0), torch.tensor(3.0)).variance
    tensor(1.3333)
    """

    arg_constraints = {
        "mean_value": constraints.positive,
        "concentration": constraints.positive,
    }

    def __init__(
        self, mean: Tensor | float, concentration: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        self.mean_value, concentration = broadcast_all(mean, concentration)
        super().__init__(concentration, concentration / self.mean_value, validate_args)

    def expand(self, batch_shape: _size, _instance: Any = None) -> MeanGamma:
        """Expand the distribution to a larger batch; arguments are shared, not copied."""
        new: MeanGamma = self._get_checked_instance(MeanGamma, _instance)
        new.mean_value = self.mean_value.expand(batch_shape)
        found: MeanGamma = super().expand(batch_shape, new)
        return found
