"""Finds the parameters in which locations are affine."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_regimes.infer.em.recognise.affine import AffineUse
from pyro_regimes.infer.em.recognise.jacobian import Differential, Jacobian
from pyro_regimes.infer.em.recognise.slices import Slices, join, read_slices
from pyro_regimes.infer.tracing import Run, Slot


def find_affine(
    candidates: list[str], runs: list[Run], refused: dict[str, str]
) -> tuple[list[str], list[AffineUse]]:
    """The parameters, of the candidates, in which all locations they reach are affine.

    :param refused: is told why another one is not.
    """
    names = list(candidates)
    known: Known = {}
    while names:
        uses: list[AffineUse] = []
        bad: dict[str, str] = {}
        for slot in runs[0].slots:
            if not slot.argument.is_quadratic or slot.site in runs[0].priors:
                continue
            found = _read_argument(slot, names, runs, known)
            if isinstance(found, dict):
                bad.update(found)
            elif found is not None:
                uses.append(found)
        if not bad:
            return names, uses
        for name, reason in bad.items():
            refused[name] = reason
        names = [name for name in names if name not in bad]
    return [], []


#: The derivatives of each argument in each parameter, or why it is not affine.
Known = dict[tuple[str, str], "Slices | str"]


def _read_argument(
    slot: Slot, names: list[str], runs: list[Run], known: Known
) -> AffineUse | dict[str, str] | None:
    """How an argument depends on the parameters; or which of them stand in the way, and why."""
    reached = [name for name in names if any(_reach(run, slot, name) for run in runs)]
    if not reached:
        return None
    bad = {}
    slices: list[Slices] = []
    for name in names:
        found = known.get((slot.label, name))
        if found is None:
            found = known[slot.label, name] = _read_parameter(slot, name, runs)
        if isinstance(found, str):
            bad[name] = found
        else:
            slices.append(found)
    if bad:
        return bad
    groups = join(slices)
    if groups is None:
        return dict.fromkeys(reached, _too_large(slot))
    num_columns = sum(each.num_columns for each in slices)
    jacobian = Jacobian(tuple(groups), slot.lead.numel(), slices[0].block_size, num_columns)
    others = [name for name in runs[0].params if name not in names]
    if not any(_reach(run, slot, name) for run in runs for name in others):
        for run in runs[1:]:
            if not _same_constant(slot, jacobian, names, runs[0], run):
                why = f"{slot.label} changes with it in a way that contradicts its derivative"
                return dict.fromkeys(reached, why)
    return AffineUse(slot.site, slot.name, jacobian)


def _block_size(slot: Slot) -> int:
    return slot.value.numel() // max(1, slot.lead.numel())


def _too_large(slot: Slot) -> str:
    entries = slot.value.numel()
    return (
        f"{slot.label}, with {entries} entries, has a Jacobian in it that is too large for "
        "weighted least squares; use an optim"
    )


def _read_parameter(slot: Slot, name: str, runs: list[Run]) -> Slices | str:
    """The derivative in one parameter, which is the same in every run; or why it is not.

    The runs are compared along one random direction; the first one tells the whole.
    """
    leaf = runs[0].params[name]
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(leaf.shape, generator=generator, dtype=torch.float64, device="cpu")
    direction = direction.to(leaf)
    alongs = [Differential(_at(run, slot), run.params[name]).along(direction) for run in runs]
    size = max(float(along.abs().max()) if along.numel() else 0.0 for along in alongs)
    bound = max(1e-9, torch.finfo(slot.value.dtype).eps ** 0.6) * size
    why = f"{slot.label} is not an affine function of it"
    if any(bool(((along - alongs[0]).abs() > bound).any()) for along in alongs):
        return why
    slices = read_slices(_at(runs[0], slot), leaf, _block_size(slot))
    if slices is None:
        return _too_large(slot)
    if bool(((slices.along(direction) - alongs[0]).abs() > bound).any()):
        return why
    return slices


def _same_constant(
    slot: Slot, jacobian: Jacobian, names: list[str], here: Run, there: Run
) -> bool:
    constants, size = [], 1.0
    for run in (here, there):
        value = _at(run, slot).detach().double().flatten()
        vector = torch.cat([run.params[name].detach().double().flatten() for name in names])
        constants.append(value - jacobian @ vector)
        size = max(size, float(value.abs().max()), float(vector.abs().max()))
    precision = torch.finfo(slot.value.dtype).eps ** 0.6
    return bool(((constants[0] - constants[1]).abs() <= precision * size).all())


def _at(run: Run, slot: Slot) -> Tensor:
    return run.sites[slot.site].slots[slot.name].value


def _reach(run: Run, slot: Slot, name: str) -> bool:
    value = _at(run, slot)
    if not value.requires_grad:
        return False
    (found,) = torch.autograd.grad(
        value.sum(), run.params[name], retain_graph=True, allow_unused=True
    )
    return found is not None
