"""``pyro-regimes fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyro_regimes.cli import screen
from pyro_regimes.cli.fitting import Settings
from pyro_regimes.cli.options import OUT
from pyro_regimes.cli.reading import Data, with_data
from pyro_regimes.cli.writing import make_directory, write_states
from pyro_regimes.files import replacing

_FIT_OUT = Path("regimes")

_STREAM = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Read a .parquet or .npy file anew in every iteration, in the memory of a piece of "
        "it. The columns are returns; only model.json is written.",
    ),
]


@with_data
def fit(data: Data, settings: Settings, out: OUT = _FIT_OUT, stream: _STREAM = False) -> None:
    """Fit regimes by EM from several starts; print and save them.

    Writes states.csv, model.json and regimes.png. In states.csv the columns that begin with viterbi
    or smoothed use all of the data; those that begin with filtered use the past and the
    present only, as a backtest must. A name in it that a spreadsheet would run as a formula,
    because it begins with = + - or @, has an apostrophe in front.

    Example: pyro-regimes fit prices.csv --prices
    """
    if stream:
        _fit_stream(data, settings, out)
        return
    returns = data.read()
    make_directory(out)
    model = settings.fit(returns, tell=data.csv is not None)
    frame = returns.to_frame()
    figure = model.plot(frame, returns.dates, unit=data.unit)
    written = [out / name for name in ("states.csv", "model.json", "regimes.png")]
    with replacing(*written) as (table, saved, picture):
        write_states(table, returns.dates, model.regimes(frame))
        model.save(saved)
        figure.savefig(picture, dpi=150, format="png")
    # After the files, so that a closed pipe or a full terminal costs nothing.
    screen.out.print(model.summary().to_string(screen.out.width), soft_wrap=True)
    screen.out.print(f"\nWrote states.csv, model.json and regimes.png to {out}")


def _fit_stream(data: Data, settings: Settings, out: Path) -> None:
    """Fit to a file that need not fit in memory."""
    chunks = data.stream()
    make_directory(out)
    model = settings.fit_stream(chunks)
    model.save(out / "model.json")
    screen.out.print(model.summary().to_string(screen.out.width), soft_wrap=True)
    screen.out.print(f"\nWrote model.json to {out}")
