"""What a comparison finds: a run of each method, and all of them together."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Interval(NamedTuple):
    """Mean and standard deviation of a posterior at one site."""

    mean: Tensor
    deviation: Tensor  #: standard deviation


class MethodRun(NamedTuple):
    """The run of one method. Log-likelihoods are in nats, times in seconds from its start."""

    method: str
    objective: str  #: what it maximises: "likelihood", "joint" or "ELBO"; "draws" for NUTS
    #: of the data, at the end: VI at the medians, NUTS at the means; NaN where it diverged
    log_likelihood: float
    num_steps: int
    num_passes: int  #: passes forward and backward over the data, as an E-step is one
    seconds: float  #: of the whole run, without what only the comparison evaluates
    times: list[float]  #: at which each of ``values`` was reached
    passes: list[int]  #: made by then
    values: list[float]  #: the objective; of VI the log-likelihood at the medians
    point: dict[str, Tensor]  #: the parameters, or sites, at the end; empty where it diverged
    log_joint: float | None = None  #: with the priors, at the same point
    elbo: float | None = None
    held_out: float | None = None  #: log-likelihood of the data that follow, given the data
    held_out_averaged: float | None = None  #: the same, averaged over the posterior
    gradient_norm: float | None = None  #: of the objective at the end, in unconstrained parameters
    posterior: dict[str, Interval] | None = None
    diverged: bool = False  #: whether it ended early, at parameters without a finite objective
    distance_to_em: float | None = None  #: of all parameters, relative to their size
    #: against NUTS: of the means in standard deviations, and the relative error of these
    posterior_errors: tuple[float, float] | None = None

    def seconds_to(self, target: float) -> float | None:
        """The first time at which its values were at least ``target``."""
        reached = zip(self.times, self.values, strict=True)
        return next((seconds for seconds, value in reached if value >= target), None)


class Comparison(NamedTuple):
    """The runs of all methods, in the order in which they ran."""

    runs: list[MethodRun]

    def of(self, objective: str) -> list[MethodRun]:
        """The runs with one objective: "likelihood", "joint", "ELBO" or "draws"."""
        return [run for run in self.runs if run.objective == objective]

    def best(self, objective: str = "likelihood") -> float:
        """The highest final value of one objective, of the runs that did not diverge."""
        values = [run.values[-1] for run in self.of(objective) if not run.diverged]
        return max(values, default=-math.inf)

    def seconds_to_best(self, run: MethodRun, within: float = 0.1) -> float | None:
        """When a run first came so close to the best run with the same objective.

        None where it never did or diverged, and for VI and NUTS, whose objective is not the
        likelihood.
        """
        if run.diverged or run.objective not in ("likelihood", "joint"):
            return None
        return run.seconds_to(self.best(run.objective) - within)

    def speed_up(self, objective: str = "likelihood", within: float = 0.1) -> float | None:
        """How many times sooner EM came so close to the best than the first of the others.

        Infinite where EM was there at its start and the others were not. None where EM, or none of
        the others, ever was.
        """
        times = {run.method: self.seconds_to_best(run, within) for run in self.of(objective)}
        ours = [time for name, time in times.items() if name.startswith("EM")]
        others = [
            time for name, time in times.items() if not name.startswith("EM") and time is not None
        ]
        if not ours or ours[0] is None or not others:
            return None
        if ours[0] == 0.0:
            return 1.0 if min(others) == 0.0 else math.inf
        return min(others) / ours[0]
