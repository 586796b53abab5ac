r"""Locations that are affine in parameters: weighted least squares.

Let the locations of the states be :math:`\mu = J \theta + c`, with a constant Jacobian J (means
shared between regimes, differences from a base regime, loadings times known factors). Then Q is
quadratic in :math:`\theta`. With the weight :math:`n_b`, the weighted sum :math:`s_b` and the
precision :math:`\Lambda_b` of each block b of the locations, its maximiser solves

.. math::
    \Big(\sum_b n_b J_b^\top \Lambda_b J_b\Big) \theta =
        \sum_b J_b^\top \Lambda_b (s_b - n_b c_b),

the normal equations of generalised least squares (Aitken 1936). A normal prior adds its precision,
and its precision times its mean. All such parameters are solved for jointly. Directions of
:math:`\theta` that do not affect the locations are left unchanged.

Other arguments may be functions of such a :math:`\mu`, their linear predictor
(:mod:`pyro_regimes.emissions.predictors`). Q is then concave, and maximised by Newton's method
(:mod:`pyro_regimes.infer.em.newton`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.emissions.predictors import Predictor
from pyro_regimes.emissions.statistics import WeightedSum
from pyro_regimes.infer.em.recognise.jacobian import (
    Column,
    Differential,
    Jacobian,
    build,
    read_columns,
)
from pyro_regimes.infer.em.recognise.priors import Prior
from pyro_regimes.infer.tracing import Run, Slot


#: Why coefficients of a linear predictor may have no maximum.
WHY_SEPARATED = (
    "a combination of covariates separates the outcomes of a state, or nearly, so that the "
    "likelihood rises while coefficients grow without bound (a Normal prior bounds them)"
)


class AffineUse(NamedTuple):
    """One argument as a function of the group's parameters."""

    site: str
    argument: str
    jacobian: Jacobian
    #: of which the affine function is the value; None for a location, which is one itself
    predictor: Predictor | None = None

    def read(self, value: Tensor) -> Tensor:
        """The affine function from the argument, float64."""
        wide = value.double()
        return wide if self.predictor is None else self.predictor.read(wide)

    def within(self, value: Tensor) -> Tensor:
        """Where the argument keeps the digits of the affine function."""
        if self.predictor is None:
            return torch.ones_like(value, dtype=torch.bool)
        return self.read(value.detach()).abs() <= self.predictor.reach(value.dtype)


