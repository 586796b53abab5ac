r"""The family of directions, ``VonMises(loc, concentration)`` with or without ``to_event``.

With :math:`\mathrm{I}_0` the modified Bessel function and :math:`A = \mathrm{I}_1 / \mathrm{I}_0`,

.. math::
    \log b(x) = -2 \kappa \sin^2 \tfrac{x - \mu}{2}
        - \log \left( e^{-\kappa} \, \mathrm{I}_0(\kappa) \right) - \log 2 \pi,

in which nothing overflows or cancels, however large :math:`\kappa` is. (torch's own density has
seven digits.) The location is the direction of
:math:`\sum_t \kappa_k \gamma_t(k) (\cos x_t, \sin x_t)`, and the concentration is the root of

.. math:: 1 - A(\kappa) = \frac1n \sum_t \gamma_t (1 - \cos(x_t - \mu)).

If the mean cosine about a location is negative, its concentration is set to nearly 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import VonMises, constraints

from pyro_regimes.emissions import charts, draws, links, special, sums
from pyro_regimes.emissions.arithmetic import divide, divide_where_known, over_event
from pyro_regimes.emissions.base import (
    Argument,
    Arguments,
    Family,
    Natural,
    Observed,
    apply,
    blocks,
    over_sequences,
)
from pyro_regimes.emissions.positive import is_positive, stretch

#: From here on the asymptotic series of the Bessel functions have all digits.
_LARGE = 50.0

#: A larger concentration needs sums about the locations of the states, to keep their digits.
_TIGHT = 1e4

#: The concentration of data that favour none.
_NONE = 1e-30

#: A mean of 1 - cos below this is the rounding of angles that are all equal.
_ROUNDING = 1e-30

#: Of the series of the scaled Bessel function in 1 / kappa.
_SERIES = [1.0]
for _k in range(1, 14):
    _SERIES.append(_SERIES[-1] * (2 * _k - 1) ** 2 / (8 * _k))


class Directions(NamedTuple):
    """Expected sums about an origin, ``(..., 1 or T, K, *event)``; add those of one origin."""

    weight: Tensor
    versed: Tensor  #: of 1 - cos(x - o)
    sine: Tensor  #: of sin(x - o)
    origin: Tensor  #: broadcasts to the others


class Resultant(NamedTuple):
    """Pooled statistics of a location, weighted with the concentrations."""

    weight: Tensor
    cosine: Tensor
    sine: Tensor


class Versed(NamedTuple):
    """Pooled statistics of a concentration."""

    weight: Tensor
    versed: Tensor


def about(stats: Directions, origin: Tensor) -> Directions:
    """The same sums about another origin."""
    turn = stats.origin - origin
    cosine, versed = stats.weight - stats.versed, 2 * (turn / 2).sin().square()
    return Directions(
        stats.weight,
        stats.versed + cosine * versed + stats.sine * turn.sin(),
        stats.sine * turn.cos() + cosine * turn.sin(),
        origin,
    )


def _reduce_loc(stats: Directions, given: Arguments, weighted: bool) -> Resultant:
    cosine, origin = stats.weight - stats.versed, stats.origin
    concentration = given["concentration"].double()
    found = Resultant(
        stats.weight,
        concentration * (cosine * origin.cos() - stats.sine * origin.sin()),
        concentration * (cosine * origin.sin() + stats.sine * origin.cos()),
    )
    return apply(lambda part: part.expand(found.sine.shape), found)


def _reduce_concentration(stats: Directions, given: Arguments, weighted: bool) -> Versed:
    versed = about(stats, given["loc"].double()).versed
    return Versed(stats.weight.expand(versed.shape), versed)


def _direction(pooled: Resultant, now: Tensor, floor: float) -> Tensor:
    """The direction of the resultant, by the shorter way from the present one."""
    nothing = (pooled.cosine == 0) & (pooled.sine == 0)
    turn = torch.atan2(
        pooled.sine * now.cos() - pooled.cosine * now.sin(),
        pooled.cosine * now.cos() + pooled.sine * now.sin(),
    )
    new = now + turn
    crossing = (now.abs() <= math.pi) & (new.abs() > math.pi)
    new = torch.where(crossing, new - new.sign() * 2 * math.pi, new)
    return new.masked_fill(nothing, torch.nan)


def _concentration(pooled: Versed, now: Tensor, floor: float) -> Tensor:
    return solve_concentration(divide(pooled.versed, pooled.weight))


def _shift(loc: Tensor, by: Tensor) -> Tensor:
    return loc + by


def _loc_score(pooled: Resultant, loc: Tensor) -> Tensor:
    return pooled.sine * loc.cos() - pooled.cosine * loc.sin()


def _loc_gain(score: Tensor, pooled: Resultant, loc: Tensor, floor: float) -> Tensor:
    information = pooled.cosine * loc.cos() + pooled.sine * loc.sin()
    return divide_where_known(0.5 * score**2, information.clamp(min=0))


# In e, with a concentration of kappa (1 + e).


def _concentration_score(pooled: Versed, kappa: Tensor) -> Tensor:
    return kappa * (pooled.weight * mean_versed(kappa) - pooled.versed)


def _concentration_gain(score: Tensor, pooled: Versed, kappa: Tensor, floor: float) -> Tensor:
    gain = divide_where_known(0.5 * score**2, pooled.weight * _information(kappa))
    return gain.masked_fill((kappa <= 2 * _NONE) & (score < 0), 0.0)  # it is as small as can be


def _prior(
    prior: dist.VonMises, given: torch.Size, shape: torch.Size, event_dim: int
) -> Resultant:
    loc, concentration = (
        blocks(each.expand(given).reshape(shape), event_dim)
        for each in (prior.loc, prior.concentration)
    )
    return Resultant(
        torch.zeros_like(loc), concentration * loc.cos(), concentration * loc.sin()
    )


LOC = Argument(
    name="loc",
    kind="location of a VonMises",
    event_dim=0,
    elementwise=True,
    what="weighted mean direction",
    links=links.LOCATION,
    inside=(),
    draw=draws.location,
    reduce=_reduce_loc,
    maximise=_direction,
    sound=torch.isfinite,
    natural=Natural(_shift, _loc_score, _loc_gain),
    priors={"location": {dist.VonMises: _prior}},
    chart=charts.location(lambda given: given["concentration"].clamp(min=1).rsqrt()),
)

CONCENTRATION = Argument(
    name="concentration",
    kind="concentration of a VonMises",
    event_dim=0,
    elementwise=True,
    what="mean cosine, by Newton steps",
    links=links.CONCENTRATION,
    inside=(constraints.positive, constraints.nonnegative),
    draw=draws.positive,
    reduce=_reduce_concentration,
    maximise=_concentration,
    sound=is_positive,
    natural=Natural(stretch, _concentration_score, _concentration_gain),
    why_unbounded="the angles of a state are all equal",
    chart=charts.SCALE,
)


def _split(kappa: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which concentrations are large; the large and the others, with constants elsewhere."""
    large = kappa >= _LARGE
    return large, torch.where(large, kappa, _LARGE), torch.where(large, 1.0, kappa)


