"""``pyro-regimes today``."""

from __future__ import annotations

from pyro_regimes.cli import screen
from pyro_regimes.cli.fitted import describe_rows, read_fitted
from pyro_regimes.cli.options import MODEL, START, Start
from pyro_regimes.cli.reading import Data, with_data
from pyro_regimes.cli.text import fixed, percent, text_table


@with_data
def today(model: MODEL, data: Data, start: START = Start.auto) -> None:
    """Tell the regime of the last row, by a fitted model.

    Prints the date of the last row; the probability of each regime on it, given all rows
    (filtered), and one step later; since when the most probable regime has been the most probable
    one, judged with all rows up to the last; and the expected number of steps until each regime
    ends, which does not depend on how long it has lasted.
    """
    fitted, returns, frame = read_fitted(model, data)
    # At the last row the smoothed probabilities are the filtered ones.
    probs = fitted.predict_proba(frame, start=start.value)
    if not probs[-1].sum() > 0:
        raise ValueError(
            "expected DATA to have a positive probability in the model, got 0; look for outliers"
        )
    likely = probs.argmax(-1)
    current = likely[-1]
    others = (likely != current).nonzero()[0]
    lasted = len(likely) - (others[-1] + 1 if len(others) else 0)
    since = returns.dates[-lasted]
    following = fitted.forecast(frame, 1, start=start.value).regime_probs[0]
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
    columns = {name: list(column) for name, column in zip(names, zip(*cells), strict=True)}
    screen.out.print(
        f"{returns.dates[-1]}: {names[current]}, probability {probs[-1, current]:.1%}, "
        f"for {least}{lasted} {rows}, since {since}\n"
        f"{describe_rows(returns)}\n\n"
        f"{text_table('', labels, columns, screen.out.width)}",
        soft_wrap=True,
    )
