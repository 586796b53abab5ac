"""The blocks of the hidden chain: their expected counts, and their closed-form updates.

A block says in the terms of :mod:`pyro_regimes.emissions.base` what EM needs to set it.
Probabilities and logits are two arguments of one kind.
"""

from pyro_regimes.chain.initial import INITIAL_LOGITS, INITIAL_PROBS
from pyro_regimes.chain.transition import TRANSITION_LOGITS, TRANSITION_PROBS

#: By the names that :class:`~pyro_regimes.RegimeHMM` gives them.
ARGUMENTS = {
    argument.name: argument
    for argument in (INITIAL_PROBS, INITIAL_LOGITS, TRANSITION_PROBS, TRANSITION_LOGITS)
}

__all__ = [
    "ARGUMENTS",
    "INITIAL_LOGITS",
    "INITIAL_PROBS",
    "TRANSITION_LOGITS",
    "TRANSITION_PROBS",
]