def log_scaled_bessel(kappa: Tensor) -> Tensor:
    r""":math:`\log(e^{-\kappa} \mathrm{I}_0(\kappa))`."""
    large, big, small = _split(kappa)
    series = special.polynomial(tuple(_SERIES), 1 / big)
    far = series.log() - 0.5 * (2 * math.pi * big).log()
    return torch.where(large, far, torch.special.i0e(small).log())


def mean_versed(kappa: Tensor) -> Tensor:
    r""":math:`1 - \mathrm{I}_1(\kappa) / \mathrm{I}_0(\kappa)`, the mean of :math:`1 - \cos`."""
    large, big, small = _split(kappa)
    inverse = 1 / big
    slopes = tuple(k * each for k, each in enumerate(_SERIES))[1:]
    ratio = special.polynomial(slopes, inverse) / special.polynomial(tuple(_SERIES), inverse)
    far = inverse * (0.5 + inverse * ratio)
    near = 1 - torch.special.i1e(small) / torch.special.i0e(small)
    return torch.where(large, far, near)


def _information(kappa: Tensor) -> Tensor:
    r""":math:`\kappa^2 A'(\kappa)`, the information of an observation in the logarithm of kappa."""
    large, big, small = _split(kappa)
    ratio = torch.special.i1e(small) / torch.special.i0e(small)
    near = small.square() * (1 - ratio.square()) - small * ratio
    # A' is nearly 1/2 at 0, where the quotient A / kappa is not defined.
    near = torch.where(small < 1e-4, 0.5 * small.square(), near)
    inverse = 1 / big
    far = 0.5 + inverse * (1 / 4 + inverse * (3 / 8 + inverse * 25 / 32))
    return torch.where(large, far, near)


