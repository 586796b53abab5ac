r"""The interface of families of observation distributions, which EM sets in closed form.

A family reads the arguments of its distribution, evaluates the log density, and computes the
expected statistics that its updates need. Each :class:`Argument` of a family defines the rest for
one argument: its parametrisations, how its statistics are pooled, and its maximiser. The blocks of
the hidden chain have the same interface (:mod:`pyro_regimes.chain`).

**Statistics are additive** over time, sequences, minibatches and everything that shares a
parameter. A *block* of an argument is one value: a scalar, a vector or a matrix, given by its last
``event_dim`` dims. A *cell* is a block of a parameter. One cell may be used for many blocks of the
argument (all states, all series, all sequences); their pooled statistics are added.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Optional, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from pyro_regimes.emissions.charts import Chart
from pyro_regimes.emissions.draws import Draw
from pyro_regimes.emissions.links import Link, forward
from pyro_regimes.emissions.predictors import Predictor

Arguments = dict[str, Tensor]

#: Pooled statistics of blocks or cells: a NamedTuple of tensors; the first is the weight.
Pooled = Any

#: Expected statistics of one site: a NamedTuple of tensors, whose type depends on the family.
Stats = Any

T = TypeVar("T")


class Observed(NamedTuple):
    """The data of one site with the E-step's weights.

    ``*event`` is the shape of one observation. If the observation distribution is constant in time,
    statistics are summed over time and keep a time dim of size 1.
    """

    value: Tensor  #: ``(..., T, 1, *event)``, finite wherever a weight is positive
    weights: Tensor  #: gamma, times the site's own scale and mask: ``(..., T, K)``
    varies: bool  #: whether the observation distribution varies in time
    #: Which entries are missing, in the shape of ``value``, if some are and the row is not; None if
    #: none are. The value there is any finite number. For families that marginalise.
    missing: Tensor | None = None

    @property
    def event_dim(self) -> int:
        """The number of dims of one observation."""
        return self.value.dim() - self.weights.dim()


class Gaussian(NamedTuple):
    """Arguments of the compiled Gaussian kernels; the distribution is constant in time."""

    value: Tensor  #: ``(..., T, D)``
    loc: Tensor  #: ``(..., K or 1, D)``
    #: the lower Cholesky factor ``(..., K or 1, D, D)``, or standard deviations
    #: ``(..., K or 1, D, 1)``
    factor: Tensor


class Linear(NamedTuple):
    r"""A density that is linear in functions of the observation, for compiled steps of EM.

    The family is an exponential family with one argument that EM sets:

    .. math:: \log b_k(x_t) = s(x_t)^\top \eta_k

    with :math:`s(x_t)` of S numbers, among them 1 and the logarithm of the base measure. The sums
    of :math:`\gamma_t(k) s(x_t)` are all that its M-step needs.

    If it is a table, every element of an observation is one of C categories, and the density is the
    sum of their entries in :math:`\eta_k`. The entries may be -inf.
    """

    #: ``(value, event_dim) -> s(x)``, float64, ``(..., T, S)``; for a table the categories, int64,
    #: ``(..., T, *event)``; None if some value is outside of the support
    read: Callable[[Tensor, int], Optional[Tensor]]
    #: the argument in the coordinates of :attr:`Argument.maximise`, float64, to :math:`\eta`:
    #: ``(..., K, *event, *block), event_dim -> (..., K, S)``, or ``(..., K, *event, C)``
    natural: Callable[[Tensor, int], Tensor]
    #: the sums, of the shape of :math:`\eta`, to the statistics of :meth:`Family.statistics`:
    #: ``(sums, event_shape) -> statistics``
    statistics: Callable[[Tensor, torch.Size], Stats]
    is_table: bool = False


class Natural(NamedTuple):
    r"""Perturbations of an argument's cells, in coordinates that do not depend on units.

    The cells are perturbed by ``e``, which has their shape and is 0 at their current values. Let s
    be the score, the derivative of Q in e, and I the expected complete-data information. A Newton
    step then has the predicted gain :math:`s^\top I^{-1} s / 2`, in nats.

    Statistics are pooled; those of a location are weighted with precisions.
    """

    perturb: Callable[[Tensor, Tensor], Tensor]  #: ``(cells, e) -> cells``
    score: Callable[[Pooled, Tensor], Tensor]  #: ``(pooled, cells) -> score``
    #: ``(score, pooled, cells, floor) -> (cells,)``, nats; directions that the covariance floor
    #: blocks count as 0
    gain: Callable[[Tensor, Pooled, Tensor, float], Tensor]


class Joint(NamedTuple):
    r"""The maximisation of an argument together with another one.

    Maximised in turn, arguments that are strongly correlated converge slowly. Where each cell of
    the other argument serves blocks of only one cell of this one, and neither has a prior, these
    functions replace :attr:`Argument.reduce` and :attr:`Argument.maximise`. The other argument is
    maximised before this one if it comes before it, and after it in any case.
    """

    other: tuple[str, ...]  #: the names of the other argument, in each parametrisation
    reduce: Callable[[Stats, Arguments], Pooled]  #: as :attr:`Argument.reduce`
    maximise: Callable[[Pooled, Tensor, float], Tensor]  #: as :attr:`Argument.maximise`
    #: Whether each cell of this argument must serve blocks of only one cell of the other, too.
    one_to_one: bool = False


class End(NamedTuple):
    """One end of a bracket of each cell: where the derivative of Q had the other sign."""

    at: Tensor  #: infinite if no such cells are known
    pooled: Pooled  #: the statistics there


class Search(NamedTuple):
    """A maximiser of statistics that are those at one value of the argument.

    It makes one step at a time, and the statistics are taken anew after each. Q must have a single
    maximum. Stochastic EM makes one step for each minibatch.
    """

    #: ``(pooled, cells, lower end, upper end) -> (new cells, which are final)``. The sign of
    #: :attr:`Natural.score` tells the ends; a step out of the bracket is replaced by its middle.
    step: Callable[[Pooled, Tensor, End, End], tuple[Tensor, Tensor]]
    most: int = 100  #: the most steps


class Scaling(NamedTuple):
    """How an argument is a product of a parameter and of anything else.

    A block has m positive sizes, all of which scale with their parameters. Those of spreads are in
    ``emissions/sizes.py``. Functions are of blocks, ``(blocks, *block)``.
    """

    argument: Any  #: the :class:`Argument` that the cells of such a parameter are
    sizes: Callable[[Tensor], Tensor]  #: ``blocks -> (blocks, m)``
    #: What is left of the blocks, which does not depend on the sizes; None if they are all.
    shape: Callable[[Tensor], Tensor] | None
    stretch: Callable[[Tensor, Tensor], Tensor]  #: ``(blocks, ratios of the sizes) -> blocks``
    #: ``(pooled of the blocks, blocks now, same) -> pooled of the sizes``, ``(blocks, m)``, with
    #: the present sizes as units. ``same`` is ``(blocks, m, m)``: which sizes scale together.
    pooled: Callable[[Pooled, Tensor, Tensor], Pooled]
    #: ``(pooled of cells in these units, cells now) -> pooled``
    absolute: Callable[[Pooled, Tensor], Pooled]
    variance: Callable[[Tensor], Tensor]  #: ``blocks -> their least eigenvalues``


#: The terms that a conjugate prior adds to the pooled statistics of a parameter's cells:
#: ``(prior, shape of the site's value, shape of the parameter, event_dim) -> pooled``.
Conjugate = Callable[[Any, torch.Size, torch.Size, int], Pooled]


def _unchanged(cells: Tensor, floor: float) -> Tensor:
    return cells


def _itself(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True, eq=False)
class Argument:
    """Definition of one argument of a distribution for EM.

    Two arguments are equal only if they are the same object.
    """

    name: str  #: the argument's name in the distribution's constructor
    #: A parameter may be used for several arguments of one kind, but not of two kinds.
    kind: str
    event_dim: int  #: number of dims of a block
    #: Whether blocks are elements of one observation (a scale for each series), so that statistics
    #: have the event's dims in addition to those of time and state.
    elementwise: bool
    what: str  #: description of the update in ``em.plan``
    links: tuple[Link, ...]  #: bijections from a parameter to the argument, the identity first
    #: Constraints that every maximiser satisfies, besides those of any real number.
    inside: tuple[Constraint, ...]
    #: ``draw -> candidates``: admissible values far from the current one, the best first; None if
    #: any value within the parameter's constraint is admissible.
    draw: Callable[[Draw], Iterable[Tensor]] | None
    #: ``(stats, arguments now, weighted) -> pooled``, one for each block,
    #: ``(..., 1 or T, K[, *event])``. ``weighted``: a location's statistics are weighted with the
    #: precisions, as some cell serves blocks that differ in other arguments, or has a prior.
    reduce: Callable[[Stats, Arguments, bool], Pooled]
    #: ``(pooled, current cells, floor) -> cells``; NaN if there is no maximum.
    maximise: Callable[[Pooled, Tensor, float], Tensor]
    #: ``cells -> mask`` of valid cells or elements, at which the density can be computed.
    sound: Callable[[Tensor], Tensor]
    natural: Natural  #: for the check of convergence
    #: ``(cells, floor) -> cells`` that satisfy the covariance floor.
    feasible: Callable[[Tensor, float], Tensor] = _unchanged
    #: The reason why there may be no maximum, for a warning.
    why_unbounded: str = "the data of a state do not bound it"
    #: The coordinates in which values of the argument are compared with cells of a parameter.
    canonical: Callable[[Tensor], Tensor] = _itself
    #: ``(link, cells) -> value of the argument`` that a parameter with these cells gives.
    written: Callable[[Link, Tensor], Tensor] = forward
    #: The conjugate priors by the link's name, of exactly these types.
    priors: dict[str, dict[type, Conjugate]] = field(default_factory=dict)
    #: Whether Q is quadratic in it, with a weight that does not depend on its value. If so, EM
    #: solves for parameters in which it is affine by weighted least squares.
    is_quadratic: bool = False
    #: Functions of it in which Q is concave, and that may be affine in parameters.
    predictors: tuple[Predictor, ...] = ()
    #: Whether Q is linear in the logarithms of its entries, with its pooled ``Counts`` as weights.
    #: If so, EM sets probabilities of which the entries are products of powers.
    is_log_linear: bool = False
    #: How it is a product of a parameter and of anything else; None if EM does not set that.
    scaling: Scaling | None = None
    #: Number of dims of its blocks that are not the site's batch: time and state, or none.
    num_own_dims: int = 2
    #: The coordinates in which EM extrapolates its steps; None if it does not.
    chart: Chart | None = None
    joint: Joint | None = None  #: the maximisation together with another argument
    #: The maximisation in several passes over the data; it replaces :attr:`maximise` in the M-step.
    search: Search | None = None
    #: Whether its statistics are taken at the new values of the arguments before it, in a pass over
    #: the data of its own. (Stochastic EM takes all at the current arguments.)
    sweep: bool = False
    #: For an argument that is made of another one: the function and its arguments that return it,
    #: by which it is pickled.
    rebuild: tuple[Callable[..., Argument], tuple[Any, ...]] | None = None


def _no_update(*args: Any) -> Any:
    raise NotImplementedError("an argument without an update has no statistics")


def without_update(name: str, event_dim: int = 0, elementwise: bool = True) -> Argument:
    """An argument that the density and the statistics use, and that EM does not set.

    It is a constant, such as the known shape of a gamma distribution, or a parameter that an
    optimiser updates.

    :param name: the argument's name in the distribution's constructor.
    :param event_dim: number of dims of a block.
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
    """A family of observation distributions; :func:`.find_family` returns that of a distribution.

    Its methods take arguments of shape ``(..., 1 or T, K, *event)`` followed by the dims of a
    block; leading dims may be missing.
    """

    #: Exact types, as a subclass may override the density.
    distributions: tuple[type[Distribution], ...]
    max_event_dim: float  #: the most dims of one observation
    #: Everything that the density depends on, in the order in which it is maximised (ECM).
    arguments: tuple[Argument, ...]
    #: Whether it handles single missing entries of an observation itself. Then it has
    #: :meth:`log_prob_of_seen`, and :meth:`statistics` uses :attr:`Observed.missing`. Families of
    #: independent entries do not need this: their entries are evaluated one by one.
    marginalises: bool = False
    #: Whether values are angles, whose means are directions.
    of_angles: bool = False
    #: The linear form of the density, if it has one.
    linear: Linear | None = None

    def serves(self, distribution: Distribution, event_dim: int) -> bool:
        """Whether it is the family of a distribution.

        By default that of all distributions of its types.

        :param event_dim: number of event dims of the observation distribution that contains it.
        """
        return type(distribution) in self.distributions and event_dim <= self.max_event_dim

    @abstractmethod
    def read(self, distribution: Any) -> Arguments:
        """The values of ``arguments``, as the caller gave them, by name.

        Some may be missing: a distribution has one of the three representations of a covariance.
        """

    def read_for_density(self, distribution: Any) -> Arguments:
        """The arguments from which :meth:`log_prob` is computed fastest.

        By default those of :meth:`read`.
        """
        return self.read(distribution)

    @abstractmethod
    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The log density in every state, ``(..., T, K)``, of values ``(..., T, *event)``."""

    def own_rounding(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor | float:
        """How far rounding may move the distribution's own ``log_prob``, in nats, ``(..., T, K)``.

        It counts where terms cancel that :meth:`log_prob` does without; by default there are none.
        """
        return 0.0

    def log_prob_of_seen(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> Tensor:
        """As :meth:`log_prob`, of the entries that are not missing: the marginal density.

        :param missing: in the shape of the value, which is any number in the support there.
        """
        raise NotImplementedError(f"{type(self).__name__} does not marginalise missing entries")

    def moments_of_missing(
        self, value: Tensor, missing: Tensor, given: Arguments, event_dim: int
    ) -> tuple[Tensor, Tensor] | None:
        """Means and variances of missing entries in every state, given the observed ones.

        :return: ``(..., T, K, *event)`` each; None where entries do not depend on each other, so
            that those of the distribution serve.
        """
        return None

    def as_gaussian(self, value: Tensor, given: Arguments, event_dim: int) -> Gaussian | None:
        """The arguments of the kernels of Gaussian chains; None if the density is another one."""
        return None

    @abstractmethod
    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Stats:
        """Expected statistics, with dims for time (of size 1 if constant in time) and states.

        :param given: the current arguments.
        :param names: names of the arguments to update by the statistics.
        """

    def is_accurate(self, stats: Stats, given: Arguments, name: str) -> Tensor | bool:
        """Whether statistics that were taken at other arguments are accurate at these.

        By default they are, because they do not depend on arguments. The result may be a mask of
        blocks; :meth:`merge` then replaces the statistics of the other blocks.
        """
        return True

    def merge(self, accurate: Tensor, stats: Stats, again: Stats) -> Stats:
        """Combine the statistics of accurate blocks with recomputed statistics of the others."""
        raise NotImplementedError(f"{type(self).__name__} has no mask of accurate blocks")

    def renew(self, stats: Stats, again: Stats) -> Stats:
        """The statistics after some were taken again for one argument: these alone by default."""
        return again

    def add(self, one: Stats, other: Stats) -> Stats:
        """The sum of statistics of other data at the same arguments, such as chunks of a stream.

        By default all fields are added.
        """
        return add(one, other)

    def total(self, stats: Stats, num_batch_dims: int, like: Stats | None) -> Stats:
        """The sum over all sequences, ``(1, 1 or T, K, ...)``, float64.

        Sums that were taken with the same ``like`` can be added and averaged. By default all
        fields are summed.
        """
        return apply(lambda part: over_sequences(part, num_batch_dims), stats)


#: Builds the family of a distribution that contains others, found by the third argument; None if
#: there is none: ``(distribution, event_dim, find_family) -> family``.
Builder = Callable[
    [Distribution, int, Callable[[Distribution, int], Optional[Family]]], Optional[Family]
]


def over_sequences(part: Tensor, num_batch_dims: int) -> Tensor:
    """The sum over the first dims, which are replaced by one of size 1; float64."""
    return part.double().reshape((-1,) + part.shape[num_batch_dims:]).sum(0, keepdim=True)


def apply(function: Callable[..., Tensor], *stats: T) -> T:
    """Apply a function to each tensor of NamedTuples of these and of tuples; None stays."""

    def of_field(*parts: Any) -> Any:
        if parts[0] is None:
            return None
        return apply(function, *parts) if isinstance(parts[0], tuple) else function(*parts)

    first: Any = stats[0]
    fields: Any = tuple(of_field(*each) for each in zip(*stats))
    return type(first)(*fields) if hasattr(first, "_fields") else fields


def add(one: T, other: T) -> T:
    """The sum of two NamedTuples of tensors."""
    return apply(torch.add, one, other)


def blocks(value: Tensor, event_dim: int) -> Tensor:
    """Flatten the leading dims: ``(blocks, *block)``."""
    return value.reshape((-1,) + value.shape[value.dim() - event_dim :])
