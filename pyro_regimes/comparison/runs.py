"""What :mod:`.compare` gives to each method, and what comes of it."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

from pyro.infer.autoguide import init_to_value
from torch import Tensor

Model = Callable[[Tensor], Any]
Progress = Callable[[str, int, int], None]  # method, step, of how many


class Interval(NamedTuple):
    """What a posterior says of one site."""

    mean: Tensor
    deviation: Tensor  #: standard deviation


class MethodRun(NamedTuple):
    """One method's run. Log-likelihoods are in nats, times in seconds from its start."""

    method: str
    objective: str  #: what it climbs: "likelihood", "joint" or "ELBO"; or "draws"
    log_likelihood: float  #: of the data, at the end; for VI at the medians, for NUTS at the means
    log_joint: float | None  #: with the priors, at the same point
    elbo: float | None
    held_out: float | None  #: of the data that follow, given the data, at the same point
    held_out_averaged: float | None  #: over the posterior
    num_steps: int
    num_passes: int  #: E-steps, or as much work: forward and backward passes over the data
    seconds: float  #: the whole run, without what this comparison looked at besides
    times: list[float]
    passes: list[int]  #: by these times
    values: list[float]  #: and of VI the log-likelihood at the medians; else the objective
    gradient_norm: float | None  #: of the objective at the end, in unconstrained parameters
    point: dict[str, Tensor]  #: the parameters, or sites, at the end
    posterior: dict[str, Interval] | None
    distance_to_em: float | None = None  #: of all parameters, relative to their size
    #: of the means in standard deviations, and of these as a share, against NUTS
    posterior_errors: tuple[float, float] | None = None

    def seconds_to(self, target: float) -> float | None:
        """The first time at which its values were at least ``target``."""
        reached = zip(self.times, self.values, strict=True)
        return next((seconds for seconds, value in reached if value >= target), None)


class Task(NamedTuple):
    """What all methods are given."""

    data: Tensor
    held_out: Tensor | None
    tol: float | None
    num_draws: int
    init_values: dict[str, Tensor]
    progress: Progress | None

    def start(self) -> Callable[..., Any]:
        """Where the latent sites begin: copies, as a guide's parameters may share their memory."""
        return init_to_value(values={n: value.clone() for n, value in self.init_values.items()})

    def tell(self, method: str, step: int, total: int) -> None:
        """Say how far a method has come."""
        if self.progress is not None:
            self.progress(method, step, total)
