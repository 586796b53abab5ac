"""``pyro-regimes forecast``."""

from __future__ import annotations

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
from pyro_regimes.text_tables import fixed, percent, text_table


@with_data
def forecast(
    model: MODEL,
    data: Data,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps after the last row.")] = 5,
    start: START = Start.auto,
    after: AFTER = None,
    out: Annotated[
        Optional[Path],
        typer.Option(
            help="Directory for forecast.csv; created if missing.", show_default="not written"
        ),
    ] = None,
) -> None:
    """Forecast regimes and series after the last row, by a fitted model.

    Prints the probability of each regime, and the mean and the standard deviation of each series,
    in the unit of the data and for one step each. With --out, also writes them to forecast.csv,
    where a name that a spreadsheet would run as a formula has an apostrophe in front.

    The steps have dates if the rows are daily, weekly, monthly, quarterly or yearly. After daily
    rows these are the next weekdays; holidays are not known.
    """
    fitted, returns, frame = read_fitted(model, data)
    before = read_start(start, after, fitted, returns)
    if out is not None:
        make_directory(out)
    from pyro_regimes.reading.following import following_dates

    found = fitted.forecast(frame, steps, **before)
    dates = following_dates(returns.dates, steps)
    names = list(map(screen.plain, fitted.regime_names_))
    if out is not None:
        columns: dict[str, Any] = {"step": range(1, steps + 1)}
        columns |= {} if dates is None else {"date": dates}
        columns |= {f"probability_{k}": p for k, p in zip(names, found.regime_probs.T, strict=True)}
        columns |= {f"mean_{d}": m for d, m in zip(returns.names, found.mean.T, strict=True)}
        deviations = zip(returns.names, found.deviation.T, strict=True)
        columns |= {f"deviation_{d}": s for d, s in deviations}
        with replacing(out / "forecast.csv") as (file,):
            write_csv(file, columns)
    series, width = list(map(screen.plain, returns.names)), screen.out.width
    labels = [f"step {step}" for step in range(1, steps + 1)]
    if dates is not None:
        labels = [f"{label}, {date}" for label, date in zip(labels, dates, strict=True)]
    screen.out.print(f"The {steps} steps after {describe_rows(returns)}", soft_wrap=True)
    for title, table in (
        ("probability", zip(names, percent(found.regime_probs.T), strict=True)),
        ("mean", zip(series, fixed(found.mean.T), strict=True)),
        ("standard deviation", zip(series, fixed(found.deviation.T), strict=True)),
    ):
        screen.out.print(f"\n{text_table(title, labels, table, width)}", soft_wrap=True)
    if dates is None:
        screen.note("the steps have no dates, because those of the rows have no known frequency")
    if out is not None:
        screen.out.print(f"\nWrote forecast.csv to {out}")
