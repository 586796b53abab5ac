"""EM, SVI, VI and NUTS on simulated data: easy, overlapping, and few observations.

    python -m benchmarks.em_or_svi

This computes the numbers of docs/em_or_svi.md. All methods start at the same k-means clustering.
The distance to the truth is the root mean square error of the means of the matched states, in
standard deviations.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pyro.distributions as dist
import torch
from rich.console import Console
from rich.table import Table

from pyro_regimes import RegimeHMM
from pyro_regimes.comparison import LIKELIHOOD_METHODS, Comparison, compare_on_returns
from pyro_regimes.comparison.tables import speed_up_line, tables

K, D = 3, 3
#: name: steps, distance of the regimes' means from one another, methods
SCENARIOS: dict[str, tuple[int, float, tuple[str, ...]]] = {
    "apart: T=3000, means 3 standard deviations apart": (3000, 3.0, LIKELIHOOD_METHODS),
    "overlapping: T=3000, means 1 standard deviation apart": (3000, 1.0, LIKELIHOOD_METHODS),
    "few: T=200, means 2 standard deviations apart": (
        200,
        2.0,
        ("EM, MAP", "AutoDelta", "AutoNormal", "AutoMultivariateNormal", "AutoLowRank", "NUTS"),
    ),
}


def simulate(num_steps: int, apart: float) -> tuple[npt.NDArray[np.float64], torch.Tensor]:
    """A series, and the means of its regimes, whose covariances are the identity."""
    means = apart / 2**0.5 * torch.eye(K, D, dtype=torch.float64)
    stay = 0.95
    transition = torch.full((K, K), (1 - stay) / (K - 1), dtype=torch.float64)
    transition.fill_diagonal_(stay)
    hmm = RegimeHMM(
        initial_probs=torch.full((K,), 1 / K, dtype=torch.float64),
        transition_probs=transition,
        observation_dist=dist.Normal(means, 1.0).to_event(1),
        duration=num_steps,
    )
    torch.manual_seed(0)
    return hmm.sample().numpy(), means


def distances(
    comparison: Comparison, series: npt.NDArray[np.float64], means: torch.Tensor
) -> list[float]:
    """Of each run's means to the true ones, in the units of the data."""
    fitted = torch.as_tensor(series[: int(round(0.8 * len(series)))])
    found = []
    for run in comparison.runs:
        if run.diverged:
            found.append(float("nan"))
            continue
        own = run.point["loc"].reshape(K, D) * fitted.std(0, correction=0) + fitted.mean(0)
        orders = itertools.permutations(range(K))
        found.append(min(float((own[list(o)] - means).square().mean().sqrt()) for o in orders))
    return found


def main() -> None:
    """Run and print."""
    console = Console(width=80)
    for name, (num_steps, apart, methods) in SCENARIOS.items():
        series, means = simulate(num_steps, apart)
        comparison = compare_on_returns(series, n_regimes=K, methods=methods, nuts_steps=200)
        for table in tables(comparison, name):
            console.print(table)
        truth = Table(title="Distance of the means from the truth", box=None)
        truth.add_column("method")
        truth.add_column("distance", justify="right")
        for run, distance in zip(
            comparison.runs, distances(comparison, series, means), strict=True
        ):
            truth.add_row(run.method, f"{distance:.3f}")
        console.print(truth)
        console.print(speed_up_line(comparison) + "\n", highlight=False)


if __name__ == "__main__":
    main()
