"""Whether the observations of a fitted model are changes, such as returns, or levels."""

from __future__ import annotations

from pyro_regimes.estimator.parameters import Emission
from pyro_regimes.estimator.spec import Spec

_FAR = 2.0  # standard deviations; means of changes in a step are far nearer to 0


def are_changes(spec: Spec, emission: Emission) -> bool:
    """Whether observations may be changes, whose sum over a year means something.

    They are levels (prices, indices, yields) where the mean of every series in every regime is
    positive and more than two standard deviations from 0: returns vary more around 0, except those
    of cash, and these stand beside others in most tables.
    """
    if not spec.of_changes:
        return False
    return not bool((spec.moments(emission).means > _FAR * spec.deviations(emission)).all())
