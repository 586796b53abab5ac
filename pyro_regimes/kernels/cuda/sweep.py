"""The forward and backward sweep of a block of time between known boundaries."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from pyro_regimes.kernels.cuda.algebra import (
    LEAST,
    NEG_INF,
    emission,
    finite,
    forward_step,
    load_transition,
    load_vector,
    normalise,
    safe_log,
    square_mask,
    square_offset,
    times,
    total,
    vector_offset,
)


@triton.jit
def shares(terms, axis: tl.constexpr):
    """:math:`e^x / \\sum e^x` along an axis; 0 where every term is -inf.

    The quotient of exponentials and not the exponential of a difference: the logarithm of the sum
    may be lost beside the largest term.
    """
    size = tl.exp(terms - tl.expand_dims(finite(tl.max(terms, axis)), axis))
    whole = tl.sum(size, axis)
    return size / tl.expand_dims(tl.where(whole == 0.0, 1.0, whole), axis)


@triton.jit
def smooth(alpha, beta, LOG: tl.constexpr):
    """:math:`\\gamma`, ``alpha / S``, and the overlap :math:`S = \\sum_k \\alpha(k) \\beta(k)`.

    In logarithms ``alpha / S`` and the overlap are not needed and not computed.
    """
    if LOG:
        gamma = shares(alpha + beta, 0)
        weight = alpha
        overlap = tl.max(alpha, 0)
    else:
        overlap = total(alpha * beta, 0, False)
        none = overlap < LEAST  # an impossible sequence, or one to be redone
        weight = alpha * tl.where(none, 0.0, 1.0 / tl.where(none, 1.0, overlap))
        gamma = weight * beta
    return gamma, weight, overlap


@triton.jit
def pair(gamma, weight, a, v, moves, LOG: tl.constexpr):
    """:math:`\\xi(i, j) = \\alpha(i) A_{ij} v(j) / S`, 0 where there is no move.

    In logarithms it is :math:`\\gamma(i)` times the shares of :math:`A_{ij} v(j)`, so that its sums
    over the new states are gamma however large the logits.
    """
    if LOG:
        xi = gamma[:, None, :] * shares(a + v[None, :, :], 1)
    else:
        xi = weight[:, None, :] * a * v[None, :, :]
    return tl.where(moves[None, None, :], xi, 0.0)


@triton.jit
def sweep_kernel(
    smoothed_ptr,  # out: (N, T, K)
    moved_ptr,  # out: (lanes, K, K), or (N, T-1, K, K) where A varies in time
    log_likelihood_ptr,  # out (in where there are several blocks): (N,)
    flags_ptr,  # (N,) int32
    alphas_ptr,  # scratch: (L, K, lanes)
    entries_ptr,  # (lanes, K): log alpha before each block; for the first block, initial logits
    exits_ptr,  # (lanes, K): log beta after each block; None: a sequence is one block
    transition_ptr,
    observation_ptr,  # (N, T, K)
    lengths_ptr,  # (N,) int64, or None
    num_lanes,
    num_blocks,
    block_size,
    num_steps,
    entry_stride,
    transition_stride_n,
    transition_stride_t,  # None: A does not vary in time
    least_overlap,
    K: tl.constexpr,
    KP: tl.constexpr,
    LANES: tl.constexpr,
    LOG: tl.constexpr,
    REDO: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Filter each block forwards, then smooth it backwards.

    .. math::
        \\beta_t(i) = \\sum_j A_{ij} v_{t+1}(j), \\quad v_t = e_t \\beta_t, \\quad
        S_t = \\sum_k \\alpha_t(k) \\beta_t(k), \\quad
        \\gamma_t = \\alpha_t \\beta_t / S_t, \\quad
        \\xi_t(i, j) = \\alpha_t(i) A_{ij} v_{t+1}(j) / S_t.

    Each vector has its own normaliser, which cancels in the quotients.
    """
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    n = lane // num_blocks
    inside = lane < num_lanes
    if REDO:
        inside = inside & (tl.load(flags_ptr + n, mask=inside, other=0) != 0)
    if tl.max(inside.to(tl.int32)) == 0:
        return
    length = tl.full((LANES,), 0, tl.int64) + num_steps
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + n, mask=inside, other=0)
    start = (lane % num_blocks) * block_size
    state = tl.arange(0, KP)[:, None]
    unit = tl.minimum(num_steps, 1)

    VARYING: tl.constexpr = transition_stride_t is not None
    at = n * transition_stride_n
    a, a_shift, watch = load_transition(transition_ptr, at, inside & (length > 1), unit, K, KP, LOG)
    if VARYING:
        watch = inside  # whether a loss matters depends on later moves, which are not yet known
    anyone = tl.max(watch.to(tl.int32)) > 0

    # Forwards. The first observation joins the initial logits before either is exponentiated: they
    # may lie far apart, and no transition has mixed them.
    opening = inside & (start == 0)
    first = (n * num_steps + start) * K
    b = load_vector(observation_ptr, first, inside & (start < length), unit, K, KP)
    entry = load_vector(entries_ptr, lane * entry_stride, inside, unit, K, KP)
    entry, shift = normalise(entry + tl.where(opening[None, :], b, 0.0), True)
    b = tl.where(opening[None, :], 0.0, b)
    x = entry[:, None, :]
    lost = tl.zeros((KP, 1, LANES), tl.int1)
    if not LOG:
        x = tl.exp(x)
        if anyone:
            lost = lost | ((entry > NEG_INF)[:, None, :] & (x < LEAST))
    if BACKWARD:
        scratch = alphas_ptr + state.to(tl.int64) * num_lanes + lane[None, :]
    for step in range(0, block_size):
        t = start + step
        valid = inside & (t < length)
        moves = t > 0
        later = inside & (t + 1 < length)
        ahead = load_vector(observation_ptr, (n * num_steps + t + 1) * K, later, unit, K, KP)
        if VARYING:
            move = at + (t - 1) * transition_stride_t
            a, a_shift, _ = load_transition(transition_ptr, move, valid & moves, unit, K, KP, LOG)
        x, lost, more = forward_step(x, lost, a, anyone, b, moves, valid, LOG, False)
        shift += tl.sum(more, 0) + tl.where(valid & moves, a_shift, 0.0)
        if BACKWARD:
            # Lanes come last here too, so that neighbouring threads write neighbouring numbers.
            slot = (t - start) * num_lanes * K
            tl.store(scratch + slot[None, :], tl.sum(x, 1), mask=(state < K) & inside[None, :])
        b = ahead

    lane_lost = tl.where(watch, tl.max(tl.max(lost.to(tl.int32), 0), 0), 0)
    if exits_ptr is None:
        value = total(tl.sum(x, 1), 0, LOG)
        if not LOG:
            value = safe_log(value)
        value += shift
        tl.store(log_likelihood_ptr + n, value, mask=inside)
    else:
        value = tl.load(log_likelihood_ptr + n, mask=inside, other=NEG_INF).to(tl.float64)

    # Backwards.
    if BACKWARD:
        tl.debug_barrier()  # one thread may have stored the alphas that another loads
        v = tl.full((KP, LANES), 0.0, tl.float64)
        if exits_ptr is not None:
            v = load_vector(exits_ptr, lane * K, inside, unit, K, KP)
        if not LOG:
            v = tl.exp(v)
        v = tl.where(state < K, v, NEG_INF if LOG else 0.0)
        moves = lane < 0
        xi_sum = tl.full((KP, KP, LANES), 0.0, tl.float64)
        for back in range(0, block_size):
            step = block_size - 1 - back
            t = start + step
            valid = inside & (t < length)
            place = (n * num_steps + t) * K
            slot = (t - start) * num_lanes * K
            alpha = tl.load(
                scratch + slot[None, :],
                mask=(state < K) & valid[None, :],
                other=NEG_INF if LOG else 0.0,
            ).to(tl.float64)
            b = load_vector(observation_ptr, place, valid, unit, K, KP)
            if VARYING:
                move = at + t * transition_stride_t
                a, _, _ = load_transition(transition_ptr, move, moves, unit, K, KP, LOG)
            pushed = total(times(a, v[None, :, :], LOG), 1, LOG)
            beta = tl.where(moves[None, :], pushed, v)
            gamma, weight, overlap = smooth(alpha, beta, LOG)
            if not LOG:
                small = valid & (overlap < least_overlap) & (value > NEG_INF)
                lane_lost = tl.where(small, 1, lane_lost)
            gamma = tl.where(valid[None, :], gamma, 0.0)
            target = smoothed_ptr + vector_offset(place, unit, K, KP)
            tl.store(target, gamma, mask=(state < K) & (inside & (t < num_steps))[None, :])
            xi = pair(gamma, weight, a, v, moves, LOG)
            if VARYING:
                written = inside & (t + 1 < num_steps) & (t + 1 < start + block_size)
                place = (n * (num_steps - 1) + t) * K * K
                target = moved_ptr + square_offset(place, unit, K, KP)
                tl.store(target, xi, mask=square_mask(written, K, KP))
            else:
                xi_sum += xi
            e, _ = emission(b, LOG)
            v, _ = normalise(tl.where(valid[None, :], times(e, beta, LOG), beta), LOG)
            moves = valid

        # The move into the block's first step, from the state it was entered with.
        if exits_ptr is not None:
            moves = moves & (start > 0)
            entry = load_vector(entries_ptr, lane * entry_stride, inside, unit, K, KP)
            alpha, _ = normalise(entry, True)
            if not LOG:
                alpha = tl.exp(alpha)
            if VARYING:
                move = at + (start - 1) * transition_stride_t
                a, _, _ = load_transition(transition_ptr, move, moves, unit, K, KP, LOG)
            pushed = total(times(a, v[None, :, :], LOG), 1, LOG)
            gamma, weight, overlap = smooth(alpha, pushed, LOG)
            if not LOG:
                small = moves & (overlap < least_overlap) & (value > NEG_INF)
                lane_lost = tl.where(small, 1, lane_lost)
            xi = pair(gamma, weight, a, v, moves, LOG)
            if VARYING:
                written = inside & (start > 0) & (start < num_steps)
                place = (n * (num_steps - 1) + start - 1) * K * K
                target = moved_ptr + square_offset(place, unit, K, KP)
                tl.store(target, xi, mask=square_mask(written, K, KP))
            else:
                xi_sum += xi
        if not VARYING:
            target = moved_ptr + square_offset(lane * K * K, unit, K, KP)
            tl.store(target, xi_sum, mask=square_mask(inside, K, KP))

    if not LOG:
        tl.store(flags_ptr + n, 1, mask=inside & (lane_lost > 0))
