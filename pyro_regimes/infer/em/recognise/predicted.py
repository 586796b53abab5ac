"""Finds the parameters in which linear predictors of arguments are affine.

The links of generalised linear models and of multinomial logits are those of
:mod:`pyro_regimes.emissions.predictors`. Whether one of them makes an argument affine is asked as
of locations (:mod:`.locations`), but at other points (:mod:`.around`): such that the predictor
changes by about 1, and by so much that a bound on it would be seen. So the units of covariates do
not matter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_regimes.emissions.base import Argument
from pyro_regimes.emissions.predictors import Predictor
from pyro_regimes.infer.em.recognise.affine import AffineUse
from pyro_regimes.infer.em.recognise.around import (
    block_size,
    find_curved,
    normal,
    precision_of,
    runs_around,
    scales_of,
)
from pyro_regimes.infer.em.recognise.dependence import depends, is_of_sequences, slot_in
from pyro_regimes.infer.em.recognise.jacobian import Differential, Jacobian
from pyro_regimes.infer.em.recognise.points import Reader
from pyro_regimes.infer.em.recognise.slices import Slices, join, read_slices
from pyro_regimes.infer.tracing import Run, Slot

_TOO_LARGE = "has a Jacobian in it that is too large for Newton's method; use an optim"

_OF_SEQUENCES = "holds a value for each sequence of a subsampled plate"

#: The derivatives of each argument, by predictor and parameter, or why it is not affine.
_Known = dict[tuple[str, str, str], "Slices | str"]


class _Reading(NamedTuple):
    """A linear predictor of an argument in some runs, first at the present point."""

    slot: Slot
    predictor: Predictor
    runs: list[Run]
    values: list[Tensor]  #: differentiable, float64
    #: the entries that keep their digits here, and at the other points if they move as expected
    within: Tensor

    @classmethod
    def of(cls, slot: Slot, predictor: Predictor, runs: list[Run]) -> _Reading:
        """The predictor in each run."""
        found = [slot_in(run, slot).value for run in runs]
        values = [predictor.read(value.double()) for value in found]
        within = values[0].detach().abs() <= predictor.reach(slot.value.dtype) / 2
        return cls(slot, predictor, runs, values, within.flatten())

    def has_same_zeros(self) -> bool:
        """Whether the same entries are -inf nearby; far away others may be, by rounding."""
        here, nearby = (value.detach() == -torch.inf for value in self.values[:2])
        return torch.equal(here, nearby)


def is_real(constraint: constraints.Constraint) -> bool:
    """Whether a constraint admits any real numbers."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint is constraints.real or constraint is constraints.real_vector


def find_predicted(
    candidates: list[str],
    here: Run,
    read: Reader,
    held: dict[str, list[Argument]],
    refused: dict[str, str],
) -> tuple[list[str], list[AffineUse]]:
    """The parameters, of the candidates, in which all linear predictors they reach are affine.

    :param here: the run at the present point.
    :param held: the arguments that depend on each parameter.
    :param refused: is told why another one is not.
    """
    slots = [slot for slot in here.slots if slot.argument.predictors]
    slots = [s for s in slots if any(depends(s.value, here.params[name]) for name in candidates)]
    for name in list(candidates):
        for slot in slots if here.is_subsampled else ():
            if is_of_sequences(here, slot) and depends(slot.value, here.params[name]):
                refused[name] = f"{slot.label} {_OF_SEQUENCES}"
                candidates = [each for each in candidates if each != name]
    if not candidates or not slots:
        return [], []
    curved = find_curved(candidates, slots, here, read, held)
    refused |= {name: f"{refused[name]}, and {reason}" for name, reason in curved.items()}
    candidates = [name for name in candidates if name not in curved]
    if not candidates:
        return [], []
    others = runs_around(candidates, slots, here, read, held)
    if isinstance(others, str):
        refused |= {name: f"{refused[name]}, and {others}" for name in candidates}
        return [], []
    names, runs = list(candidates), [here, *others]
    known: _Known = {}
    while names:
        uses: list[AffineUse] = []
        bad: dict[str, str] = {}
        for slot in slots:
            use, wrong = _read_argument(slot, names, runs, known)
            bad |= wrong
            if use is not None:
                uses.append(use)
        if not bad:
            return names, uses
        refused |= {name: f"{refused[name]}, and {reason}" for name, reason in bad.items()}
        names = [name for name in names if name not in bad]
    return [], []


