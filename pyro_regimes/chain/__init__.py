"""The blocks of the hidden chain, with their expected counts and closed-form updates.

A block has the interface of :mod:`pyro_regimes.emissions.base`. Probabilities and logits are two
arguments of the same kind.
"""

from pyro_regimes.chain.initial import INITIAL_LOGITS, INITIAL_PROBS
from pyro_regimes.chain.stationary import OF_TRANSITION as STATIONARY_OF
from pyro_regimes.chain.stationary import STATIONARY_LOGITS, STATIONARY_PROBS
from pyro_regimes.chain.transition import TRANSITION_LOGITS, TRANSITION_PROBS

#: The arguments by their names in :class:`~pyro_regimes.RegimeHMM`.
ARGUMENTS = {
    argument.name: argument
    for argument in (INITIAL_PROBS, INITIAL_LOGITS, TRANSITION_PROBS, TRANSITION_LOGITS)
}

__all__ = [
    "ARGUMENTS",
    "INITIAL_LOGITS",
    "INITIAL_PROBS",
    "STATIONARY_LOGITS",
    "STATIONARY_OF",
    "STATIONARY_PROBS",
    "TRANSITION_LOGITS",
    "TRANSITION_PROBS",
]
