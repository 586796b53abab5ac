r"""The family of independent Student-t series, ``StudentT(df, loc, scale)``.

.. math::
    u_t(k) = \frac{\nu_k + 1}{\nu_k + (x_t - \mu_k)^2 / \sigma_k^2}, \qquad
    \mu_k = \frac{\sum_t \gamma_t(k) u_t(k) x_t}{\sum_t \gamma_t(k) u_t(k)}, \qquad
    \sigma_k^2 = \frac{\sum_t \gamma_t(k) u_t(k) (x_t - \mu_k)^2}
                        {\sum_t \gamma_t(k) u_t(k)}

series by series, each with latent scales of its own. The degrees of freedom :math:`\nu_k` maximise
the likelihood given the new location and scale. See :mod:`.latent_scale` and
:mod:`.degrees_of_freedom`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import StudentT

from pyro_regimes.emissions import degrees_of_freedom, latent_scale, normal, sizes
from pyro_regimes.emissions.arithmetic import divide_where_known, is_at_floor
from pyro_regimes.emissions.base import Arguments, Family, Natural, Observed
from pyro_regimes.emissions.degrees_of_freedom import Freedom
from pyro_regimes.emissions.latent_scale import LatentSpread, Stats
from pyro_regimes.emissions.moments import Moments
from pyro_regimes.emissions.statistics import WeightedSum
from pyro_regimes.kernels import ops


def _reduce_loc(stats: Stats, given: Arguments, weighted: bool) -> WeightedSum:
    found: WeightedSum = normal.LOC.reduce(stats.moments, given, weighted)
    return found


def _reduce_scale(stats: Stats, given: Arguments, weighted: bool) -> LatentSpread:
    spread = normal.SCALE.reduce(stats.moments, given, weighted)
    return latent_scale.pool_spread(stats, spread, given["df"], 1)


def _maximise_scale(pooled: LatentSpread, now: Tensor, floor: float) -> Tensor:
    # At the floor PX-EM and EM agree: their maximisers are below it together.
    return normal.SCALE.maximise(pooled.px, now, floor)


def _scale_score(pooled: LatentSpread, scale: Tensor) -> Tensor:
    return normal.SCALE.natural.score(pooled.em, scale)


def _scale_gain(score: Tensor, pooled: LatentSpread, scale: Tensor, floor: float) -> Tensor:
    at_floor = is_at_floor((scale**2).unsqueeze(-1), floor).squeeze(-1)
    # 2 nu / (nu + 3) of each observation
    known = (pooled.weight - 3 * pooled.slack).clamp(min=0.0)
    gain = divide_where_known(0.25 * score**2, known)
    return gain.masked_fill(at_floor & (score < 0), 0.0)


def _reduce_df(stats: Stats, given: Arguments, weighted: bool) -> Freedom:
    return degrees_of_freedom.pool_freedom(stats)


LOC = replace(
    normal.LOC,
    kind="location of a StudentT",
    what="mean weighted with latent scales",
    reduce=_reduce_loc,
)

SCALE = replace(
    normal.SCALE,
    kind="scale of a StudentT",
    what="root of scatter over latent scales (PX-EM)",
    reduce=_reduce_scale,
    maximise=_maximise_scale,
    natural=Natural(normal.SCALE.natural.perturb, _scale_score, _scale_gain),
    priors=latent_scale.priors(normal.SCALE.priors),
    scaling=sizes.of_latent(sizes.OF_SCALE),
)

DF = degrees_of_freedom.freedom("degrees of freedom of a StudentT", True, _reduce_df)


class _Family(Family):
    """``StudentT(df, loc, scale)``."""

    distributions = (StudentT, dist.StudentT)
    max_event_dim = math.inf
    arguments = (LOC, SCALE, DF)

    def read(self, distribution: StudentT) -> Arguments:
        """The degrees of freedom, the location and the scale."""
        return {"df": distribution.df, "loc": distribution.loc, "scale": distribution.scale}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The log density, summed over the series of one observation."""
        df, loc, scale = (
            ops.without_repeats(given[name], event_dim) for name in ("df", "loc", "scale")
        )
        square = latent_scale.bounded(((value.unsqueeze(-1 - event_dim) - loc) / scale).square())
        each = latent_scale.log_density(square, df, 1) - scale.log()
        return each.sum(list(range(-event_dim, 0))) if event_dim else each

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Stats:
        """Moments about the current locations, weighted with the latent scales."""
        over_time = latent_scale.over_time(observed)
        weights = observed.weights.reshape(observed.weights.shape + (1,) * observed.event_dim)
        deviation = observed.value - given["loc"]
        square = latent_scale.bounded((deviation / given["scale"]).square())
        stats = latent_scale.start(over_time(weights.expand(square.shape)))
        if not names.isdisjoint(("loc", "scale")):
            latent = weights * latent_scale.expected_scale(square, given["df"], 1)
            first = latent * deviation
            second = over_time(first * deviation) if "scale" in names else None
            found = Moments(given["loc"], over_time(latent), over_time(first), second)
            stats = stats.with_moments(found)
        if "df" in names:
            stats = latent_scale.with_freedom(stats, square, weights, given["df"], over_time)
        return stats

    def is_accurate(self, stats: Stats, given: Arguments, name: str) -> Tensor | bool:
        """Whether statistics have what an argument needs, with enough digits."""
        return latent_scale.is_accurate(stats, given, name, is_full=False)

    def merge(self, accurate: Tensor, stats: Stats, again: Stats) -> Stats:
        """Combine statistics of two origins, block by block."""
        return latent_scale.merge(accurate, stats, again)

    def add(self, one: Stats, other: Stats) -> Stats:
        """See :func:`.latent_scale.add`."""
        return latent_scale.add(one, other)

    def total(self, stats: Stats, num_batch_dims: int, like: Stats | None) -> Stats:
        """The sum over all sequences, each block about its own origin."""
        return latent_scale.total(stats, num_batch_dims, like, is_full=False)


STUDENT_T = _Family()
