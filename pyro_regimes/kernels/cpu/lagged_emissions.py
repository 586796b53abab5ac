r"""The emissions of :mod:`.cpu.lagged_vectors`, from logits or from a normal density.

With :math:`a_k = x_t - \sum_j \phi_{kj} x_{t-j}` and the centre :math:`h_{ok} + l_{mk}` of a tuple
(o, m, k), of which o has the older lags and m the others,

.. math::
    -\frac{(a_k - h_{ok} - l_{mk})^2}{2 \sigma_k^2} = -\frac{(a_k - l_{mk})^2}{2 \sigma_k^2}
    + \frac{a_k h_{ok} - h_{ok}^2 / 2}{\sigma_k^2} - \frac{l_{mk} h_{ok}}{\sigma_k^2}.

The first term has no o, the second no m, and the last is the same at each step. So E is a product
of three numbers, and a step takes fewer exponentials than it has tuples. The second term is at most
:math:`|a_k| \max_o |h_{ok}| / \sigma_k^2`, which is moved to the first, so that no factor is larger
than 1. The caller sees to it that the last is neither large nor small.

The exponentials of many steps are computed at once, because one takes longer than the processor
looks ahead.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from pyro_regimes.kernels.cpu import simd
from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.scales import add

LARGEST_JOINT = 100.0  #: of the logarithm of E's constant factor


class Constants(NamedTuple):
    r"""Arrays of the constants of one sequence; :math:`h^*_k = \max_o |h_{ok}|`."""

    lags: Any  # (p + 2, K): phi, mu and the level from which mu and x are measured
    low: Any  # (4, L), of (m, k): l, 1 / sigma sqrt 2, h* / sigma^2, -log(sigma sqrt(2 pi))
    high: Any  # (3, H), of (o, k): h / sigma^2, h* / sigma^2, h^2 / 2 sigma^2
    joint: Any  # (S,): exp(-l h / sigma^2)


@compiled
def _lag_terms(loc: Any, phi: Any, first: int, last: int, middle: float, k: int, m: int) -> float:
    """The part of a centre that is due to some lags, of which the last varies fastest in m."""
    found = 0.0
    for lag in range(last, first - 1, -1):
        found -= phi[lag] * (loc[(m // len(loc) ** (lag - first)) % len(loc)] - middle)
    return found


@compiled
def set_constants(loc: Any, coefficients: Any, scale: Any, out: Any) -> bool:
    """Fill ``out``.

    :param loc: (K,).
    :param coefficients: (1 or K, p).
    :param scale: (1 or K,).
    :return: whether the constant factors are neither large nor small.
    """
    num_states, order = len(loc), coefficients.shape[1]
    lows, highs = out.low.shape[1], out.high.shape[1]
    middle = 0.5 * (np.max(loc) + np.min(loc))
    near = 0  # lags of (m, k)
    while num_states ** (near + 1) < lows:
        near += 1
    for k in range(num_states):
        phi, sigma = coefficients[k % len(coefficients)], scale[k % len(scale)]
        variance, most = sigma * sigma, 0.0
        out.lags[:order, k] = phi
        out.lags[order, k] = loc[k] - middle
        out.lags[order + 1, k] = middle
        for o in range(highs // num_states):
            term = _lag_terms(loc, phi, near, order - 1, middle, k, o)
            most = max(most, abs(term))
            out.high[0, o * num_states + k] = term / variance
            out.high[2, o * num_states + k] = 0.5 * term * term / variance
        out.high[1, k::num_states] = most / variance
        out.low[1, k::num_states] = 1.0 / (sigma * math.sqrt(2.0))
        out.low[2, k::num_states] = most / variance
        out.low[3, k::num_states] = -math.log(sigma * math.sqrt(2.0 * math.pi))
        for m in range(lows // num_states):
            out.low[0, m * num_states + k] = _lag_terms(loc, phi, 0, near - 1, middle, k, m)
    largest = 0.0
    for s in range(len(out.joint)):
        o = s // lows * num_states + s % num_states
        logit = -out.low[0, s % lows] * out.high[0, o]
        largest = max(largest, abs(logit))
        out.joint[s] = math.exp(logit)
    return largest < LARGEST_JOINT


@compiled
def set_for(normal: Any, n: int, out: Any) -> bool:
    """:func:`set_constants` for one sequence, with arrays of all; True if there are none."""
    if normal is None:
        return True
    loc, coefficients, scale = normal
    return set_constants(
        loc[n % len(loc)], coefficients[n % len(coefficients)], scale[n % len(scale)], out
    )


@compiled
def load_constants(normal: Any, constants: Any, widths: Any) -> Any:
    """The constants as vectors, or None."""
    if normal is None:
        return None
    low, high = constants.low.reshape(-1), constants.high.reshape(-1)
    lags, order = constants.lags.reshape(-1), len(constants.lags) - 2
    lows, highs = simd.width_of(widths.low), simd.width_of(widths.high)
    return (
        lags,
        simd.load(lags, order * simd.width_of(widths.state), widths.state),
        simd.load(low, 0, widths.low),
        simd.load(low, lows, widths.low),
        simd.load(low, 2 * lows, widths.low),
        simd.load(low, 3 * lows, widths.low),
        simd.load(high, 0, widths.high),
        simd.load(high, highs, widths.high),
        simd.load(high, 2 * highs, widths.high),
    )


@compiled
def size_of(constants: Any, widths: Any) -> int:
    """The numbers that are kept of E at each step."""
    if constants is None:
        return simd.width_of(widths.tuples)
    return simd.width_of(widths.low) + simd.width_of(widths.high)


@compiled
def load(kept: Any, row: int, constants: Any, widths: Any) -> Any:
    """E of a row, without its constant factor."""
    ones = widths.tuples
    if constants is None:
        return simd.load(kept, row * simd.width_of(ones), ones)
    lows = simd.width_of(widths.low)
    at = row * (lows + simd.width_of(widths.high))
    low = simd.repeat_all(simd.load(kept, at, widths.low), ones)
    high = simd.load(kept, at + lows, widths.high)
    return simd.multiply(low, simd.repeat_parts(high, widths.state, ones))


@compiled
def _logits(data: Any, t: int, kept: Any, row: int, constants: Any, widths: Any) -> float:
    """Write logarithms of what is kept of E; return the largest of E, which is subtracted."""
    if constants is None:
        width = simd.width_of(widths.tuples)
        logits = simd.load(data, t * width, widths.tuples)
        best = simd.largest(logits)
        simd.store(kept, row * width, simd.subtract(logits, simd.splat(best, widths.tuples)))
        return best
    lags, offset, centre, rate, bound, bias, slope, high_bound, square = constants
    order, level = len(lags) // simd.width_of(widths.state) - 2, lags[len(lags) - 1]
    ahead = simd.subtract(simd.splat(data[t + order] - level, widths.state), offset)
    for lag in range(order):
        phi = simd.load(lags, lag * simd.width_of(widths.state), widths.state)
        past = simd.splat(level - data[t + order - 1 - lag], widths.state)
        ahead = simd.multiply_add(phi, past, ahead)
    here = simd.repeat_all(ahead, widths.low)
    distance = simd.multiply(simd.subtract(here, centre), rate)
    logits = simd.multiply_add(simd.absolute(here), bound, bias)
    logits = simd.subtract(logits, simd.multiply(distance, distance))
    best = simd.largest(logits)
    at, lows = row * size_of(constants, widths), simd.width_of(widths.low)
    simd.store(kept, at, simd.subtract(logits, simd.splat(best, widths.low)))
    here = simd.repeat_all(ahead, widths.high)
    less = simd.multiply_add(simd.absolute(here), high_bound, square)
    simd.store(kept, at + lows, simd.subtract(simd.multiply(here, slope), less))
    return best


@compiled
def fill(
    data: Any,
    begin: int,
    end: int,
    kept: Any,
    row: int,
    constants: Any,
    widths: Any,
) -> tuple[float, float, float]:
    """Keep E of the steps from ``begin`` to ``end``, in rows from ``row`` on.

    :param data: logits (T S,), or with constants the series, (p + T,).
    :return: the sum of the logarithms that were subtracted, what rounding has taken from it, and
        the largest absolute value.
    """
    total, rest, extreme = 0.0, 0.0, 0.0
    for t in range(begin, end):
        best = _logits(data, t, kept, row + t - begin, constants, widths)
        extreme = max(extreme, abs(best))
        total, rest = add(total, rest, best)
    size = size_of(constants, widths)
    first, last = row * size, (row + end - begin) * size
    exponentiate(kept, first, last, widths)
    return total, rest, extreme


@compiled
def exponentiate(kept: Any, first: int, last: int, widths: Any) -> None:
    """Exponentials in place, as many at once as possible; K divides their number."""
    lanes, few = simd.width_of(widths.wide), simd.width_of(widths.state)
    while first + lanes <= last:
        simd.store(kept, first, simd.exp(simd.load(kept, first, widths.wide)))
        first += lanes
    while first < last:
        simd.store(kept, first, simd.exp(simd.load(kept, first, widths.state)))
        first += few


@compiled
def moves_of(logits: Any, out: Any, least: float, widths: Any) -> tuple[float, float, float, bool]:
    """Fill ``out`` with M of all steps, (m K^2,) as the logits.

    :return: as :func:`fill`, and whether no possible move has M below ``least``.
    """
    pair, total, rest, extreme, sound = widths.pair, 0.0, 0.0, 0.0, True
    size, smallest = simd.width_of(pair), simd.splat(least, widths.pair)
    for at in range(0, len(logits), size):
        row = simd.load(logits, at, pair)
        best = simd.largest(row)
        probs = simd.exp(simd.subtract(row, simd.splat(best, pair)))
        extreme = max(extreme, abs(best))
        total, rest = add(total, rest, best)
        simd.store(out, at, probs)
        if simd.any_less(probs, smallest):
            for s in range(at, at + size):
                sound = sound and not (out[s] < least and logits[s] > -np.inf)
    return total, rest, extreme, sound and extreme < np.inf
