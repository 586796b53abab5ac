"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer


class CovarianceType(str, Enum):
    """The choices of --covariance-type."""

    full = "full"
    diag = "diag"
    spherical = "spherical"
    tied = "tied"


class Emission(str, Enum):
    """The choices of --emission."""

    gaussian = "gaussian"
    student_t = "student_t"
    gaussian_mixture = "gaussian_mixture"
    poisson = "poisson"
    negative_binomial = "negative_binomial"
    gamma = "gamma"
    lognormal = "lognormal"
    exponential = "exponential"
    von_mises = "von_mises"
    categorical = "categorical"
    bernoulli = "bernoulli"


class OrderBy(str, Enum):
    """The choices of --order-by."""

    volatility = "volatility"
    mean = "mean"


class Start(str, Enum):
    """The choices of --start."""

    auto = "auto"
    fitted = "fitted"
    stationary = "stationary"


REGIMES = Annotated[int, typer.Option(min=1, help="Number of regimes, K.")]
COVARIANCE = Annotated[
    CovarianceType, typer.Option(help="Covariances: full, diagonal, spherical, or one for all.")
]
STARTS = Annotated[
    int, typer.Option(min=1, help="Number of starts of each fit; the best is kept.")
]
MAX_ITER = Annotated[int, typer.Option(min=0, help="Maximum number of EM iterations.")]
TOL = Annotated[
    float,
    typer.Option(
        help="EM stops when an iteration raises the log-likelihood of every start by less."
    ),
]
SEED = Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")]
OUT = Annotated[Path, typer.Option(help="Directory for the results; created if missing.")]
DAYFIRST = Annotated[
    Optional[bool],
    typer.Option(
        "--dayfirst/--no-dayfirst",
        help="Whether 01/02/2020 is the first of February.",
        show_default="inferred from the dates",
    ),
]
DECIMAL = Annotated[
    Optional[str],
    typer.Option(
        help="Decimal mark, . or , in text files.", show_default="inferred from the numbers"
    ),
]
MODEL = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A model that fit wrote, such as regimes/model.json."),
]
START = Annotated[
    Start,
    typer.Option(
        help="Regime of the first row: fitted is that of the first row of the training data; "
        "stationary that of the long run; auto is fitted if the rows begin with those of the "
        "training data, and otherwise stationary."
    ),
]
AFTER = Annotated[
    Optional[str],
    typer.Option(
        metavar="PROBABILITIES|FILE",
        help="Probabilities of the regimes just before the first row, in place of --start: numbers "
        "such as 0.9,0.1, or a states.csv, of which the last filtered ones before DATA are used.",
        show_default="as --start says",
    ),
]


def use_one_thread() -> None:
    """The tensors are small: a second thread saves no time, and is slow on a busy machine."""
    import torch

    torch.set_num_threads(1)
