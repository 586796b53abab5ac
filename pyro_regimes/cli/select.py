"""``pyro-regimes select``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from pyro_regimes.cli import screen
from pyro_regimes.cli.fitting import fit_candidates
from pyro_regimes.cli.options import MAX_ITER, SEED, STARTS, TOL, CovarianceType, Emission
from pyro_regimes.cli.reading import Data, with_data
from pyro_regimes.cli.writing import make_directory, write_csv
from pyro_regimes.files import replacing


@with_data
def select(
    data: Data,
    max_regimes: Annotated[
        int, typer.Option(min=1, help="Fit every number of regimes from 1 to this one.")
    ] = 5,
    emission: Annotated[
        Optional[list[Emission]],
        typer.Option(
            help="Family of the observations; give it again to compare several.",
            show_default="gaussian",
        ),
    ] = None,
    covariance_type: Annotated[
        Optional[list[CovarianceType]],
        typer.Option(
            help="Covariances: full, diagonal, spherical, or one for all; give it again to compare "
            "several.",
            show_default="full",
        ),
    ] = None,
    folds: Annotated[
        int, typer.Option(min=0, help="Number of blocks that are held out in turn; 0 for none.")
    ] = 5,
    bootstrap: Annotated[
        int,
        typer.Option(
            min=0,
            help="Simulated data sets of the bootstrap test of each number of regimes against one "
            "more, such as 99; 0 for no test.",
        ),
    ] = 0,
    n_init: STARTS = 10,
    max_iter: MAX_ITER = 100,
    tol: TOL = 1e-4,
    seed: SEED = 0,
    out: Annotated[
        Optional[Path],
        typer.Option(
            help="Directory for selection.csv and selection.png; created if missing.",
            show_default="nothing is written",
        ),
    ] = None,
) -> None:
    """Compare numbers of regimes by criteria and by held-out data.

    Prints a table of AIC, BIC, ICL, the log-likelihood of held-out blocks and the p-values of a
    bootstrap test, in which an asterisk marks the best of each column. Fit the model that you
    choose with pyro-regimes fit. For data other than returns, such as counts, set --emission.

    Example: pyro-regimes select prices.csv --prices --max-regimes 4
    """
    returns = data.read()
    if out is not None:
        make_directory(out)
    selection = fit_candidates(
        returns,
        max_regimes,
        [each.value for each in emission or [Emission.gaussian]],
        [each.value for each in covariance_type or [CovarianceType.full]],
        n_init=n_init,
        folds=folds,
        bootstrap=bootstrap,
        random_state=seed,
        max_iter=max_iter,
        tol=tol,
    )
    if out is not None:
        frame = selection.to_frame()
        columns = {str(name): frame[name] for name in frame}
        texts = {name: frame[name].tolist() for name in ("emission", "covariance_type")}
        with replacing(out / "selection.csv", out / "selection.png") as (table, picture):
            write_csv(table, {**columns, **texts})
            selection.plot().savefig(picture, dpi=150, format="png")
    # After the files, so that a closed pipe or a full terminal costs nothing.
    screen.out.print(selection.to_string(screen.out.width), soft_wrap=True)
    if out is not None:
        screen.out.print(f"\nWrote selection.csv and selection.png to {out}")
