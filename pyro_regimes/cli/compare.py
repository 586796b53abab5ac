"""``pyro-regimes compare``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from pyro_regimes.cli import screen
from pyro_regimes.cli.options import (
    COVARIANCE,
    OUT,
    REGIMES,
    SEED,
    CovarianceType,
    Emission,
    use_one_thread,
)
from pyro_regimes.cli.reading import Data, with_data
from pyro_regimes.cli.writing import make_directory
from pyro_regimes.files import replacing

_PROCESSES = min(
    2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
)
_RATES = [0.01, 0.03, 0.1]
_COMPARE_OUT = Path("comparison")


@with_data
def compare(
    data: Data,
    n_regimes: REGIMES = 3,
    emission: Annotated[
        Emission,
        typer.Option(
            help="Distribution of the data. The methods with priors run for gaussian and poisson."
        ),
    ] = Emission.gaussian,
    covariance_type: COVARIANCE = CovarianceType.full,
    held_out: Annotated[float, typer.Option(help="Share of the data at the end to predict.")] = 0.2,
    em_steps: Annotated[int, typer.Option(min=1, help="Maximum number of EM iterations.")] = 200,
    svi_steps: Annotated[
        int,
        typer.Option(min=1, help="Steps of each SVI, and maximum number of L-BFGS iterations."),
    ] = 2000,
    learning_rate: Annotated[
        list[float],
        typer.Option(
            help="Learning rate of Adam and ClippedAdam, and first one of DecayingAdam, which "
            "falls to a hundredth of it; this option can be repeated."
        ),
    ] = _RATES,
    method: Annotated[
        Optional[list[str]],
        typer.Option(
            help="Method to run; this option can be repeated. EM; 'EM, SQUAREM'; Adam; "
            "ClippedAdam; DecayingAdam; L-BFGS; 'EM, MAP'; AutoDelta; AutoNormal; "
            "AutoMultivariateNormal; AutoLowRank; NUTS.",
            show_default="all but ClippedAdam and NUTS; those of the likelihood without priors",
        ),
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
    seed: SEED = 0,
    out: OUT = _COMPARE_OUT,
) -> None:
    """Compare EM, SVI, L-BFGS and VI on one model, from one start.

    These maximise the likelihood: EM, EM with extrapolated steps (SQUAREM), SVI at each learning
    rate (Adam, and DecayingAdam, whose rate falls), and L-BFGS. With weak conjugate priors, EM and
    AutoDelta find the mode; AutoNormal, AutoMultivariateNormal, AutoLowRank and NUTS approximate
    the posterior. Writes comparison.png and posteriors.png, which shows parameters of the series
    scaled to unit variance.
    """
    returns = data.read()
    make_directory(out)
    from pyro_regimes.comparison import (  # takes a second or two
        compare_on_returns,
        default_methods,
        plot_comparison,
        plot_posteriors,
    )
    from pyro_regimes.comparison.tables import speed_up_line, tables
    from pyro_regimes.estimator.spec import covariance_types

    use_one_thread()
    methods = list(method or default_methods(emission.value))
    if nuts and "NUTS" not in methods:
        methods.append("NUTS")
    rows, series = returns.values.shape
    kind = f"{covariance_type.value} covariances"
    if emission is not Emission.gaussian:
        has_types = len(covariance_types(emission.value)) > 1
        kind = f"emission {emission.value}" + f", {kind}" * has_types
    title = f"{n_regimes} regimes, {kind}, {rows} steps of {series} series"
    with screen.Progress() as progress:
        told = False

        def tell(name: str, step: int, total: int, objective: float) -> None:
            nonlocal told
            if not told:  # after the options have been checked
                screen.say(f"Comparing {len(methods)} methods: {title}")
            told = True
            progress.tell(name, step, total, objective)

        comparison = compare_on_returns(
            returns.values,
            n_regimes=n_regimes,
            emission=emission.value,
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
        screen.out.print(table)
    line = speed_up_line(comparison)
    if line:
        screen.out.print(line)
    figures = {out / "comparison.png": plot_comparison(comparison)}
    if any(run.posterior is not None for run in comparison.runs):
        figures[out / "posteriors.png"] = plot_posteriors(comparison, returns.names)
    with replacing(*figures) as files:
        for file, figure in zip(files, figures.values(), strict=True):
            figure.savefig(file, dpi=150, format="png")
    screen.out.print(f"Wrote {' and '.join(map(str, figures))}")
