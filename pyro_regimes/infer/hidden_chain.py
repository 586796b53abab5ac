"""How the hidden chain of a site is summed over: its logits, expectations and expected counts."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from pyro_regimes.chain.counts import ChainCounts
from pyro_regimes.distributions import RegimeHMM
from pyro_regimes.emissions.base import Arguments
from pyro_regimes.kernels import ops

#: The kernels' initial, transition and observation logits.
Logits = tuple[Tensor, Tensor, Tensor]


class HiddenChain(Protocol):
    """The chain of the regimes; an observation depends on a *state*, one regime or several."""

    def logits(self, arguments: Arguments) -> tuple[Tensor, Tensor]:
        """Initial and transition logits from one row to the next."""

    def expectations(self, logits: Logits) -> ops.Expectations:
        """The E-step; smoothed probabilities are those of the states."""

    def starts(self, found: ops.Expectations) -> Tensor:
        """The expected number of sequences that begin in each state, without weights."""

    def counts(self, arguments: Arguments, found: ops.Expectations) -> ChainCounts:
        """The expected counts of the initial regime and of the transitions, without weights."""

    def of_regimes(self, densities: Tensor) -> Tensor:
        """The densities of one state for each regime, ``(..., T, S) -> (..., T, K)``."""

    def exchanged(self, i: int, j: int) -> list[int]:
        """The order of the states after two regimes have changed places."""


class MarkovChain(NamedTuple):
    """The chain of a :class:`.RegimeHMM`, whose states are the regimes."""

    hmm: RegimeHMM

    def logits(self, arguments: Arguments) -> tuple[Tensor, Tensor]:
        """Those of the steps between rows, where these have gaps."""
        initial, transition = chain_logits(arguments)
        gaps = self.hmm._gaps
        return initial, transition if gaps is None else gaps.transition_logits(transition)

    def expectations(self, logits: Logits) -> ops.Expectations:
        """Those of all sequences."""
        return ops.expectations(*logits, self.hmm.sequences)

    def starts(self, found: ops.Expectations) -> Tensor:
        """Those of the first rows of all sequences."""
        packing, smoothed = self.hmm.packing, found.smoothed_probs
        if packing is None:
            return smoothed[..., 0, :]
        return smoothed.index_select(-2, packing.firsts).sum(-2)

    def counts(self, arguments: Arguments, found: ops.Expectations) -> ChainCounts:
        """Of the first rows of all sequences, and of the steps between rows."""
        transitions, smoothed = found.expected_transitions, found.smoothed_probs
        if self.hmm._gaps is not None:
            logits = chain_logits(arguments)[1]
            transitions = self.hmm._gaps.expected_steps(logits, transitions)
        elif transitions.dim() == smoothed.dim():
            transitions = transitions.unsqueeze(-3)
        return ChainCounts(self.starts(found), transitions)

    def of_regimes(self, densities: Tensor) -> Tensor:
        """All of them."""
        return densities

    def exchanged(self, i: int, j: int) -> list[int]:
        """With two of them changed."""
        order = list(range(self.hmm.state_dim))
        order[i], order[j] = j, i
        return order


def chain_logits(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Normalised logits ``(..., K)`` and ``(..., 1 or T-1, K, K)`` of the chain.

    Without an initial distribution among the arguments it is the stationary one.
    """
    transition = _chain_logits(arguments, "transition")
    transition = transition if transition.dim() > 2 else transition.unsqueeze(-3)
    if "initial_probs" in arguments or "initial_logits" in arguments:
        return _chain_logits(arguments, "initial"), transition
    return ops.stationary_probs(transition.squeeze(-3).exp()).log(), transition


def _chain_logits(arguments: Arguments, name: str) -> Tensor:
    """Normalised logits of "initial" or "transition" probabilities."""
    probs = arguments.get(f"{name}_probs")
    if probs is None:
        return arguments[f"{name}_logits"].log_softmax(-1)
    return (probs / probs.sum(-1, keepdim=True)).log()
