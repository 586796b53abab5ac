r"""The contract of what EM sets in closed form: families of observation distributions.

A family says how to read the arguments of its distribution, what its log density is, and which
expected statistics of the data its updates need. Each of its :class:`Argument` objects says
everything else about one argument: how a parameter may hold it, how its statistics are pooled, and
where they have their maximum. The blocks of the hidden chain are said in the same terms
(:mod:`pyro_regimes.chain`).

**Statistics add up**: over time, over sequences, over minibatches, over everything that shares a
parameter. A *block* of an argument is what moves as one: a scalar, a vector or a matrix, its last
``event_dim`` dims. A *cell* is a block of a parameter; it may serve many blocks of the argument
(all states, all series, all sequences), and the pooled statistics of those are added.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Callable, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from pyro_regimes.emissions.draws import Draw
from pyro_regimes.emissions.links import Link, forward

Arguments = dict[str, Tensor]

#: Pooled statistics of blocks or cells: a NamedTuple of tensors, of which the first is the weight.
Pooled = Any

#: Expected statistics of one site: a NamedTuple of tensors, of the family's own type.
Stats = Any

T = TypeVar("T")


class Observed(NamedTuple):
    """The data of one site with the E-step's weights.

    ``*event`` is the shape of one observation. Where the observation distribution does not vary in
    time, statistics are summed over it, and keep a time dim of size 1.
    """

    value: Tensor  #: ``(..., T, 1, *event)``, finite wherever a weight is positive
    weights: Tensor  #: gamma, times the site's own scale and mask: ``(..., T, K)``
    varies: bool  #: whether the observation distribution varies in time

    @property
    def event_dim(self) -> int:
        """The dims of one observation."""
        return self.value.dim() - self.weights.dim()


class Gaussian(NamedTuple):
    """Gaussian observations that are constant in time, as the compiled kernels take them."""

    value: Tensor  #: ``(..., T, D)``
    loc: Tensor  #: ``(..., K or 1, D)``
    #: the lower Cholesky factor ``(..., K or 1, D, D)``, or standard deviations
    #: ``(..., K or 1, D, 1)``
    factor: Tensor


class Natural(NamedTuple):
    r"""How an argument's cells move, in coordinates that no unit of the data changes.

    The cells are perturbed by ``e``, which has their shape and is 0 at their present values. With
    s the score, the derivative of Q in e, and I the expected information of the complete data,
    half of :math:`s^\top I^{-1} s` is the gain in nats that a step of Newton's method promises.

    Statistics are pooled, those of a location weighted with precisions.
    """

    perturb: Callable[[Tensor, Tensor], Tensor]  #: ``(cells, e) -> cells``
    score: Callable[[Pooled, Tensor], Tensor]  #: ``(pooled, cells) -> score``
    #: ``(score, pooled, cells, floor) -> (cells,)``, nats; directions that the covariance floor
    #: blocks count for nothing
    gain: Callable[[Tensor, Pooled, Tensor, float], Tensor]


#: What a conjugate prior adds to the pooled statistics of a parameter's cells:
#: ``(prior, shape of the site's value, shape of the parameter, event_dim) -> pooled``.
Conjugate = Callable[[Any, torch.Size, torch.Size, int], Pooled]


def _unchanged(cells: Tensor, floor: float) -> Tensor:
    return cells


def _itself(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True, eq=False)
class Argument:
    """Everything EM knows about one argument of a distribution.

    Two arguments are the same only if they are the same object.
    """

    name: str  #: as the distribution's constructor names it
    #: Parameters may hold several arguments of one kind, and none of two kinds.
    kind: str
    event_dim: int  #: the dims of a block
    #: Whether blocks are elements of one observation (a scale for each series), so that statistics
    #: have the event's dims beside those of time and state.
    elementwise: bool
    what: str  #: the update in words, for the reader of ``em.plan``
    links: tuple[Link, ...]  #: as what a parameter may hold it, the argument itself first
    #: Constraints that every maximiser meets, besides those of any real number.
    inside: tuple[Constraint, ...]
    #: ``draw -> candidates``: admissible values far from the present one, the best first; None if
    #: any value within the parameter's constraint is admissible.
    draw: Callable[[Draw], list[Tensor]] | None
    #: ``(stats, arguments now, weighted) -> pooled``, one for each block,
    #: ``(..., 1 or T, K[, *event])``. ``weighted``: a location's statistics are weighted with the
    #: precisions, as some cell serves blocks that differ in other arguments, or has a prior.
    reduce: Callable[[Stats, Arguments, bool], Pooled]
    #: ``(pooled, cells now, floor) -> cells``; NaN where there is no maximum.
    maximise: Callable[[Pooled, Tensor, float], Tensor]
    #: ``cells -> mask`` of those at which the density can be computed, by cells or elements.
    sound: Callable[[Tensor], Tensor]
    natural: Natural  #: for the check of convergence
    #: ``(cells, floor) -> cells`` that meet the covariance floor.
    feasible: Callable[[Tensor, float], Tensor] = _unchanged
    #: Why it may have no maximum, for the warning that says so.
    why_unbounded: str = "the data of a state do not bound it"
    #: The coordinates in which values of the argument are compared with cells of a parameter.
    canonical: Callable[[Tensor], Tensor] = _itself
    #: ``(link, cells) -> value of the argument`` that a parameter with these cells gives.
    written: Callable[[Link, Tensor], Tensor] = forward
    #: By what a parameter holds (the link's name): its conjugate priors, of exactly these types.
    priors: dict[str, dict[type, Conjugate]] = field(default_factory=dict)
    #: Whether Q is quadratic in it, with a weight that no value changes: then parameters in which
    #: it is affine are solved for by weighted least squares.
    is_quadratic: bool = False
    #: How many dims of its blocks are not the site's batch: time and state, or none of them.
    num_own_dims: int = 2


def _no_update(*args: Any) -> Any:
    raise NotImplementedError("an argument without an update has no statistics")


def without_update(name: str, event_dim: int = 0, elementwise: bool = True) -> Argument:
    """An argument that the density and the statistics read, and that EM does not set.

    It is a constant, such as the known shape of a gamma distribution, or a parameter that an
    optimiser moves.

    :param name: as the distribution's constructor names it.
    :param event_dim: the dims of a block.
    :param elementwise: see :class:`Argument`.
    """
    return Argument(
        name=name,
        kind=f"{name}, which has no closed form",
        event_dim=event_dim,
        elementwise=elementwise,
        what="no update",
        links=(),
        inside=(),
        draw=None,
        reduce=_no_update,
        maximise=_no_update,
        sound=_no_update,
        natural=Natural(_no_update, _no_update, _no_update),
    )


class Family(ABC):
    """A family of observation distributions; :func:`.find_family` finds the one of a distribution.

    The arguments that it is given are ``(..., 1 or T, K, *event)`` and the dims of a block, of
    which leading ones may be left out.
    """

    #: Exactly these: a subclass may have a density of its own.
    distributions: ClassVar[tuple[type[Distribution], ...]]
    max_event_dim: ClassVar[float]  #: the most dims of one observation
    #: Everything that the density depends on, in the order in which it is maximised (ECM).
    arguments: ClassVar[tuple[Argument, ...]]

    @abstractmethod
    def read(self, distribution: Any) -> Arguments:
        """The values of :attr:`arguments`, as the caller gave them, by name.

        It may leave out some: of three ways to say a covariance, one is given.
        """

    def read_for_density(self, distribution: Any) -> Arguments:
        """The arguments from which :meth:`log_prob` is computed fastest.

        By default those of :meth:`read`.
        """
        return self.read(distribution)

    @abstractmethod
    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The log density in every state, ``(..., T, K)``, of values ``(..., T, *event)``."""

    def as_gaussian(self, value: Tensor, given: Arguments, event_dim: int) -> Gaussian | None:
        """What the kernels of Gaussian chains take, where the density is theirs; or None."""
        return None

    @abstractmethod
    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Stats:
        """Expected statistics, with a dim for time (of size 1 where nothing varies) and states.

        :param given: the present arguments.
        :param names: the arguments that are to be updated by the statistics.
        """

    def is_accurate(self, stats: Stats, given: Arguments, name: str) -> Tensor | bool:
        """Whether statistics that were taken at other arguments serve to update one at these.

        By default they do, because nothing in them depends on arguments. A mask of blocks says so
        of each; :meth:`merge` then puts others in the place of the rest.
        """
        return True

    def merge(self, accurate: Tensor, stats: Stats, again: Stats) -> Stats:
        """Statistics of the blocks that are accurate, and those that were taken again elsewhere."""
        raise NotImplementedError(f"{type(self).__name__} says no mask of accurate blocks")

    def total(self, stats: Stats, num_batch_dims: int, like: Stats | None) -> Stats:
        """The sum over all sequences, ``(1, 1 or T, K, ...)``, float64.

        Sums that were taken with the same ``like`` can be added and averaged. By default all
        fields add up.
        """
        return apply(lambda part: over_sequences(part, num_batch_dims), stats)


