r"""A step in the number of failures r of a negative binomial whose probability is at its maximum.

The derivative of the profile in r is, for one observation on average,

.. math::
    D(r) = \overline{\psi(r + x)} - \psi(r) - \log (1 + m / r).

All of it but the first mean is known. With :math:`\delta = r - r_0` and :math:`z = r_0 + x`,

.. math::
    \log (1 + \delta \psi'(z)) \le \psi(z + \delta) - \psi(z) \quad (\delta > 0), \qquad
    \psi(z + \delta) - \psi(z) \le \min(\log (1 + \delta / z), \delta \psi'(z)) \quad (\delta < 0),

as :math:`e^\psi` is convex (Batir 2005), :math:`\psi` is concave and :math:`\psi'(z) > 1 / z`. The
mean over the observations of :math:`\log (1 + \delta y)`, with :math:`y \ge 0` of mean
:math:`\bar y` and squared coefficient of variation c, is at most :math:`\log (1 + w)` with
:math:`w = \delta \bar y`, and at least that less :math:`c\,(\log (1 + w) - w / (1 + w))`: the
parabola that touches the logarithm at :math:`\bar y` and meets it at 0 lies below it.

So D is bounded from below for a larger r and from above for a smaller one. A root of the bound is
not beyond that of D, and the steps converge quadratically.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.emissions import special


class Rest(NamedTuple):
    """Means over the observations, or their terms, at z = r_0 + x."""

    reciprocal: Tensor  #: of 1 / z
    slope: Tensor  #: of the trigamma function
    square: Tensor  #: of its square


def rest(z: Tensor) -> Rest:
    """The terms of the means, for z > 0."""
    slope = (1 + special.stretched_slope(z)) / z
    return Rest(1 / z, slope, slope.square())


def step(gap: Tensor, means: Rest, mean: Tensor, origin: Tensor, most: float) -> Tensor:
    """The next r; NaN where something is unknown.

    :param gap: D at the origin.
    :param mean: m, that of the observations.
    :param origin: the r at which the means were taken.
    :param most: the largest factor of a step.
    """
    is_up = gap >= 0
    spread = (means.square / means.slope**2 - 1).clamp(min=0.0)
    level = special.log_minus_digamma(origin)

    def bound(log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the bound of D, which increases in log r, and its derivative."""
        r, delta = origin * log_ratio.exp(), origin * log_ratio.expm1()
        w = delta * means.slope
        log_w, share = w.clamp(min=0.0).log1p(), w / (1 + w)
        above = log_w - spread * (log_w - share)
        slope_above = means.slope * (1 - spread * share) / (1 + w)
        far = delta * means.reciprocal
        is_far = far.log1p() < w
        below = torch.where(is_far, far.log1p(), w)
        slope_below = torch.where(is_far, means.reciprocal / (1 + far), means.slope)
        rest = torch.where(is_up, above, below)
        slope = torch.where(is_up, slope_above, slope_below) - 1 / (r + mean)
        known = special.log_minus_digamma(r) - level - (delta / (origin + mean)).log1p()
        return -(gap + rest + known), special.stretched_slope(r) - r * slope

    sign = torch.where(is_up, 1.0, -1.0).to(gap)
    end = sign * math.log(most)
    is_beyond = sign * bound(end)[0] < 0
    start = torch.where(is_beyond, end, 0.0).masked_fill(gap.isnan(), torch.nan)
    zero = torch.zeros_like(end)
    low = torch.where(is_beyond, end, end.minimum(zero))
    high = torch.where(is_beyond, end, end.maximum(zero))
    return origin * special.find_root(bound, start, low, high).exp()
