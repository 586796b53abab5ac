"""Distances between the results of the methods."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_regimes.comparison.runs import Interval, MethodRun


def with_distances(runs: list[MethodRun]) -> list[MethodRun]:
    """Add to the runs their distance to EM's solution and to the posterior from NUTS."""
    own = {run.objective: run for run in runs if run.method in ("EM", "EM, MAP")}
    exact = next((run.posterior for run in runs if run.method == "NUTS"), None)
    measured = []
    for run in runs:
        reference = own.get("joint" if run.objective in ("ELBO", "draws") else run.objective)
        if reference is not None and run is not reference:
            run = run._replace(distance_to_em=_distance(run.point, reference.point))
        if exact is not None and run.posterior is not None and run.method != "NUTS":
            run = run._replace(posterior_errors=_posterior_errors(run.posterior, exact))
        measured.append(run)
    return measured


def _distance(point: dict[str, Tensor], reference: dict[str, Tensor]) -> float | None:
    """Distance of all parameters, relative to their norm."""
    if set(point) != set(reference):
        return None
    moved = sum(float((point[name] - reference[name]).square().sum()) for name in point)
    size = sum(float(value.square().sum()) for value in reference.values())
    return math.sqrt(moved / size)


def _posterior_errors(
    found: dict[str, Interval], exact: dict[str, Interval]
) -> tuple[float, float]:
    """Root mean square errors of the means, in standard deviations, and of the deviations."""
    means, spreads = [], []
    for name, interval in exact.items():
        deviation = interval.deviation.clamp(min=torch.finfo(interval.deviation.dtype).tiny)
        means.append(((found[name].mean - interval.mean) / deviation).flatten())
        spreads.append((found[name].deviation / deviation - 1).flatten())
    return (
        float(torch.cat(means).square().mean().sqrt()),
        float(torch.cat(spreads).square().mean().sqrt()),
    )
