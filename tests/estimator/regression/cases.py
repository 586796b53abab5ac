"""Data of switching regressions, and an independent likelihood."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import logsumexp
from scipy.stats import norm

from tests import seeds

T = 240


def table(seed: int = 0, num_rows: int = T) -> pd.DataFrame:
    """Two lines in runs of 20 rows, with a category and a covariate of transitions."""
    rng = seeds.rng(1700 + seed)
    regime = np.arange(num_rows) // 20 % 2
    x, z = rng.normal(size=(2, num_rows))
    group = np.array(list("abc"))[np.arange(num_rows) % 3]
    y = np.where(regime, 2.0 + x, -x) + np.where(regime, 0.6, 0.3) * rng.normal(size=num_rows)
    return pd.DataFrame({"y": y, "x": x, "z": z, "group": group})


def forward(y, initial, means, sigma, matrices) -> tuple[np.ndarray, float]:
    """Filtered probabilities and log p(y), by the forward recursion in log space.

    :param means: ``(T, K)``; matrices: ``(T - 1, K, K)``; NaN in y is a missing response.
    """
    density = np.where(np.isnan(y)[:, None], 0.0, norm.logpdf(y[:, None], means, sigma))
    with np.errstate(divide="ignore"):
        state = np.log(initial) + density[0]
        rows = [state]
        for density_t, matrix in zip(density[1:], np.log(matrices), strict=True):
            state = logsumexp(state[:, None] + matrix, axis=0) + density_t
            rows.append(state)
    filtered = np.array(rows)
    filtered -= logsumexp(filtered, axis=-1, keepdims=True)
    return np.exp(filtered), float(logsumexp(state))


def softmax(logits) -> np.ndarray:
    return np.exp(logits - logsumexp(logits, axis=-1, keepdims=True))
