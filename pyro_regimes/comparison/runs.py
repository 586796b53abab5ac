"""Results of a comparison: the run of each method, and all runs together."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Interval(NamedTuple):
    """Mean and standard deviation of a posterior at one site."""

    mean: Tensor
    deviation: Tensor  #: standard deviation


class MethodRun(NamedTuple):
    """The run of one method. Log-likelihoods are in nats, times in seconds from the start."""

    method: str
    objective: str  #: maximised objective: "likelihood", "joint" or "ELBO"; "draws" for NUTS
    #: final value for the data; for VI at the medians, NUTS at the means; NaN if it diverged
    log_likelihood: float
    num_steps: int
    num_passes: int  #: passes forward and backward over the data; an E-step is one pass
    seconds: float  #: time of the whole run, without evaluations for the comparison only
    times: list[float]  #: time of each of ``values``
    passes: list[int]  #: number of passes before each of ``values``
    values: list[float]  #: the objective; for VI the log-likelihood at the medians
    point: dict[str, Tensor]  #: final parameters, or sites; empty if it diverged
    log_joint: float | None = None  #: with the priors, at the same point
    elbo: float | None = None
    held_out: float | None = None  #: log-likelihood of the held-out data, given the data
    held_out_averaged: float | None = None  #: the same, averaged over the posterior
    gradient_norm: float | None = None  #: of the final objective, in unconstrained parameters
    posterior: dict[str, Interval] | None = None
    diverged: bool = False  #: whether it ended early, because the objective was not finite
    distance_to_em: float | None = None  #: distance of all parameters, relative to their norm
    #: error against NUTS: of the means, in standard deviations, and relative, of the deviations
    posterior_errors: tuple[float, float] | None = None
    is_beside: bool = False  #: whether another method ran beside it, which may make it slower

    @property
    def is_em(self) -> bool:
        """Whether the method is EM, also with extrapolated steps or for the log joint."""
        return self.method.startswith("EM")

    @property
    def name(self) -> str:
        """The method as tables and plots name it."""
        return self.method.removeprefix("SVI, ")

    def seconds_to(self, target: float) -> float | None:
        """The first time at which a value was at least ``target``."""
        reached = zip(self.times, self.values, strict=True)
        return next((seconds for seconds, value in reached if value >= target), None)


class Comparison(NamedTuple):
    """The runs of all methods, in the order in which they ran."""

    runs: list[MethodRun]

    def of(self, objective: str) -> list[MethodRun]:
        """The runs with one objective: "likelihood", "joint", "ELBO" or "draws"."""
        return [run for run in self.runs if run.objective == objective]

    def best(self, objective: str = "likelihood") -> float:
        """The highest final value of one objective among the runs that did not diverge."""
        values = [run.values[-1] for run in self.of(objective) if not run.diverged]
        return max(values, default=-math.inf)

    def seconds_to_best(self, run: MethodRun, within: float = 0.1) -> float | None:
        """The time at which a run was first ``within`` nats of the best one with its objective.

        None if it never was or diverged, and for VI and NUTS, whose objective is not the
        likelihood.
        """
        if run.diverged or run.objective not in ("likelihood", "joint"):
            return None
        return run.seconds_to(self.best(run.objective) - within)

    def below_best(self, run: MethodRun) -> float | None:
        """How many nats the final value of a run is below the best one with its objective.

        None if it diverged, and for VI and NUTS, whose values are not their objective.
        """
        if run.diverged or run.objective not in ("likelihood", "joint"):
            return None
        return self.best(run.objective) - run.values[-1]

    def fastest(
        self, is_em: bool, objective: str = "likelihood", within: float = 0.1
    ) -> tuple[MethodRun, float] | None:
        """The first run of EM, or of another method, to come ``within`` nats of the best value.

        :return: the run, and its seconds to there. None if no such run comes this close.
        """
        runs = [run for run in self.of(objective) if run.is_em == is_em]
        times = [(run, self.seconds_to_best(run, within)) for run in runs]
        reached = [(run, seconds) for run, seconds in times if seconds is not None]
        return min(reached, key=lambda each: each[1], default=None)

    def speed_up(self, objective: str = "likelihood", within: float = 0.1) -> float | None:
        """The speed-up of EM over the fastest other method, to ``within`` nats of the best value.

        EM with extrapolated steps counts as EM. Below 1 if another method is faster. Infinite if
        only EM starts this close. None if EM never gets this close, or no other method does.
        """
        ours = self.fastest(True, objective, within)
        other = self.fastest(False, objective, within)
        if ours is None or other is None:
            return None
        if ours[1] == 0.0:
            return 1.0 if other[1] == 0.0 else math.inf
        return other[1] / ours[1]
