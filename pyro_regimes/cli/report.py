"""``pyro-regimes report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from pyro_regimes.cli import screen
from pyro_regimes.cli.fitted import read_fitted
from pyro_regimes.cli.fitting import Settings
from pyro_regimes.cli.reading import Data, with_data
from pyro_regimes.cli.writing import make_room_for

_REPORT_OUT = Path("report.html")

_SELECT = Annotated[
    int,
    typer.Option(
        min=0,
        help="Also fit every number of regimes from 1 to this one, with the other settings of the "
        "fit, and show their table; 0 for none.",
    ),
]


@with_data
def report(
    data: Data,
    settings: Settings,
    model: Annotated[
        Optional[Path],
        typer.Option(
            metavar="MODEL",
            help="A model that fit wrote, model.json, in place of a fit. The settings of a fit are "
            "then not used.",
            show_default="fitted to DATA",
        ),
    ] = None,
    level: Annotated[
        Optional[float],
        typer.Option(
            help="Probability of confidence intervals in the tables, such as 0.95.",
            show_default="no intervals",
        ),
    ] = None,
    title: Annotated[
        Optional[str], typer.Option(help="Title of the page.", show_default="the series")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="File of the report; its directory is created if missing.")
    ] = _REPORT_OUT,
    select: _SELECT = 0,
) -> None:
    """Write a report as one HTML file: regimes, forecast, risk.

    The file needs no other file and no network. It can be sent, printed, and read on a phone. The
    model is fitted as fit does, or taken from a file (--model). With prices (--prices) the history
    shows them on a logarithmic scale.

    Example: pyro-regimes report prices.csv --prices --select 4
    """
    if level is not None:
        from pyro_regimes.estimator.intervals import check_level  # takes a second or two

        check_level(level)
    if model is None:
        returns = data.read()
        make_room_for(out)
        fitted = settings.fit(returns, tell=data.csv is not None)
        frame: Any = returns.to_frame()
    else:
        _refuse_settings(settings, select)
        fitted, returns, frame = read_fitted(model, data)
        make_room_for(out)
    selection = settings.select(returns, select) if select else None
    notes = []
    if data.prices:
        notes = ["The data are simple returns, in percent, of the prices in the file."]
    if data.csv is None:
        notes = ["The data are the embedded returns of US sectors, of stocks that survived."]
    fitted.report(
        frame, out, dates=returns.dates if returns.dates.dtype.kind == "M" else None, title=title,
        unit=data.unit, prices=returns.prices, level=level, notes=notes,
        selection=selection,
    )  # fmt: skip
    screen.out.print(f"Wrote {out}")


def _refuse_settings(settings: Settings, select: int) -> None:
    """:raises ValueError: if settings of a fit are given together with a model."""
    given = [
        f"--{name.replace('_', '-')}"
        for name, value in settings._asdict().items()
        if value != Settings._field_defaults[name]
    ]
    given += ["--select"] if select else []
    if given:
        raise ValueError(
            f"expected either --model or settings of a fit, got both (--model, {', '.join(given)})"
        )
