"""What random models are drawn with: choices, tensors and shapes, all from one seed."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Sequence, TypeVar

import numpy as np
import torch
from torch import Tensor

Model = Callable[[], Any]
Read = Callable[[], Tensor]
Option = TypeVar("Option")


class Draws:
    """A random generator of its own, and the phrases that say what it has chosen."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = torch.float32 if self.chance(0.08) else torch.float64
        self.only_closed = self.chance(0.65)  #: whether only to choose what has a closed form
        self.level = self.one_of([0.0, 20.0], [0.88, 0.12])  #: of the data, and of locations
        self.phrases: list[str] = ["float32"] if self.dtype == torch.float32 else []
        self.phrases += ["at a level of 20"] if self.level else []

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


class RandomModel(NamedTuple):
    """A model that ``Trace_ELBO`` accepts under validation."""

    seed: int
    description: str
    model: Model
    guide: Model | None
    min_eigenvalue: float
    spreads: set[str]  #: the parameters that a floor concerns
    data: list[Tensor]  #: what no fit may change
    dtype: torch.dtype
