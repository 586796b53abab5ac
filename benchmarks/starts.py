"""The starts of RegimeModel: how often they find the best known fit, their time and memory.

    python -m benchmarks.starts [--seeds N] [--group NAME ...] [--wheel FILE] [--memory]
        [--repeats N] [--markdown FILE]

Every problem is fitted from ten starts with the defaults of RegimeModel, for each seed twice: from
the starts that it makes now, and from the former ones, which were k-means on all rows and random
observations in turn. The best known log-likelihood of a problem is the highest of all these starts.
A start, or the best of ten, has found it if it ends at most 0.5 nats below. A collapsed start has
not found it. The columns of the table are

- the share of single starts to find it: k-means on "all rows", as formerly, and each kind of now;
- "fits", how many of the fits find it, one of ten starts for each seed;
- "tens", the same share of all combinations of ten starts out of those of all seeds, with as many
  of each kind as a fit has. It has the same expectation and a smaller variance;
- "nats short", how far the best of ten ends below on average, over the same combinations.

Groups of problems: "embedded", the sector returns that the package contains; "parts", halves in
time of these and weekly sums; "simulated", twenty sets of two to four regimes. The package contains
no second panel of real returns. ``--wheel`` takes the file of skfolio from which
``pyro_regimes/data/build_sector_returns.py`` makes the embedded returns, and adds "nine series":
panels of nine stocks, or nine groups of stocks, out of its 20.

The other tables are the time of ten starts on the embedded returns and its share of a whole fit,
and, with ``--memory``, the peak memory of a fit from ten starts on 1,000,000 steps of four series,
beyond the data. If all ten ran in one batch, it was 41 times the data.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from benchmarks import measure, starts_problems
from benchmarks.measure import duration, fixed, take_turns
from benchmarks.starts_memory import extra_multiples
from benchmarks.starts_problems import TYPES, Array, Problem
from pyro_regimes import RegimeModel
from pyro_regimes.datasets import load_sector_returns
from pyro_regimes.estimator.all_starts import fit_starts
from pyro_regimes.estimator.parameters import Parameters
from pyro_regimes.estimator.spec import Spec, find_spec
from pyro_regimes.estimator.starts import kind_of, make_starts

NUM_STARTS = 10
NATS = 0.5  # a fit this close to the best known has found it
GROUPS = ("embedded", "parts", "nine series", "simulated")
KINDS = ("k-means", "random", "spreads")
STAY = 0.9  # of the former starts from k-means

Maker = Callable[[Array, int, int, Spec, float, np.random.RandomState], Parameters]


def former_starts(
    x: Array, n_regimes: int, n_init: int, spec: Spec, floor: float, rng: np.random.RandomState
) -> Parameters:
    """K-means on all rows and random observations in turn; arguments as those of make_starts."""
    distinct, made = np.unique(x, axis=0), []
    for start in range(n_init):
        if start % 2 == 0:
            kmeans = KMeans(n_regimes, n_init=1, random_state=rng.randint(2**31 - 1)).fit(x)
            members = np.eye(n_regimes)[kmeans.labels_]
            emission = spec.start_from_clusters(x, members, kmeans.cluster_centers_, floor)
            transition_matrix = np.full((n_regimes, n_regimes), (1 - STAY) / (n_regimes - 1))
            np.fill_diagonal(transition_matrix, STAY)
        else:
            centers = distinct[rng.choice(len(distinct), n_regimes, replace=False)]
            emission = spec.start_around(x, centers, np.ones(n_regimes), floor)
            drawn = rng.dirichlet(np.ones(n_regimes), size=n_regimes)
            transition_matrix = 0.9 * drawn + 0.1 / n_regimes
        initial_probs = np.full(n_regimes, 1 / n_regimes)
        made.append(Parameters(initial_probs, transition_matrix, emission))
    return Parameters.stack(made)


class Prepared(NamedTuple):
    """A problem in the units of its fit."""

    z: Array
    n_regimes: int
    spec: Spec
    least: float  #: the variance at which a regime counts as collapsed

    @classmethod
    def of(cls, values: Array, n_regimes: int, covariance_type: str) -> Prepared:
        """As ``RegimeModel.fit`` does it."""
        spec = find_spec(covariance_type)
        z = spec.units(values, 0.0).scale(values)
        return cls(z, n_regimes, spec, spec.collapsed_variance(z, torch.float64))

    def make(self, maker: Maker, seed: int) -> Parameters:
        """Ten starts."""
        rng = np.random.RandomState(seed)
        return maker(self.z, self.n_regimes, NUM_STARTS, self.spec, self.least, rng)

    def fit(self, starts: Parameters) -> Array:
        """The final log-likelihood of each start, -inf of a collapsed one."""
        defaults = RegimeModel()
        fitted = fit_starts(
            starts,
            self.spec,
            torch.tensor(self.z),
            None,
            inference="em",
            acceleration=defaults.acceleration,
            max_iter=defaults.max_iter,
            tol=defaults.tol,
            min_eigenvalue=0.0,
            least=self.least,
        )
        return np.where(fitted.degenerate, -np.inf, fitted.history[-1])


class Row(NamedTuple):
    """How far each start of a problem ends below the best known, ``(seeds, 10)``."""

    problem: Problem
    former: Array
    present: Array

    @classmethod
    def of(cls, problem: Problem, seeds: int) -> Row:
        """All fits of a problem."""
        prepared = Prepared.of(problem.values, problem.n_regimes, problem.covariance_type)
        former, present = (
            np.stack([prepared.fit(prepared.make(maker, seed)) for seed in range(seeds)])
            for maker in (former_starts, make_starts)
        )
        best = max(former.max(), present.max())
        return cls(problem, best - former, best - present)

    def pools(self) -> list[list[Array]]:
        """The starts of each kind, ``(seeds, starts of a fit)``, formerly and now."""
        present = np.array([kind_of(start) for start in range(NUM_STARTS)])
        return [
            [self.former[:, ::2], self.former[:, 1::2]],
            [self.present[:, present == kind] for kind in KINDS],
        ]

    def singles(self) -> list[float]:
        """The share of single starts that find it: of k-means on all rows, and of each kind."""
        former, present = self.pools()
        return [float((group <= NATS).mean()) for group in (former[0], *present)]

    def fits(self) -> list[int]:
        """The number of fits that find it, formerly and now."""
        return [int((each.min(1) <= NATS).sum()) for each in (self.former, self.present)]

    def shares(self) -> Array:
        """The share of all combinations of ten starts that find it, formerly and now."""
        return np.array([1 - share_above(pools, NATS) for pools in self.pools()])

    def short(self) -> Array:
        """How far the best of ten ends below, in the mean of all combinations of ten starts."""
        return np.array([mean_of_best(pools) for pools in self.pools()])

    def without(self, seed: int) -> Row:
        """The row of the other seeds."""
        former, present = (np.delete(each, seed, axis=0) for each in (self.former, self.present))
        return self._replace(former=former, present=present)

    def cells(self) -> list[str]:
        """A line of the table."""
        problem, seeds = self.problem, len(self.former)
        label = f"{problem.name}, K={problem.n_regimes} {problem.covariance_type}"
        steps, series = problem.values.shape
        singles, shares = (map(percent, each) for each in (self.singles(), self.shares()))
        fits = [f"{number}/{seeds}" for number in self.fits()]
        return [label, f"{steps}x{series}", *singles, *fits, *shares, *map(nats, self.short())]


HEADER = (
    *("problem", "size", "all rows", *KINDS),
    *("fits, former", "now", "tens, former", "now", "nats short, former", "now"),
)


def share_above(pools: Sequence[Array], level: float) -> float:
    """The share of combinations of starts all of which end more than ``level`` below.

    A combination has as many starts from each pool as a fit.
    """
    share = 1.0
    for pool in pools:
        above, number = int((pool > level).sum()), pool.shape[1]
        share *= math.comb(above, number) / math.comb(pool.size, number)
    return share


def mean_of_best(pools: Sequence[Array]) -> float:
    """The mean over all these combinations of how far the best start ends below.

    A combination of ten collapsed starts counts like the worst start that has not collapsed.
    """
    levels = np.unique(np.concatenate([pool.ravel() for pool in pools]))
    levels = np.concatenate([[0.0], levels[np.isfinite(levels)]])
    above = [share_above(pools, level) for level in levels[:-1]]
    return float(np.diff(levels) @ above)


def percent(share: float) -> str:
    """A share without decimals."""
    return f"{100 * share:.0f} %"


def nats(short: float) -> str:
    """Two decimals."""
    return f"{short:.2f}"


def summary(rows: Sequence[Row]) -> list[str]:
    """The mean of several problems, with standard errors by leaving out one seed at a time."""
    shares = np.mean([row.shares() for row in rows], axis=0)
    short = np.mean([row.short() for row in rows], axis=0)
    seeds = len(rows[0].former)
    errors = []
    for row in rows:
        others = np.array([row.without(seed).shares() for seed in range(seeds)])
        errors.append((seeds - 1) * others.var(0))
    error = np.sqrt(np.sum(errors, axis=0)) / len(rows)
    found = [f"{100 * a:.1f} ± {100 * b:.1f} %" for a, b in zip(shares, error, strict=True)]
    singles = map(percent, np.mean([row.singles() for row in rows], axis=0))
    fits = map(str, np.sum([row.fits() for row in rows], axis=0))
    return [f"mean of {len(rows)}", "", *singles, *fits, *found, *map(nats, short)]


def times(repeats: int) -> list[list[str]]:
    """Milliseconds of ten starts, former and present, and their share of a fit, for each type."""
    values, lines = load_sector_returns().values, []
    for covariance_type in TYPES:
        prepared = Prepared.of(values, 3, covariance_type)
        model = RegimeModel(3, covariance_type, n_init=NUM_STARTS, random_state=0)
        tasks: dict[str, Callable[[], float]] = {
            "former": partial(duration, partial(prepared.make, former_starts, 0)),
            "present": partial(duration, partial(prepared.make, make_starts, 0)),
            "fit": partial(duration, partial(model.fit, values)),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # after max_iter steps
            take_turns(tasks, 1)  # loads and compiles what they need
            runs = take_turns(tasks, repeats)
        seconds = {name: statistics.median(each) for name, each in runs.items()}
        milliseconds = [fixed(1e3 * seconds[name]) for name in tasks]
        lines.append([covariance_type, *milliseconds, percent(seconds["present"] / seconds["fit"])])
    return lines


def memory() -> list[list[str]]:
    """Peak memory of a fit from ten starts on a long series, in multiples of the data."""
    lines = []
    for covariance_type in ("full", "diag"):
        multiples = extra_multiples(covariance_type)
        lines.append([covariance_type, "-" if multiples is None else f"{multiples:.1f}"])
    return lines


def problems(groups: Sequence[str], wheel: Path | None) -> Iterable[Problem]:
    """Those of the groups."""
    every: dict[str, Callable[[], Iterable[Problem]]] = {
        "embedded": starts_problems.embedded,
        "parts": starts_problems.parts,
        "nine series": partial(starts_problems.nine_series, wheel) if wheel else tuple,
        "simulated": starts_problems.simulated,
    }
    return itertools.chain.from_iterable(every[group]() for group in groups)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="fits of each problem")
    parser.add_argument("--group", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--wheel", type=Path, help="of skfolio, for the nine series")
    parser.add_argument("--repeats", type=int, default=5, help="of each time")
    parser.add_argument("--memory", action="store_true", help="measure peak memory as well")
    parser.add_argument("--markdown", type=Path, help="write a page of benchmarks/results here")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"expected at least 2 seeds, for standard errors, got {options.seeds}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, time, print."""
    options = _options(arguments)
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say(measure.load())
    say(f"\nMilliseconds on the embedded returns, 3 regimes, median of up to {options.repeats}")
    header = ("", "ten starts, former", "ten starts, now", "whole fit, now", "share, now")
    say(measure.table(header, times(options.repeats)))
    say(f"\nShare of starts that find the best known, to {NATS} nats; {options.seeds} seeds")
    for group, members in itertools.groupby(
        problems(options.group, options.wheel), lambda problem: problem.group
    ):
        rows = [Row.of(problem, options.seeds) for problem in members]
        cells = [*(row.cells() for row in rows), summary(rows)]
        say(f"\n{measure.table((group, *HEADER[1:]), cells)}")
    if options.memory:
        say("\nPeak memory of ten starts at T = 1,000,000, D = 4, K = 3, in multiples of the data")
        say(measure.table(("", "now"), memory()))
    say(f"\n{measure.surroundings()}")
    if options.markdown is not None:
        command = " ".join(["python -m benchmarks.starts", *(arguments or sys.argv[1:])])
        page = measure.markdown("Starts of RegimeModel", command, "\n".join(lines))
        options.markdown.write_text(page)


if __name__ == "__main__":
    main()
