"""EM with and without extrapolated steps, on regimes that overlap and regimes that do not.

Each of ten problems is one model, fitted from two starts, with ``EM.run(acceleration=None)`` and
``"squarem"``. The optimum of a fit is its end point when it is continued until the log-likelihood
rises by less than 1e-11. The table has the number of E-steps and the time until the fit is within
1e-6 nats of the optimum, including planning, and the largest fall of a step beyond rounding, which
must be 0. If the two fits end at different optima, the table names the better one and gives no
ratio.

Simulated chains have T = 3,000 steps; "overlapping" are means that differ by a fraction of a
standard deviation. The others are daily returns of seven US sectors (8,312 steps). Priors are
Dirichlet distributions of the rows of the transition matrix that favour staying.

    python -m benchmarks.acceleration [--repeats N] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.initialization import init_to_value

from benchmarks import measure
from benchmarks.measure import duration, fixed, take_turns
from pyro_regimes import EM, EMResult
from pyro_regimes.datasets import load_sector_returns
from pyro_regimes.estimator.parameters import Parameters
from pyro_regimes.estimator.pyro_model import pyro_model, regime_hmm, to_arguments
from pyro_regimes.estimator.spec import Spec, find_spec
from pyro_regimes.estimator.starts import make_starts

Array = npt.NDArray[np.float64]

METHODS = (None, "squarem")
CLOSE = 1e-6  # nats
MOST_STEPS = 20_000
NUM_STARTS = 2


class Problem(NamedTuple):
    """A model of one series of observations."""

    name: str
    data: Array  #: ``(T, D)``
    num_states: int
    covariance_type: str
    has_priors: bool = False


def _simulate(seed: int, separation: float, num_states: int, num_series: int) -> Array:
    """A chain that stays with probability 0.95; its means are normal with this deviation."""
    rng = np.random.RandomState(seed)
    stays = rng.random_sample(3_000) < 0.95
    jumps = np.where(stays, 0, rng.randint(1, num_states, len(stays)))
    states = (rng.randint(num_states) + np.cumsum(jumps)) % num_states
    means = separation * rng.randn(num_states, num_series)
    deviations = np.exp(0.3 * rng.randn(num_states, 1))
    noise = rng.randn(len(states), num_series)
    found: Array = means[states] + deviations[states] * noise
    return found


def problems() -> Iterator[Problem]:
    """The ten problems, standardised."""
    sectors = np.asarray(load_sector_returns().values, dtype=np.float64)
    given = [
        ("sectors", sectors, 3, "full"),
        ("sectors", sectors, 3, "diag"),
        ("sectors", sectors, 4, "full"),
        ("sectors", sectors, 3, "tied", True),
        ("one sector", sectors[:, :1], 3, "diag"),
        ("overlapping", _simulate(1, 0.3, 2, 2), 2, "full"),
        ("overlapping", _simulate(2, 0.5, 3, 3), 3, "diag"),
        ("overlapping", _simulate(3, 0.4, 3, 2), 3, "full", True),
        ("apart", _simulate(4, 2.0, 3, 3), 3, "full"),
        ("apart", _simulate(5, 3.0, 4, 2), 4, "diag", True),
    ]
    for name, data, *others in given:
        yield Problem(name, (data - data.mean(0)) / data.std(0), *others)  # type: ignore[arg-type]


class Outcome(NamedTuple):
    """One method on one start of a problem."""

    optimum: float  #: the loss where the fit ends if it is continued
    num_steps: int | None  #: until it is close; None if it is not after all of them
    num_e_steps: int
    fall: float  #: the largest fall of the log-likelihood beyond its rounding error


def _prior_model(start: Parameters, spec: Spec, sticky: float) -> Callable[[torch.Tensor], None]:
    held = to_arguments(start, spec)

    def model(x: torch.Tensor) -> None:
        num_states = len(held["initial_probs"])
        counts = 1.0 + sticky * torch.eye(num_states, dtype=x.dtype)
        rows = dist.Dirichlet(counts).to_event(1)
        arguments = {
            name: pyro.param(name, value.clone(), constraint=spec.constraint(name, 0.0))
            for name, value in held.items()
            if name not in ("initial_probs", "transition_probs")
        }
        arguments["initial_probs"] = pyro.param(
            "initial_probs", held["initial_probs"].clone(), constraint=dist.constraints.simplex
        )
        arguments["transition_probs"] = pyro.sample("transition_probs", rows)
        pyro.sample("observations", regime_hmm(arguments, spec), obs=x)

    return model


def make_em(problem: Problem, start: int) -> Callable[..., EMResult]:
    """``EM.run`` of one start, from fresh parameters."""
    spec, x = find_spec(problem.covariance_type), torch.tensor(problem.data)
    every = make_starts(
        problem.data, problem.num_states, NUM_STARTS, spec, 1e-6, np.random.RandomState(0)
    )
    parameters = every.select(start)
    if problem.has_priors:
        model = _prior_model(parameters, spec, 20.0)
        rows = torch.tensor(parameters.transition_matrix)
        guide = AutoDelta(model, init_loc_fn=init_to_value(values={"transition_probs": rows}))
        em = EM(model, guide)
    else:
        em = EM(pyro_model(to_arguments(parameters, spec), spec))

    def run(fresh: bool = True, **settings: object) -> EMResult:
        if fresh:
            pyro.clear_param_store()
        result: EMResult = em.run(x, check=False, **settings)
        return result

    return run


def _outcome(run: Callable[..., EMResult], method: str | None) -> Outcome:
    result = run(num_steps=MOST_STEPS, tol=1e-9, acceleration=method)
    losses = np.array(result.history)
    rest = run(fresh=False, num_steps=MOST_STEPS, tol=1e-11, acceleration="squarem")
    optimum = min(rest.history[-1], losses[-1])
    close = np.flatnonzero(losses <= optimum + CLOSE)
    rounding = 1e-13 * abs(losses[:-1])
    fall = float(np.maximum(np.diff(losses) - rounding, 0.0).max(initial=0.0))
    if not len(close):
        return Outcome(optimum, None, result.num_e_steps, fall)
    num_steps = int(close[0])
    again = run(num_steps=num_steps, tol=None, acceleration=method)
    return Outcome(optimum, num_steps, again.num_e_steps, fall)


def row(problem: Problem, start: int, repeats: int) -> tuple[list[str], float | None]:
    """One row of the table, and the ratio of seconds where both optima are the same."""
    run = make_em(problem, start)
    outcomes = {method: _outcome(run, method) for method in METHODS}
    fits = {
        method: partial(run, num_steps=each.num_steps, tol=None, acceleration=method)
        for method, each in outcomes.items()
        if each.num_steps is not None
    }
    tasks = {method: partial(duration, fit) for method, fit in fits.items()}
    seconds = {name: statistics.median(each) for name, each in take_turns(tasks, repeats).items()}
    plain, fast = (outcomes[method] for method in METHODS)
    kind = f"{problem.covariance_type} K={problem.num_states}"
    cells = [f"{problem.name}, {kind}{', priors' if problem.has_priors else ''}, {start + 1}"]
    for method, each in outcomes.items():
        reached = each.num_steps is not None
        cells.append(f"{each.num_e_steps}" if reached else f"> {MOST_STEPS}")
        cells.append(fixed(1e3 * seconds[method]) if reached else "-")
    ratio = None
    if abs(plain.optimum - fast.optimum) < 1e-4:
        cells.append("same")
        if len(seconds) == len(METHODS):
            ratio = seconds[None] / seconds["squarem"]
    else:
        better = "squarem" if fast.optimum < plain.optimum else "EM"
        cells.append(f"{better} by {abs(plain.optimum - fast.optimum):.3g}")
    cells.append("-" if ratio is None else f"{ratio:.1f}")
    cells.append(f"{max(plain.fall, fast.fall):.0e}")
    return cells, ratio


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # a fit that ends before it has converged
    lines = [measure.load(), ""]
    rows, ratios = [], []
    for problem in problems():
        for start in range(NUM_STARTS):
            cells, ratio = row(problem, start, given.repeats)
            print("; ".join(cells), flush=True)
            rows.append(cells)
            ratios += [] if ratio is None else [ratio]
    header = ["problem, start", "EM E-steps", "ms", "squarem", "ms", "optimum", "ratio", "fall"]
    lines.append(measure.table(header, rows))
    lines.append("")
    lines.append(
        f"ratio of seconds where the optimum is the same: geometric mean "
        f"{float(np.exp(np.mean(np.log(ratios)))):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}"
    )
    lines += ["", measure.surroundings()]
    text = "\n".join(lines)
    print("\n" + text)
    if given.markdown is not None:
        command = f"python -m benchmarks.acceleration --repeats {given.repeats}"
        given.markdown.write_text(measure.markdown("EM with extrapolated steps", command, text))


if __name__ == "__main__":
    main()
