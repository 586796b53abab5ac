"""Boundaries of blocks: transfer matrices of all blocks in parallel, then a scan over blocks.

The matrix of a block of time holds, for each state i before and j after it, the logarithm of the
weight of all paths through the block from i to j. The scan stays in log space: there are only a few
blocks, and in chains that never mix the weights differ by thousands of nats.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from pyro_regimes.kernels.cuda.algebra import (
    NEG_INF,
    finite,
    forward_step,
    load_transition,
    load_vector,
    normalise,
    safe_log,
    total,
    vector_offset,
)


@triton.jit
def transfer_kernel(
    matrices_ptr,  # out: (lanes, K, K) float64
    flags_ptr,  # (N,) int32
    transition_ptr,
    observation_ptr,  # (N, T, K), or None: nothing but moves
    lengths_ptr,  # (N,) int64, or None
    num_lanes,
    num_blocks,
    block_size,
    num_steps,
    transition_stride_n,
    transition_stride_t,
    K: tl.constexpr,
    KP: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    LOG: tl.constexpr,
    DOT: tl.constexpr,
    REDO: tl.constexpr,  # only sequences that are flagged
):
    """The transfer matrix of each block: :math:`\\prod_t A_{t-1} \\, \\mathrm{diag}(e^{b_t})`.

    Each row is the forward recursion from one state, and has its own normaliser. With observations,
    step 0 has no transition before it. Without observations, every step is a transition.
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
    unit = tl.minimum(num_steps, 1)

    state = tl.arange(0, KP)[:, None, None]
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[None, :, None]
    one = tl.where((state == row) & (lane >= 0)[None, None, :], 1.0, 0.0).to(tl.float64)
    x = one
    if LOG:
        x = tl.where(one > 0, 0.0, NEG_INF).to(tl.float64)
    lost = tl.zeros((KP, ROWS, LANES), tl.int1)
    shift = tl.full((ROWS, LANES), 0.0, tl.float64)
    at = n * transition_stride_n
    FIRST: tl.constexpr = 1 if observation_ptr is not None else 0  # the first step that has a move
    VARYING: tl.constexpr = transition_stride_t is not None
    some = inside & (length > FIRST)
    a, a_shift, watch = load_transition(transition_ptr, at, some, unit, K, KP, LOG)
    if VARYING:
        watch = inside  # whether a loss matters depends on later moves, which are not yet known
    anyone = tl.max(watch.to(tl.int32)) > 0
    b = tl.full((KP, LANES), 0.0, tl.float64)
    if observation_ptr is not None:
        # The first observation goes to the rows' normalisers: rows may lie far apart before a move.
        opening = inside & (start == 0)
        b = load_vector(observation_ptr, n * num_steps * K, opening, unit, K, KP)
        own = tl.sum(tl.where(state == row, b[:, None, :], 0.0), 0)
        shift = tl.where(opening[None, :], finite(own), 0.0)
        dead = opening[None, :] & (own == NEG_INF)
        x = tl.where(dead[None, :, :], NEG_INF if LOG else 0.0, x)
    for step in range(0, block_size):
        t = start + step
        valid = inside & (t < length)
        moves = t >= FIRST
        if VARYING:
            move = at + (t - FIRST) * transition_stride_t
            a, a_shift, _ = load_transition(transition_ptr, move, valid & moves, unit, K, KP, LOG)
        if observation_ptr is not None:
            b = load_vector(observation_ptr, (n * num_steps + t) * K, valid, unit, K, KP)
            b = tl.where(moves[None, :], b, 0.0)
        x, lost, more = forward_step(x, lost, a, anyone, b, moves, valid, LOG, DOT)
        shift += more + tl.where(valid & moves, a_shift, 0.0)[None, :]

    if not LOG:
        x = safe_log(x)
        row_lost = tl.max(tl.max(lost.to(tl.int32), 0), 0)
        tl.store(flags_ptr + n, 1, mask=watch & (row_lost > 0))
    x = x + shift[None, :, :]
    target = (lane * K * K)[None, None, :] + (row * K + state) * unit
    tl.store(matrices_ptr + target, x, mask=(state < K) & (row < K) & inside[None, None, :])


@triton.jit
def scan_kernel(
    entries_ptr,  # out: (N, C, K) float64, log alpha before each block
    exits_ptr,  # out: (N, C, K) float64, log beta after each block
    log_likelihood_ptr,  # out: (N,), or None
    flags_ptr,  # (N,) int32
    matrices_ptr,  # (N, C, K, K) float64
    first_ptr,  # (groups, K): log alpha before each group
    last_ptr,  # (groups, K): log beta after each group, or None: 0
    num_groups,  # in all
    groups_each,  # per sequence
    group_size,
    num_blocks,  # C
    first_stride,
    K: tl.constexpr,
    KP: tl.constexpr,
    LANES: tl.constexpr,
    REDO: tl.constexpr,
):
    """From block to block, forwards and backwards, in log space; a lane is a group of blocks."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    n = lane // groups_each
    inside = lane < num_groups
    if REDO:
        inside = inside & (tl.load(flags_ptr + n, mask=inside, other=0) != 0)
    if tl.max(inside.to(tl.int32)) == 0:
        return
    start = (lane % groups_each) * group_size
    unit = tl.minimum(num_blocks, 1)
    state = tl.arange(0, KP)[:, None]

    alpha, shift = normalise(
        load_vector(first_ptr, lane * first_stride, inside, unit, K, KP), True
    )
    for step in range(0, group_size):
        valid = inside & (start + step < num_blocks)
        block = n * num_blocks + start + step
        mask = (state < K) & valid[None, :]
        tl.store(entries_ptr + vector_offset(block * K, unit, K, KP), alpha, mask=mask)
        a, a_shift, _ = load_transition(matrices_ptr, block * K * K, valid, unit, K, KP, True)
        moved, size = normalise(total(alpha[:, None, :] + a, 0, True), True)
        alpha = tl.where(valid[None, :], moved, alpha)
        shift += tl.where(valid, a_shift + size, 0.0)
    if log_likelihood_ptr is not None:
        value = total(alpha, 0, True) + shift
        tl.store(log_likelihood_ptr + n, value, mask=inside)

    beta = tl.full((KP, LANES), 0.0, tl.float64)
    if last_ptr is not None:
        beta = load_vector(last_ptr, lane * K, inside, unit, K, KP)
    for back in range(0, group_size):
        step = group_size - 1 - back
        valid = inside & (start + step < num_blocks)
        block = n * num_blocks + start + step
        mask = (state < K) & valid[None, :]
        beta = tl.where(state < K, beta, NEG_INF)
        beta = beta - finite(tl.max(beta, 0))[None, :]
        tl.store(exits_ptr + vector_offset(block * K, unit, K, KP), beta, mask=mask)
        a, a_shift, _ = load_transition(matrices_ptr, block * K * K, valid, unit, K, KP, True)
        moved = total(a + beta[None, :, :], 1, True)
        beta = tl.where(valid[None, :], moved, beta)
