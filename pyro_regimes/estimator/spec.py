"""The emissions of RegimeModel: one object for each emission and covariance type."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping

from pyro_regimes.estimator.emissions.base import Spec
from pyro_regimes.estimator.emissions.categories import Bernoulli, Categorical
from pyro_regimes.estimator.emissions.counts import NegativeBinomial, Poisson
from pyro_regimes.estimator.emissions.diagonal_gaussian import DiagonalGaussian
from pyro_regimes.estimator.emissions.directions import VonMises
from pyro_regimes.estimator.emissions.gaussian_mixture import GaussianMixture
from pyro_regimes.estimator.emissions.matrix_gaussian import MatrixGaussian
from pyro_regimes.estimator.emissions.mixed import mixed
from pyro_regimes.estimator.emissions.positive import Exponential, Gamma, LogNormal
from pyro_regimes.estimator.emissions.student_t import StudentT

_GAUSSIANS: dict[str, MatrixGaussian | DiagonalGaussian] = {
    "full": MatrixGaussian("full", shared=False),
    "diag": DiagonalGaussian("diag", equal=False),
    "spherical": DiagonalGaussian("spherical", equal=True),
    "tied": MatrixGaussian("tied", shared=True),
}

#: The objects by emission and covariance type. Emissions without covariances have "full" alone.
SPECS: dict[tuple[str, str], Spec] = {
    **{("gaussian", kind): each for kind, each in _GAUSSIANS.items()},
    **{("student_t", kind): StudentT(each) for kind, each in _GAUSSIANS.items()},
    ("poisson", "full"): Poisson(),
    ("negative_binomial", "full"): NegativeBinomial(),
    ("gamma", "full"): Gamma(),
    ("lognormal", "full"): LogNormal(),
    ("exponential", "full"): Exponential(),
    ("von_mises", "full"): VonMises(),
    ("categorical", "full"): Categorical(),
    ("bernoulli", "full"): Bernoulli(),
    **{
        ("gaussian_mixture", kind): GaussianMixture(_GAUSSIANS[kind])
        for kind in ("full", "diag", "spherical")
    },
}

COVARIANCE_TYPES = tuple(_GAUSSIANS)

EMISSIONS = tuple(dict.fromkeys(emission for emission, _ in SPECS))


def covariance_types(emission: str | Mapping[Any, str]) -> tuple[str, ...]:
    """The covariance types of an emission, or of any family of several."""
    families = {emission} if isinstance(emission, str) else {*emission.values()}
    found = {kind for family, kind in SPECS if family in families}
    return tuple(kind for kind in COVARIANCE_TYPES if kind in found)


def has_components(emission: str | Mapping[Any, str]) -> bool:
    """Whether an emission, or any family of several, is a mixture with a number of components."""
    families = {emission} if isinstance(emission, str) else {*emission.values()}
    return "gaussian_mixture" in families


def find_spec(
    covariance_type: str,
    emission: str | Mapping[Any, str] = "gaussian",
    num_components: int | None = None,
) -> Spec:
    """The object for a covariance type and an emission. The names must be valid.

    :param emission: a family, or the family of each column. The covariance type is then that of
        the families that have it, and others have none.
    :param num_components: number of Gaussians in each regime of a mixture.
    """
    if not isinstance(emission, str):

        def find(family: str) -> Spec:
            kind = covariance_type if (family, covariance_type) in SPECS else "full"
            return find_spec(kind, family, num_components)

        return mixed(emission, find)
    spec = SPECS[emission, covariance_type]
    if isinstance(spec, GaussianMixture) and num_components is not None:
        return replace(spec, num_components=num_components)
    return spec


__all__ = [
    "COVARIANCE_TYPES",
    "EMISSIONS",
    "SPECS",
    "Spec",
    "covariance_types",
    "find_spec",
    "has_components",
]
