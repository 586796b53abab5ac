r"""The family of correlated Student-t series, ``MultivariateStudentT(df, loc, scale_tril)``.

One latent scale is shared by the series of an observation,

.. math::
    u_t(k) = \frac{\nu_k + D}{\nu_k + (x_t - \mu_k)^\top \Sigma_k^{-1} (x_t - \mu_k)}, \qquad
    \mu_k = \frac{\sum_t \gamma_t(k) u_t(k) x_t}{\sum_t \gamma_t(k) u_t(k)}, \qquad
    \Sigma_k = \frac{\sum_t \gamma_t(k) u_t(k) (x_t - \mu_k) (x_t - \mu_k)^\top}
                    {\sum_t \gamma_t(k) u_t(k)}

with the scale matrix :math:`\Sigma_k = L_k L_k^\top` (the covariance is
:math:`\nu_k / (\nu_k - 2)` times it). The degrees of freedom :math:`\nu_k` maximise the likelihood
given the new location and scale matrix. See :mod:`.latent_scale` and
:mod:`.degrees_of_freedom`. Where a floor binds,
:math:`\Sigma_k` is the exact maximiser of an EM step under that constraint.

**Missing entries.** The observed entries O of a row are a Student-t with the same degrees of
freedom, so that :math:`u_t` is the same with their number, their location and their block of the
scale matrix. Given :math:`u_t`, the missing entries M are Gaussian, with the regression on the
observed ones as their mean and the covariance
:math:`u_t^{-1} (\Sigma_{MM} - \Sigma_{MO} \Sigma_{OO}^{-1} \Sigma_{OM})`. In the scatter, which is
weighted with :math:`\gamma_t u_t`, that covariance therefore has the weight :math:`\gamma_t`
(Liu and Rubin 1995).
"""

from __future__ import annotations

import math
from dataclasses import replace
from operator import index
from typing import NamedTuple

import torch
from pyro.distributions import MultivariateStudentT
from torch import Tensor

from pyro_regimes.emissions import degrees_of_freedom, latent_scale
from pyro_regimes.emissions import missing as missing_entries
from pyro_regimes.emissions import moments, multivariate_normal, sizes
from pyro_regimes.emissions.base import Arguments, Family, Natural, Observed
from pyro_regimes.emissions.degrees_of_freedom import Freedom
from pyro_regimes.emissions.latent_scale import LatentSpread, Stats
from pyro_regimes.emissions.moments import Moments
from pyro_regimes.emissions.multivariate_normal import MULTIVARIATE_NORMAL
from pyro_regimes.emissions.statistics import Spread, WeightedSum
from pyro_regimes.kernels import ops

_MATRIX = multivariate_normal.SCALE_TRIL


def _reduce_loc(stats: Stats, given: Arguments, weighted: bool) -> WeightedSum:
    found: WeightedSum = multivariate_normal.LOC.reduce(stats.moments, given, weighted)
    return found


def _reduce_spread(stats: Stats, given: Arguments, weighted: bool) -> LatentSpread:
    spread: Spread = _MATRIX.reduce(stats.moments, given, weighted)
    return latent_scale.pool_spread(stats, spread, given["df"], given["loc"].shape[-1])


def _maximise_spread(pooled: LatentSpread, now: Tensor, floor: float) -> Tensor:
    best = _MATRIX.maximise(pooled.px, now, 0.0)
    if floor <= 0:
        return best
    # At a binding floor the latent scales have another mean than 1, which PX-EM would divide out.
    raised = _MATRIX.maximise(pooled.px, now, floor)
    binds = (raised != best).flatten(-2).any(-1)[..., None, None]
    return torch.where(binds, _MATRIX.maximise(pooled.em, now, floor), best)


def _score(pooled: LatentSpread, spread: Tensor) -> Tensor:
    return _MATRIX.natural.score(pooled.em, spread)


def _gain(score: Tensor, pooled: LatentSpread, spread: Tensor, floor: float) -> Tensor:
    # The information in the shape of the matrix; there is less in its size.
    known = (pooled.weight - 2 * pooled.slack).clamp(min=0.0)
    return _MATRIX.natural.gain(score, Spread(known, pooled.scatter), spread, floor)


def _reduce_df(stats: Stats, given: Arguments, weighted: bool) -> Freedom:
    return degrees_of_freedom.pool_freedom(stats)


LOC = replace(
    multivariate_normal.LOC,
    kind="location of a MultivariateStudentT",
    what="mean weighted with latent scales",
    reduce=_reduce_loc,
)

SCALE_TRIL = replace(
    _MATRIX,
    kind="Cholesky factor of a MultivariateStudentT",
    what="scatter over latent scales (PX-EM)",
    reduce=_reduce_spread,
    maximise=_maximise_spread,
    natural=Natural(_MATRIX.natural.perturb, _score, _gain),
    priors=latent_scale.priors(_MATRIX.priors),
    scaling=sizes.of_latent(sizes.OF_FACTOR),
)

DF = degrees_of_freedom.freedom("degrees of freedom of a MultivariateStudentT", False, _reduce_df)


def _square(value: Tensor, given: Arguments) -> tuple[Tensor, Tensor]:
    """The squared distance ``(..., T, K)``, and the log determinant of the Cholesky factor."""
    factor = ops.without_repeats(given["scale_tril"], 2)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    gaussian = {"loc": given["loc"], "scale_tril": factor}
    density = MULTIVARIATE_NORMAL.log_prob(value, gaussian, 1)
    constant = 0.5 * index(value.shape[-1]) * math.log(2 * math.pi)  # a tensor under jit
    return latent_scale.bounded(-2 * (density + log_det + constant)), log_det