def over_sequences(part: Tensor, num_batch_dims: int) -> Tensor:
    """The sum over the first dims, in whose place stands one of size 1; float64."""
    return part.double().reshape((-1,) + part.shape[num_batch_dims:]).sum(0, keepdim=True)


def apply(function: Callable[..., Tensor], *stats: T) -> T:
    """Apply a function field by field to NamedTuples of tensors; a field that is None stays so."""
    first: Any = stats[0]
    columns = zip(*stats)
    return type(first)(*(None if each[0] is None else function(*each) for each in columns))


def add(one: T, other: T) -> T:
    """The sum of two NamedTuples of tensors."""
    return apply(torch.add, one, other)


def is_at_floor(values: Tensor, floor: float) -> Tensor:
    """Whether variances, or the eigenvalues of covariances ``(..., D)``, are at the floor.

    Rounding of the largest of them, and 1e-6 of the floor, do not count.
    """
    rounding = 64 * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
    return values <= floor * (1 + 1e-6) + rounding


def divide(total: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean ``total / weight``; NaN where there is no weight."""
    tiny = torch.finfo(weight.dtype).tiny
    return total / weight.masked_fill(weight < tiny, torch.nan)


def divide_where_known(total: Tensor, weight: Tensor) -> Tensor:
    """``total / weight``; where there is no weight, 0 for a total of 0 and else infinity."""
    known = weight > 0
    ratio = total / weight.masked_fill(~known, 1.0)
    return torch.where(known, ratio, torch.where(total == 0, 0.0, torch.inf))


def blocks(value: Tensor, event_dim: int) -> Tensor:
    """``(blocks, *block)``"""
    return value.reshape((-1,) + value.shape[value.dim() - event_dim :])
