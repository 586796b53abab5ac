"""The result of a forecast, a mixture of observation distributions."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes.emissions.exact import ExactMixture


class _OfOneComponent(constraints.Constraint):
    """The union of the supports of the components along the last batch dim."""

    def __init__(self, components: constraints.Constraint) -> None:
        self.components = components

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        return bool(self.components.is_discrete)

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        return int(self.components.event_dim)

    def check(self, value: Tensor) -> Tensor:
        inside: Tensor = self.components.check(value.unsqueeze(-1 - self.event_dim))
        return inside.any(-1)

    def __repr__(self) -> str:
        return f"{type(self).__name__[1:]}({self.components!r})"


class Forecast(ExactMixture, dist.MixtureSameFamily):
    """A mixture of the states' observation distributions.

    It differs from Pyro's mixture in two ways. A value may lie in the support of only some
    components, and the log-probability of an event of probability 0 is -inf.
    """

    @constraints.dependent_property
    def support(self: Any) -> constraints.Constraint:
        return _OfOneComponent(self.component_distribution.support)
