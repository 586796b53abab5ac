"""The command ``pyro-regimes``, which fits regimes to a table of returns and compares methods."""

from __future__ import annotations

import atexit
import csv as csv_format
import io
import os
import sys
import time
import traceback
import warnings
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, Optional

try:
    import rich.progress
    import typer
    from rich.console import Console
except ImportError as error:
    raise SystemExit(f"pyro-regimes needs {error.name}: pip install 'pyro-regimes[app]'") from error

import numpy as np

from pyro_regimes import datasets
from pyro_regimes.datasets import Returns
from pyro_regimes.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Names of series and of files are printed as they are, with square brackets and colons.
_out = Console(markup=False, emoji=False)
_err = Console(markup=False, emoji=False, highlight=False, stderr=True)


class CovarianceType(str, Enum):
    """The choices of --covariance-type."""

    full = "full"
    diag = "diag"
    spherical = "spherical"
    tied = "tied"


class OrderBy(str, Enum):
    """The choices of --order-by."""

    volatility = "volatility"
    mean = "mean"


_CSV = Annotated[
    Optional[Path],
    typer.Argument(
        help="File of returns, one column per series: .csv, .csv.gz, .zip, .xlsx, .parquet or "
        ".json; - reads standard input. Default: the embedded daily returns of seven US sectors, "
        "1990 to 2022, in percent.",
        show_default=False,
    ),
]
_PRICES = Annotated[
    bool, typer.Option("--prices", help="The file holds prices; use their returns in percent.")
]
_COLUMNS = Annotated[
    Optional[list[str]],
    typer.Option(
        help="Column to read, or several separated by commas; this option can be repeated.",
        show_default="all, or the closing price among open, high, low and close",
    ),
]
_DAYFIRST = Annotated[
    Optional[bool],
    typer.Option(
        "--dayfirst/--no-dayfirst",
        help="Whether 01/02/2020 is the first of February.",
        show_default="as the dates tell",
    ),
]
_SORT = Annotated[bool, typer.Option("--sort", help="Sort the rows by date.")]
_DROP_MISSING = Annotated[
    bool, typer.Option("--drop-missing", help="Leave out rows with missing cells.")
]
_DECIMAL = Annotated[
    Optional[str],
    typer.Option(help="Decimal mark, . or , in text files.", show_default="as the numbers tell"),
]
_ROWS = Annotated[
    Optional[int],
    typer.Option(min=1, help="Use only this number of last rows.", show_default="all"),
]
_REGIMES = Annotated[int, typer.Option(min=1, help="Number of regimes, K.")]
_COVARIANCE = Annotated[
    CovarianceType, typer.Option(help="Covariances: full, diagonal, spherical, or one for all.")
]
_SEED = Annotated[int, typer.Option(min=0, help="Seed of the starts and of variational draws.")]
_OUT = Annotated[Path, typer.Option(help="Directory for the results; created if missing.")]
_PROCESSES = min(
    2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
)
_RATES = [0.01, 0.03, 0.1]
_NOT_FLUSHED = 120  # the exit code that Python has for it
_REFRESH = 0.1  # seconds between two refreshes of the progress bars
_FIT_OUT, _COMPARE_OUT = Path("regimes"), Path("comparison")


def _show_version(wanted: bool) -> None:
    if wanted:
        _out.print(f"pyro-regimes {__version__}", highlight=False)
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", is_eager=True, callback=_show_version
        ),
    ] = False,
) -> None:
    """Market regimes (Calm, Normal, Turbulent) from a table of returns, by hidden Markov models."""


@app.command()
def fit(
    csv: _CSV = None,
    prices: _PRICES = False,
    columns: _COLUMNS = None,
    dayfirst: _DAYFIRST = None,
    sort: _SORT = False,
    drop_missing: _DROP_MISSING = False,
    decimal: _DECIMAL = None,
    num_rows: _ROWS = None,
    n_regimes: _REGIMES = 3,
    covariance_type: _COVARIANCE = CovarianceType.full,
    n_init: Annotated[int, typer.Option(min=1, help="Number of starts; the best is kept.")] = 10,
    max_iter: Annotated[int, typer.Option(min=0, help="Maximum number of EM iterations.")] = 100,
    tol: Annotated[
        float, typer.Option(help="EM stops when an iteration gains fewer nats in every start.")
    ] = 1e-4,
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
            show_default="as the dates tell, or 252",
        ),
    ] = None,
    seed: _SEED = 0,
    out: _OUT = _FIT_OUT,
) -> None:
    """Fit regimes by EM from several starts; print and save them.

    Writes states.csv, model.json and regimes.png. In states.csv the column viterbi and those that
    begin with smoothed use all of the data; those that begin with filtered use the past and the
    present only, as a back-test must.
    """
    options = _Reading(prices, columns, dayfirst, sort, drop_missing, decimal)
    returns = _read(csv, options, num_rows)
    periods = _periods_per_year(returns, periods_per_year, tell=csv is not None)
    _make_directory(out)
    from pyro_regimes.estimator import RegimeModel, plot_regimes  # takes a second or two

    _use_one_thread()
    model = RegimeModel(
        n_regimes=n_regimes,
        covariance_type=covariance_type.value,
        n_init=n_init,
        max_iter=max_iter,
        tol=tol,
        regularization=regularization,
        order_by=order_by.value,
        periods_per_year=periods,
        random_state=seed,
    )
    with _progress() as progress:
        task = progress.add_task(f"EM, {n_init} starts", total=max_iter)
        frame = returns.to_frame()
        model.fit(frame, callback=lambda step, value: progress.update(task, completed=step))
    summary = model.summary()
    states, probs = model.predict(frame), model.predict_proba(frame)
    filtered = model.predict_proba(frame, "filtered")
    _write_states(out / "states.csv", returns, model.regime_names_, states, filtered, probs)
    model.save(out / "model.json")
    figure = plot_regimes(
        returns.values, states, probs, model.regime_names_, returns.dates
    )
    figure.savefig(out / "regimes.png", dpi=150)
    # After the files, so that a closed pipe or a full terminal costs nothing.
    _out.print(str(summary))
    _out.print(f"\nWrote states.csv, model.json and regimes.png to {out}")


