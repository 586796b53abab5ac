"""``pyro-regimes forecast``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from pyro_regimes.cli import screen
from pyro_regimes.cli.after import read_start
from pyro_regimes.cli.fitted import describe_rows, read_fitted
from pyro_regimes.cli.options import AFTER, MODEL, START, Start
from pyro_regimes.cli.reading import Data, with_data
from pyro_regimes.cli.writing import make_directory, write_csv
from pyro_regimes.files import replacing

_LEVEL = Annotated[
    float, typer.Option(help="Probability of each tail, for quantiles and losses; below 0.5.")
]


@with_data
def forecast(
    model: MODEL,
    data: Data,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps after the last row.")] = 5,
    start: START = Start.auto,
    after: AFTER = None,
    level: _LEVEL = 0.05,
    out: Annotated[
        Optional[Path],
        typer.Option(
            help="Directory for forecast.csv; created if missing.", show_default="not written"
        ),
    ] = None,
) -> None:
    """Forecast the next steps, by a fitted model.

    Prints the probability of each regime, and of each series the mean, the standard deviation and
    the quantiles of LEVEL and 1 - LEVEL (not of angles), in the unit of the data and for one step
    each. With --out, also writes them to forecast.csv, for returns with the value at risk and the
    expected shortfall, where a positive number is a loss. A name that a spreadsheet would run as a
    formula has an apostrophe in front.

    The steps have dates if the rows are daily, weekly, monthly, quarterly or yearly. After daily
    rows these are the next weekdays; holidays are not known.

    Example: pyro-regimes forecast regimes/model.json prices.csv --prices --steps 10
    """
    _check(level)
    fitted, returns, frame = read_fitted(model, data)
    before = read_start(start, after, fitted, returns)
    if out is not None:
        make_directory(out)
    from pyro_regimes.estimator.forecast_table import as_text, parts_of
    from pyro_regimes.reading.following import following_dates

    found = fitted.forecast(frame, steps, **before)
    dates = following_dates(returns.dates, steps)
    names = list(map(screen.plain, fitted.regime_names_))
    parts = parts_of(found, level)
    if out is not None:
        columns: dict[str, Any] = {"step": range(1, steps + 1)}
        columns |= {} if dates is None else {"date": dates}
        columns |= _columns("probability", names, found.regime_probs)
        for part in parts:
            columns |= _columns(part.name, returns.names, part.values)
        with replacing(out / "forecast.csv") as (file,):
            write_csv(file, columns)
    series = list(map(screen.plain, returns.names))
    labels = [f"step {step}" for step in range(1, steps + 1)]
    if dates is not None:
        labels = [f"{label}, {date}" for label, date in zip(labels, dates, strict=True)]
    text = as_text(found, parts, names, series, labels, screen.out.width)
    screen.out.print(f"The {steps} steps after {describe_rows(returns)}\n\n{text}", soft_wrap=True)
    if dates is None:
        screen.note("the steps have no dates, because those of the rows have no known frequency")
    if out is not None:
        screen.out.print(f"\nWrote forecast.csv to {out}")


def _check(level: float) -> None:
    if not 0 < level < 0.5:
        raise ValueError(
            f"expected --level to be above 0 and below 0.5, got {level:g}; it is the probability "
            "of each tail, such as 0.05"
        )


def _columns(name: str, of: Iterable[str], values: Any) -> dict[str, Any]:
    """The columns of a table ``(n, number)``, by their names in the file."""
    return {f"{name}_{each}": column for each, column in zip(of, values.T, strict=True)}
