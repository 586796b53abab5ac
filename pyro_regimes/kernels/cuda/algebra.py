"""Common functions of the Triton kernels: sums over states, normalisation, one forward step.

Every kernel works on tiles ``(KP, ..., B)``: KP states, that is K padded to a power of two, by B
*lanes*, each of which is a stretch of one sequence. Lanes come last, so that for few states each
thread holds all states of its lane and a sum over states stays within the thread; with B = 1 the
same code spreads the states over the threads.

Arithmetic is float64 for inputs of any dtype. For few states the sweeps are limited by memory.
With float64 (which data centre GPUs have in hardware) the fast recursion loses mass at 1e-308
instead of 1e-38, so that few sequences have to be recomputed.

``LOG`` selects one of two representations of a nonnegative number: the number itself, with sums and
products, or its logarithm, with log-sum-exp and sums. The first is fast, the second cannot
underflow.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

NEG_INF: tl.constexpr = tl.constexpr(float("-inf"))
LOG_TWO: tl.constexpr = tl.constexpr(0.6931471805599453)
# Scaled numbers below this have lost digits, or are about to.
LEAST: tl.constexpr = tl.constexpr(1e-300)
# With every scaled transition at least this, mass lost to underflow weighs at most 1e-308 / 1e-200
# of what is kept: two steps join any state to any other.
MIXING: tl.constexpr = tl.constexpr(1e-100)


@triton.jit
def finite(peak):
    """What to subtract so that -inf stays -inf instead of becoming NaN."""
    return tl.where(peak == NEG_INF, 0.0, peak)


@triton.jit
def safe_log(value):
    """The logarithm, -inf at 0."""
    return tl.where(value == 0.0, NEG_INF, tl.log(tl.where(value == 0.0, 1.0, value)))


@triton.jit
def times(left, right, LOG: tl.constexpr):
    """The product."""
    if LOG:
        product = left + right
    else:
        product = left * right
    return product


@triton.jit
def total(terms, axis: tl.constexpr, LOG: tl.constexpr):
    """The sum over ``axis``."""
    if LOG:
        peak = finite(tl.max(terms, axis))
        result = peak + safe_log(tl.sum(tl.exp(terms - tl.expand_dims(peak, axis)), axis))
    else:
        result = tl.sum(terms, axis)
    return result


@triton.jit
def normalise(x, LOG: tl.constexpr):
    """Take the size of the largest entry of dim 0 out; return the rest, and the size's logarithm.

    Scaled numbers are divided by a power of two, read off the largest entry's exponent bits: that
    is exact and needs neither a division nor a logarithm. The largest is in [1, 2) afterwards.
    """
    peak = tl.max(x, 0)
    if LOG:
        shift = finite(peak)
        x = x - tl.expand_dims(shift, 0)
    else:
        exponent = (peak.to(tl.int64, bitcast=True) >> 52) & 0x7FF
        factor = ((2046 - exponent) << 52).to(tl.float64, bitcast=True)
        x = x * tl.expand_dims(factor, 0)
        shift = (exponent - 1023).to(tl.float64) * LOG_TWO
    return x, shift


@triton.jit
def vector_offset(offset, unit, K: tl.constexpr, KP: tl.constexpr):
    """Where K neighbouring numbers of each lane lie, as ``(KP, B)``.

    The compiler shapes all of a kernel's tiles after how addresses follow one another. Multiplying
    by ``unit``, a 1 that it cannot see to be one, keeps lanes along threads. Where a thread's own
    states are one aligned load (K = 2 or 4), both agree.
    """
    state = tl.arange(0, KP)[:, None]
    if K != KP or KP > 4:
        state = state * unit
    return offset[None, :] + state


@triton.jit
def square_offset(offset, unit, K: tl.constexpr, KP: tl.constexpr):
    """Where a K by K matrix (old, new) of each lane lies, as ``(KP, KP, B)``."""
    old = tl.arange(0, KP)[:, None, None]
    new = tl.arange(0, KP)[None, :, None]
    return offset[None, None, :] + (old * K + new) * unit


@triton.jit
def square_mask(mask, K: tl.constexpr, KP: tl.constexpr):
    """Which entries of K by K matrices exist, as ``(KP, KP, B)``."""
    old = tl.arange(0, KP)[:, None, None]
    new = tl.arange(0, KP)[None, :, None]
    return (old < K) & (new < K) & mask[None, None, :]


@triton.jit
def load_vector(pointer, offset, mask, unit, K: tl.constexpr, KP: tl.constexpr):
    """K logits of each lane as ``(KP, B)``; -inf on padding and where ``mask`` is false."""
    inside = (tl.arange(0, KP)[:, None] < K) & mask[None, :]
    where = vector_offset(offset, unit, K, KP)
    return tl.load(pointer + where, mask=inside, other=NEG_INF).to(tl.float64)


@triton.jit
def load_transition(
    pointer, offset, mask, unit, K: tl.constexpr, KP: tl.constexpr, LOG: tl.constexpr
):
    """K by K transition logits of each lane, (old, new), as numbers of this algebra.

    :return: the numbers ``(KP, KP, B)``; the logarithm of what they were divided by ``(B,)``; and
        whether an entry is so small that underflow has to be watched for ``(B,)``.
    """
    inside = square_mask(mask, K, KP)
    where = square_offset(offset, unit, K, KP)
    a = tl.load(pointer + where, mask=inside, other=NEG_INF).to(tl.float64)
    shift = finite(tl.max(tl.max(a, 0), 0))
    a = a - shift[None, None, :]
    watch = mask
    if not LOG:
        weight = tl.exp(a)
        # A move of however small a probability stays one: only -inf is a zero here.
        weight = tl.where(weight < LEAST, LEAST, weight)
        a = tl.where(a == NEG_INF, 0.0, weight)
        small = (inside & (a < MIXING)).to(tl.int32)
        watch = tl.max(tl.max(small, 0), 0) > 0
    return a, shift, watch


@triton.jit
def emission(b, LOG: tl.constexpr):
    """Observation logits ``(KP, B)`` as numbers, and the logarithm of their divisor ``(B,)``."""
    shift = finite(tl.max(b, 0))
    b = b - shift[None, :]
    if LOG:
        e = b
    else:
        e = tl.exp(b)
    return e, shift


@triton.jit
def forward_step(x, lost, a, watch, b, moves, valid, LOG: tl.constexpr, DOT: tl.constexpr):
    """:math:`x_j \\leftarrow e_j \\sum_i x_i A_{ij}`, normalised, for R rows of each lane.

    :param x: ``(KP, R, B)``.
    :param lost: ``(KP, R, B)``; becomes true where a state that can be reached has faded away.
    :param a: ``(KP, KP, B)``, in scaled numbers.
    :param watch: whether to look for such states.
    :param b: ``(KP, B)`` logits.
    :param moves: ``(B,)``; where false the step has an observation but no transition before it.
    :param valid: ``(B,)``; where false nothing happens.
    :param DOT: multiply matrices: R = KP rows, one lane.
    :return: x, lost, and what was taken out of x as a logarithm ``(R, B)``.
    """
    KP: tl.constexpr = x.shape[0]
    if DOT:
        arrows = tl.trans(tl.reshape(a, (KP, KP)))
        rows = tl.reshape(x, (KP, KP))
        moved = tl.dot(arrows, rows, input_precision="ieee", out_dtype=tl.float64)
        moved = tl.reshape(moved, (KP, KP, 1))
    else:
        moved = total(times(x[:, None, :, :], a[:, :, None, :], LOG), 0, LOG)
    moved = tl.where(moves[None, None, :], moved, x)
    e, shift = emission(b, LOG)
    raw = times(moved, e[:, None, :], LOG)
    new, size = normalise(raw, LOG)
    if not LOG:
        if watch:
            if DOT:
                arrows16 = tl.trans(tl.reshape(a > 0, (KP, KP))).to(tl.float16)
                rows16 = tl.reshape(x > 0, (KP, KP)).to(tl.float16)
                count = tl.reshape(tl.dot(arrows16, rows16), (KP, KP, 1))
            else:
                arrow = (a > 0)[:, :, None, :] & (x > 0)[:, None, :, :]
                count = tl.max(arrow.to(tl.int32), 0).to(tl.float32)
            reached = tl.where(moves[None, None, :], count > 0, x > 0)
            faded = (raw < LEAST) | (new < LEAST)
            lost = lost | (reached & (b > NEG_INF)[:, None, :] & faded & valid[None, None, :])
    x = tl.where(valid[None, None, :], new, x)
    return x, lost, tl.where(valid[None, :], shift[None, :] + size, 0.0)
