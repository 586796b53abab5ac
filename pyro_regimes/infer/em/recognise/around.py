"""Runs a model at points where the linear predictors of its arguments have moved by a given amount.

Far away, as :mod:`.points` goes, an exponential overflows, and how far that is depends on the units
of covariates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_regimes.distributions.checks import at_random_point
from pyro_regimes.emissions.base import Argument
from pyro_regimes.emissions.draws import random_value
from pyro_regimes.infer.em.recognise.dependence import depends, slot_in
from pyro_regimes.infer.em.recognise.jacobian import Differential
from pyro_regimes.infer.em.recognise.points import Reader
from pyro_regimes.infer.em.recognise.slices import Slices, read_slices
from pyro_regimes.infer.tracing import Run, Slot, constraint_of

#: How often a step is quartered at which the model cannot be run.
_MOST_QUARTERS = 6

#: The farthest step of a linear predictor, where its argument keeps its digits.
_FAR = 200.0


def precision_of(slot: Slot) -> float:
    """The relative error of a derivative of a linear predictor."""
    return max(1e-9, 8 * torch.finfo(slot.value.dtype).eps ** 0.6)


def find_curved(
    names: list[str],
    slots: list[Slot],
    here: Run,
    read: Reader,
    held: dict[str, list[Argument]],
) -> dict[str, str]:
    """The parameters in which no predictor of some argument is affine, by one direction, and why.

    It takes a few derivatives, however many coefficients there are, as those of a network.
    """
    steps = {name: normal(here.params[name], 100 + n) for n, name in enumerate(names)}
    largest = max(_largest_change(slot, here, steps) for slot in slots)
    factor = 1 / largest if largest > 0 else 1.0
    there = _run_at(names, steps, factor, here, read, held, 2)
    if not isinstance(there, Run):
        return {}  # a smaller step will tell
    return {
        name: f"no link of {slot.label} is an affine function of it"
        for name in names
        for slot in slots
        if _is_curved(slot, name, steps[name], here, there)
    }


def _is_curved(slot: Slot, name: str, step: Tensor, here: Run, there: Run) -> bool:
    if not depends(slot.value, here.params[name]):
        return False
    for predictor in slot.argument.predictors:
        one, other = (
            Differential(
                predictor.read(slot_in(run, slot).value.double()), run.params[name]
            ).along(step)
            for run in (here, there)
        )
        reach = predictor.reach(slot.value.dtype) / 2
        within = (predictor.read(slot.value.detach().double()).abs() <= reach).flatten()
        one, other = one[within], other[within]
        size = float(torch.maximum(one.abs(), other.abs()).max()) if one.numel() else 0.0
        if bool(((one - other).abs() <= precision_of(slot) * size).all()):
            return False
    return True


def runs_around(
    names: list[str],
    slots: list[Slot],
    here: Run,
    read: Reader,
    held: dict[str, list[Argument]],
) -> list[Run] | str:
    """Runs at two points, where linear predictors have moved by about 1, and as far as they may."""
    scales = {}
    for name in names:
        columns = [_column_scales(slot, here, name) for slot in slots]
        known = [each for each in columns if each is not None]
        if not known:
            return "it has too large a Jacobian"
        scales[name] = torch.stack(known).amin(0).reshape(here.params[name].shape)
    reach = min(each.reach(slot.value.dtype) for slot in slots for each in slot.argument.predictors)
    runs: list[Run] = []
    for number, size in enumerate((1.0, min(_FAR, reach / 2))):
        steps = {
            name: scales[name] * normal(here.params[name], 10 * number + index)
            for index, name in enumerate(names)
        }
        largest = max(_largest_change(slot, here, steps) for slot in slots)
        factor = size / largest if largest > 0 else 1.0
        for quarters in range(_MOST_QUARTERS):
            found = _run_at(names, steps, factor / 4**quarters, here, read, held, number)
            if isinstance(found, Run):
                runs.append(found)
                break
        else:
            return f"the model cannot be run at other values: {found}"
    return runs


def _run_at(
    names: list[str],
    steps: dict[str, Tensor],
    factor: float,
    here: Run,
    read: Reader,
    held: dict[str, list[Argument]],
    number: int,
) -> Run | str:
    """The model at one point; or why it cannot be run there."""
    values = {}
    for index, (name, value) in enumerate(here.params.items()):
        if name in names:
            moved = value.detach() + (factor * steps[name]).to(value)
        else:
            draw = held[name][0].draw if name in held else None
            constraint, seed = constraint_of(name), 1_000 * number + index
            moved = random_value(value, draw, constraint, seed=seed, mild=True)
        values[name] = moved.requires_grad_()
    try:
        with at_random_point():
            return read(values)
    except (ValueError, RuntimeError) as error:
        return str(error)


def _column_scales(slot: Slot, here: Run, name: str) -> Tensor | None:
    value = slot.argument.predictors[0].read(slot.value.double())
    slices = read_slices(value, here.params[name], block_size(slot))
    return None if slices is None else scales_of(slices)


def scales_of(slices: Slices) -> Tensor:
    """The change of each entry of a parameter that moves the predictor by up to 1, or 1."""
    largest = slices.largest().cpu()
    return torch.where(largest > 0, 1 / largest, 1.0)


def block_size(slot: Slot) -> int:
    """The number of entries of a block."""
    return slot.value.numel() // max(1, slot.lead.numel())


def _largest_change(slot: Slot, here: Run, steps: dict[str, Tensor]) -> float:
    """The largest change of the predictor to first order."""
    value = slot.argument.predictors[0].read(slot.value.double())
    change = sum(
        Differential(value, here.params[name]).along(step) for name, step in steps.items()
    )
    assert isinstance(change, Tensor)
    return float(change.abs().max()) if change.numel() else 0.0


def normal(leaf: Tensor, seed: int) -> Tensor:
    """Standard normal numbers, float64 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(leaf.shape, generator=generator, dtype=torch.float64, device="cpu")
