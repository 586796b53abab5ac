"""How a run of EM went."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class EMResult(NamedTuple):
    """How a run of EM went."""

    history: list[float]  #: the loss before each step, and the final one
    converged: bool  #: whether every restart rose by less than ``tol`` in its last step
    stop_reason: str  #: in words
    num_steps: int  #: steps made
    num_e_steps: int  #: E-steps made: one more, and another one after each fall that was undone
    restart_history: Tensor  #: ``(num_steps + 1, R)``: the same of each independent restart
    idle: list[str]  #: parameters of which a part had no data in the last step, and kept its value
    #: restarts of which the model's own objective does not confirm that they have converged
    unconfirmed: list[int]