class _Seen(NamedTuple):
    """The observed entries of each row."""

    square: Tensor  #: their squared distance, ``(..., T, K)``
    log_det: Tensor  #: half the log determinant of their block of the scale matrix
    number: Tensor  #: how many they are, ``(..., T, 1)``
    covariance: Tensor  #: the whole scale matrix


def _seen(value: Tensor, missing: Tensor, given: Arguments) -> _Seen:
    factor = ops.without_repeats(given["scale_tril"], 2)
    covariance = factor @ factor.mT

    def log_prob(value: Tensor, loc: Tensor) -> Tensor:
        """That of a Gaussian."""

        def complete(value: Tensor) -> Tensor:
            return MULTIVARIATE_NORMAL.log_prob(value, {"loc": loc, "scale_tril": factor}, 1)

        return missing_entries.log_prob(value, missing, loc, covariance, complete)

    number = (~missing).to(value.dtype).sum(-1, keepdim=True)
    at_loc = log_prob(torch.zeros_like(value), torch.zeros_like(given["loc"]))
    square = 2 * (at_loc - log_prob(value, given["loc"]))
    log_det = -at_loc - 0.5 * math.log(2 * math.pi) * number
    return _Seen(latent_scale.bounded(square), log_det, number, covariance)


def _moments_of_seen(
    observed: Observed, given: Arguments, latent: Tensor, covariance: Tensor, with_second: bool
) -> Moments:
    """Moments weighted with the latent scales, and the covariances of missing entries without."""
    scaled = observed._replace(weights=observed.weights * latent)
    found = missing_entries.moments(scaled, given["loc"], covariance, with_second)
    if found.second is None:
        return found
    rest = Observed(
        torch.zeros_like(observed.value),
        observed.weights - scaled.weights,
        observed.varies,
        observed.missing,
    )
    # At the location nothing else is left of the second moments.
    nowhere = torch.zeros_like(given["loc"])
    more = missing_entries.moments(rest, nowhere, covariance, True).second
    assert more is not None
    return found._replace(second=found.second + more)


class _Family(Family):
    """``MultivariateStudentT(df, loc, scale_tril)``."""

    distributions = (MultivariateStudentT,)
    max_event_dim = 1
    arguments = (LOC, SCALE_TRIL, DF)
    marginalises = True

    def read(self, distribution: MultivariateStudentT) -> Arguments:
        """The degrees of freedom, the location and the Cholesky factor of the scale matrix."""
        return {
            "df": distribution.df,
            "loc": distribution.loc,
            "scale_tril": distribution._unbroadcasted_scale_tril,
        }

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The log density."""
        square, log_det = _square(value, given)
        df = ops.without_repeats(given["df"], 0)
        return latent_scale.log_density(square, df, index(value.shape[-1])) - log_det

    def log_prob_of_seen(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> Tensor:
        """The density of the entries that are not missing."""
        seen = _seen(value, missing, given)
        df = ops.without_repeats(given["df"], 0)
        return latent_scale.log_density(seen.square, df, seen.number) - seen.log_det

    def moments_of_missing(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Those of a Student-t about the regression on the observed entries of the row.

        It has a degree of freedom more for each of these.
        """
        seen = _seen(value, missing, given)
        mean, variance = missing_entries.conditional(value, missing, given["loc"], seen.covariance)
        freedom = (given["df"] + seen.number).unsqueeze(-1)
        inflation = (given["df"] + seen.square).unsqueeze(-1) / (freedom - 2)
        variance = torch.where(freedom > 2, variance * inflation, torch.inf)
        return torch.where(freedom > 1, mean, torch.nan), variance

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Stats:
        """Moments about the current locations, weighted with the latent scales."""
        over_time, size = latent_scale.over_time(observed), observed.value.shape[-1]
        value, seen = observed.value.squeeze(-2), None
        number: Tensor | int = size
        if observed.missing is None:
            square, _ = _square(value, given)
        else:
            seen = _seen(value, observed.missing.squeeze(-2), given)
            square, number = seen.square, seen.number
        stats = latent_scale.start(over_time(observed.weights))
        if not names.isdisjoint(("loc", "scale_tril")):
            latent = latent_scale.expected_scale(square, given["df"], number)
            with_second = "scale_tril" in names
            if seen is None:
                scaled = observed._replace(weights=observed.weights * latent)
                found = moments.take(scaled, given["loc"], True, with_second)
            else:
                found = _moments_of_seen(observed, given, latent, seen.covariance, with_second)
            stats = stats.with_moments(found)
        if "df" in names:
            stats = latent_scale.with_freedom_of_vectors(
                stats, square, observed.weights, given["df"], over_time, number, size
            )
        return stats

    def is_accurate(self, stats: Stats, given: Arguments, name: str) -> Tensor | bool:
        """Whether statistics have what an argument needs, with enough digits."""
        return latent_scale.is_accurate(stats, given, name, is_full=True)

    def merge(self, accurate: Tensor, stats: Stats, again: Stats) -> Stats:
        """Combine statistics of two origins, block by block."""
        return latent_scale.merge(accurate, stats, again)

    def add(self, one: Stats, other: Stats) -> Stats:
        """See :func:`.latent_scale.add`."""
        return latent_scale.add(one, other)

    def total(self, stats: Stats, num_batch_dims: int, like: Stats | None) -> Stats:
        """The sum over all sequences, each block about its own origin."""
        return latent_scale.total(stats, num_batch_dims, like, is_full=True)


MULTIVARIATE_STUDENT_T = _Family()
