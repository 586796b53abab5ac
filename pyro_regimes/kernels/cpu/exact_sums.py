r"""Sums of logits without rounding, for the recursions in log space.

The sum of a logit of -1e16 and one of :math:`\log 0.3` in float64 loses the second. If later data
cancel the first (:math:`-10^{16}` for the other state), the second decides. So a number here is a
row of an array, whose first entry is its value rounded to float64:

- **a pair**, a row of 2: the value and its rounding error. This has 106 bits, which is enough for
  numbers below about 1e12 (:func:`width_of`).
- **a list of parts**, longer rows ``(value, count, parts ...)``: the exact sum, as parts of
  increasing size whose bits do not overlap (Shewchuk 1997, as in ``math.fsum``). Parts below
  ``_NOTHING`` are dropped, because they are negligible next to a logarithm.

Sums beyond float64's largest number, 1.8e308, count as infinite: -inf is probability zero, and +inf
makes NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.jit import compiled

#: The width of a pair.
PAIR = 2

_NOTHING = 1e-30
_LEAST_BITS = 100  # that a list of parts keeps after the point


@compiled
def width_of(reach: float, steps: int) -> int:
    """The width of rows for sums over ``steps`` steps, none of them larger than ``reach``.

    The rounding of a pair, 2^-106 of its value at every step, may add up to 2^-46.
    """
    if not reach * steps > 2.0**60:
        return PAIR
    # A part holds 53 bits; there are fewer than that in most, so that some room is left.
    return 2 + 2 * int((math.log2(reach) + _LEAST_BITS) / 53.0 + 2.0)


@compiled
def clear(out: Any) -> None:
    """``out = 0``"""
    out[0] = 0.0
    out[1] = 0.0


@compiled
def put(out: Any, value: float) -> None:
    """``out = value``, an infinity or NaN."""
    out[0] = value
    out[1] = 0.0


@compiled
def plus(out: Any, x: Any, term: float) -> None:
    """``out = x + term``; ``out`` may be ``x``."""
    value = x[0] + term
    if not value - value == 0.0:  # an infinity or NaN
        put(out, value)
    elif len(out) == 2:
        back = value - x[0]
        rest = x[1] + ((x[0] - (value - back)) + (term - back))
        out[0] = value + rest
        out[1] = rest - (out[0] - value)
    else:
        _add_part(out, x, term)


@compiled
def _add_part(out: Any, x: Any, term: float) -> None:
    kept, old = 0, int(x[1])
    for part in range(old):
        other = x[2 + part]
        if abs(term) < abs(other):
            term, other = other, term
        high = term + other
        low = other - (high - term)
        if abs(low) > _NOTHING:
            out[2 + kept] = low
            kept += 1
        term = high
    if 2 + kept == len(out):  # no room is left: the smallest part goes
        for part in range(kept - 1):
            out[2 + part] = out[3 + part]
        kept -= 1
    out[2 + kept] = term
    kept += 1
    value = 0.0
    for part in range(kept):
        value += out[2 + part]
    out[0] = value
    out[1] = kept


@compiled
def difference(x: Any, y: Any, room: Any) -> float:
    """``x - y``, rounded once.

    :param room: a row of the same width, which is overwritten.
    """
    value = x[0] - y[0]
    if not value - value == 0.0:  # an infinity or NaN
        return float(value)
    if len(x) == 2:
        return float(value + (x[1] - y[1]))
    for entry in range(2 + int(x[1])):
        room[entry] = x[entry]
    for part in range(int(y[1])):
        plus(room, room, -y[2 + part])
    return float(room[0])


@compiled
def shares_of(rows: Any, shares: Any, room: Any) -> int:
    """``shares_k = exp(rows_k - largest)``, 0 for -inf.

    :return: which row is the largest, the first of equal ones; -1 if all are -inf. Where one is
        NaN it is that one, and its share is NaN.
    """
    best = -1
    for k in range(len(rows)):
        value = rows[k, 0]
        if value == -np.inf:
            continue
        if best < 0 or value != value:
            best = k
        elif difference(rows[k], rows[best], room) > 0.0:
            best = k
    for k in range(len(rows)):
        shares[k] = 0.0
        if rows[k, 0] > -np.inf or rows[k, 0] != rows[k, 0]:
            shares[k] = math.exp(difference(rows[k], rows[best], room))
    return best


@compiled
def arrive_in_pairs(before: Any, slice_: Any, new: int, terms: Any, shares: Any) -> int:
    """:func:`plus` of each row and an entry of a column, and :func:`shares_of` of these.

    Recursions in log space spend their time here.
    """
    best, top, top_rest = -1, -np.inf, 0.0
    for old in range(len(terms)):
        base, term = before[old, 0], float(slice_[old, new])
        value = base + term
        back = value - base
        rest = before[old, 1] + ((base - (value - back)) + (term - back))
        high = value + rest
        low = rest - (high - value)
        if not value - value == 0.0:  # an infinity or NaN
            high, low = value, 0.0
        terms[old, 0] = high
        terms[old, 1] = low
        if high > top or (high == top and low > top_rest) or high != high:
            if top == top:  # the first NaN stays
                best, top, top_rest = old, high, low
    for old in range(len(terms)):
        shares[old] = math.exp((terms[old, 0] - top) + (terms[old, 1] - top_rest))
    if best < 0:
        shares[:] = 0.0
    return best
