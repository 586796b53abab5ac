"""``pyro-regimes walk``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from pyro_regimes.cli import screen
from pyro_regimes.cli.fitting import Settings
from pyro_regimes.cli.options import OUT
from pyro_regimes.cli.reading import Data, with_data
from pyro_regimes.cli.writing import make_directory, write_csv
from pyro_regimes.files import replacing
from pyro_regimes.text_tables import fixed, titled_table, wrapped

if TYPE_CHECKING:
    from pyro_regimes.estimator.walk_forward_result import WalkForward

_WALK_OUT = Path("walk")
_REFITS = 5  # in the time of the first fit


@with_data
def walk(
    data: Data,
    settings: Settings,
    min_train: Annotated[
        Optional[int],
        typer.Option(
            min=2, help="Rows of the first fit.", show_default="half of the rows", metavar="ROWS"
        ),
    ] = None,
    refit_every: Annotated[
        Optional[str],
        typer.Option(
            help="Number of rows from one refit to the next, or month, quarter or year.",
            show_default="a fifth of --min-train",
            metavar="ROWS|PERIOD",
        ),
    ] = None,
    window: Annotated[
        Optional[int],
        typer.Option(
            min=2,
            help="Fit each model to this number of rows only.",
            show_default="all rows before the refit",
            metavar="ROWS",
        ),
    ] = None,
    horizon: Annotated[
        int, typer.Option(min=1, help="Rows from a forecast to the row that it is of.")
    ] = 1,
    level: Annotated[
        float, typer.Option(help="Probability of a loss above the value at risk; below 0.5.")
    ] = 0.05,
    out: OUT = _WALK_OUT,
) -> None:
    """Backtest without look-ahead, with refits as time goes on.

    Each row has the regimes and the forecast of a model of rows before it: what the model would
    have said at the time. Prints how good the forecasts were, and of returns how often a loss
    exceeded the value at risk, with p-values of tests that it is right. Writes walk.csv (by row:
    the regimes as they were known, the forecast made at it, and the value at risk that was forecast
    of it) and walk.png. The number of regimes and the series are your choice: if you chose them by
    all rows, they look ahead.

    Example: pyro-regimes walk prices.csv --prices --n-regimes 2 --refit-every year
    """
    if not 0 < level < 0.5:
        raise ValueError(f"expected --level to be above 0 and below 0.5, got {level:g}")
    returns = data.read()
    make_directory(out)
    rows = len(returns.values)
    first = rows // 2 if min_train is None else min_train
    every = _rows_or_period(refit_every, first)
    from pyro_regimes import walk_forward  # takes a second or two

    model = settings.model(returns, tell=data.csv is not None)
    screen.say(f"fits the first {first} of {rows} rows, then again every {_named(every)}")
    found = walk_forward(
        model,
        returns.to_frame(),
        min_train=first,
        refit_every=every,
        window=window,
        horizon=horizon,
    )
    has_losses = found.has_losses
    with replacing(out / "walk.csv", out / "walk.png") as (table, picture):
        write_csv(table, _columns(found, returns.dates[first:], level, has_losses))
        found.plot(unit=data.unit).savefig(picture, dpi=150, format="png")
    title = (
        f"{len(found.index)} rows from {returns.dates[first]} to {returns.dates[-1]}, "
        f"{len(found.fits)} fits, forecasts {horizon} row{'s' * (horizon > 1)} ahead"
    )
    screen.out.print(_text(found, title, level, has_losses), soft_wrap=True)
    screen.out.print(f"\nWrote walk.csv and walk.png to {out}")


def _rows_or_period(given: str | None, first: int) -> int | str:
    """A number of rows, or what is no number, which the walk checks."""
    if given is None:
        return max(1, first // _REFITS)
    return int(given) if given.isdecimal() else given


def _named(every: int | str) -> str:
    return every if isinstance(every, str) else f"{every} rows"


def _text(found: WalkForward, title: str, level: float, has_losses: bool) -> str:
    """The scores of each series, as a table."""
    scores, series = found.scores, list(map(screen.plain, found.series_names))
    columns = [("CRPS", fixed([scores["CRPS"].mean()])[0])]
    notes = [
        f"Mean log score: {scores['log score', ''].mean():.4f}, of all series together; higher is "
        "better. CRPS: lower is better, in the unit of the data."
    ]
    if has_losses:
        tests = found.exceedances(level)
        columns += [
            ("same sign", [f"{share:.1%}" for share in found.hit_rate()]),
            ("VaR exceeded", [f"{number:.0f}" for number in tests["exceedances"]]),
            ("share", [f"{share:.2%}" for share in tests["share"]]),
            *((name, [f"{p:.3f}" for p in tests[name]]) for name in ("Kupiec", "Christoffersen")),
        ]
        notes.append(
            "Same sign: the share of rows with the sign of the forecast mean. VaR exceeded: rows "
            f"with a loss above the value at risk of {level:g}, the share to expect. Kupiec, "
            "Christoffersen: p-values that the share is this, and that one such row does not make "
            "the next more likely; below 0.01 is evidence against it."
        )
    width = screen.out.width
    return titled_table(wrapped(title, width), series, columns, notes, width)


def _columns(
    found: WalkForward, dates: Any, level: float, has_losses: bool
) -> dict[str, Any]:
    """The columns of walk.csv by name."""
    columns: dict[str, Any] = {"date": dates}
    tables = [("filtered", found.regime_names, found.walk.filtered)]
    tables += [("mean", found.series_names, found.walk.mean)]
    tables += [("deviation", found.series_names, found.walk.deviation)]
    if has_losses:
        losses = found.value_at_risk(level).to_numpy()
        tables.append(("value_at_risk", found.series_names, losses))
    for name, of, values in tables:
        columns |= {f"{name}_{each}": column for each, column in zip(of, values.T, strict=True)}
    return columns
