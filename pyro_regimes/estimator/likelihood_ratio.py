r"""Parametric-bootstrap test of K against K + 1 regimes.

.. math:: LR = 2 \left(\log p(x; \hat\theta_{K+1}) - \log p(x; \hat\theta_K)\right)

has no chi-squared distribution, because with K regimes the parameters of one more are not
identified. So its distribution is simulated (McLachlan 1987; for hidden Markov models Turner 2008):
data are drawn from the fitted model of K regimes, and both models are fitted to each replicate by
the same procedure as to the data, with as many starts. The p-value is
:math:`(1 + \#\{LR_b \ge LR\}) / (B + 1)`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pyro_regimes.estimator import missing
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.replicates import fit_replicates, simulate
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.validation import Settings


class RatioTest(NamedTuple):
    """The test of K against K + 1 regimes."""

    statistic: float  #: the likelihood ratio of the data
    replicates: Array  #: ``(B,)``, those of the replicates
    p_value: float  #: (1 + number of replicates with at least the statistic) / (B + 1)
    num_collapsed: int  #: replicates without a fit of K + 1 that has not collapsed; they count


def bootstrap_ratio(
    statistic: float,
    parameters: Parameters,
    data: Array,
    sizes: list[int],
    spec: Spec,
    settings: Settings,
    num_replicates: int,
    rng: np.random.RandomState,
) -> RatioTest:
    """The test of a fitted model against one more regime. All replicates are fitted in one batch.

    :param statistic: the likelihood ratio of the data.
    :param parameters: the maximum-likelihood estimate of K regimes.
    :param data: ``(T, D)``. Its missing entries are missing in each replicate, too.
    :param settings: of the model with K regimes.
    """
    drawn = np.stack(
        [simulate(parameters, spec, data, sizes, rng) for _ in range(num_replicates)]
    )
    seeds = rng.randint(2**31 - 1, size=num_replicates)
    reference, fits = missing.filled(data), []
    for more in (0, 1):
        own = settings._replace(n_regimes=settings.n_regimes + more)
        rngs = [np.random.RandomState(seed) for seed in seeds]
        fits.append(fit_replicates(drawn, sizes, spec, own, reference, rngs=rngs))
    smaller, larger = fits
    ratios = 2 * (larger.log_likelihood - smaller.log_likelihood)
    # Its likelihood is without a bound.
    collapsed = larger.degenerate & ~smaller.degenerate
    ratios = np.where(larger.degenerate | np.isnan(ratios), np.inf, ratios)
    exceed = int((ratios >= statistic).sum())
    return RatioTest(
        statistic, ratios, (1 + exceed) / (1 + num_replicates), int(collapsed.sum())
    )
