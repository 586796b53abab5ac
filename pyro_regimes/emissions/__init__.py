"""Families of observation distributions with closed-form updates, one file for each family.

:mod:`.base` defines the interface. Use :func:`register` to add a family from elsewhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_regimes.emissions.base import Argument, Family, Natural, Observed, without_update
from pyro_regimes.emissions.bernoulli import BERNOULLI
from pyro_regimes.emissions.binomial import BINOMIAL
from pyro_regimes.emissions.categorical import CATEGORICAL
from pyro_regimes.emissions.exponential import EXPONENTIAL
from pyro_regimes.emissions.geometric import GEOMETRIC
from pyro_regimes.emissions.multinomial import MULTINOMIAL, ONE_HOT_CATEGORICAL
from pyro_regimes.emissions.multivariate_normal import MULTIVARIATE_NORMAL
from pyro_regimes.emissions.negative_binomial import NEGATIVE_BINOMIAL
from pyro_regimes.emissions.normal import NORMAL
from pyro_regimes.emissions.poisson import POISSON
from pyro_regimes.emissions.zero_inflated_poisson import ZERO_INFLATED_POISSON

#: The known families, in the order in which they are tried.
FAMILIES: list[Family] = [
    MULTIVARIATE_NORMAL,
    NORMAL,
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

#: Wrappers that :func:`unwrap` removes; exact types, as a subclass may override the density.
WRAPPERS = (Independent, dist.Independent, ExpandedDistribution, MaskedDistribution)


def register(family: Family) -> None:
    """Make a family known to EM and to :class:`.RegimeHMM`.

    Its ``log_prob`` replaces that of its distributions in the likelihood of every RegimeHMM, for EM
    and for SVI alike. A family of the same class (a notebook cell that is run again) replaces the
    earlier one.

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


class Unwrapped(NamedTuple):
    """An observation distribution without its wrappers."""

    base: Distribution
    mask: Tensor | bool | None  #: mask of the observations that count, ``(..., T, K)``


def unwrap(observation_dist: Distribution) -> Unwrapped:
    """Remove ``to_event``, ``expand`` and ``mask``.

    A mask inside ``to_event``, of single entries of an observation, is not removed: it changes the
    likelihood, and no family here maximises that.
    """
    mask: Tensor | bool | None = None
    batch_dim = len(observation_dist.batch_shape)
    inner: Any = observation_dist
    while type(inner) in WRAPPERS:
        if type(inner) is MaskedDistribution:
            if len(inner.batch_shape) > batch_dim:
                break
            more = inner._mask
            mask = more if mask is None else mask & more
        inner = inner.base_dist
    return Unwrapped(inner, mask)


def find_family(base: Distribution, event_dim: int = 0) -> Family | None:
    """The family of a distribution, or None.

    Types are matched exactly, as a subclass may override the density.

    :param event_dim: number of event dims of the observation distribution that contains it.
    """
    for family in FAMILIES:
        if type(base) in family.distributions and event_dim <= family.max_event_dim:
            return family
    return None


__all__ = [
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
