"""How often losses exceeded the value at risk that a walk-forward model gave the day before.

The model has three regimes, is fitted to the first 1,260 days of the embedded sector returns (five
years), and again at the first day of each year, to all days before it. Each later day is compared
with the value at risk of the close before: that of each sector, and that of a portfolio of equal
weights, by Gaussian and by Student-t regimes.

The table has the exceedances, their share with the exact interval of 95 % (Clopper and Pearson),
and p-values: of Kupiec's likelihood ratio that the share is the nominal one, and of
Christoffersen's that exceedances do not follow each other. At 1 % few do in either case, so that
this test has little power there. The days of sectors are those of one market: their lines are no
independent results.

    python -m benchmarks.studies.value_at_risk [--markdown FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import measure
from pyro_regimes import RegimeModel, walk_forward
from pyro_regimes.datasets import load_sector_returns

if TYPE_CHECKING:
    import pandas as pd

    from pyro_regimes.estimator import WalkForward

N_REGIMES = 3
MIN_TRAIN = 1_260
LEVELS = (0.01, 0.05)
EMISSIONS = {"gaussian": "Gaussian", "student_t": "Student-t"}
PORTFOLIO = "equal weights"
HEADER = ("series", "level", "regimes", "rows", "exceed", "share", "95 %", "Kupiec", "Christoff.")


def walk(returns: pd.DataFrame, emission: str, min_train: int = MIN_TRAIN) -> WalkForward:
    """The model, refitted at the first row of each year."""
    model = RegimeModel(N_REGIMES, emission=emission, random_state=0)
    return walk_forward(model, returns, min_train=min_train, refit_every="year")


def exceedances(walked: WalkForward) -> pd.DataFrame:
    """Those of each series and of the portfolio, by level and series."""
    import pandas as pd

    number = len(walked.series_names)
    portfolio = walked.exceedances(LEVELS, weights=np.full(number, 1 / number))
    portfolio = portfolio.rename(index={"weighted sum": PORTFOLIO})
    return pd.concat([walked.exceedances(LEVELS), portfolio])


def lines(found: dict[str, pd.DataFrame]) -> list[list[str]]:
    """Those of the table, the emissions below each other.

    :param found: :func:`exceedances` by emission.
    """
    first = next(iter(found.values()))
    every = []
    for level, name in sorted(first.index, key=lambda key: first.index.get_level_values(1)
                              .get_indexer_for([key[1]])[0]):  # fmt: skip
        for emission, table in found.items():
            row = table.loc[(level, name)]
            shares = [f"{row[column]:.2%}" for column in ("share", "lower", "upper")]
            p_values = [_p_value(row[test]) for test in ("Kupiec", "Christoffersen")]
            counts = [f"{row[column]:.0f}" for column in ("rows", "exceedances")]
            limits = f"{shares[1]} to {shares[2]}"
            every.append(
                [str(name), f"{level:.0%}", EMISSIONS[emission], *counts, shares[0], limits]
                + p_values
            )
    return every


def _p_value(value: float) -> str:
    return "-" if np.isnan(value) else "<0.001" if value < 0.0005 else f"{value:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, help="so many of the last days only")
    parser.add_argument("--min-train", type=int, default=MIN_TRAIN, help="days of the first fit")
    parser.add_argument("--markdown", type=Path, help="write a page of benchmarks/results here")
    options = parser.parse_args(arguments)
    returns = load_sector_returns().to_frame()
    if options.rows is not None:
        returns = returns.iloc[-options.rows :]
    walks = {each: walk(returns, each, options.min_train) for each in EMISSIONS}
    scores = ", ".join(
        f"{EMISSIONS[each]} {walked.walk.log_score[1:].mean():.4f}"
        for each, walked in walks.items()
    )
    dates = walks["gaussian"].index[1:]
    text = "\n\n".join(
        [
            f"{dates[0]:%Y-%m-%d} to {dates[-1]:%Y-%m-%d}, {len(walks['gaussian'].fits)} refits\n"
            f"mean log score: {scores}",
            measure.table(HEADER, lines({each: exceedances(w) for each, w in walks.items()})),
            measure.surroundings(),
        ]
    )
    print(text)
    if options.markdown is not None:
        own = sys.argv[1:] if arguments is None else arguments
        command = " ".join(["python -m benchmarks.studies.value_at_risk", *own])
        options.markdown.write_text(measure.markdown("Exceedances of value at risk", command, text))


if __name__ == "__main__":
    main()