@app.command()
def compare(
    csv: _CSV = None,
    prices: _PRICES = False,
    columns: _COLUMNS = None,
    dayfirst: _DAYFIRST = None,
    sort: _SORT = False,
    drop_missing: _DROP_MISSING = False,
    decimal: _DECIMAL = None,
    num_rows: _ROWS = None,
    n_regimes: _REGIMES = 3,
    covariance_type: _COVARIANCE = CovarianceType.full,
    held_out: Annotated[float, typer.Option(help="Share of the data at the end to predict.")] = 0.2,
    em_steps: Annotated[int, typer.Option(min=1, help="Maximum number of EM iterations.")] = 200,
    svi_steps: Annotated[int, typer.Option(min=1, help="Steps of each SVI.")] = 2000,
    learning_rate: Annotated[
        list[float],
        typer.Option(help="Learning rate of Adam and ClippedAdam; this option can be repeated."),
    ] = _RATES,
    method: Annotated[
        Optional[list[str]],
        typer.Option(help="Method to run; this option can be repeated.", show_default="all"),
    ] = None,
    nuts: Annotated[bool, typer.Option("--nuts", help="Also run NUTS; takes minutes.")] = False,
    nuts_steps: Annotated[int, typer.Option(min=1, help="Draws of NUTS.")] = 200,
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            max=2,
            help="2: AutoDelta, the guides and NUTS run two at a time, which may make their "
            "seconds longer; on Linux without CUDA.",
            show_default="the number of cores, at most 2",
        ),
    ] = _PROCESSES,
    seed: _SEED = 0,
    out: _OUT = _COMPARE_OUT,
) -> None:
    """Fit one model from one start by EM, SVI and VI, and compare them.

    EM, and SVI with Adam and ClippedAdam at each learning rate, maximise the likelihood. With weak
    conjugate priors, EM and AutoDelta find the mode; AutoNormal, AutoMultivariateNormal,
    AutoLowRank and NUTS approximate the posterior. Writes comparison.png and posteriors.png.
    """
    options = _Reading(prices, columns, dayfirst, sort, drop_missing, decimal)
    returns = _read(csv, options, num_rows)
    _make_directory(out)
    from pyro_regimes.comparison import (  # takes a second or two
        ALL_METHODS,
        compare_on_returns,
        plot_comparison,
        plot_posteriors,
    )
    from pyro_regimes.comparison.tables import speed_up_line, tables

    _use_one_thread()
    methods = list(method or ALL_METHODS[:-1])
    if nuts and "NUTS" not in methods:
        methods.append("NUTS")
    rows, series = returns.values.shape
    title = (
        f"{n_regimes} regimes, {covariance_type.value} covariances, {rows} steps of {series} series"
    )
    tasks: dict[str, rich.progress.TaskID] = {}
    # A thread that refreshes the bars would not survive the fork of a process.
    with _progress(auto_refresh=False) as progress:
        shown = 0.0

        def tell(name: str, step: int, total: int) -> None:
            nonlocal shown
            if not tasks:
                _err.print(f"Comparing {len(methods)} methods: {title}")
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
                if not _err.is_terminal:  # no progress bar is shown
                    _err.print(f"{name}, up to {total} steps")
            progress.update(tasks[name], completed=step)
            if time.monotonic() - shown > _REFRESH:
                progress.refresh()
                shown = time.monotonic()

        comparison = compare_on_returns(
            returns.values,
            n_regimes=n_regimes,
            covariance_type=covariance_type.value,
            held_out=held_out,
            methods=methods,
            em_steps=em_steps,
            svi_steps=svi_steps,
            learning_rates=learning_rate,
            nuts_steps=nuts_steps,
            random_state=seed,
            progress=tell,
            processes=processes,
        )
    for table in tables(comparison, title):
        _out.print(table)
    line = speed_up_line(comparison)
    if line:
        _out.print(line)
    wrote = [out / "comparison.png"]
    plot_comparison(comparison).savefig(wrote[0], dpi=150)
    if any(run.posterior is not None for run in comparison.runs):
        wrote.append(out / "posteriors.png")
        plot_posteriors(comparison).savefig(wrote[1], dpi=150)
    _out.print(f"Wrote {' and '.join(map(str, wrote))}")


