"""Families of observation distributions with closed-form updates, one file for each family.

:mod:`.base` defines the interface. Use :func:`register` to add a family from elsewhere.
"""

from __future__ import annotations

from torch.distributions import Distribution

from pyro_regimes.emissions import columns, transformed, zero_inflated
from pyro_regimes.emissions.base import (
    Argument,
    Builder,
    Family,
    Natural,
    Observed,
    without_update,
)
from pyro_regimes.emissions.bernoulli import BERNOULLI
from pyro_regimes.emissions.beta import BETA
from pyro_regimes.emissions.binomial import BINOMIAL
from pyro_regimes.emissions.categorical import CATEGORICAL
from pyro_regimes.emissions.dirichlet import DIRICHLET
from pyro_regimes.emissions.exponential import EXPONENTIAL
from pyro_regimes.emissions.gamma import GAMMA
from pyro_regimes.emissions.gaussian_mixture import (
    MIXTURE_OF_MULTIVARIATE_NORMALS,
    MIXTURE_OF_NORMALS,
)
from pyro_regimes.emissions.geometric import GEOMETRIC
from pyro_regimes.emissions.half_normal import HALF_NORMAL
from pyro_regimes.emissions.laplace import LAPLACE
from pyro_regimes.emissions.low_rank_normal import LOW_RANK_NORMAL
from pyro_regimes.emissions.mean_gamma import MEAN_GAMMA
from pyro_regimes.emissions.multinomial import MULTINOMIAL, ONE_HOT_CATEGORICAL
from pyro_regimes.emissions.multivariate_normal import MULTIVARIATE_NORMAL
from pyro_regimes.emissions.multivariate_student_t import MULTIVARIATE_STUDENT_T
from pyro_regimes.emissions.negative_binomial import NEGATIVE_BINOMIAL
from pyro_regimes.emissions.normal import NORMAL
from pyro_regimes.emissions.poisson import POISSON
from pyro_regimes.emissions.student_t import STUDENT_T
from pyro_regimes.emissions.von_mises import VON_MISES
from pyro_regimes.emissions.weibull import WEIBULL
from pyro_regimes.emissions.wrappers import WRAPPERS, Unwrapped, unwrap
from pyro_regimes.emissions.zero_inflated_poisson import ZERO_INFLATED_POISSON

#: The known families, in the order in which they are tried.
FAMILIES: list[Family] = [
    MULTIVARIATE_NORMAL,
    NORMAL,
    BETA,
    DIRICHLET,
    GAMMA,
    MEAN_GAMMA,
    HALF_NORMAL,
    LAPLACE,
    VON_MISES,
    WEIBULL,
    STUDENT_T,
    MULTIVARIATE_STUDENT_T,
    LOW_RANK_NORMAL,
    MIXTURE_OF_NORMALS,
    MIXTURE_OF_MULTIVARIATE_NORMALS,
    POISSON,
    BERNOULLI,
    BINOMIAL,
    GEOMETRIC,
    CATEGORICAL,
    ONE_HOT_CATEGORICAL,
    MULTINOMIAL,
    EXPONENTIAL,
    NEGATIVE_BINOMIAL,
    ZERO_INFLATED_POISSON,
]

#: Builders of families that contain others: ``(distribution, event_dim, find_family) -> family``.
BUILDERS: tuple[Builder, ...] = (
    transformed.build,
    columns.build,
    zero_inflated.build,
)


def register(family: Family) -> None:
    """Make a family known to EM and to :class:`.RegimeHMM`.

    Its ``log_prob`` replaces that of its distributions in the likelihood of every RegimeHMM, for EM
    and for SVI alike. A family of the same class replaces the earlier one, for example if a
    notebook cell is run again.

    :param family: its distributions' types must not belong to another family yet.
    :raises ValueError: if they do, or if an attribute of the family is missing.
    """
    _check(family)
    for index, known in enumerate(FAMILIES):
        both = set(known.distributions) & set(family.distributions)
        if _class_name(known) == _class_name(family):
            FAMILIES[index] = family
            return
        if both:
            names = sorted(f"{each.__module__}.{each.__name__}" for each in both)
            raise ValueError(
                f"expected family to have distributions that no other family has, got {names}, "
                f"which {type(known).__module__} has"
            )
    FAMILIES.append(family)


def _class_name(family: Family) -> str:
    kind = type(family)
    return f"{kind.__module__}.{kind.__qualname__}"


def _check(family: Family) -> None:
    """Refuse a family without an attribute that EM needs."""
    if not isinstance(family, Family):
        raise ValueError(f"expected a Family, got {family!r} (an instance, not the class?)")
    for name, kind in [
        ("distributions", "a tuple of types of distributions"),
        ("max_event_dim", "the most dims of one observation"),
        ("arguments", "a tuple of Argument"),
    ]:
        if not hasattr(family, name):
            raise ValueError(
                f"expected {_class_name(family)} to have the attribute {name}, {kind}, got none"
            )
    for argument in family.arguments:
        if not isinstance(argument, Argument):
            raise ValueError(
                f"expected {_class_name(family)}.arguments to hold Argument objects, got "
                f"{argument!r}"
            )


def find_family(base: Distribution, event_dim: int = 0) -> Family | None:
    """The family of a distribution, or None.

    Types are matched exactly, as a subclass may override the density.

    :param event_dim: number of event dims of the observation distribution that contains it.
    """
    for family in FAMILIES:
        if family.serves(base, event_dim):
            return family
    for build in BUILDERS:
        built = build(base, event_dim, find_family)
        if built is not None:
            return built
    return None


__all__ = [
    "BUILDERS",
    "FAMILIES",
    "WRAPPERS",
    "Argument",
    "Family",
    "Natural",
    "Observed",
    "Unwrapped",
    "find_family",
    "register",
    "unwrap",
    "without_update",
]
