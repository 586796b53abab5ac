"""``pyro-regimes today``."""

from __future__ import annotations

from pyro_regimes.cli import screen
from pyro_regimes.cli.after import read_start
from pyro_regimes.cli.fitted import describe_rows, read_fitted
from pyro_regimes.cli.options import AFTER, MODEL, START, Start
from pyro_regimes.cli.reading import Data, with_data
from pyro_regimes.text_tables import fixed, percent, text_table


@with_data
def today(model: MODEL, data: Data, start: START = Start.auto, after: AFTER = None) -> None:
    """Print the regime of the last row, by a fitted model.

    Prints the date of the last row, its most probable regime, and since when this has been the most
    probable regime, given all rows. A table has for each regime its probability on the last row and
    one step later, the expected number of steps until it ends, and its volatility. The expected
    number of steps does not depend on how long the regime has lasted.

    Example: pyro-regimes today regimes/model.json prices.csv --prices
    """
    fitted, returns, frame = read_fitted(model, data)
    before = read_start(start, after, fitted, returns)
    # At the last row the smoothed probabilities are the filtered ones.
    probs = fitted.predict_proba(frame, **before)
    if not probs[-1].sum() > 0:
        raise ValueError(
            "expected DATA to have a positive probability in the model, got 0; look for outliers"
        )
    likely = probs.argmax(-1)
    current = likely[-1]
    others = (likely != current).nonzero()[0]
    lasted = len(likely) - (others[-1] + 1 if len(others) else 0)
    since = returns.dates[-lasted]
    following = fitted.forecast(frame, 1, **before).regime_probs[0]
    summary = fitted.summary()
    names = list(map(screen.plain, fitted.regime_names_))
    rows = "row" if lasted == 1 else "rows"
    least = "" if len(others) else "at least "
    labels = [
        "probability today",
        "probability one step later",
        "expected steps until it ends",
        f"{'annualised volatility' if summary.is_annualised else 'standard deviation'}, average",
    ]
    cells = [
        *percent([probs[-1], following]),
        [f"{steps:.1f}" for steps in summary.expected_duration],
        *fixed([summary.volatility.mean(-1)]),
    ]
    columns = zip(names, zip(*cells), strict=True)
    screen.out.print(
        f"{returns.dates[-1]}: {names[current]}, probability {probs[-1, current]:.1%}, "
        f"for {least}{lasted} {rows}, since {since}\n"
        f"{describe_rows(returns)}\n\n"
        f"{text_table('', labels, columns, screen.out.width)}",
        soft_wrap=True,
    )