class Affine(NamedTuple):
    """Parameters in which locations or linear predictors are affine, solved for together."""

    names: list[str]
    shapes: list[torch.Size]
    uses: list[AffineUse]
    priors: dict[str, Prior]
    predicted: frozenset[str] = frozenset()  #: those of linear predictors

    def describe(self, name: str, shape: torch.Size) -> str:
        """One line of the plan."""
        columns = self.columns(name)
        used = ", ".join(
            f"{use.site}.{use.argument}"
            for use in self.uses
            if bool(use.jacobian.column_sizes()[columns].any())
        )
        ways = {
            "weighted least squares" if use.predictor is None else f"Newton, {use.predictor.name}"
            for use in self.uses
            if bool(use.jacobian.column_sizes()[columns].any())
        }
        what = " and ".join(sorted(ways))
        if name in self.priors:
            what += f", with its {self.priors[name].family} prior"
        return f"{name:<20} {str(tuple(shape)):<16} {used:<36} {what}"

    def beside(self, other: Affine) -> Affine:
        """Both groups as one."""
        sizes = [sum(shape.numel() for shape in each.shapes) for each in (self, other)]
        return Affine(
            self.names + other.names,
            self.shapes + other.shapes,
            [
                use._replace(jacobian=use.jacobian.among(first, sum(sizes)))
                for each, first in ((self, 0), (other, sizes[0]))
                for use in each.uses
            ],
            self.priors | other.priors,
            self.predicted | other.predicted,
        )

    def holds(self, run: Run) -> bool:
        """Whether the arguments of a later run depend on the parameters in the same way.

        A random cotangent is pulled back through the model and through the Jacobian: covariates
        that the model was called with may be others.
        """
        leaves = [run.params[name] for name in self.names]
        for use in self.uses:
            site = run.sites.get(use.site)
            slot = None if site is None else site.slots.get(use.argument)
            if slot is None or slot.value.numel() != use.jacobian.num_entries:
                return False
            generator = torch.Generator().manual_seed(0)
            cotangent = torch.randn(
                slot.value.shape, generator=generator, dtype=torch.float64, device="cpu"
            )
            cotangent = torch.where(use.within(slot.value), cotangent.to(slot.value), 0.0)
            if not slot.value.requires_grad:
                return False
            with torch.enable_grad():
                affine = slot.value if use.predictor is None else use.read(slot.value)
            found = torch.autograd.grad(
                affine, leaves, cotangent.to(affine), retain_graph=True, allow_unused=True
            )
            actual = _joined(found, leaves)
            expected = use.jacobian.transposed_times(cotangent.double().flatten())
            size = use.jacobian.column_sizes() + 1
            precision = torch.finfo(slot.value.dtype).eps ** 0.6
            if not bool(((actual - expected).abs() <= precision * size).all()):
                return False
        return True

    def columns(self, name: str) -> slice:
        """The place of a parameter among all columns."""
        sizes = [shape.numel() for shape in self.shapes]
        index = self.names.index(name)
        return slice(sum(sizes[:index]), sum(sizes[: index + 1]))

    def part(self, is_predicted: bool) -> Affine:
        """The uses and priors of linear predictors, or those of locations; with all columns."""
        uses = [use for use in self.uses if (use.predictor is not None) is is_predicted]
        priors = {n: p for n, p in self.priors.items() if (n in self.predicted) is is_predicted}
        return self._replace(uses=uses, priors=priors)

    def without(self, names: list[str]) -> Affine:
        """The group without some of its parameters."""
        kept = [name for name in self.names if name not in names]
        if kept == self.names:
            return self
        shapes = [self.shapes[self.names.index(name)] for name in kept]
        every = torch.cat(
            [
                torch.arange(sum(s.numel() for s in self.shapes), device="cpu")[self.columns(n)]
                for n in kept
            ]
            or [torch.zeros(0, dtype=torch.long, device="cpu")]
        )
        uses = [use._replace(jacobian=use.jacobian.select(every)) for use in self.uses if kept]
        uses = [use for use in uses if use.jacobian.groups]
        priors = {n: p for n, p in self.priors.items() if n in kept}
        return Affine(kept, shapes, uses, priors, self.predicted.intersection(kept))

    def flat(self, params: dict[str, Tensor]) -> Tensor:
        """All parameters as one vector."""
        return torch.cat([params[name].detach().double().flatten() for name in self.names])

    def unflat(self, vector: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of one vector."""
        return {
            name: vector[self.columns(name)].reshape(shape).to(like[name].dtype)
            for name, shape in zip(self.names, self.shapes, strict=True)
        }

    def add_prior(self, name: str, pooled: WeightedSum, normal: Tensor, right: Tensor) -> None:
        """Add a normal prior to the normal equations, in place."""
        columns = self.columns(name)
        if pooled.precision is None:
            normal.diagonal()[columns] += pooled.weight.flatten().to(normal)
        else:
            normal[columns, columns] += torch.block_diag(*pooled.precision.to(normal))
        right[columns] += pooled.total.flatten().to(right)


def solve(normal: Tensor, right: Tensor, start: Tensor) -> Tensor:
    """The solution of the normal equations that is nearest to ``start``."""
    size = normal.diagonal().clamp(min=0).sqrt()
    unit = torch.where(size > 0, 1 / size, 0.0)
    values, vectors = torch.linalg.eigh(unit.unsqueeze(-1) * normal * unit)
    precision = len(values) * torch.finfo(values.dtype).eps * values.abs().amax()
    inverse = torch.where(values > precision, 1 / values, 0.0)
    residual = unit * (right - normal @ start)
    return start + unit * (vectors @ (inverse * (vectors.mT @ residual)))


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


#: The columns of each argument in each parameter, or why it is not affine.
Known = dict[tuple[str, str], "list[Column] | str"]


def _read_argument(
    slot: Slot, names: list[str], runs: list[Run], known: Known
) -> AffineUse | dict[str, str] | None:
    """How an argument depends on the parameters; or which of them stand in the way, and why."""
    reached = [name for name in names if any(_reach(run, slot, name) for run in runs)]
    if not reached:
        return None
    bad = {}
    columns: list[Column] = []
    for name in names:
        found = known.get((slot.label, name))
        if found is None:
            found = known[slot.label, name] = _read_parameter(slot, name, runs)
        if isinstance(found, str):
            bad[name] = found
        else:
            columns += found
    if bad:
        return bad
    block_size = slot.value.numel() // max(1, slot.lead.numel())
    jacobian = build(columns, slot.value.numel(), block_size)
    if jacobian is None:
        return dict.fromkeys(reached, _too_large(slot))
    others = [name for name in runs[0].params if name not in names]
    if not any(_reach(run, slot, name) for run in runs for name in others):
        for run in runs[1:]:
            if not _same_constant(slot, jacobian, names, runs[0], run):
                why = f"{slot.label} changes with it in a way that contradicts its derivative"
                return dict.fromkeys(reached, why)
    return AffineUse(slot.site, slot.name, jacobian)


def _too_large(slot: Slot) -> str:
    entries = slot.value.numel()
    return (
        f"{slot.label}, with {entries} entries, has a Jacobian in it that is too large for "
        "weighted least squares; use an optim"
    )


def _read_parameter(slot: Slot, name: str, runs: list[Run]) -> list[Column] | str:
    """The columns of one parameter, which are the same in every run; or why there are none.

    The first run tells them all; the others are asked along one random direction.
    """
    leaf = runs[0].params[name]
    columns = read_columns(_at(runs[0], slot), leaf)
    if columns is None:
        return _too_large(slot)
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(leaf.shape, generator=generator, dtype=torch.float64, device="cpu")
    direction = direction.to(leaf)
    expected, size = None, 0.0
    precision = max(1e-9, torch.finfo(slot.value.dtype).eps ** 0.6)
    for run in runs:
        found = Differential(_at(run, slot), run.params[name]).along(direction)
        expected = found if expected is None else expected
        size = max(size, float(found.abs().max())) if found.numel() else size
        if bool(((found - expected).abs() > precision * size).any()):
            return f"{slot.label} is not an affine function of it"
    return columns


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


def _joined(found: tuple[Tensor | None, ...], leaves: list[Tensor]) -> Tensor:
    parts = [
        torch.zeros_like(leaf) if part is None else part for part, leaf in zip(found, leaves)
    ]
    return torch.cat([part.detach().double().flatten() for part in parts])
