"""Numbers the regimes of starts as known states and a transition mask do.

The regimes of a start are in no particular order. Where states of rows are known, or some
transitions are forbidden, one order is better than another, and EM rarely leaves a bad one. So the
regimes of each start are permuted to the highest likelihood.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations, permutations
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.estimator.annotations import Annotations
from pyro_regimes.estimator.mask import masked
from pyro_regimes.estimator.naming import reordered
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.pyro_model import regime_hmm, to_arguments
from pyro_regimes.estimator.sequences import pack
from pyro_regimes.estimator.spacing import row_logits
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.states import Bools
from pyro_regimes.kernels import ops

_MOST_PERMUTED = 4  # regimes of which all orders are tried; of more, exchanges of two
_CPU = torch.device("cpu")


class Known(NamedTuple):
    """What is known by the numbers of the regimes."""

    annotations: Annotations
    mask: Bools | None  #: the transitions that are allowed
    values: Mapping[str, Array]  #: given parameters, by name

    @property
    def keeps_numbers(self) -> bool:
        """Whether an exchange of two regimes would contradict it."""
        return self.annotations.allowed is not None or self.mask is not None


def align_starts(
    starts: Parameters,
    spec: Spec,
    data: Array,
    sizes: list[int],
    known: Known,
    dtype: torch.dtype,
    device: torch.device,
) -> Parameters:
    """The starts with their regimes in the best order, and without forbidden transitions.

    Where regimes are given by their parameters, or every state is known, the order is as it is.

    :param starts: with the starts in front.
    :param data: ``(T, D)``, of all sequences, in the units of the starts.
    """
    is_given = known.annotations.are_complete or not known.values.keys().isdisjoint(spec.attributes)
    if known.keeps_numbers and not is_given:
        starts = _permuted(starts, spec, data, sizes, known, dtype, device)
    return starts._replace(transition_matrix=masked(starts.transition_matrix, known.mask))


def _permuted(
    starts: Parameters,
    spec: Spec,
    data: Array,
    sizes: list[int],
    known: Known,
    dtype: torch.dtype,
    device: torch.device,
) -> Parameters:
    """The starts with the regimes of each in the order of the highest likelihood."""
    x, lengths = pack(data, sizes, dtype=dtype, device=device)
    num_states = starts.initial_probs.shape[-1]
    beside = known.annotations.of_distribution(device)
    aligned = []
    for index in range(len(starts.initial_probs)):
        start = starts.select(index)
        arguments = to_arguments(start, spec, dtype=dtype, device=device)
        _, _, densities, packing = regime_hmm(arguments, spec, packed_lengths=lengths).chain(x)
        likelihood = partial(_likelihood, start, known, densities, packing, beside)
        order = np.array(best_order(likelihood, num_states))
        aligned.append(reordered(start, spec, order))
    return Parameters.stack(aligned)


def _likelihood(
    start: Parameters,
    known: Known,
    densities: Tensor,
    packing: Any,
    beside: Mapping[str, Tensor],
    order: Sequence[int],
) -> float:
    """The log-likelihood of a start with its regimes in another order.

    :param densities: of the observations in each regime of the start, ``(..., T, K)``.
    """
    picked = list(order)
    initial = known.values.get("initial_probs", start.initial_probs[picked])
    own = masked(start.transition_matrix[np.ix_(picked, picked)], known.mask)
    matrix = known.values.get("transition_matrix", own)
    logits = densities[..., picked]
    if "allowed_states" in beside:
        logits = torch.where(beside["allowed_states"], logits, -torch.inf)
    first, moves = (torch.from_numpy(probs).to(logits).log() for probs in (initial, matrix[None]))
    moves = row_logits(moves, beside)
    return float(ops.log_likelihood(first, moves, logits, packing))


def check_possible(
    known: Known, sizes: list[int], num_states: int, row_name: Callable[[int], str]
) -> None:
    """Check that some path of allowed regimes has a positive probability.

    :param row_name: the name of a row, from its number.
    :raises ValueError: if none has, with the first row where it ends.
    """
    given = known.values.get("initial_probs"), known.values.get("transition_matrix", known.mask)
    if known.annotations.allowed is None or all(each is None for each in given):
        return
    beside = known.annotations.of_distribution(_CPU)
    first = np.ones(num_states) if given[0] is None else given[0] > 0
    moves = np.ones((num_states, num_states)) if given[1] is None else given[1] > 0
    logits = torch.where(beside["allowed_states"], 0.0, -torch.inf).double()
    initial, transition = (
        torch.from_numpy(each / each.sum(-1, keepdims=True)).log() for each in (first, moves[None])
    )
    chain = initial, row_logits(transition, beside), logits, ops.Packing(torch.tensor(sizes))
    reached = ops.filter_probs(*chain).filtered_probs
    ends = np.flatnonzero(reached.sum(-1) == 0)
    if len(ends):
        raise ValueError(
            "expected states that the initial and transition probabilities allow, got an "
            f"impossible sequence of states at row {row_name(int(ends[0]))}"
        )


def best_order(score: Callable[[Sequence[int]], float], size: int) -> tuple[int, ...]:
    """The order with the highest score; of many items one that no exchange of two improves."""
    best = tuple(range(size))
    if size <= _MOST_PERMUTED:
        return max(permutations(best), key=score)
    highest = score(best)
    while True:
        tried = {_exchanged(best, i, j): 0.0 for i, j in combinations(range(size), 2)}
        tried = {order: score(order) for order in tried}
        better = max(tried, key=tried.__getitem__)
        if not tried[better] > highest:
            return best
        best, highest = better, tried[better]


def _exchanged(order: tuple[int, ...], i: int, j: int) -> tuple[int, ...]:
    exchanged = list(order)
    exchanged[i], exchanged[j] = order[j], order[i]
    return tuple(exchanged)
