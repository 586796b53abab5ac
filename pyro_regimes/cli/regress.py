"""``pyro-regimes regress``."""

from __future__ import annotations

import csv as csv_format
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from pyro_regimes.cli import screen
from pyro_regimes.cli.options import DAYFIRST, DECIMAL, OUT, SEED, use_one_thread
from pyro_regimes.cli.panels import panels
from pyro_regimes.cli.reading import Stdin
from pyro_regimes.cli.writing import make_directory, write_csv
from pyro_regimes.files import replacing

if TYPE_CHECKING:
    from pyro_regimes import RegimeRegression

_REGRESS_OUT = Path("regression")


class Initial(str, Enum):
    """The choices of --initial."""

    stationary = "stationary"
    free = "free"
    uniform = "uniform"


class TransitionRow(str, Enum):
    """The choices of --transition-row."""

    left = "left"
    entered = "entered"


class Family(str, Enum):
    """The choices of --family."""

    gaussian = "gaussian"
    poisson = "poisson"
    bernoulli = "bernoulli"
    binomial = "binomial"
    exponential = "exponential"
    gamma = "gamma"


class Link(str, Enum):
    """The choices of --link."""

    identity = "identity"
    log = "log"
    logit = "logit"
    probit = "probit"


class Errors(str, Enum):
    """The choices of --errors."""

    observed = "observed"
    sandwich = "sandwich"


def regress(
    csv: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="File with a column for each variable, in order of time: .csv, .csv.gz, .zip, "
            ".xlsx, .parquet or .json; - reads standard input.",
        ),
    ],
    formula: Annotated[
        str, typer.Option(help="Such as 'y ~ 1 + x + C(group)'. It is code that is run.")
    ],
    switching: Annotated[
        Optional[str],
        typer.Option(
            help="Terms whose coefficients depend on the regime, separated by commas; 1 is the "
            "intercept.",
            show_default="all",
        ),
    ] = None,
    one_variance: Annotated[
        bool, typer.Option("--one-variance", help="All regimes have the same variance.")
    ] = False,
    family: Annotated[
        Family, typer.Option(help="Distribution of the response given its mean.")
    ] = Family.gaussian,
    link: Annotated[
        Optional[Link],
        typer.Option(help="Link of the mean.", show_default="the usual one of the family"),
    ] = None,
    scale_formula: Annotated[
        Optional[str],
        typer.Option(
            help="Covariates of the logarithm of sigma, such as '~ z'.",
            show_default="constant sigma",
        ),
    ] = None,
    transition_formula: Annotated[
        Optional[str],
        typer.Option(
            help="Covariates of the transition probabilities, such as '~ z'.",
            show_default="constant probabilities",
        ),
    ] = None,
    transition_row: Annotated[
        TransitionRow,
        typer.Option(help="Whether the row that is left or the one that is entered drives these."),
    ] = TransitionRow.left,
    by: Annotated[
        Optional[str],
        typer.Option(
            metavar="COLUMN",
            help="Column that names the sequence of each row, of several in one file.",
        ),
    ] = None,
    n_regimes: Annotated[int, typer.Option(min=1, help="Number of regimes, K.")] = 2,
    initial: Annotated[
        Optional[Initial],
        typer.Option(
            help="Distribution of the first regime.",
            show_default="stationary; free with --transition-formula",
        ),
    ] = None,
    n_init: Annotated[int, typer.Option(min=1, help="Number of starts; the best is kept.")] = 20,
    max_iter: Annotated[int, typer.Option(min=0, help="Maximum number of EM iterations.")] = 1000,
    errors: Annotated[
        Errors, typer.Option(help="Standard errors; sandwich is robust.")
    ] = Errors.observed,
    seed: SEED = 0,
    dayfirst: DAYFIRST = None,
    decimal: DECIMAL = None,
    out: OUT = _REGRESS_OUT,
) -> None:
    """Fit a regression whose coefficients depend on a hidden regime; print its table.

    Columns of numbers are numbers, and columns of text are categories. Covariates may not be
    missing; the response may. With --by the file has several sequences, each in order of time.
    Writes coefficients.csv, model.json for RegimeRegression.load, and states.csv: the regime of
    each row, in which smoothed columns use all rows, and filtered ones the past and the present.

    Example: pyro-regimes regress data.csv --formula "y ~ x" --transition-formula "~ z"
    """
    make_directory(out)
    from pyro_regimes import RegimeRegression  # takes a second or two
    from pyro_regimes.reading.mixed import read_mixed

    use_one_thread()
    file = csv if str(csv) != "-" else Stdin(sys.stdin.buffer.read())
    data = read_mixed(file, dayfirst=dayfirst, decimal=decimal)
    labels, data, lengths = panels(data, by)
    model = RegimeRegression(
        formula,
        switching=None if switching is None else _split(switching),
        switching_variance=not one_variance,
        family=family.value,
        link=None if link is None else link.value,
        scale_formula=scale_formula,
        transition_formula=transition_formula,
        transition_row=transition_row.value,
        n_regimes=n_regimes,
        initial=None if initial is None else initial.value,
        n_init=n_init,
        max_iter=max_iter,
        errors=errors.value,
        random_state=seed,
    ).fit(data, lengths=lengths)
    written = [out / name for name in ("coefficients.csv", "states.csv", "model.json")]
    with replacing(*written) as (table, states, saved):
        write_csv(table, _estimates(model))
        write_csv(states, labels | _states(model, data, lengths))
        model.save(saved)
    screen.out.print(screen.plain(model.summary()), soft_wrap=True)
    screen.out.print(f"\nWrote coefficients.csv, states.csv and model.json to {out}")


def _split(text: str) -> list[str]:
    """Names separated by commas, except those within brackets or quotes."""
    if "(" not in text:
        return [name.strip() for name in next(csv_format.reader([text]), []) if name.strip()]
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _estimates(model: RegimeRegression) -> dict[str, Any]:
    """The columns of coefficients.csv."""
    table = model.coefficients_
    of, terms = zip(*table.labels, strict=True)
    numbers = ("estimate", "standard_error", "z", "p_value", "lower", "upper")
    names = {"of": list(of), "term": list(terms)}
    return {**names, **{name: getattr(table, name) for name in numbers}}


def _states(
    model: RegimeRegression, data: Any, lengths: list[int] | None
) -> dict[str, Any]:
    """The columns of states.csv beside the labels of the rows."""
    path = model.predict(data, start="fitted", lengths=lengths)
    columns: dict[str, Any] = {"viterbi": [model.regime_names_[state] for state in path]}
    for kind in ("filtered", "smoothed"):
        probs = model.predict_proba(data, kind=kind, start="fitted", lengths=lengths)
        columns |= {f"{kind}_{n}": p for n, p in zip(model.regime_names_, probs.T, strict=True)}
    return columns
