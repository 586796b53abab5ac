"""Calls the compiled kernels of chains with lagged states, :mod:`.cpu.lagged`.

Sequences that the scaled kernels report are computed in log space, and by the reference if they
have probability zero or NaN.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from pyro_regimes.kernels import dispatch, lagged_reference, transforms

GRAIN = 20_000  # numbers that are worth a thread


def is_served(*given: Tensor) -> bool:
    """Whether there is a kernel: for plain tensors on the CPU."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if transforms.are_transforms_active() or any(map(transforms.has_tangent, given)):
        return False
    return dispatch.choose(given[-1]) == "cpu"


def allocate(
    like: Tensor, transition: Tensor, sizes: tuple[int, int], filtered: bool, smoothed: bool
) -> tuple[Tensor, ...]:
    """Tensors for the results: log-likelihood, filtered, smoothed (or empty), transitions.

    :param transition: with a dim of time.
    :param sizes: the numbers of sequences, and of steps and probabilities.
    """
    num_sequences, shape = len(like), torch.Size((len(like), *sizes))
    empty = like.new_empty((0, 0, 0))
    return (
        like.new_empty(num_sequences),
        like.new_empty(shape) if filtered else empty,
        like.new_empty(shape) if smoothed else empty,
        like.new_empty((num_sequences, *transition.shape[1:])),
    )


def run(
    chain: tuple[Tensor, ...], *, filtered: bool = False, smoothed: bool = False
) -> tuple[Tensor, ...]:
    """Log-likelihood, filtered and smoothed probabilities (empty unless wanted), transitions."""
    initial, given, observation = (each.detach().contiguous() for each in chain)
    transition = lagged_reference.steps_of(given)
    num_sequences, num_steps, num_tuples = observation.shape
    found = allocate(observation, transition, (num_steps, num_tuples), filtered, smoothed)
    exact = torch.zeros(num_sequences, dtype=torch.bool, device="cpu")
    if num_sequences and num_steps:
        _fill(initial, transition, observation, found, exact)
        if not bool(exact.all()):
            _fill_others(initial, transition, observation, found, exact)
    if not bool(exact.all()):  # of probability zero, or NaN
        redo = ~exact
        parts = (initial, transition, observation)
        again = [each[redo] if len(each) == num_sequences else each for each in parts]
        found[0][redo], gamma, moved = lagged_reference.expectations(*again)
        if filtered:
            found[1][redo] = lagged_reference.filter_probs(*again)
        if smoothed:
            found[2][redo], found[3][redo] = gamma, moved
    return (*found[:3], found[3] if given.dim() > 3 else found[3].squeeze(1))


def _fill(
    initial: Tensor,
    transition: Tensor,
    observation: Tensor,
    found: tuple[Tensor, ...],
    exact: Tensor,
) -> None:
    from pyro_regimes.kernels.cpu import lagged, lagged_sweep
    from pyro_regimes.kernels.cpu.jit import spread

    num_states, (num_sequences, num_steps, num_tuples) = transition.shape[-1], observation.shape
    out = [each.numpy() for each in (*found, exact)]
    grain = 1 + GRAIN // (num_steps * num_tuples)
    if lagged_sweep.is_served(num_states, num_tuples):
        wide = lagged_sweep.sweep(num_states, num_tuples)
        arrays = [each.numpy() for each in (initial, transition, observation)]
        varies = True if transition.shape[1] > 1 else None
        task = functools.partial(wide, *arrays, None, varies)
        spread(lambda first, last: task(first, last, *out), num_sequences, grain)
        return
    probs, subtracted, sound = _divided(transition, num_steps)
    peaks = observation.amax(-1)
    emission = (observation - peaks.unsqueeze(-1)).exp_()
    arrays = [each.numpy() for each in (initial, probs, subtracted, observation, emission, peaks)]
    spread(lambda first, last: lagged.sweep(*arrays, first, last, *out), num_sequences, grain)
    exact &= sound


def _fill_others(
    initial: Tensor,
    transition: Tensor,
    observation: Tensor,
    found: tuple[Tensor, ...],
    exact: Tensor,
) -> None:
    """Compute the sequences that are not exact in log space."""
    from pyro_regimes.kernels.cpu import lagged_logs
    from pyro_regimes.kernels.cpu.jit import spread

    given = [each.numpy() for each in (initial, transition, observation)]
    out = [each.numpy() for each in (*found, exact)]
    spread(lambda first, last: lagged_logs.sweep(*given, first, last, *out), len(exact), 1)


def _divided(transition: Tensor, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """M, the sum of the logarithms of what A is divided by, and whether M has all moves."""
    from pyro_regimes.kernels.cpu.lagged import LEAST

    peaks = transition.amax((-2, -1), keepdim=True)
    probs = (transition - peaks).exp()
    sums = peaks.flatten(1).sum(1) if transition.shape[1] > 1 else peaks.flatten() * (num_steps - 1)
    lost = ((probs < LEAST) & (transition > -torch.inf)).flatten(1).any(1)
    return probs, sums, ~lost & sums.isfinite()


def viterbi(*chain: Tensor) -> Tensor:
    """The tuples of the most likely path, ``(N, T)``."""
    from pyro_regimes.kernels.cpu import lagged_viterbi
    from pyro_regimes.kernels.cpu.jit import spread

    plain = [each.detach().contiguous() for each in chain]
    arrays = [each.numpy() for each in (plain[0], lagged_reference.steps_of(plain[1]), plain[2])]
    path = torch.empty(plain[2].shape[:2], dtype=torch.long, device="cpu")
    out, grain = path.numpy(), 1 + GRAIN // max(1, plain[2][:1].numel())
    spread(
        lambda first, last: lagged_viterbi.decode(*arrays, first, last, out), len(path), grain
    )
    return path