def _read_argument(
    slot: Slot,
    names: list[str],
    runs: list[Run],
    known: _Known,
) -> tuple[AffineUse | None, dict[str, str]]:
    """How an argument depends on the parameters; and which of them stand in the way, and why."""
    reached = [n for n in names if any(depends(slot_in(r, slot).value, r.params[n]) for r in runs)]
    if not reached:
        return None, {}
    fewest: dict[str, str] | None = None
    for predictor in slot.argument.predictors:
        reading = _Reading.of(slot, predictor, runs)
        bad: dict[str, str] = {}
        slices: list[Slices] = []
        for name in names:
            key = (slot.label, predictor.name, name)
            if key not in known:
                known[key] = _read_parameter(reading, name)
            found = known[key]
            if isinstance(found, str):
                bad[name] = found
            else:
                slices.append(found)
        if not bad:
            groups = join(slices)
            if groups is None:
                return None, dict.fromkeys(reached, f"{slot.label} {_TOO_LARGE}")
            size, count = slices[0].block_size, sum(each.num_columns for each in slices)
            jacobian = Jacobian(tuple(groups), slot.lead.numel(), size, count)
            if _is_affine(reading, jacobian, names):
                return AffineUse(slot.site, slot.name, jacobian, predictor), {}
            why = f"{slot.label} changes with it in a way that contradicts its derivative"
            bad = dict.fromkeys(reached, why)
        fewest = bad if fewest is None or len(bad) < len(fewest) else fewest
    return None, fewest or {}


def _read_parameter(reading: _Reading, name: str) -> Slices | str:
    """The derivative in one parameter, which is the same in every run; or why it is not."""
    slot, leaf = reading.slot, reading.runs[0].params[name]
    if not reading.has_same_zeros():
        return f"{slot.label} is 0 at some values of it, and not at others"
    slices = read_slices(reading.values[0], leaf, block_size(slot))
    if slices is None:
        return f"{slot.label} {_TOO_LARGE}"
    within = reading.within.reshape(-1, slices.block_size)
    if not all(bool(within[group.blocks].any()) for group in slices.groups):
        return f"{slot.label} is so large or so small that it has lost its digits"
    direction = scales_of(slices).reshape(leaf.shape) * normal(leaf, 2)
    expected = slices.along(direction)[reading.within]
    alongs = [
        Differential(value, run.params[name]).along(direction)[reading.within]
        for value, run in zip(reading.values, reading.runs, strict=True)
    ]
    bound = precision_of(slot) * max(
        (float(along.abs().max()) for along in alongs if along.numel()), default=0.0
    )
    if not all(bool(((along - expected).abs() <= bound).all()) for along in alongs):
        return f"the {reading.predictor.name} of {slot.label} is not an affine function of it"
    return slices


def _is_affine(reading: _Reading, jacobian: Jacobian, names: list[str]) -> bool:
    """Whether the predictor moves between the runs as its Jacobian says."""
    runs, slot = reading.runs, reading.slot
    others = [name for name in runs[0].params if name not in names]
    if any(depends(slot_in(run, slot).value, run.params[n]) for run in runs for n in others):
        return True  # which move it, too
    first = reading.values[0].detach().flatten()
    for run, value in zip(runs[1:], reading.values[1:], strict=True):
        moved = torch.cat([_difference(run, runs[0], name) for name in names])
        expected = (jacobian @ moved)[reading.within]
        actual = (value.detach().flatten() - first)[reading.within]
        size = 1.0 + (float(expected.abs().max()) if expected.numel() else 0.0)
        if not bool(((actual - expected).abs() <= precision_of(slot) * size).all()):
            return False
    return True


def _difference(one: Run, other: Run, name: str) -> Tensor:
    return (one.params[name].detach().double() - other.params[name].detach().double()).flatten()