class _Reading(NamedTuple):
    """The options of reading, as :func:`.read_returns` takes them."""

    prices: bool
    columns: list[str] | None
    dayfirst: bool | None
    sort: bool
    drop_missing: bool
    decimal: str | None


def _read(csv: Path | None, options: _Reading, num_rows: int | None) -> Returns:
    if csv is None:
        for name, value in options._asdict().items():
            if value or (name == "dayfirst" and value is False):
                option = f"--{name.replace('_', '-')}"
                option = "--dayfirst or --no-dayfirst" if name == "dayfirst" else option
                raise ValueError(f"expected {option} together with a file, got no file; name one")
        returns = datasets.load_sector_returns()
    else:
        names = _split_names(options.columns) if options.columns else None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            returns = datasets.read_returns(
                sys.stdin.buffer if str(csv) == "-" else csv,
                **options._replace(columns=names)._asdict(),
            )
        for warning in caught:
            _show_warning(warning.message)
        if returns.time_zone not in (None, "UTC"):
            _note(f"times are in UTC; the time zone of the file is {returns.time_zone}")
    return returns if num_rows is None else returns.last(num_rows)


def _split_names(columns: list[str]) -> list[str]:
    """The names in each use of --columns; quotes keep a comma in a name."""
    rows = csv_format.reader(columns, skipinitialspace=True)
    return [name.strip() for row in rows for name in row]


def _periods_per_year(returns: Returns, chosen: float | None, tell: bool) -> float:
    """The user's choice, or what the dates tell; ``tell`` prints where it comes from."""
    if chosen is not None:
        return chosen
    found = returns.periods_per_year
    if tell and found is not None:
        _note(f"the rows are {returns.frequency}: {found:g} periods a year (--periods-per-year)")
    elif tell:
        _note("the dates tell no frequency; 252 periods a year (--periods-per-year)")
    return 252 if found is None else found


def _make_directory(out: Path) -> None:
    """Create the output directory before the fit, so that an invalid name fails at once."""
    out.mkdir(parents=True, exist_ok=True)


def _progress(auto_refresh: bool = True) -> rich.progress.Progress:
    """A transient progress bar on stderr, so that stdout can be piped."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        console=_err,
        transient=True,
        auto_refresh=auto_refresh,
    )


def _write_states(
    path: Path,
    returns: Returns,
    names: list[str],
    states: np.ndarray,
    filtered_probs: np.ndarray,
    smoothed_probs: np.ndarray,
) -> None:
    """Write the regimes of each row; the columns say which of them look ahead."""
    import pandas

    columns = {"date": returns.dates, "viterbi": [names[state] for state in states]}
    for kind, probs in (("filtered", filtered_probs), ("smoothed", smoothed_probs)):
        columns |= {f"{kind}_{name}": probs[:, k] for k, name in enumerate(names)}
    pandas.DataFrame(columns).to_csv(path, index=False)


def _use_one_thread() -> None:
    """The tensors are small: a second thread saves no time, and is slow on a busy machine."""
    import torch

    torch.set_num_threads(1)


def main() -> NoReturn:
    """Run the command. Invalid input prints one line and exits with code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that a terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = app(standalone_mode=False)
        except (ValueError, OSError, ImportError) as error:
            code = _fail(error)
        except (KeyboardInterrupt, typer.Abort):
            code = _fail("interrupted", 130)
        except Exception as error:
            # A usage error of the parser; its class differs between releases of typer.
            if not hasattr(error, "format_message"):
                raise
            code = _fail(error.format_message())
    raise SystemExit(code or 0)


def program() -> NoReturn:
    """Run the command as a program of its own, and end the process.

    The interpreter would first free all objects of torch one by one, which takes a second or two.
    """
    code: Any = 1  # after an error with a traceback
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    except Exception:
        traceback.print_exc()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a closed pipe, a full disk
            code = code or _NOT_FLUSHED
    os._exit(code)


def _fail(reason: object, code: int = 2) -> int:
    if str(reason):  # empty if the help was shown because no command was given
        _err.print(f"pyro-regimes: error: {_plain(reason)}", soft_wrap=True)
    return code


def _show_warning(message: Any, *rest: Any, **more: Any) -> None:
    _note(str(message))


def _note(text: str) -> None:
    _err.print(f"note: {_plain(text)}", soft_wrap=True)


def _plain(text: object) -> str:
    """Text without control characters, which a terminal would obey; lines stay lines."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in str(text))


if __name__ == "__main__":
    program()
