r"""Free coordinates of constrained parameters near a point.

Where the admissible values are an open part of an affine space (numbers with bounds, probabilities,
symmetric and triangular matrices), the coordinates are entries of the parameter itself,
:math:`\theta(u) = \theta_0 + B u`. So second derivatives are those in the constrained parameter. A
row of probabilities is free in all of its entries but the largest, which is 1 minus their sum.
Other parameters (such as Cholesky factors of correlations) have the coordinates of their
unconstrained value.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to

#: A probability below this may be on its bound, by its standard error.
_SMALL = 1e-3

#: A distance to a bound that is less than this share of a standard error is none.
_NEAR = 0.01

_SIMPLEX = type(constraints.simplex)
_LINEAR = (type(constraints.lower_triangular), type(constraints.symmetric))
_LOWER = (type(constraints.lower_triangular), type(constraints.lower_cholesky))
_SYMMETRIC = (
    type(constraints.symmetric),
    type(constraints.positive_semidefinite),
    type(constraints.positive_definite),
)
_BOUNDED = ("lower_bound", "upper_bound")


class Chart(NamedTuple):
    """The free coordinates u of one parameter, ``(F,)``, which are 0 at its point."""

    name: str
    point: Tensor  #: the value of the parameter; at a bound, one next to it
    constraint: constraints.Constraint
    basis: Tensor | None  #: B, ``(n, F)`` of the n entries; None for unconstrained coordinates
    labels: list[str]  #: of the coordinates, such as ``loc[0, 1]``
    entries: Tensor  #: ``(F,)``, the number of the entry that each coordinate moves, or -1
    on_bound: Tensor  #: bool, in the shape of the parameter: entries that are held at a bound

    def value(self, u: Tensor) -> Tensor:
        """The parameter at coordinates ``(F,)``, float64 coordinates rounded to its dtype."""
        if self.basis is None:
            transform = biject_to(self.constraint)
            start = transform.inv(self.point.double())
            found: Tensor = transform(start + u.reshape(start.shape))
        else:
            found = self._entries(u).reshape(self.point.shape)
        return found.to(self.point.dtype)

    def to_unconstrained(self, u: Tensor) -> Tensor:
        """Coordinates without bounds ``(F,)``: logarithms, log-odds to the largest entry."""
        if not self._has_bounds(u):
            return u
        value = self._entries(u)
        if _is_simplex(self.constraint):
            logs = value.log()
            return logs[self.entries] - logs[self._largest()[self._rows()]]
        every: Tensor = self._transform.inv(value.reshape(self.point.shape))
        return every.flatten()[self.entries]

    def from_unconstrained(self, y: Tensor) -> Tensor:
        """The parameter at such coordinates ``(F,)``; held entries stay."""
        if not self._has_bounds(y):
            return self.value(y)
        start = self.point.double()
        if _is_simplex(self.constraint):
            odds = torch.zeros_like(start).flatten().index_fill(0, self._largest(), 1.0)
            odds = odds.index_copy(0, self.entries, y.exp()).reshape(start.shape)
            held = torch.where(odds > 0, 0.0, start)
            left = 1 - held.sum(-1, keepdim=True)
            return (held + left * odds / odds.sum(-1, keepdim=True)).to(self.point.dtype)
        transform = self._transform
        every = transform.inv(start)
        moved = transform(every.flatten().index_copy(0, self.entries, y).reshape(every.shape))
        found: Tensor = torch.where(self.on_bound, start, moved)
        return found.to(self.point.dtype)

    def _has_bounds(self, u: Tensor) -> bool:
        return self.basis is not None and len(u) > 0 and not _is_linear(self.constraint)

    def _entries(self, u: Tensor) -> Tensor:
        assert self.basis is not None
        return self.point.double().flatten() + self.basis @ u

    @property
    def _transform(self) -> Any:
        """The map from values without bounds."""
        if isinstance(_element(self.constraint), _SYMMETRIC):
            return transform_to(constraints.positive_definite)
        return biject_to(self.constraint)

    def _rows(self) -> Tensor:
        """The row of each coordinate, ``(F,)``."""
        return self.entries // self.point.shape[-1]

    def _largest(self) -> Tensor:
        """The number of the largest entry of each row."""
        width = self.point.shape[-1]
        rows = self.point.reshape(-1, width)
        return torch.arange(len(rows), device=rows.device) * width + rows.argmax(-1)

    def held(self) -> list[str]:
        """The names of the entries that are held at a bound."""
        numbers = self.on_bound.flatten().nonzero().flatten().tolist()
        return [f"{self.name}{_place(each, self.point.shape)}" for each in numbers]

    def keep(self, kept: Tensor) -> Chart:
        """The chart with some of its coordinates; entries of the others are held at a bound.

        :param kept: bool ``(F,)``.
        """
        if bool(kept.all()):
            return self
        assert self.basis is not None
        on_bound = self.on_bound.flatten().clone()
        on_bound[self.entries[~kept]] = True
        labels = [label for label, keep in zip(self.labels, kept.tolist(), strict=True) if keep]
        held = on_bound.reshape(self.point.shape)
        if _is_simplex(self.constraint):
            held = _with_certain(held)
        return self._replace(
            basis=self.basis[:, kept], labels=labels, entries=self.entries[kept], on_bound=held
        )

    def near_bound(self, information: Tensor) -> Tensor:
        """Which coordinates are too near a bound to be told from it, bool ``(F,)``.

        Their distance is less than a hundredth of the standard error that they would have if they
        alone were estimated.

        :param information: the diagonal of the information, ``(F,)``.
        """
        none = torch.zeros_like(information, dtype=torch.bool)
        if self.basis is None or not len(information):
            return none
        value = self.point.double().flatten()[self.entries]
        if _is_simplex(self.constraint):
            distance, most = value, _SMALL
        else:
            ends = [getattr(_element(self.constraint), name, None) for name in _BOUNDED]
            gaps = [(value - end).abs() for end in ends if end is not None]
            if not gaps:
                return none
            distance, most = torch.stack([g.expand_as(value) for g in gaps]).amin(0), torch.inf
        near = distance * information.clamp(min=0).sqrt() < _NEAR
        return near & (distance < most) & (information > 0)


def make_chart(name: str, point: Tensor, constraint: constraints.Constraint) -> Chart:
    """The chart of a parameter at its point.

    :param point: the constrained value.
    """
    point = point.detach()
    element = _element(constraint)
    numbers = torch.arange(point.numel()).reshape(point.shape)
    on_bound = torch.zeros(point.shape, dtype=torch.bool, device=point.device)
    if _is_simplex(constraint):
        return _simplex(name, point, constraint)
    if isinstance(element, _LOWER + _SYMMETRIC):
        size = point.shape[-1]
        rows, columns = torch.tril_indices(size, size)
        entries = numbers[..., rows, columns].flatten()
        basis = _units(point, entries)
        if isinstance(element, _SYMMETRIC):
            mirrored = numbers.mT[..., rows, columns].flatten()
            basis[mirrored, torch.arange(len(entries))] = 1.0
    elif element.event_dim == 0 or _is_open(element):
        on_bound, point = _at_ends(element, point)
        entries = numbers[~on_bound.cpu()].flatten()
        basis = _units(point, entries)
    else:
        start = biject_to(constraint).inv(point.double())
        labels = [f"{name} (unconstrained){_place(i, start.shape)}" for i in range(start.numel())]
        none = torch.full((len(labels),), -1)
        return Chart(name, point, constraint, None, labels, none, on_bound)
    labels = [f"{name}{_place(int(i), point.shape)}" for i in entries]
    entries = entries.to(point.device)
    return Chart(name, point, constraint, basis, labels, entries, on_bound)


def _simplex(name: str, point: Tensor, constraint: constraints.Constraint) -> Chart:
    at_zero = point <= _zero(point)
    point = point.clamp(min=_least(point))
    width = point.shape[-1]
    rows = point.reshape(-1, width)
    largest = rows.argmax(-1)
    free = ~at_zero.reshape(-1, width)
    free[torch.arange(len(rows)), largest] = False
    at = free.nonzero()  # (F, 2)
    entries = at[:, 0] * width + at[:, 1]
    basis = _units(point, entries)
    basis[at[:, 0] * width + largest[at[:, 0]], torch.arange(len(at))] = -1.0
    labels = [f"{name}{_place(int(i), point.shape)}" for i in entries]
    return Chart(name, point, constraint, basis, labels, entries, _with_certain(at_zero))


def _with_certain(held: Tensor) -> Tensor:
    """Entries of rows on a bound, with the one that is left where all others are."""
    left = held.shape[-1] - held.sum(-1, keepdim=True)
    return held | (left <= 1) & (held.shape[-1] > 1)


def _units(point: Tensor, entries: Tensor) -> Tensor:
    basis = torch.zeros(point.numel(), len(entries), dtype=torch.float64, device=point.device)
    basis[entries, torch.arange(len(entries))] = 1.0
    return basis


def _element(constraint: constraints.Constraint) -> constraints.Constraint:
    """The constraint of one block, without the dims of independent ones."""
    while isinstance(constraint, type(constraints.real_vector)):
        constraint = constraint.base_constraint
    return constraint


def _is_simplex(constraint: constraints.Constraint) -> bool:
    return isinstance(_element(constraint), _SIMPLEX)


def _is_open(element: constraints.Constraint) -> bool:
    return type(element).__name__ in ("_OrderedVector", "_PositiveOrderedVector", "_RealVector")


def _zero(point: Tensor) -> float:
    """The largest probability that counts as 0: of smaller ones second derivatives are rounding.

    They have an error of the machine epsilon divided by the probability.
    """
    return float(torch.finfo(point.dtype).eps ** (2 / 3))


def _least(point: Tensor) -> float:
    """The smallest number whose square has an inverse, with room: its logarithm has derivatives."""
    return float(torch.finfo(point.dtype).tiny ** (1 / 3))


def _at_ends(element: constraints.Constraint, point: Tensor) -> tuple[Tensor, Tensor]:
    """The entries at a bound, and the point with values next to it there."""
    found = torch.zeros(point.shape, dtype=torch.bool, device=point.device)
    given = [getattr(element, name, None) for name in _BOUNDED]
    is_interval = all(number is not None for number in given)
    for number, sign in zip(given, (1, -1), strict=True):
        if number is None:
            continue
        end = torch.as_tensor(number, dtype=point.dtype, device=point.device)
        gap = (torch.finfo(point.dtype).eps * end.abs()).clamp(min=_least(point))
        if is_interval:  # as of a probability
            gap = torch.full_like(end, _zero(point))
        at_end = (point - end).abs() <= gap
        found, point = found | at_end, torch.where(at_end, end + sign * gap, point)
    return found, point


def _is_linear(constraint: constraints.Constraint) -> bool:
    """Whether every value of the free entries is admissible."""
    element = _element(constraint)
    return type(element) in (type(constraints.real), *_LINEAR)


def _place(number: int, shape: torch.Size) -> str:
    """The place of an entry in a tensor, such as ``[0, 1]``; empty for a scalar."""
    index = []
    for size in reversed(shape):
        index.append(number % size)
        number //= size
    return f"[{', '.join(map(str, reversed(index)))}]" if index else ""
