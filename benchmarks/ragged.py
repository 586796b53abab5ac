"""Sequences of very different lengths beside equally long ones, with the same rows.

The data are those of two regimes of one series. The same rows are cut into sequences of one length,
or into one long and many short ones. Both are fitted by ten EM iterations of ``RegimeModel`` from
one start, scored and decoded, and differentiated as a Pyro distribution. Before anything is timed,
the log-likelihood of the ragged sequences is compared with the sum of those of a sample, each of
them alone, by row. If it differs by more than 1e-9 of it, there is no ratio.

Runs take turns, and times are medians. A ratio is ragged over even. Memory is the peak beyond what
the process held before, in multiples of the rows.

    python -m benchmarks.ragged [--repeats N] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyro.distributions as dist
import torch

from benchmarks import measure
from benchmarks.measure import duration, fixed, take_turns
from pyro_regimes import RegimeHMM, RegimeModel

Array = npt.NDArray[np.float64]

SAMPLE = 50  # sequences that are scored alone


class Workload(NamedTuple):
    """The same rows, cut in two ways."""

    name: str
    even: list[int]
    ragged: list[int]


WORKLOADS = [
    Workload("10,000 and 1,500 x 3", [100] * 145, [10_000] + [3] * 1_500),
    Workload("300 of 1 to 599", [300] * 300, list(range(1, 600, 2))),
    Workload("1,000,000 and 100,000 x 3", [1_000] * 1_300, [1_000_000] + [3] * 100_000),
]


def series(rows: int) -> Array:
    """One series, calm and wild in turn."""
    rng = np.random.RandomState(0)
    x: Array = (rng.randn(rows) * np.where(np.arange(rows) // 200 % 2, 3.0, 1.0))[:, None]
    return x


def fit(x: Array, lengths: list[int]) -> RegimeModel:
    """Ten iterations of EM from one start."""
    settings = dict(n_init=1, random_state=0, max_iter=10, tol=None, acceleration=None)
    return RegimeModel(2, **settings).fit(x, lengths=lengths)  # type: ignore[arg-type]


def gradient(model: RegimeModel, x: Array, lengths: list[int]) -> None:
    """The log-likelihood of a Pyro distribution, with its gradient in all arguments."""
    given = (model.initial_probs_, model.transition_matrix_, model.means_, model.covariances_)
    initial, transition, loc, spread = (torch.tensor(each).requires_grad_() for each in given)
    hmm = RegimeHMM(
        initial_probs=initial,
        transition_probs=transition,
        observation_dist=dist.Normal(loc, spread[..., 0].sqrt()).to_event(1),
        packed_lengths=torch.tensor(lengths),
    )
    hmm.log_prob(torch.tensor(x)).backward()


def difference(model: RegimeModel, x: Array, lengths: list[int]) -> float:
    """The largest difference of a sequence's log-likelihood from what it is alone."""
    rows = model.score_samples(x, lengths=lengths, start="fitted")
    ends = np.cumsum(lengths)
    largest = 0.0
    for n in np.linspace(0, len(lengths) - 1, SAMPLE).astype(int):
        own = slice(ends[n] - lengths[n], ends[n])
        alone = model.score(x[own], start="fitted")
        largest = max(largest, abs(rows[own].sum() - alone) / max(1.0, abs(alone)))
    total = model.score(x, lengths=lengths, start="fitted")
    return max(largest, abs(rows.sum() - total) / abs(total))


def row(workload: Workload, repeats: int) -> list[str]:
    """The cells of one workload."""
    x = series(sum(workload.ragged))
    model = fit(x, workload.ragged)
    differs = difference(model, x, workload.ragged)
    cells = [workload.name, f"{differs:.0e}"]
    if not differs < 1e-9:
        return cells + ["-"] * 6
    forms = {"even": workload.even, "ragged": workload.ragged}
    tasks: dict[str, Callable[[list[int]], object]] = {
        "fit": partial(fit, x),
        "score": lambda lengths: model.score(x, lengths=lengths),
        "paths": lambda lengths: model.predict(x, lengths=lengths),
        "gradient": partial(gradient, model, x),
    }
    for number, task in enumerate(tasks.values()):
        timed = {name: partial(duration, partial(task, each)) for name, each in forms.items()}
        measured = take_turns(timed, repeats)
        even, ragged = (1e3 * statistics.median(measured[name]) for name in forms)
        cells += [fixed(even)] * (number == 0) + [f"{ragged / even:.2f}"]
    if measure.can_measure_memory():
        for each in forms.values():
            used = max(measure.extra_bytes(partial(task, each)) for task in tasks.values())
            cells.append(f"{used / x.nbytes:.0f}")
    return cells


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # of fits that end before they have converged
    lines = [measure.load(), ""]
    rows = [row(each, given.repeats) for each in WORKLOADS]
    header = [
        "lengths", "differs", "even fit ms", "fit", "score", "paths", "gradient", "even rows",
        "rows",
    ]  # fmt: skip
    lines += [measure.table(header, [each + [""] * (len(header) - len(each)) for each in rows])]
    text = "\n".join([*lines, "", measure.surroundings()])
    print(text)
    if given.markdown is not None:
        command = f"python -m benchmarks.ragged --repeats {given.repeats}"
        page = measure.markdown("Ragged sequences beside equally long ones", command, text)
        given.markdown.write_text(page)


if __name__ == "__main__":
    main()
