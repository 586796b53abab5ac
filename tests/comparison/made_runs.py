"""Runs of methods, made by hand."""

from __future__ import annotations

import torch

from pyro_regimes.comparison import Interval, MethodRun


def make_run(
    method: str,
    objective: str,
    values: list[float],
    posterior: dict[str, Interval] | None = None,
    **more: object,
) -> MethodRun:
    """A run whose steps take a second each."""
    count = len(values)
    run = MethodRun(
        method=method,
        objective=objective,
        log_likelihood=values[-1],
        log_joint=None,
        elbo=None,
        held_out=None,
        held_out_averaged=None,
        num_steps=count - 1,
        num_passes=count,
        seconds=float(count - 1),
        times=[float(step) for step in range(count)],
        passes=list(range(count)),
        values=values,
        gradient_norm=None,
        point={"loc": torch.zeros(2, 3)},
        posterior=posterior,
    )
    return run._replace(**more)
