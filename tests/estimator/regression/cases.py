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
    """Filtered probabilities and log p(y), by the forward recursion.

    :param means: ``(T, K)``; matrices: ``(T - 1, K, K)``; NaN in y is a missing response.
    """
    density = np.where(np.isnan(y)[:, None], 0.0, norm.logpdf(y[:, None], means, sigma))
    return forward_of(density, initial, matrices)


def forward_of(density, initial, matrices) -> tuple[np.ndarray, float]:
    """The same of log densities ``(T, K)``, by a recursion that is scaled in each row."""
    most = density.max(-1)
    state, value, rows = np.asarray(initial), float(most.sum()), []
    for t, each in enumerate(np.exp(density - most[:, None])):
        state = (state @ matrices[t - 1] if t else state) * each
        total = state.sum()
        state, value = state / total, value + np.log(total)
        rows.append(state)
    return np.array(rows), value


def softmax(logits) -> np.ndarray:
    return np.exp(logits - logsumexp(logits, axis=-1, keepdims=True))
