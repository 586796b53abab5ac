"""The parameters of a random model: how they are read, and their priors."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from tests.infer.random_draws import Draws, Read

#: The priors of a parameter by what it holds: those that are conjugate, and others.
_PRIORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "probabilities": (("Dirichlet",), ("Dirichlet below 1",)),
    "location": (("Normal", "Normal", "MultivariateNormal"), ("StudentT", "Laplace")),
    "variance": (("InverseGamma",), ("LogNormal",)),
    "precision": (("Gamma",), ("LogNormal",)),
    "precision matrix": (("Wishart",), ()),
    "standard deviation": ((), ("LogNormal", "InverseGamma")),
}


class Registry:
    """The parameters of a model: how they are read, and what their priors are.

    :param how: "pyro.param", "PyroModule" or "pyro.module".
    :param prior_share: the probability that a parameter that can have a prior has one.
    """

    def __init__(self, draws: Draws, how: str, prior_share: float) -> None:
        self.draws, self.how, self.prior_share = draws, how, prior_share
        self.module = PyroModule()
        self.network = nn.Module()
        self.starts: dict[str, Tensor] = {}  #: of the sample sites, for a guide
        #: The parameters that a floor concerns, and among how many cells they divide the data.
        self.spreads: dict[str, int] = {}
        self.shared: list[tuple[str, Read]] = []  #: spreads for another site
        self._values: dict[str, Tensor] = {}
        self._names: set[str] = set()

    def begin(self) -> None:
        """Forget the sites that the last call of the model has drawn."""
        self._values.clear()

    def real(self, name: str, start: Tensor, holds: str = "") -> Read:
        return self.add(name, start, constraints.real, holds)

    def positive(self, name: str, start: Tensor, holds: str = "") -> Read:
        return self.add(name, start, constraints.positive, holds)

    def simplex(self, name: str, start: Tensor) -> Read:
        return self.add(name, start, constraints.simplex, "probabilities")

    def add(
        self, name: str, start: Tensor, constraint: constraints.Constraint, holds: str = ""
    ) -> Read:
        """A new parameter, or a sample site, and how the model reads it."""
        while name in self._names:
            name += "_"
        self._names.add(name)
        if holds in _PRIORS and self.draws.chance(self.prior_share):
            families = _PRIORS[holds][not self.draws.only_closed and self.draws.chance(0.4)]
            if families and bool((start != 0).all()):
                return self._site(name, start, self.draws.one_of(families))
        if self.how == "PyroModule":
            if constraint is constraints.real and self.draws.chance(0.3):
                self.draws.say(f"{name}: nn.Parameter")
                setattr(self.module, name, nn.Parameter(start.clone()))
            else:
                setattr(self.module, name, PyroParam(start.clone(), constraint))
            return lambda: getattr(self.module, name)
        if self.how == "pyro.module" and constraint is constraints.real:
            setattr(self.network, name, nn.Parameter(start.clone()))
            return lambda: getattr(pyro.module("network", self.network), name)
        return lambda: pyro.param(name, start.clone(), constraint=constraint)

    def of_spread(self, read: Read, name: str, num_cells: int) -> Read:
        """Note that a floor on variances concerns this parameter.

        :param num_cells: among how many the rows of the data are divided.
        """
        self.spreads[name] = max(num_cells, self.spreads.get(name, 0))
        return read

    def _site(self, name: str, start: Tensor, family: str) -> Read:
        prior = _make_prior(self.draws, family, start)
        self.starts[name] = start
        self.draws.say(f"{name} ~ {family}")
        in_plate = len(prior.batch_shape) == 1 and self.draws.chance(0.5)

        def read() -> Tensor:
            if name not in self._values:
                if in_plate:
                    with pyro.plate(f"cells of {name}", prior.batch_shape[0]):
                        self._values[name] = pyro.sample(name, prior)
                else:
                    event = prior.to_event(len(prior.batch_shape))
                    self._values[name] = pyro.sample(name, event)
            return self._values[name]

        return read


def _make_prior(draws: Draws, family: str, start: Tensor) -> Any:
    """A prior whose values have the shape of the start; batch shape as large as may be."""
    shape, number = start.shape, draws.tensor
    if family.startswith("Dirichlet"):
        low = 0.4 if "below" in family else 1.0
        return dist.Dirichlet(draws.uniform(low, low + 5.0, *shape))
    if family == "Wishart":
        size = shape[-1]
        matrix = draws.covariance(size, size) / (size + 2)
        return dist.Wishart(number(size + 2.0), covariance_matrix=matrix).expand(shape[:-2])
    if family == "MultivariateNormal" and shape:
        size = shape[-1]
        prior = dist.MultivariateNormal(draws.normal(*shape), draws.covariance(size, size))
        return prior.expand(shape[:-1])
    spread = draws.uniform(0.3, 2.0)
    made = {
        "Normal": lambda: dist.Normal(draws.normal(*shape), spread),
        "MultivariateNormal": lambda: dist.Normal(draws.normal(*shape), spread),
        "StudentT": lambda: dist.StudentT(number(4.0), number(0.0), spread),
        "Laplace": lambda: dist.Laplace(number(0.1), spread),
        "LogNormal": lambda: dist.LogNormal(number(0.0), spread),
        "InverseGamma": lambda: dist.InverseGamma(draws.uniform(1.0, 4.0), draws.uniform(0.5, 3.0)),
        "Gamma": lambda: dist.Gamma(draws.uniform(1.5, 4.0), draws.uniform(0.5, 3.0)),
    }[family]()
    return made.expand(shape)
