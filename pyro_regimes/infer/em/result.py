"""The result of a run of EM."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class EMResult(NamedTuple):
    """The result of a run of EM."""

    history: list[float]  #: the loss before each step, and the final one
    converged: bool  #: whether every restart rose by less than ``tol`` in its last step
    stop_reason: str  #: a sentence with the reason
    num_steps: int  #: number of steps
    #: number of E-steps: one more, plus one after each step that was rolled back and each
    #: extrapolated step that was rejected
    num_e_steps: int
    restart_history: Tensor  #: ``(num_steps + 1, R)``: the history of each independent restart
    idle: list[str]  #: parameters of which a part had no data in the last step, and kept its value
    #: restarts whose convergence is not confirmed by the model's own objective
    unconfirmed: list[int]
    #: for each restart the number of steps until it converged, after which it is frozen; None if it
    #: has not
    converged_at: list[int | None]
