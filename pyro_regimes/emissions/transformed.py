r"""The family of ``TransformedDistribution`` with fixed invertible transforms of each number.

If :math:`x = f(z)` and f does not depend on parameters, then

.. math::
    \log p(x) = \log p_z(f^{-1}(x)) - \log |f'(f^{-1}(x))|,

and the second term is a constant of the data. So the updates of the arguments are those of the
family of z, on the transformed data :math:`f^{-1}(x)`. A ``LogNormal`` is a Normal of the
logarithm, and an ``InverseGamma`` a Gamma of the reciprocal.

The numbers and tensors of the transforms are arguments without an update. A parameter of the model
that stands in one of them is left to an ``optim``. Transforms that join the entries of an
observation, that differ between states, or that hold objects unknown here have no family: such a
distribution uses its own density.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from typing import Any, Callable, NamedTuple, Optional

import pyro.distributions as dist
import torch
import torch.distributions as torch_dist
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    IndependentTransform,
    PowerTransform,
    Transform,
    _InverseTransform,
)

from pyro_regimes.emissions.arithmetic import as_real
from pyro_regimes.emissions.base import Argument, Arguments, Family, Observed, Stats, without_update
from pyro_regimes.emissions.wrappers import unwrap

#: Exact types, as a subclass may override the density.
KINDS: tuple[type[Distribution], ...] = (
    torch_dist.TransformedDistribution,
    dist.TransformedDistribution,
    torch_dist.LogNormal,
    dist.LogNormal,
    torch_dist.InverseGamma,
    dist.InverseGamma,
)

#: Attributes that every transform has, which say nothing about its function.
_OF_ALL = frozenset({"_inv", "_cache_size", "_cached_x_y", "_event_dim"})

_PLAIN = (bool, str, type(None), torch.Size, torch.dtype, constraints.Constraint)


class Step(NamedTuple):
    """One transform, or its inverse."""

    transform: Transform
    inverted: bool  #: whether the step applies its inverse

    @property
    def source(self) -> constraints.Constraint:
        """The values that the step maps."""
        return self.transform.codomain if self.inverted else self.transform.domain

    @property
    def target(self) -> constraints.Constraint:
        """The values that it yields."""
        return self.transform.domain if self.inverted else self.transform.codomain

    def forward(self, value: Tensor) -> Tensor:
        """The step's function."""
        apply = self.transform._inverse if self.inverted else self.transform._call
        found: Tensor = apply(value)
        return found

    def inverse(self, value: Tensor) -> Tensor:
        """Its inverse."""
        return Step(self.transform, not self.inverted).forward(value)

    def log_slope(self, before: Tensor, after: Tensor) -> Tensor:
        """The logarithm of the absolute derivative, at ``after = forward(before)``."""
        x, y = (after, before) if self.inverted else (before, after)
        if type(self.transform) is PowerTransform:  # y / x may overflow
            exponent = torch.as_tensor(self.transform.exponent).to(x)
            found = exponent.abs().log() + y.log() - x.log()
        else:
            found = self.transform.log_abs_det_jacobian(x, y)
        return -found if self.inverted else found

    def attains(self, value: Tensor) -> Tensor:
        """Which values the step yields for some number."""
        inside = self.target.check(value)
        if self.source is constraints.real:
            # Of an interval that is the image of all real numbers, the bounds are not attained.
            for name, beyond in (("lower_bound", torch.gt), ("upper_bound", torch.lt)):
                bound = getattr(self.target, name, None)
                if bound is not None:
                    inside = inside & beyond(value, torch.as_tensor(bound).to(value))
        return inside | value.isnan()  # which stays NaN

    def some_value(self, like: Tensor) -> Tensor:
        """A value that it yields."""
        return self.forward(biject_to(self.source)(torch.zeros_like(like)))


def _steps(transform: Transform, inverted: bool = False) -> Iterator[Step]:
    """The transforms of single numbers that make up a transform, in their order."""
    if type(transform) is _InverseTransform:
        yield from _steps(transform._inv, not inverted)  # type: ignore[arg-type]
    elif type(transform) is IndependentTransform:
        yield from _steps(transform.base_transform, inverted)
    elif type(transform) is ComposeTransform:
        for part in reversed(transform.parts) if inverted else transform.parts:
            yield from _steps(part, inverted)
    elif type(transform) is AffineTransform and transform.event_dim:
        yield Step(_changed(transform, _event_dim=0), inverted)
    else:
        yield Step(transform, inverted)


def _changed(transform: Transform, **attributes: Any) -> Transform:
    """A copy of a transform with other attributes; torch.compile does not support copy.copy."""
    kind: Any = type(transform)
    copied: Transform = kind.__new__(kind)
    copied.__dict__.update({**vars(transform), "_inv": None, **attributes})
    return copied


def _numbers(transform: Transform) -> dict[str, Any] | None:
    """The numbers and tensors of a transform by attribute; None if it holds something else."""
    found = {}
    for name, value in vars(transform).items():
        if name in _OF_ALL or isinstance(value, _PLAIN):
            continue
        if not isinstance(value, (Tensor, Real)):
            return None
        found[name] = value
    return found


def _is_elementwise(step: Step) -> bool:
    """Whether a step maps each number by itself, one to one."""
    transform = step.transform
    if isinstance(transform, torch.nn.Module):
        return False  # of a flow
    dims = {transform.domain.event_dim, transform.codomain.event_dim}
    if not transform.bijective or dims != {0}:
        return False
    try:
        biject_to(step.source)
    except NotImplementedError:
        return False
    return True


