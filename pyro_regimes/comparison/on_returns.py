"""Comparison of EM with SVI on a table of returns."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import numpy as np
import torch

from pyro_regimes.comparison.on_model import (
    DEFAULT_METHODS,
    LIKELIHOOD_METHODS,
    PRIOR_METHODS,
    compare,
)
from pyro_regimes.comparison.runs import Comparison, MethodRun
from pyro_regimes.comparison.task import Progress
from pyro_regimes.estimator import missing, validation
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.pyro_model import (
    prior_model,
    pyro_model,
    site_values,
    to_arguments,
)
from pyro_regimes.estimator.spec import COVARIANCE_TYPES, EMISSIONS, covariance_types, find_spec
from pyro_regimes.estimator.starts import make_starts
from pyro_regimes.estimator.units import Units
from pyro_regimes.infer.isolation import plain_torch
from pyro_regimes.messages import shown

#: The emissions whose parameters have conjugate priors here.
WITH_PRIORS = ("gaussian", "poisson")

#: The emissions with locations and scales, whose series are scaled to unit variance.
_SCALED = ("gaussian", "student_t", "gaussian_mixture")


def default_methods(emission: str) -> tuple[str, ...]:
    """The methods that run if none are named: those of the likelihood alone without priors."""
    priors = emission in WITH_PRIORS
    return tuple(name for name in DEFAULT_METHODS if priors or name in LIKELIHOOD_METHODS)


def compare_on_returns(
    returns: Array,
    *,
    n_regimes: int = 3,
    emission: str = "gaussian",
    covariance_type: str = "full",
    held_out: float = 0.2,
    methods: Sequence[str] | None = None,
    em_steps: int = 200,
    tol: float = 1e-4,
    svi_steps: int = 2000,
    learning_rates: Sequence[float] = (0.01, 0.03, 0.1),
    nuts_steps: int = 200,
    random_state: int = 0,
    progress: Progress | None = None,
    processes: int = 1,
) -> Comparison:
    """Fit one regime model by every method of :func:`.comparison.compare`.

    All methods start at the same clusters, and maximise the same likelihood. The series of
    Gaussian and Student-t models and of mixtures are first scaled to unit variance, which helps
    gradient methods and does not affect EM. Log-likelihoods are reported in
    the units of the data. Log joint and ELBO contain densities of parameters, which are those for
    scaled data.

    :param returns: ``(T, D)``; NaN where a value is missing.
    :param emission: one of those of :class:`.RegimeModel`. The methods with priors, which find a
        mode or approximate the posterior, are for "gaussian" and "poisson" alone.
    :param held_out: share of the data, at the end, that is not fitted.
    :param methods: as in :func:`.comparison.compare`; None for
        :data:`.DEFAULT_METHODS`, without priors those of the likelihood.
    :param processes: 1 or 2, as in :func:`.comparison.compare`.
    :raises ValueError: if the data are too few or constant, or an option is not valid.
    """
    validation.one_of("emission", emission, EMISSIONS)
    validation.one_of("covariance_type", covariance_type, COVARIANCE_TYPES)
    if covariance_type not in covariance_types(emission):
        raise ValueError(
            f"expected covariance_type='full' where emission={emission!r}, got "
            f"{covariance_type!r}; leave it out"
        )
    _check_methods(methods, emission)
    spec = find_spec(covariance_type, emission)
    validation.integer("n_regimes", n_regimes, 1)
    validation.integer("random_state", random_state, 0)
    values = np.asarray(returns, dtype=np.float64)
    cut = _split(values, held_out, 2 * n_regimes)
    missing.check_columns(values[:cut], None)
    filled = missing.filled(values[:cut])
    spec = spec.for_data(values, {})
    spec.check_support(values, None)
    mean, deviation = filled.mean(0), filled.std(0)
    if not (deviation > 0).all():
        raise ValueError(
            "expected returns without constant series, got standard deviations "
            f"{deviation.tolist()}; drop the constant series"
        )
    is_scaled, has_priors = emission in _SCALED, emission in WITH_PRIORS
    units = Units(mean, deviation) if is_scaled else spec.units(filled)
    z, rng = units.scale(values), validation.random_state(random_state)
    start = make_starts(units.scale(filled), n_regimes, 1, spec, 1e-6, rng).select(0)
    arguments = to_arguments(start, spec)
    fitted, rest = units.log_jacobian_of(values[:cut]), units.log_jacobian_of(values[cut:])

    holes = "marginalise" if np.isnan(values).any() else "refuse"

    def tell(method: str, step: int, total: int, objective: float) -> None:
        if progress is not None:
            progress(method, step, total, objective - fitted)

    with plain_torch(torch.device("cpu")):
        center, spread = torch.from_numpy(mean), torch.from_numpy(deviation)  # of z
        if is_scaled:
            center, spread = torch.zeros_like(center), torch.ones_like(spread)
        found = compare(
            pyro_model(arguments, spec, missing=holes),
            torch.from_numpy(z[:cut]),
            torch.from_numpy(z[cut:]),
            methods,
            prior_model=prior_model(n_regimes, spec, center, spread, holes) if has_priors else None,
            init_values=site_values(arguments, spec) if has_priors else None,
            em_steps=em_steps,
            tol=tol,
            svi_steps=svi_steps,
            learning_rates=learning_rates,
            nuts_steps=nuts_steps,
            seed=random_state,
            progress=tell,
            jit_compile=True,
            processes=processes,
        )
    return Comparison([_in_units_of_data(run, fitted, rest) for run in found.runs])


def _check_methods(methods: Sequence[str] | None, emission: str) -> None:
    """:raises ValueError: if a method needs priors, and the emission has none."""
    needy = [name for name in methods or () if name in PRIOR_METHODS or name == "NUTS"]
    if needy and emission not in WITH_PRIORS:
        raise ValueError(
            f"expected methods from {list(LIKELIHOOD_METHODS)}, as the parameters of "
            f"emission={emission!r} have no priors here, got {needy}; comparison.compare takes a "
            "prior_model"
        )


def _split(values: Array, held_out: float, least: int) -> int:
    """The number of rows to fit.

    :param least: the least number of rows on each side.
    """
    if not isinstance(held_out, numbers.Real) or not 0 < held_out < 1:
        raise ValueError(f"expected held_out to lie between 0 and 1, got {shown(held_out)}")
    cut = int(round((1 - held_out) * len(values)))
    if min(cut, len(values) - cut) < least:
        raise ValueError(
            f"expected at least {least} rows on either side of the split, got {cut} and "
            f"{len(values) - cut}"
        )
    return cut


def _in_units_of_data(run: MethodRun, fitted: float, rest: float) -> MethodRun:
    """Convert log p(z) to log p(x), given log p(z) - log p(x) of fitted and of held-out rows."""

    def less(value: float | None, by: float) -> float | None:
        return None if value is None else value - by

    return run._replace(
        log_likelihood=run.log_likelihood - fitted,
        log_joint=less(run.log_joint, fitted),
        elbo=less(run.elbo, fitted),
        held_out=less(run.held_out, rest),
        held_out_averaged=less(run.held_out_averaged, rest),
        values=[value - fitted for value in run.values],
    )
