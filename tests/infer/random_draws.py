"""What random models are drawn with: choices, tensors, shapes and parameters, all from one seed."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Sequence, TypeVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

Read = Callable[[], Tensor]
Option = TypeVar("Option")


class Draws:
    """A random generator of its own, and the phrases that say what it has chosen."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = torch.float32 if self.chance(0.08) else torch.float64
        self.only_closed = self.chance(0.65)  #: whether only to choose what has a closed form
        self.phrases: list[str] = ["float32"] if self.dtype == torch.float32 else []

    def say(self, phrase: str) -> None:
        """Add to the description of the model."""
        self.phrases.append(phrase)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def integer(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both included."""
        return int(self.rng.integers(low, high + 1))

    def one_of(self, options: Sequence[Option], weights: Sequence[float] | None = None) -> Option:
        shares = None if weights is None else np.asarray(weights) / np.sum(weights)
        return options[int(self.rng.choice(len(options), p=shares))]

    def tensor(self, value: np.ndarray | float) -> Tensor:
        return torch.as_tensor(np.asarray(value), dtype=self.dtype)

    def normal(self, *shape: int) -> Tensor:
        return self.tensor(self.rng.normal(size=shape))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return self.tensor(self.rng.uniform(low, high, size=shape))

    def integers(self, high: int, *shape: int) -> Tensor:
        """Below ``high``."""
        return torch.as_tensor(self.rng.integers(high, size=shape))

    def simplex(self, *shape: int) -> Tensor:
        """Rows of probabilities, none of them small."""
        weights = self.uniform(0.3, 1.0, *shape)
        return weights / weights.sum(-1, keepdim=True)

    def stochastic(self, *shape: int) -> Tensor:
        """Transition probabilities ``(..., K, K)`` that prefer to stay."""
        sticky = 0.5 * torch.eye(shape[-1], dtype=self.dtype)
        return sticky + 0.5 * self.simplex(*shape)

    def covariance(self, *shape: int) -> Tensor:
        """Positive definite ``(..., D, D)``, with eigenvalues of about 1."""
        factor = 0.4 * self.normal(*shape)
        return factor @ factor.mT + self.uniform(0.5, 1.0) * torch.eye(shape[-1], dtype=self.dtype)


class Layout(NamedTuple):
    """The shapes of one observed site."""

    num_states: int
    event: tuple[int, ...]  #: of one observation: () or (D,)
    batch: tuple[int, ...]  #: of the plates around it
    restarts: bool  #: whether the first plate is of models that see the same data
    num_steps: int

    @property
    def data_batch(self) -> tuple[int, ...]:
        return self.batch[1:] if self.restarts else self.batch

    @property
    def own(self) -> tuple[int, ...]:
        """The shape of an argument with a cell for each state and series."""
        return (self.num_states, *self.event)

    @property
    def of_restarts(self) -> tuple[int, ...]:
        """Leading dims of an argument that each restart has for itself."""
        return (self.batch[0], *(1 for _ in self.batch)) if self.restarts else ()


def draw_layout(draws: Draws, num_states: int, event: tuple[int, ...]) -> Layout:
    """Plates and lengths; small, and with room for the data that so many states need."""
    kind = draws.one_of(
        ["one", "sequences", "a plate of one", "nested", "restarts", "restarts of sequences"],
        [0.4, 0.32, 0.05, 0.1, 0.08, 0.05],
    )
    count = draws.integer(2, 6)
    batch: tuple[int, ...] = {
        "one": (),
        "sequences": (count,),
        "a plate of one": (1,),
        "nested": (2, draws.integer(1, 3)),
        "restarts": (draws.integer(2, 3),),
        "restarts of sequences": (2, count),
    }[kind]
    restarts = kind.startswith("restarts")
    shares = [0.04, 0.05, 0.06, 0.1, 0.25, 0.25, 0.25]
    num_steps = draws.one_of([1, 2, 3, 7, 20, 40, 80], shares)
    draws.say(f"K={num_states} D={event[0] if event else '-'} {kind} {batch} T={num_steps}")
    return Layout(num_states, event, batch, restarts, num_steps)


class Kinds:
    """A list of functions to draw from, each with a weight and a condition on the shapes."""

    def __init__(self) -> None:
        self.entries: list[tuple[Callable, float, Callable[[Layout], bool], bool]] = []

    def __call__(
        self,
        weight: float = 1.0,
        fits: Callable[[Layout], bool] = lambda layout: True,
        closed: bool = True,
    ) -> Callable:
        """Add a function.

        :param closed: whether EM has a closed form for what it makes.
        """

        def add(make: Callable) -> Callable:
            self.entries.append((make, weight, fits, closed))
            return make

        return add

    def draw(self, draws: Draws, layout: Layout) -> Callable:
        """One of the functions."""
        fitting = [
            (make, weight)
            for make, weight, fits, closed in self.entries
            if fits(layout) and (closed or not draws.only_closed)
        ]
        make: Callable = draws.one_of([m for m, _ in fitting], [w for _, w in fitting])
        draws.say(make.__name__.replace("_", " ").strip())
        return make


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
