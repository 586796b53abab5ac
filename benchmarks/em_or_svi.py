"""EM, SQUAREM, L-BFGS and SVI on three workloads, from one start each: where each is the first.

- sectors: daily returns of seven US sectors, 8,312 steps, three regimes with full covariances.
  Every repeat starts from other k-means clusters.
- overlapping: 3,000 steps of two series, two regimes whose means differ by half a standard
  deviation, with full covariances. EM needs a thousand steps. Every repeat simulates other data.
- panel: 500 sequences of 20 steps of three series, three regimes whose means are two standard
  deviations apart, with diagonal covariances. Every repeat simulates other data.

In a repeat all methods maximise one likelihood from one start. "Best" is the highest final
log-likelihood of any of them. The table of a workload has, for each method, in how many repeats it
came within 0.1 nats of the best one; how far below the best it ended, in the median and at worst;
and medians of its steps, its passes over the data (gradients or E-steps), its seconds, and the
passes and the seconds until within 0.1 nats, of the repeats in which it came there. EM stops if a
step gains less than 1e-6 nats, and L-BFGS if each of ten does; SVI makes 2,000 steps. Seconds
include the planning of EM and its last check, and the work of L-BFGS and of the optimisers, but no
compilation. Gradients are those of a recorded graph (``compare(jit_compile=True)``), in half of the
time of Pyro's handlers.

    python -m benchmarks.em_or_svi [--repeats N] [--workload NAME] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import measure
from pyro_regimes.comparison import LIKELIHOOD_METHODS, Comparison, MethodRun, compare
from pyro_regimes.datasets import load_sector_returns
from pyro_regimes.estimator.pyro_model import pyro_model, to_arguments
from pyro_regimes.estimator.spec import find_spec
from pyro_regimes.estimator.starts import make_starts

Array = npt.NDArray[np.float64]

WITHIN = 0.1  # nats
TOL = 1e-6  # nats
EM_STEPS, SVI_STEPS = 20_000, 2_000
RATES = (0.01, 0.03, 0.1)


class Workload(NamedTuple):
    """Data ``(T, D)`` or ``(N, T, D)`` for each repeat, and the model."""

    name: str
    told: str
    data: Callable[[int], Array]  #: of the number of a repeat
    num_states: int
    covariance_type: str


def simulate(seed: int, shape: tuple[int, ...], means: Array, stay: float) -> Array:
    """Gaussian observations ``(..., T, D)`` of unit variance, of a chain that stays or jumps.

    :param shape: ``(..., T)``.
    :param means: of the states, ``(K, D)``.
    """
    rng, num_states = np.random.RandomState(seed), len(means)
    stays = rng.random_sample(shape) < stay
    jumps = np.where(stays, 0, rng.randint(1, num_states, shape))
    jumps[..., 0] = rng.randint(num_states, size=shape[:-1])
    states = np.cumsum(jumps, -1) % num_states
    found: Array = means[states] + rng.standard_normal((*shape, means.shape[-1]))
    return found


def _sectors(repeat: int) -> Array:
    return np.asarray(load_sector_returns().values, dtype=np.float64)


def _overlapping(repeat: int) -> Array:
    return simulate(repeat, (3_000,), np.array([[0.0, 0.0], [0.5, 0.0]]), 0.9)


def _panel(repeat: int) -> Array:
    return simulate(repeat, (500, 20), 2**0.5 * np.eye(3), 0.9)


WORKLOADS = (
    Workload("sectors", "8,312 steps of 7 series, 3 regimes, full", _sectors, 3, "full"),
    Workload("overlapping", "3,000 steps of 2 series, 2 regimes, full", _overlapping, 2, "full"),
    Workload("panel", "500 sequences of 20 steps of 3 series, 3 regimes, diag", _panel, 3, "diag"),
)


def fit(workload: Workload, repeat: int, **settings: object) -> Comparison:
    """All methods on one repeat of a workload, from a start by k-means."""
    x = workload.data(repeat)
    rows = x.reshape(-1, x.shape[-1])
    z = (x - rows.mean(0)) / rows.std(0)
    spec, rng = find_spec(workload.covariance_type), np.random.RandomState(repeat)
    start = make_starts(z.reshape(rows.shape), workload.num_states, 1, spec, 1e-6, rng).select(0)
    chosen: dict[str, object] = {
        "methods": LIKELIHOOD_METHODS,
        "em_steps": EM_STEPS,
        "tol": TOL,
        "svi_steps": SVI_STEPS,
        "learning_rates": RATES,
        "jit_compile": True,
    }
    model = pyro_model(to_arguments(start, spec), spec, missing="refuse")
    return compare(model, torch.from_numpy(z), **chosen | settings)  # type: ignore[arg-type]


HEADER = (
    "method", "reached", "below best", "worst", "steps", "passes", "seconds", "passes to", "s to",
)  # fmt: skip


def table(comparisons: Sequence[Comparison]) -> str:
    """A row for each method."""
    rows = []
    for runs in zip(*(each.runs for each in comparisons), strict=True):
        pairs = list(zip(comparisons, runs, strict=True))
        below = [each.below_best(run) for each, run in pairs]
        ended = [value for value in below if value is not None]
        times = [each.seconds_to_best(run, WITHIN) for each, run in pairs]
        reached = [seconds for seconds in times if seconds is not None]
        passes = [
            run.passes[run.times.index(seconds)]
            for run, seconds in zip(runs, times, strict=True)
            if seconds is not None
        ]
        rows.append(
            [
                runs[0].name,
                f"{len(reached)} of {len(runs)}",
                f"{statistics.median(ended):.2f}" if ended else "-",
                f"{max(ended):.2f}" if len(ended) == len(runs) else "diverged",
                f"{statistics.median(run.num_steps for run in runs):.0f}",
                f"{statistics.median(run.num_passes for run in runs):.0f}",
                measure.fixed(statistics.median(run.seconds for run in runs)),
                f"{statistics.median(passes):.0f}" if passes else "-",
                measure.fixed(statistics.median(reached)) if reached else "-",
            ]
        )
    return measure.table(HEADER, rows)


def verdicts(comparisons: Sequence[Comparison]) -> list[str]:
    """Where a rival is the first to come close to the best, or ends higher, than EM."""
    found = []
    runs = comparisons[0].runs
    ours = [index for index, run in enumerate(runs) if run.is_em]
    for index, run in enumerate(runs):
        if run.is_em:
            continue
        for own in ours:
            count = f"of {len(comparisons)} repeats"
            sooner = sum(_is_sooner(each, each.runs[index], each.runs[own]) for each in comparisons)
            higher = sum(_is_higher(each.runs[index], each.runs[own]) for each in comparisons)
            if sooner:
                found.append(f"{run.name} is sooner than {runs[own].name} in {sooner} {count}")
            if higher:
                found.append(f"{run.name} ends higher than {runs[own].name} in {higher} {count}")
    return found or ["no rival comes close to the best sooner than EM, or ends higher"]


def _is_sooner(comparison: Comparison, rival: MethodRun, em: MethodRun) -> bool:
    """Whether a rival is the first of the two to come close to the best."""
    theirs, own = (comparison.seconds_to_best(run, WITHIN) for run in (rival, em))
    return theirs is not None and (own is None or theirs < own)


def _is_higher(rival: MethodRun, em: MethodRun) -> bool:
    """Whether a rival ends higher than EM by more than what counts as close."""
    return not rival.diverged and rival.values[-1] > em.values[-1] + WITHIN


def report(workload: Workload, comparisons: Sequence[Comparison]) -> str:
    """The table of a workload, and where rivals win."""
    lines = [f"{workload.name}: {workload.told}", "", table(comparisons), ""]
    lines += [f"{workload.name}: {line}" for line in verdicts(comparisons)]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workload", choices=[each.name for each in WORKLOADS], action="append")
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # EM that ends before it has converged
    parts = [measure.load()]
    print(parts[0], flush=True)
    for workload in WORKLOADS:
        if given.workload and workload.name not in given.workload:
            continue
        comparisons = [fit(workload, repeat) for repeat in range(given.repeats)]
        parts.append(report(workload, comparisons))
        print(f"\n{parts[-1]}", flush=True)
    parts.append(measure.surroundings())
    print(f"\n{parts[-1]}")
    if given.markdown is not None:
        command = f"python -m benchmarks.em_or_svi --repeats {given.repeats}"
        command += "".join(f" --workload {name}" for name in given.workload or ())
        page = measure.markdown("EM, SQUAREM, L-BFGS and SVI", command, "\n\n".join(parts))
        given.markdown.write_text(page)


if __name__ == "__main__":
    main()
