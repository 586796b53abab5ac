"""How often confidence intervals of RegimeModel cover the true parameters.

    python -m benchmarks.studies.coverage [--sets N] [--steps T] [--seed N] [--bootstrap N]
        [--markdown FILE]

Data sets are drawn from a model of two regimes that are easy to tell apart, with a stationary
start, and the model is fitted to all of them in one batch, from the true parameters. ``conf_int``
then gives 95 % intervals for each fit, by the observed information and by the sandwich of the rows.
The share of intervals that hold the true value is to be 95 %, up to three binomial standard errors,
``3 sqrt(0.95 * 0.05 / N)``. An interval of a probability covers in the same fits as that of 1
less it, and an interval of a duration in those of its transition, so that one of them is shown.

``--bootstrap N`` adds the percentile intervals of N refits, for a tenth of the data sets.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pyro_regimes import RegimeModel
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.replicates import fit_replicates, simulate
from pyro_regimes.estimator.validation import read_settings
from pyro_regimes.text_tables import text_table

LEVEL = 0.95
#: The rows of the table that are shown: property, of, regime.
ROWS = [
    ("means", "series 1", "Calm"),
    ("means", "series 1", "Turbulent"),
    ("covariances", "series 1, series 1", "Calm"),
    ("covariances", "series 1, series 1", "Turbulent"),
    ("transition from Calm", "Turbulent", "Calm"),
    ("transition from Turbulent", "Calm", "Turbulent"),
    ("stationary share", "", "Calm"),
    ("annualised volatility", "series 1", "Calm"),
]


class Study(NamedTuple):
    """Which intervals cover the truth, by method and row of the table: ``(N,)`` each."""

    covers: dict[str, pd.DataFrame]  #: by method: a column for each row of the table
    errors: pd.DataFrame  #: of the observed information: standard errors, likewise
    deviations: pd.Series  #: standard deviations of the estimates over the fits

    def table(self) -> str:
        """A line for each number."""
        rows, labels = [], []
        for name in self.errors.columns:
            shares = [each[name].mean() for each in self.covers.values()]
            mean_error = self.errors[name].mean()
            labels.append(" ".join(part for part in name if part))
            rows.append(
                [f"{self.deviations[name]:.4f}", f"{mean_error:.4f}", *(f"{s:.1%}" for s in shares)]
            )
        head = ["deviation", "mean error", *self.covers]
        return text_table("", labels, zip(head, zip(*rows, strict=True), strict=True), 100)


def bound(num_sets: int) -> float:
    """Three standard errors of a share of 95 % of so many."""
    return 3 * math.sqrt(LEVEL * (1 - LEVEL) / num_sets)


def true_model() -> RegimeModel:
    """Two regimes of one series whose densities hardly overlap."""
    return RegimeModel.from_parameters(
        None,
        [[0.95, 0.05], [0.10, 0.90]],
        [[1.0], [-2.0]],
        [[[0.5]], [[1.5]]],
        initial="stationary",
        tol=1e-8,
        max_iter=500,
        regularization=0.0,
    )


def run(num_sets: int, num_steps: int, seed: int, num_bootstrap: int = 0) -> Study:
    """Simulate, fit in one batch, and count."""
    true, rng = true_model(), np.random.RandomState(seed)
    hmm, sizes, empty = true._hmm(), [num_steps], np.zeros((num_steps, 1))
    sets = np.stack(
        [simulate(hmm.parameters, hmm.spec, empty, sizes, rng) for _ in range(num_sets)]
    )
    starts = Parameters.stack([hmm.parameters])
    fits = fit_replicates(sets, sizes, hmm.spec, read_settings(true), sets[0], starts=starts)
    if not fits.converged.all():
        raise RuntimeError(f"{(~fits.converged).sum()} fits have not converged")
    truth = _table(true, sets[0], "observed")["estimate"]
    covers: dict[str, list[pd.Series]] = {"observed": [], "sandwich": []}
    errors, estimates = [], []
    for number, x in enumerate(sets):
        model = _with(true, fits.parameters.select(number))
        for method in ("observed", "sandwich"):
            table = _table(model, x, method)
            covers[method].append((table["lower"] <= truth) & (truth <= table["upper"]))
            if method == "observed":
                errors.append(table["standard error"])
                estimates.append(table["estimate"])
        if num_bootstrap and number % 10 == 0:
            table = _table(model, x, "bootstrap", n_bootstrap=num_bootstrap, random_state=number)
            within = (table["lower"] <= truth) & (truth <= table["upper"])
            covers.setdefault("bootstrap", []).append(within)
    frames = {method: pd.DataFrame(each) for method, each in covers.items()}
    return Study(frames, pd.DataFrame(errors), pd.DataFrame(estimates).std())


def _with(true: RegimeModel, parameters: Parameters) -> RegimeModel:
    """A model with the parameters of a fit."""
    settings = true.get_params()
    emission = parameters.emission
    return RegimeModel.from_parameters(
        None, parameters.transition_matrix, emission["means"], emission["covariances"], **settings
    )


def _table(model: RegimeModel, x: Array, method: str, **options: int) -> pd.DataFrame:
    with warnings.catch_warnings():
        # The true parameters are no maximum.
        warnings.simplefilter("ignore", UserWarning)
        table = model.conf_int(x, level=LEVEL, method=method, **options).to_frame()
    return table.sort_index().loc[ROWS]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Coverage of confidence intervals.")
    parser.add_argument("--sets", type=int, default=500, help="number of data sets")
    parser.add_argument("--steps", type=int, default=1000, help="number of rows of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bootstrap", type=int, default=0, help="number of refits of each")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    options = parser.parse_args(arguments)
    study = run(options.sets, options.steps, options.seed, options.bootstrap)
    lines = [
        f"Coverage of 95 % intervals in {options.sets} fits of {options.steps} rows",
        study.table(),
        f"Three standard errors of a share of 95 %: {bound(options.sets):.1%}"
        + (f", of a tenth {bound(-(-options.sets // 10)):.1%}" if options.bootstrap else ""),
    ]
    text = "\n\n".join(lines)
    print(text)
    if options.markdown is not None:
        command = "python -m benchmarks.studies.coverage"
        if options.bootstrap:
            command += f" --bootstrap {options.bootstrap}"
        options.markdown.write_text(
            f"# Coverage of confidence intervals\n\n`{command}`:\n\n```text\n{text}\n```\n"
        )


if __name__ == "__main__":
    main()
