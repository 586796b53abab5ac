"""How often the tests of residuals reject right and wrong models, on simulated data.

A data set has 1,000 rows from two regimes that last 20 and 12.5 rows on average. The model is the
one that the data come from ("true"), or one fitted to them from three starts, whose residuals are
those of the same data ("fitted") or of 1,000 further rows ("fitted, new data"). The last rows of
the table are wrong models: Gaussian regimes of data with Student-t regimes, as many or one, and
Poisson regimes of counts with more variance.

The table has the share of data sets in which a test has a p-value below 5 %. For a right model
that is known, it is 5 %, and between the given numbers in 95 % of such studies. Residuals of the
data of the fit are a little too close to normal, so the share may be less.

    python -m benchmarks.studies.residuals [--sets N] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binom
from sklearn.exceptions import ConvergenceWarning

from benchmarks import measure
from pyro_regimes import RegimeModel

NUM_ROWS = 1_000
NUM_STARTS = 3
LEVEL = 0.05
TESTS = ("kolmogorov_smirnov", "jarque_bera", "ljung_box", "ljung_box_squares")

_TRANSITIONS = [[0.95, 0.05], [0.08, 0.92]]
_MATRICES = [[[1.0, 0.3], [0.3, 0.5]], [[9.0, -2.0], [-2.0, 16.0]]]

#: The parameters of each family.
FAMILIES: dict[str, dict[str, Any]] = {
    "gaussian": {"means": [[0.3], [-0.5]], "covariances": [[[1.0]], [[9.0]]]},
    "gaussian, 2 series": {"means": [[0.5, 0.0], [-2.0, 3.0]], "covariances": _MATRICES},
    "student_t": {
        "means": [[0.3], [-0.5]],
        "scale_matrices": [[[1.0]], [[9.0]]],
        "degrees_of_freedom": [2.5, 2.5],
    },
    "poisson": {"rates": [[2.0], [9.0]]},
    "negative_binomial": {"total_counts": [[2.0], [3.0]], "probabilities": [[0.5], [0.75]]},
}


class Design(NamedTuple):
    """Data of a family, and the model whose residuals are tested."""

    data: str  #: a key of :data:`FAMILIES`
    model: str  #: "true", "fitted" or "fitted, new data"
    emission: str  #: of the model
    is_right: bool
    kind: str = "forecast"
    by: str = "series"
    n_regimes: int = 2

    @property
    def title(self) -> str:
        """The model in the table."""
        number = "" if self.n_regimes == 2 else f"{self.n_regimes} regime, "
        name = f"{self.emission}, {number}{self.model}"
        return name if self.kind == "forecast" else f"{name}, {self.kind}"


DESIGNS = [
    Design("gaussian", "true", "gaussian", True),
    Design("gaussian", "true", "gaussian", True, "ordinary"),
    Design("gaussian, 2 series", "true", "gaussian", True, by="rosenblatt"),
    Design("student_t", "true", "student_t", True),
    Design("poisson", "true", "poisson", True),
    Design("negative_binomial", "true", "negative_binomial", True),
    Design("gaussian", "fitted", "gaussian", True),
    Design("gaussian", "fitted, new data", "gaussian", True),
    Design("poisson", "fitted", "poisson", True),
    Design("student_t", "fitted", "gaussian", False),
    Design("student_t", "fitted", "gaussian", False, n_regimes=1),
    Design("negative_binomial", "fitted", "poisson", False),
]


def true_model(data: str) -> RegimeModel:
    """The model that data of a family come from."""
    emission = data.partition(",")[0]
    return RegimeModel.from_parameters(None, _TRANSITIONS, emission=emission, **FAMILIES[data])


def p_values(design: Design, seed: int) -> list[float]:
    """Those of :data:`TESTS` on one data set, of the last series."""
    true = true_model(design.data)
    x = true.sample(2 * NUM_ROWS, random_state=seed)[0]
    x, later = x[:NUM_ROWS], x[NUM_ROWS:]
    model, start = true, "auto"
    if design.model != "true":
        options = {"emission": design.emission, "n_init": NUM_STARTS, "random_state": seed}
        model = RegimeModel(design.n_regimes, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # after max_iter steps
            model.fit(x)
    if design.model == "fitted, new data":
        x, start = later, "stationary"
    residuals = model.residuals(x, design.kind, by=design.by, start=start)
    tests = residuals.tests(random_state=seed)
    return [float(getattr(tests, name).p_value[-1]) for name in TESTS]


def rejected(design: Design, seeds: Sequence[int]) -> np.ndarray:
    """The number of data sets that each test rejects, NaN where there is no test, ``(4,)``."""
    found = np.array([p_values(design, seed) for seed in seeds])
    return np.where(np.isnan(found).any(0), np.nan, (found < LEVEL).sum(0))


def limits(sets: int) -> tuple[int, int]:
    """The numbers of rejections of a right model, of which 95 % of studies have one."""
    low, high = binom.ppf([0.025, 0.975], sets, LEVEL)
    return int(low), int(high)


def cells(design: Design, counts: np.ndarray, sets: int) -> list[str]:
    """A line of the table."""
    shares = ["-" if np.isnan(count) else f"{count / sets:.1%}" for count in counts]
    return [design.data, design.title, "right" if design.is_right else "wrong", *shares]


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, fit, test, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=200, help="data sets of each row")
    parser.add_argument("--markdown", type=Path, help="write a page of benchmarks/results here")
    options = parser.parse_args(arguments)
    if options.sets < 1:
        parser.error(f"expected at least 1 data set, got {options.sets}")
    header = ("data", "model", "", "KS", "Jarque-Bera", "Ljung-Box", "of squares")
    rows = [
        cells(design, rejected(design, range(options.sets)), options.sets) for design in DESIGNS
    ]
    low, high = (number / options.sets for number in limits(options.sets))
    text = "\n\n".join(
        [
            f"Share of {options.sets} data sets of {NUM_ROWS} rows with a p-value below {LEVEL:.0%}"
            f"\nof a right, known model: {LEVEL:.0%}, or from {low:.1%} to {high:.1%}",
            measure.table(header, rows),
            measure.surroundings(),
        ]
    )
    print(text)
    if options.markdown is not None:
        command = " ".join(["python -m benchmarks.studies.residuals", *(arguments or sys.argv[1:])])
        options.markdown.write_text(measure.markdown("Tests of residuals", command, text))


if __name__ == "__main__":
    main()
