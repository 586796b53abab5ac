"""The typer application: its commands, and ``--version``."""

from __future__ import annotations

from typing import Annotated

import typer

from pyro_regimes.cli.compare import compare
from pyro_regimes.cli.fit import fit
from pyro_regimes.cli.forecast import forecast
from pyro_regimes.cli.predict import predict
from pyro_regimes.cli.regress import regress
from pyro_regimes.cli.report import report
from pyro_regimes.cli.screen import out
from pyro_regimes.cli.select import select
from pyro_regimes.cli.today import today
from pyro_regimes.cli.walk import walk
from pyro_regimes.version import __version__

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (fit, report, select, walk, predict, today, forecast, compare, regress):
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"pyro-regimes {__version__}", highlight=False)
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", is_eager=True, callback=_show_version
        ),
    ] = False,
) -> None:
    """Market regimes (Calm, Normal, Turbulent) from a table of returns, by hidden Markov models.

    Example: pyro-regimes fit prices.csv --prices, then pyro-regimes report prices.csv --prices
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
