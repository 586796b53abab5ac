r"""What the Student-t families share: the latent scales and their statistics.

A Student-t observation of D dims is Gaussian given a latent scale u,

.. math::
    x \mid u \sim N(\mu, \Sigma / u), \qquad u \sim \mathrm{Gamma}(\nu / 2, \nu / 2),

and with the squared distance :math:`d_t = (x_t - \mu)^\top \Sigma^{-1} (x_t - \mu)`

.. math:: u_t = E[u \mid x_t] = \frac{\nu + D}{\nu + d_t}.

These expectations multiply the weights of a Gaussian's moments. The scale is updated by **PX-EM**
(Liu, Rubin and Wu 1998),

.. math::
    \Sigma = \frac{\sum_t \gamma_t u_t (x_t - \mu)(x_t - \mu)^\top}{\sum_t \gamma_t u_t},

which divides by the sum of the latent scales, not by that of the :math:`\gamma_t`. It maximises
over the mean :math:`\alpha` of u as well, keeps the ascent of EM and needs far fewer steps. If
states of different :math:`\nu_k` share a scale, the divisor is the sum of the :math:`\gamma_t`
times :math:`\alpha`, whose maximiser weights each state with its :math:`\nu_k`. With a prior, and
where a floor binds, the maximum is another one, and the divisor is EM's.

The degrees of freedom are set by :mod:`.degrees_of_freedom`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from pyro_regimes.emissions import moments
from pyro_regimes.emissions.arithmetic import divide
from pyro_regimes.emissions.base import Arguments, Conjugate, Observed, apply, over_sequences
from pyro_regimes.emissions.moments import Moments
from pyro_regimes.emissions.special import log_gamma_ratio
from pyro_regimes.emissions.statistics import Spread
from pyro_regimes.kernels import ops

#: The number of powers of q in the statistics of the degrees of freedom.
TERMS = 10


class Stats(NamedTuple):
    """Expected statistics. Those of the argument that they are not for are None."""

    weight: Tensor  #: n, of every block
    origin: Tensor | None  #: of the moments
    latent: Tensor | None  #: the sum of the latent scales
    first: Tensor | None  #: moments weighted with the latent scales
    second: Tensor | None
    center: Tensor | None  #: :math:`n \log \nu_0`
    logs: Tensor | None  #: the sum of :math:`\log(1 + d / \nu_0)`, float64
    powers: Tensor | None  #: the sums of :math:`q, q^2, ...`, ``(..., terms)``, float64
    #: Of vectors: the weight of those of which 1, 2, ... entries are observed, ``(..., sizes)``
    sizes: Tensor | None = None
    sized_logs: Tensor | None = None  #: as ``logs``, times the number of entries observed
    sized_powers: Tensor | None = None  #: as ``powers``, likewise

    @property
    def moments(self) -> Moments:
        """Those of a Gaussian, with the latent scales in the weights."""
        assert self.origin is not None and self.latent is not None and self.first is not None
        return Moments(self.origin, self.latent, self.first, self.second)

    def with_moments(self, found: Moments) -> Stats:
        """Statistics with other moments."""
        origin, latent, first, second = found
        return self._replace(origin=origin, latent=latent, first=first, second=second)


def start(weight: Tensor) -> Stats:
    """Statistics of nothing but weights."""
    return Stats(weight, *[None] * 10)


def bounded(square: Tensor) -> Tensor:
    """Squared distances, below what makes ratios of them overflow."""
    return square.clamp(max=torch.finfo(square.dtype).max ** 0.75)


def expected_scale(square: Tensor, df: Tensor, size: int | Tensor) -> Tensor:
    """:math:`E[u | x]`."""
    return (df + size) / (df + square)


def log_density(square: Tensor, df: Tensor, size: int | Tensor) -> Tensor:
    """The log density of a standard Student-t of so many dims."""
    half = 0.5 * size
    constant = log_gamma_ratio(0.5 * df.double(), half) - half * math.log(2 * math.pi)
    constant = constant.to(df.dtype)
    return constant - 0.5 * (df + size) * (square / df).log1p()


def with_freedom(
    stats: Stats, square: Tensor, weight: Tensor, df: Tensor, over_time: Callable[[Tensor], Tensor]
) -> Stats:
    """Add the statistics of the degrees of freedom.

    :param square: :math:`d_t`, ``(..., T, K)`` or ``(..., T, K, *event)``.
    :param weight: of the same number of dims.
    :param over_time: sums over time if the distribution is constant in time.
    """
    weight, df = weight.double(), df.double()
    ratio = square.double() / df
    share = ratio / (1 + ratio)
    logs = over_time(weight * ratio.log1p())
    power, powers = weight * share, []
    for _ in range(TERMS):
        powers.append(over_time(power))
        power = power * share
    center = stats.weight.double() * df.log()
    return stats._replace(center=center, logs=logs, powers=torch.stack(powers, -1))


#: Room for so many numbers of observed entries, so that statistics of vectors of different sizes
#: may be added; for longer vectors twice as many, and so on.
_ROOM = 16


def with_freedom_of_vectors(
    stats: Stats,
    square: Tensor,
    weight: Tensor,
    df: Tensor,
    over_time: Callable[[Tensor], Tensor],
    num_seen: Tensor | int,
    size: int,
) -> Stats:
    """Add the statistics of the degrees of freedom of vectors.

    :param square: that of the observed entries.
    :param num_seen: the number of observed entries, of each row if it is not the same for all.
    :param size: D.
    """
    stats = with_freedom(stats, square, weight, df, over_time)
    assert stats.logs is not None and stats.powers is not None
    weight = weight.double()
    if isinstance(num_seen, Tensor):
        sized = with_freedom(stats, square, weight * num_seen, df, over_time)
        logs, powers = sized.logs, sized.powers
        counts = [
            over_time(torch.where(num_seen == each, weight, 0.0)) for each in range(1, size + 1)
        ]
    else:
        logs, powers = num_seen * stats.logs, num_seen * stats.powers
        total = over_time(weight)
        counts = [total if each == num_seen else 0 * total for each in range(1, size + 1)]
    room = _ROOM
    while room < size:
        room *= 2
    sizes = torch.nn.functional.pad(torch.stack(counts, -1), (0, room - size))
    return stats._replace(sizes=sizes, sized_logs=logs, sized_powers=powers)


def over_time(observed: Observed) -> Callable[[Tensor], Tensor]:
    """What sums ``(..., T, K, ...)`` over time, if the distribution is constant in time."""
    if observed.varies:
        return lambda part: part
    time = observed.weights.dim() - 2
    return lambda part: ops.sum_over(part, time)


def is_accurate(stats: Stats, given: Arguments, name: str, is_full: bool) -> Tensor | bool:
    """Whether statistics have what an argument needs, with enough digits."""
    if name == "df":
        return stats.powers is not None
    if stats.first is None or name == "loc":
        return stats.first is not None
    return stats.second is not None and moments.is_accurate(stats.moments, given["loc"], is_full)


def merge(accurate: Tensor, stats: Stats, again: Stats) -> Stats:
    """Combine statistics of two origins, block by block; the latent scales differ as well."""
    found = moments.merge(accurate, stats.moments, again.moments)
    assert stats.latent is not None and again.latent is not None
    return again.with_moments(
        found._replace(weight=torch.where(accurate, stats.latent, again.latent))
    )


def add(one: Stats, other: Stats) -> Stats:
    """The sum of statistics about one origin."""
    found = apply(torch.add, one._replace(origin=None), other._replace(origin=None))
    return found._replace(origin=one.origin)


def total(stats: Stats, num_batch_dims: int, like: Stats | None, is_full: bool) -> Stats:
    """The sum over all sequences."""
    others: list[Any] = [
        None if part is None else over_sequences(part, num_batch_dims)
        for part in (stats.weight, *stats[5:])
    ]
    found = Stats(others[0], None, None, None, None, *others[1:])
    if stats.first is None:
        return found
    about = None if like is None else like.moments
    return found.with_moments(moments.total(stats.moments, num_batch_dims, about, is_full))


# ---- the scale ---------------------------------------------------------------------------------


class LatentSpread(NamedTuple):
    """Pooled statistics of scales."""

    weight: Tensor  #: n
    scatter: Tensor  #: weighted with the latent scales
    latent: Tensor  #: the sum of :math:`\nu_k` times the latent scales
    unit: Tensor  #: :math:`\nu n`, what that is for latent scales of mean 1
    slack: Tensor  #: :math:`n / (\nu + D + 2)`, by which the latent scales lessen the information
    num_priors: Tensor

    @property
    def em(self) -> Spread:
        """The statistics of an EM step."""
        return Spread(self.weight, self.scatter)

    @property
    def px(self) -> Spread:
        """The statistics of a PX-EM step; with a prior, those of an EM step."""
        mean = divide(self.latent, self.unit)
        return Spread(
            torch.where(self.num_priors > 0, self.weight, self.weight * mean), self.scatter
        )


def pool_spread(stats: Stats, spread: Spread, df: Tensor, size: int) -> LatentSpread:
    """Statistics of scales.

    :param spread: those of a Gaussian, from the moments.
    :param df: one for each block.
    :param size: D.
    """
    latent, scatter = spread
    own = (1,) * (latent.dim() - stats.weight.dim())  # the dims of a block
    weight, df = (
        part.to(scatter.dtype).reshape(part.shape + own) for part in (stats.weight, df)
    )
    slack = weight / (df + (size + 2))
    return LatentSpread(weight, scatter, df * latent, df * weight, slack, torch.zeros_like(weight))


def _pooled_prior(
    prior: Any, given: torch.Size, shape: torch.Size, event_dim: int, conjugate: Conjugate
) -> LatentSpread:
    weight, scatter = conjugate(prior, given, shape, event_dim)
    nothing = torch.zeros_like(weight)
    return LatentSpread(weight, scatter, nothing, nothing, nothing, torch.ones_like(weight))


def priors(of_gaussian: dict[str, dict[type, Conjugate]]) -> dict[str, dict[type, Conjugate]]:
    """The conjugate priors of a Gaussian's scale, for pooled statistics with latent scales."""
    return {
        held: {kind: partial(_pooled_prior, conjugate=each) for kind, each in known.items()}
        for held, known in of_gaussian.items()
    }
