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
    #: parameters of which some part had no data in the last step and kept its value
    idle: list[str]
    #: restarts whose convergence the model's own objective does not confirm
    unconfirmed: list[int]
    #: for each restart, the number of steps until it converged and was frozen; None if it did not
    #: converge
    converged_at: list[int | None]

    def __repr__(self) -> str:
        restarts = self.restart_history.shape[-1]
        of = f" over {restarts} restarts" if restarts > 1 else ""
        return (
            f"EMResult(loss {self.history[-1]:.6g}{of} after {self.num_steps} steps, "
            f"converged={self.converged}: {self.stop_reason})"
        )
