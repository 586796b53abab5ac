"""Observations whose columns follow different distributions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Union

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Distribution
from torch.types import _size

#: The columns of a part: one, for a part that is a number, or several.
Places = Union[int, tuple[int, ...]]


class Columns(TorchDistribution):
    r"""Independent distributions, each of its own columns of one observation.

    .. math:: \log p(x) = \sum_i \log p_i(x_{C_i})

    :param parts: pairs of a distribution and its columns. The columns are an int for a
        distribution of numbers (event shape ``()``), and a slice or a list of ints for one of
        vectors (event shape ``(n,)``: ``Normal(...).to_event(1)``, ``MultivariateNormal``). Each of
        the D columns belongs to exactly one part. Batch shapes broadcast.
    :param bool validate_args: whether to check values.
    :raises ValueError: if the columns do not match the distributions.

    The event shape is ``(D,)``. In a :class:`.RegimeHMM`, a mean return may follow a Student-t, a
    volume a LogNormal and the number of trades a Poisson:

    >>> import pyro.distributions as dist
    >>> loc = torch.zeros(3, 2)  # of 3 states and 2 columns
    >>> emission = Columns([
    ...     (dist.StudentT(4.0, loc, 1.0).to_event(1), slice(0, 2)),
    ...     (dist.LogNormal(torch.zeros(3), 1.0), 2),
    ...     (dist.Poisson(torch.ones(3)), 3),
    ... ])
    >>> emission.batch_shape, emission.event_shape
    (torch.Size([3]), torch.Size([4]))

    ``parts`` holds the distributions and ``columns`` the columns of each, an int or a tuple.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        parts: Iterable[tuple[Distribution, int | slice | Sequence[int]]],
        validate_args: bool | None = None,
    ) -> None:
        pairs = [_checked_pair(index, pair) for index, pair in enumerate(parts)]
        if not pairs:
            raise ValueError("expected at least one pair of a distribution and columns, got none")
        self.parts: tuple[Distribution, ...] = tuple(part for part, _ in pairs)
        size = sum(part.event_shape.numel() for part in self.parts)
        self.columns: tuple[Places, ...] = tuple(
            _places(index, part, columns, size) for index, (part, columns) in enumerate(pairs)
        )
        _check_partition(self.columns, size)
        shapes = [part.batch_shape for part in self.parts]
        try:
            batch_shape = torch.broadcast_shapes(*shapes)
        except RuntimeError as error:
            raise ValueError(
                "expected parts whose batch shapes broadcast, got "
                f"{', '.join(str(tuple(shape)) for shape in shapes)}"
            ) from error
        self.has_rsample = all(part.has_rsample for part in self.parts)
        super().__init__(batch_shape, torch.Size([size]), validate_args=validate_args)

    @constraints.dependent_property(event_dim=1)
    def support(self) -> constraints.Constraint:
        """Values each of whose parts lies in the part's support."""
        supports: list[Any] = [part.support for part in self.parts]
        return _InEachPart(supports, self.columns)

    def expand(self, batch_shape: _size, _instance: Columns | None = None) -> Columns:
        """Expand the distribution to a larger batch; its parts are shared, not copied."""
        new: Columns = self._get_checked_instance(Columns, _instance)
        new.parts, new.columns, new.has_rsample = self.parts, self.columns, self.has_rsample
        shape = torch.Size(batch_shape)
        super(Columns, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum of the log densities of the parts.

        :param value: ``(..., D)``.
        """
        if self._validate_args:
            self._validate_sample(value)
        densities = [
            part.log_prob(take(value, places)) for part, places in zip(self.parts, self.columns)
        ]
        density: Tensor = sum(densities[1:], densities[0])
        return density.expand(torch.broadcast_shapes(density.shape, self.batch_shape))

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008 (immutable)
        """Draw reparametrised samples, if all parts have them."""
        return self.assemble([part.rsample(sample_shape) for part in self._expanded()])

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008 (immutable)
        """Draw samples, ``sample_shape + batch_shape + (D,)``."""
        with torch.no_grad():
            return self.assemble([part.sample(sample_shape) for part in self._expanded()])

    @property
    def mean(self) -> Tensor:
        """The means of the parts."""
        return self.assemble([part.mean for part in self._expanded()])

    @property
    def variance(self) -> Tensor:
        """The variances of the parts."""
        return self.assemble([part.variance for part in self._expanded()])

    def assemble(self, values: Sequence[Tensor]) -> Tensor:
        """Put values of the parts into their columns, ``(..., D)``."""
        vectors: list[Tensor] = []
        order: list[int] = []
        for value, places in zip(values, self.columns, strict=True):
            is_number = isinstance(places, int)
            vectors.append(value.unsqueeze(-1) if is_number else value)
            order += [places] if isinstance(places, int) else places
        joined = torch.cat(vectors, -1)
        if order == sorted(order):
            return joined
        place = torch.tensor(order, device=joined.device).argsort()
        return joined.index_select(-1, place)

    def _expanded(self) -> list[Distribution]:
        """The parts, with the batch shape of the whole."""
        return [expanded(part, self.batch_shape) for part in self.parts]


def take(value: Tensor, places: Places) -> Tensor:
    """Columns of ``(..., D)``: ``(...)`` of one, ``(..., n)`` of several."""
    if isinstance(places, int):
        return value[..., places]
    first, size = places[0], len(places)
    if places == tuple(range(first, first + size)):
        return value[..., first : first + size]
    return value.index_select(-1, torch.tensor(places, device=value.device))


def expanded(part: Distribution, shape: torch.Size) -> Distribution:
    """A distribution of another batch shape; the given one stays as it is."""
    if part.batch_shape == shape:
        return part
    copied = type(part).__new__(type(part))  # Pyro's ExpandedDistribution.expand changes the object
    copied.__dict__.update(vars(part))
    return copied.expand(shape)


def _checked_pair(index: int, pair: Any) -> tuple[Distribution, Any]:
    try:
        part, columns = pair
    except (TypeError, ValueError):
        raise ValueError(
            "expected pairs of a distribution and its columns, got "
            f"{type(pair).__name__} at {index}"
        ) from None
    if not isinstance(part, Distribution):
        raise ValueError(
            f"expected part {index} to begin with a distribution, got {type(part).__name__}"
        )
    if len(part.event_shape) > 1:
        raise ValueError(
            f"expected part {index} to be a distribution of numbers or vectors, got "
            f"{type(part).__name__} of event shape {tuple(part.event_shape)}"
        )
    return part, columns


def _places(index: int, part: Distribution, columns: Any, size: int) -> Places:
    """The columns of a part, as numbers from 0."""
    if isinstance(columns, slice):
        found = list(range(size))[columns]
    elif hasattr(columns, "__index__"):
        found = [columns]
    else:
        found = list(columns) if isinstance(columns, Iterable) else [columns]
    is_number = not isinstance(columns, slice) and hasattr(columns, "__index__")
    if not all(hasattr(each, "__index__") and not isinstance(each, bool) for each in found):
        raise ValueError(
            f"expected the columns of part {index} to be an int, a slice or a list of ints, got "
            f"{columns!r}"
        )
    if is_number and len(part.event_shape) == 1:
        raise ValueError(
            f"expected a slice or a list for the columns of part {index}, a "
            f"{type(part).__name__} of event shape {tuple(part.event_shape)}, got {columns!r}"
        )
    if not is_number and not part.event_shape:
        raise ValueError(
            f"expected an int for the column of part {index}, a {type(part).__name__} of batch "
            f"shape {tuple(part.batch_shape)} and event shape (), got {columns!r}; for several "
            "columns use .to_event(1)"
        )
    numbers = tuple(int(each) for each in found)
    if not all(-size <= each < size for each in numbers):
        raise ValueError(
            f"expected columns below {size}, the number of all columns of the parts, got "
            f"{columns!r} for part {index}"
        )
    if len(numbers) != part.event_shape.numel():
        raise ValueError(
            f"expected {part.event_shape.numel()} columns for part {index}, a "
            f"{type(part).__name__} of event shape {tuple(part.event_shape)}, got {columns!r}, "
            f"which are {len(numbers)} of {size}"
        )
    numbers = tuple(each % size for each in numbers)
    return numbers[0] if is_number else numbers


def _check_partition(columns: Sequence[Places], size: int) -> None:
    used = [each for own in columns for each in ((own,) if isinstance(own, int) else own)]
    if sorted(used) != list(range(size)):
        twice = sorted({each for each in used if used.count(each) > 1})
        unused = sorted(set(range(size)) - set(used))
        raise ValueError(
            f"expected each of {size} columns in exactly one part, got {twice} in several and "
            f"{unused} in none"
        )


class _InEachPart(constraints.Constraint):
    """Vectors of which the columns of each part satisfy its constraint."""

    event_dim = 1

    def __init__(
        self, parts: Sequence[constraints.Constraint], columns: Sequence[Places]
    ) -> None:
        self.parts, self.columns = parts, columns
        self.is_discrete = all(part.is_discrete for part in parts)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each part is satisfied, ``(...)``."""
        inside: Tensor | None = None
        for part, places in zip(self.parts, self.columns):
            own = part.check(take(value, places))
            inside = own if inside is None else inside & own
        assert inside is not None
        return inside

    def __repr__(self) -> str:
        each = (f"{part} in {places}" for part, places in zip(self.parts, self.columns))
        return f"columns({', '.join(each)})"
