"""What an argument of a regime HMM means."""

from __future__ import annotations

import enum


class Role(enum.Enum):
    """What an argument means; arguments of one role are updated alike."""

    INITIAL = "initial"
    TRANSITION = "transition"
    LOCATION = "loc"
    SCALE = "scale"
    COVARIANCE = "covariance_matrix"
    FACTOR = "scale_tril"
    PRECISION = "precision_matrix"

    @staticmethod
    def of(argument: str) -> Role:
        """The role of an argument by its name: probs and logits have one."""
        return Role(argument.removesuffix("_probs").removesuffix("_logits"))

    @property
    def is_chain(self) -> bool:
        """Whether it holds probabilities of the hidden chain."""
        return self in (Role.INITIAL, Role.TRANSITION)

    @property
    def event_dim(self) -> int:
        """The dims of a canonical block where it does not depend on the family (all but loc)."""
        return {Role.SCALE: 0, Role.INITIAL: 1, Role.TRANSITION: 1}.get(self, 2)
