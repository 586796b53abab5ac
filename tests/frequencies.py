"""Whether a count of independent draws is one that its probability allows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

#: Of each tail of each count. The suite looks at some thousands: one false alarm in 100,000 runs.
LEVEL = 1e-9


def assert_binomial(counts: npt.ArrayLike, draws: int, probability: npt.ArrayLike) -> None:
    """Both exact tails, so that shares of any size are judged alike: a zero stays a zero."""
    counts = np.asarray(counts, dtype=np.float64)
    probability = np.clip(np.asarray(probability, dtype=np.float64), 0.0, 1.0)
    counts, probability = np.broadcast_arrays(counts, probability)
    at_least = binom.sf(counts - 1, draws, probability)
    worst = np.minimum(binom.cdf(counts, draws, probability), at_least)
    wrong = ~(worst >= LEVEL)
    assert not wrong.any(), (
        f"counts {counts[wrong]} of {draws} with probabilities {probability[wrong]}: "
        f"tails {worst[wrong]}"
    )