def solve_concentration(versed: Tensor) -> Tensor:
    r"""The root of :math:`1 - A(\kappa) = v`; nearly 0 for v of 1 and more, NaN for 0."""
    even = versed >= 1
    inside = versed.masked_fill(even | (versed < _ROUNDING), torch.nan)
    target = (-inside).log1p() - inside.log()  # the logit of the mean cosine
    cosine = 1 - inside
    start = (cosine * (1 + inside * (2 - inside)) / (inside * (2 - inside))).log()

    def function(log_kappa: Tensor) -> tuple[Tensor, Tensor]:
        kappa = log_kappa.exp()
        known = mean_versed(kappa)
        ratio = torch.where(
            kappa < 1, torch.special.i1e(kappa) / torch.special.i0e(kappa), 1 - known
        )
        slope = _information(kappa) / (kappa * ratio * known)
        return ratio.log() - known.log() - target, slope.clamp(0.5, 2.0)

    kappa = special.find_root(function, start, start - 1.0, start + 1.0).exp()
    return torch.where(even, _NONE, kappa)


class VonMisesFamily(Family):
    """``VonMises(loc, concentration)``."""

    distributions = (VonMises, dist.VonMises)
    max_event_dim = math.inf
    arguments = (LOC, CONCENTRATION)
    of_angles = True

    def read(self, distribution: VonMises) -> Arguments:
        """The location and the concentration."""
        return {"loc": distribution.loc, "concentration": distribution.concentration}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The log density, summed over the series of one observation."""
        deviation = value.unsqueeze(-1 - event_dim) - given["loc"]
        kappa = given["concentration"]
        normaliser = log_scaled_bessel(kappa) + math.log(2 * math.pi)
        return over_event(-2 * kappa * (deviation / 2).sin().square() - normaliser, event_dim)

    def moments_of_missing(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Mean directions and circular variances, to all digits."""
        loc, versed = torch.broadcast_tensors(given["loc"], mean_versed(given["concentration"]))
        return loc, versed

    def statistics(
        self, observed: Observed, given: Arguments, names: frozenset[str]
    ) -> Directions:
        """Sums about 0, or about the locations if a concentration is large."""
        value = observed.value.double()
        origin = value.new_zeros((1,) * value.dim())
        if bool((given["concentration"] > _TIGHT).any()):
            origin = given["loc"].double()
        deviation = value - origin
        versed = 2 * (deviation / 2).sin().square()
        weight, total, sine = sums.over_time(observed, versed, deviation.sin())
        return Directions(weight, total, sine, origin)

    def add(self, one: Directions, other: Directions) -> Directions:
        """The sum about the first one's origin."""
        moved = about(other, one.origin)
        return apply(torch.add, one, moved)._replace(origin=one.origin)

    def total(
        self, stats: Directions, num_batch_dims: int, like: Directions | None
    ) -> Directions:
        """The sum over all sequences, about the mean direction of each block."""
        if like is None:
            one = {"concentration": torch.ones_like(stats.sine)}
            found = _reduce_loc(stats, one, False)
            _, cosine, sine = apply(lambda part: over_sequences(part, num_batch_dims), found)
            origin = torch.atan2(sine, cosine)
        else:
            origin = like.origin
        turned = about(stats, origin.reshape(origin.shape[1:]))._replace(origin=stats.weight)
        summed = apply(lambda part: over_sequences(part, num_batch_dims), turned)
        return summed._replace(origin=origin)


VON_MISES = VonMisesFamily()
