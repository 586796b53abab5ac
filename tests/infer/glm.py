"""Generalised linear models by iteratively reweighted least squares, from textbook formulas."""

from __future__ import annotations

from typing import Callable, NamedTuple

import numpy as np
from scipy.special import expit, ndtr

Array = np.ndarray


class Link(NamedTuple):
    """A distribution with its link, as functions of the linear predictor."""

    mean: Callable[[Array], Array]
    slope: Callable[[Array], Array]  #: of the mean in the predictor
    variance: Callable[[Array], Array]  #: of the mean, up to a constant


def _density(eta: Array) -> Array:
    return np.exp(-0.5 * eta**2) / np.sqrt(2 * np.pi)


POISSON = Link(np.exp, np.exp, lambda mean: mean)
GAMMA = Link(np.exp, np.exp, lambda mean: mean**2)
LOGIT = Link(expit, lambda eta: expit(eta) * expit(-eta), lambda mean: mean * (1 - mean))
PROBIT = Link(ndtr, _density, lambda mean: mean * (1 - mean))


def irls(
    design: Array,
    target: Array,
    weights: Array,
    link: Link,
    start: Array,
    offset: Array | float = 0.0,
) -> Array:
    """The coefficients, by least squares of the working responses (McCullagh and Nelder 1989).

    :param design: ``(T, P)``; target and weights: ``(T,)``; start: ``(P,)``.
    """
    beta = start
    for _ in range(500):
        eta = design @ beta + offset
        mean, slope = link.mean(eta), link.slope(eta)
        working = eta - offset + (target - mean) / slope
        root = np.sqrt(weights * slope**2 / link.variance(mean))
        new = np.linalg.lstsq(root[:, None] * design, root * working, rcond=None)[0]
        if np.abs(new - beta).max() < 1e-13 * (1 + np.abs(new).max()):
            return new
        beta = new
    raise AssertionError("IRLS has not converged")