def build(
    base: Distribution,
    event_dim: int,
    find_family: Callable[[Distribution, int], Optional[Family]],
) -> Family | None:
    """The family of a transformed distribution, or None.

    :param event_dim: number of event dims of the observation distribution that contains it.
    :param find_family: finds the family of the distribution inside.
    """
    steps: list[Step] = []
    inner: Any = base
    while type(inner) in KINDS:
        steps = [step for each in inner.transforms for step in _steps(each)] + steps
        inner, mask = unwrap(inner.base_dist)
        if mask is not None:
            return None
    if inner is base or not all(map(_is_elementwise, steps)):
        return None
    numbers: dict[str, Any] = {}
    for index, step in enumerate(steps):
        own = _numbers(step.transform)
        if own is None:
            return None
        numbers |= {f"transforms.{index}.{name}": value for name, value in own.items()}
    tensors = [value for value in numbers.values() if isinstance(value, Tensor)]
    if any(_differs_by_state(value, event_dim) for value in tensors):
        return None
    family = find_family(inner, event_dim)
    if family is None:
        return None
    return TransformedFamily(family, inner, steps, numbers)


def _differs_by_state(value: Tensor, event_dim: int) -> bool:
    return value.dim() > event_dim and value.shape[-1 - event_dim] != 1


class TransformedFamily(Family):
    """``TransformedDistribution(base, transforms)``; built anew for each distribution."""

    distributions = KINDS

    def __init__(
        self, family: Family, inner: Distribution, steps: list[Step], numbers: dict[str, Any]
    ) -> None:
        self.family, self.max_event_dim = family, family.max_event_dim
        self._inner, self._steps, self._numbers = inner, steps, numbers
        self._own: tuple[Argument, ...] = tuple(map(without_update, numbers))
        self.arguments = (*family.arguments, *self._own)

    def read(self, distribution: Any) -> Arguments:
        """The arguments of the distribution inside, and the numbers of the transforms."""
        given = self.family.read(self._inner)
        like = next(iter(given.values()))
        return given | {
            name: value if isinstance(value, Tensor) else like.new_tensor(float(value))
            for name, value in self._numbers.items()
        }

    def read_for_density(self, distribution: Any) -> Arguments:
        """The arguments of the distribution inside, and the tensors of the transforms."""
        given = self.family.read_for_density(self._inner)
        own = {name: value for name, value in self._numbers.items() if isinstance(value, Tensor)}
        return given | own

    def log_prob(self, value: Tensor, given: Arguments, event_dim: int) -> Tensor:
        """The density of the inverse, less the logarithm of the slope."""
        value = as_real(value, next(iter(given.values())))
        inner, log_slope, inside = self._invert(value, given, event_dim, with_state=False)
        density = self.family.log_prob(inner, given, event_dim)
        if event_dim:
            log_slope = log_slope.flatten(-event_dim).sum(-1)
            inside = inside.flatten(-event_dim).all(-1)
        density = density - log_slope.unsqueeze(-1)
        return density.masked_fill(~inside.unsqueeze(-1), -torch.inf)

    def statistics(self, observed: Observed, given: Arguments, names: frozenset[str]) -> Stats:
        """The statistics of the family inside, of the inverse."""
        inner, _, _ = self._invert(observed.value, given, observed.event_dim, with_state=True)
        return self.family.statistics(observed._replace(value=inner), given, names)

    def is_accurate(self, stats: Stats, given: Arguments, name: str) -> Tensor | bool:
        """As the family inside says."""
        return self.family.is_accurate(stats, given, name)

    def merge(self, accurate: Tensor, stats: Stats, again: Stats) -> Stats:
        """As the family inside merges."""
        return self.family.merge(accurate, stats, again)

    def add(self, one: Stats, other: Stats) -> Stats:
        """As the family inside adds."""
        return self.family.add(one, other)

    def total(self, stats: Stats, num_batch_dims: int, like: Stats | None) -> Stats:
        """As the family inside adds."""
        return self.family.total(stats, num_batch_dims, like)

    def _invert(
        self, value: Tensor, given: Arguments, event_dim: int, with_state: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The inverse, the log slope there, and which values the transforms yield at all.

        Other values are replaced, so that nothing is NaN.

        :param with_state: whether the value has a dim for states, of size 1.
        """
        inside = torch.ones_like(value, dtype=torch.bool)
        log_slope: Tensor = torch.zeros_like(value)
        for index in reversed(range(len(self._steps))):
            step = self._at(index, given, value, event_dim, with_state)
            attained = step.attains(value.detach())
            inside = inside & attained
            value = torch.where(attained, value, step.some_value(value.detach()))
            before = step.inverse(value)
            log_slope = log_slope + step.log_slope(before, value)
            value = before
        return value, log_slope, inside

    def _at(
        self, index: int, given: Arguments, value: Tensor, event_dim: int, with_state: bool
    ) -> Step:
        """A step with the tensors that are given."""
        step, start = self._steps[index], f"transforms.{index}."
        own = {
            name[len(start) :]: given[name]
            for name, known in self._numbers.items()
            if name.startswith(start) and isinstance(known, Tensor)
        }
        if not own:
            return step
        for name, tensor in own.items():
            if not with_state and tensor.dim() > event_dim:
                tensor = tensor.squeeze(-1 - event_dim)
            own[name] = tensor.to(value.dtype)
        return step._replace(transform=_changed(step.transform, **own))
