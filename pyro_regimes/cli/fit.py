"""``pyro-regimes fit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from pyro_regimes.cli import screen
from pyro_regimes.cli.options import (
    COVARIANCE,
    MAX_ITER,
    OUT,
    REGIMES,
    SEED,
    STARTS,
    TOL,
    CovarianceType,
    Emission,
    OrderBy,
    use_one_thread,
)
from pyro_regimes.cli.reading import Data, with_data
from pyro_regimes.cli.writing import make_directory, states_table, write_csv
from pyro_regimes.files import replacing

if TYPE_CHECKING:
    from pyro_regimes.datasets import Returns

_FIT_OUT = Path("regimes")


@with_data
def fit(
    data: Data,
    n_regimes: REGIMES = 3,
    emission: Annotated[
        Emission, typer.Option(help="Family of the observations; student_t has heavy tails.")
    ] = Emission.gaussian,
    covariance_type: COVARIANCE = CovarianceType.full,
    n_init: STARTS = 10,
    max_iter: MAX_ITER = 100,
    tol: TOL = 1e-4,
    regularization: Annotated[
        float, typer.Option(min=0, help="Each variance is raised by this share of itself.")
    ] = 1e-6,
    order_by: Annotated[
        OrderBy, typer.Option(help="Sort and name regimes by volatility or by mean.")
    ] = OrderBy.volatility,
    periods_per_year: Annotated[
        Optional[float],
        typer.Option(
            help="Rows in a year, by which the table is annualised.",
            show_default="inferred from the dates, or 252",
        ),
    ] = None,
    seed: SEED = 0,
    out: OUT = _FIT_OUT,
) -> None:
    """Fit regimes by EM from several starts; print and save them.

    Writes states.csv, model.json and regimes.png. In states.csv the column viterbi and those that
    begin with smoothed use all of the data; those that begin with filtered use the past and the
    present only, as a backtest must. A name in it that a spreadsheet would run as a formula,
    because it begins with = + - or @, has an apostrophe in front.
    """
    returns = data.read()
    periods = _periods_per_year(returns, periods_per_year, tell=data.csv is not None)
    make_directory(out)
    from pyro_regimes.estimator import RegimeModel, plot_regimes  # takes a second or two

    use_one_thread()
    model = RegimeModel(
        n_regimes=n_regimes,
        emission=emission.value,
        covariance_type=covariance_type.value,
        n_init=n_init,
        max_iter=max_iter,
        tol=tol,
        regularization=regularization,
        order_by=order_by.value,
        periods_per_year=periods,
        random_state=seed,
    )
    frame, method = returns.to_frame(), f"EM, {n_init} start{'s' * (n_init > 1)}"
    with screen.Progress() as progress:
        progress.begin(method, max_iter)
        model.fit(frame, callback=lambda step, mean: progress.tell(method, step, max_iter, mean))
    summary = model.summary()
    states, probs = model.predict(frame), model.predict_proba(frame)
    filtered = model.predict_proba(frame, "filtered")
    names = model.regime_names_
    unit = "%" if data.csv is None or data.prices else "unit of the data"
    figure = plot_regimes(
        returns.values,
        states,
        probs,
        names,
        returns.dates,
        unit=unit,
        cumulative=summary.is_annualised,
    )
    written = [out / name for name in ("states.csv", "model.json", "regimes.png")]
    with replacing(*written) as (table, saved, picture):
        write_csv(table, states_table(returns.dates, names, states, filtered, probs))
        model.save(saved)
        figure.savefig(picture, dpi=150, format="png")
    # After the files, so that a closed pipe or a full terminal costs nothing.
    screen.out.print(summary.to_string(screen.out.width), soft_wrap=True)
    screen.out.print(f"\nWrote states.csv, model.json and regimes.png to {out}")


def _periods_per_year(returns: Returns, chosen: float | None, tell: bool) -> float:
    """The user's choice, or what the dates tell; ``tell`` prints where it comes from."""
    if chosen is not None:
        return chosen
    found = returns.periods_per_year
    if tell and found is not None:
        every = f"{returns.frequency}: {found:g} periods a year"
        screen.note(f"the rows are {every} (--periods-per-year)")
    elif tell:
        screen.note("the dates have no known frequency; 252 periods a year (--periods-per-year)")
    return 252 if found is None else found
