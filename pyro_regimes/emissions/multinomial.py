r"""The families of counts of categories, ``Multinomial`` and ``OneHotCategorical``.

.. math::
    p_k(c) = \frac{\sum_t \gamma_t(k) x_{tc}}{\sum_t \gamma_t(k) \sum_c x_{tc}}

The number of trials of a ``Multinomial`` is known. That of a ``OneHotCategorical`` is 1.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Multinomial,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
)

from pyro_regimes.emissions import counts, rows, totals
from pyro_regimes.emissions.base import Arguments, Family, Linear, Observed, without_update
from pyro_regimes.emissions.parametrisation import read_given
from pyro_regimes.emissions.statistics import Counts


class _Family(Family):
    """``Multinomial(total_count, probs)``."""

    distributions: tuple[type[Distribution], ...] = (Multinomial, dist.Multinomial)
    max_event_dim = 1
    arguments = (
        without_update("total_count", elementwise=False),
        rows.PROBS_OF_VECTOR,
        rows.LOGITS_OF_VECTOR,
    )

    def read(self, distribution: Any) -> Arguments:
        """The number of trials, and the probabilities or their logits."""
        given = read_given(distribution._categorical)
        total_count = getattr(distribution, "total_count", 1)
        like = next(iter(given.values())).detach()
        return {"total_count": like.new_tensor(float(total_count)), **given}

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        r""":math:`\log n! - \sum_c \log x_{tc}! + \sum_c x_{tc} \log p_k(c)`."""
        logits = rows.log_probs(given, torch.float64)
        density = counts.multinomial(value.unsqueeze(-2), logits, given["total_count"])
        return density.to(counts.result_dtype(value, rows.given_dtype(given)))

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Counts:
        """Expected counts of the categories, ``(..., 1 or T, K, C)``."""
        return Counts(totals.take(observed).total)


def _category(value: Tensor, event_dim: int) -> Tensor | None:
    """The category of each vector; None if some vector is not one-hot."""
    is_one = value == 1
    is_sound = ((value == 0) | is_one).all() & (is_one.sum(-1) == 1).all()
    return is_one.long().argmax(-1) if bool(is_sound) else None


class _OneHot(_Family):
    """``OneHotCategorical(probs)``."""

    linear = Linear(_category, rows.natural, rows.of_sums, is_table=True)

    distributions = (
        OneHotCategorical,
        OneHotCategoricalStraightThrough,
        dist.OneHotCategorical,
        dist.OneHotCategoricalStraightThrough,
    )


MULTINOMIAL = _Family()
ONE_HOT_CATEGORICAL = _OneHot()
