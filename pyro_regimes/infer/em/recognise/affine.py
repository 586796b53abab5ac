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
from pyro_regimes.infer.em.recognise.jacobian import Jacobian
from pyro_regimes.infer.em.recognise.priors import Prior
from pyro_regimes.infer.tracing import Run

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


def _joined(found: tuple[Tensor | None, ...], leaves: list[Tensor]) -> Tensor:
    parts = [
        torch.zeros_like(leaf) if part is None else part for part, leaf in zip(found, leaves)
    ]
    return torch.cat([part.detach().double().flatten() for part in parts])
