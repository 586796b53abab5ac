"""``pyro-regimes predict``."""

from __future__ import annotations

from pathlib import Path

from pyro_regimes.cli import screen
from pyro_regimes.cli.after import read_start
from pyro_regimes.cli.fitted import describe_rows, read_fitted
from pyro_regimes.cli.options import AFTER, MODEL, OUT, START, Start
from pyro_regimes.cli.reading import Data, with_data
from pyro_regimes.cli.writing import make_directory, write_states
from pyro_regimes.files import replacing

_PREDICT_OUT = Path("prediction")


@with_data
def predict(
    model: MODEL,
    data: Data,
    start: START = Start.auto,
    after: AFTER = None,
    out: OUT = _PREDICT_OUT,
) -> None:
    """Find the regime of each row of data, by a fitted model.

    Columns are matched with the series of the model by their names; the file may have more.
    Writes states.csv as fit does: the columns that begin with viterbi or smoothed use all of the
    rows; those that begin with filtered use the past and the present only, as a backtest
    must. A name in it that a spreadsheet would run as a formula has an apostrophe in front.

    Example: pyro-regimes predict regimes/model.json prices.csv --prices
    """
    fitted, returns, frame = read_fitted(model, data)
    before = read_start(start, after, fitted, returns)
    make_directory(out)
    regimes = fitted.regimes(frame, **before)
    path, names = regimes["viterbi_number"].to_numpy(), fitted.regime_names_
    with replacing(out / "states.csv") as (table,):
        write_states(table, returns.dates, regimes)
    shares = [float((path == k).mean()) for k in range(len(names))]
    told = ", ".join(f"{name} {share:.1%}" for name, share in zip(names, shares, strict=True))
    screen.out.print(
        f"{describe_rows(returns)}\n"
        f"share of rows (Viterbi): {screen.plain(told)}\n"
        f"log-likelihood: {fitted.score(frame, **before):.2f}\n\n"
        f"Wrote states.csv to {out}"
    )
