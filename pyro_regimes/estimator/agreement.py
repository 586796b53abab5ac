"""The rows on which the regimes of two models agree."""

from __future__ import annotations

import numpy as np

from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.sampling import draw

_DRAWN = 1000  # rows


def expected_agreement(one: FittedHMM, two: FittedHMM, data: Array, sizes: list[int]) -> Array:
    r"""The expected number of rows in each pair of regimes of two models of the same series.

    .. math:: N_{ij} = \sum_t p_1(q_t = i \mid x)\, p_2(q_t = j \mid x)

    :param data: ``(T, D)``, of all sequences.
    :return: ``(K of one, K of two)``.
    """
    probs = [each.posterior(data, sizes, "smoothed")[1] for each in (one, two)]
    return np.nan_to_num(probs[0]).T @ np.nan_to_num(probs[1])


def agreement_without_data(one: FittedHMM, two: FittedHMM) -> Array:
    """The expected agreement on a sequence drawn from the first model, always the same one."""
    data, _ = draw(one.parameters, one.spec, _DRAWN, np.random.RandomState(0))
    return expected_agreement(one, two, data, [len(data)])
