r"""Locations that are affine in parameters: weighted least squares.

Where the locations of the states are :math:`\mu = J \theta + c`, with a Jacobian J that no
parameter changes (means shared between regimes, differences from a base regime, loadings times
known factors), Q is quadratic in :math:`\theta`. With the weight :math:`n_b`, the weighted sum
:math:`s_b` and the precision :math:`\Lambda_b` of each block b of the locations, its maximum
solves

.. math::
    \Big(\sum_b n_b J_b^\top \Lambda_b J_b\Big) \theta =
        \sum_b J_b^\top \Lambda_b (s_b - n_b c_b),

the normal equations of generalised least squares (Aitken 1936), to which a normal prior adds its
precision and its precision times its mean. All such parameters are solved for together. A direction
of :math:`\theta` in which nothing changes is left where it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_regimes.infer.priors import Prior, Statistics
from pyro_regimes.infer.roles import Role
from pyro_regimes.infer.tracing import Argument, Run

#: The most entries of one Jacobian, 160 MB of them.
_MOST = 20_000_000


class AffineUse(NamedTuple):
    """One argument as a function of the group's parameters."""

    site: str
    argument: str
    jacobian: Tensor  #: ``(entries of the argument, entries of the parameters)``


class Affine(NamedTuple):
    """Parameters in which locations are affine, and that are solved for together."""

    names: list[str]
    shapes: list[torch.Size]
    uses: list[AffineUse]
    priors: dict[str, Prior]

    def describe(self, name: str, shape: torch.Size) -> str:
        """One line of the plan."""
        columns = self._columns(name)
        used = ", ".join(
            f"{use.site}.{use.argument}" for use in self.uses if use.jacobian[:, columns].any()
        )
        what = "weighted least squares"
        if name in self.priors:
            what += f", with its {self.priors[name].family} prior"
        return f"{name:<20} {str(tuple(shape)):<16} {used:<36} {what}"

    def holds(self, run: Run) -> bool:
        """Whether the arguments of a later run depend on the parameters in the same way.

        A random cotangent is pulled back through the model and through the Jacobian: covariates
        that the model was called with may be others.
        """
        leaves = [run.params[name] for name in self.names]
        for use in self.uses:
            site = run.sites.get(use.site)
            argument = None if site is None else site.arguments.get(use.argument)
            if argument is None or argument.value.numel() != len(use.jacobian):
                return False
            generator = torch.Generator().manual_seed(0)
            cotangent = torch.randn(argument.value.shape, generator=generator, dtype=torch.float64)
            cotangent = cotangent.to(argument.value)
            if not argument.value.requires_grad:
                return False
            found = torch.autograd.grad(
                argument.value, leaves, cotangent, retain_graph=True, allow_unused=True
            )
            actual = _joined(found, leaves)
            expected = use.jacobian.mT @ cotangent.double().flatten()
            size = use.jacobian.abs().sum(0) + 1
            precision = torch.finfo(argument.value.dtype).eps ** 0.6
            if not bool(((actual - expected).abs() <= precision * size).all()):
                return False
        return True

    def _columns(self, name: str) -> slice:
        sizes = [shape.numel() for shape in self.shapes]
        index = self.names.index(name)
        return slice(sum(sizes[:index]), sum(sizes[: index + 1]))

    def without(self, names: list[str]) -> Affine:
        """The group without some of its parameters."""
        kept = [name for name in self.names if name not in names]
        if kept == self.names:
            return self
        shapes = [self.shapes[self.names.index(name)] for name in kept]
        every = torch.cat(
            [torch.arange(sum(s.numel() for s in self.shapes))[self._columns(n)] for n in kept]
            or [torch.zeros(0, dtype=torch.long)]
        )
        uses = [use._replace(jacobian=use.jacobian[:, every]) for use in self.uses if kept]
        return Affine(kept, shapes, uses, {n: p for n, p in self.priors.items() if n in kept})

    def flat(self, params: dict[str, Tensor]) -> Tensor:
        """All parameters as one vector."""
        return torch.cat([params[name].detach().double().flatten() for name in self.names])

    def unflat(self, vector: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of one vector."""
        return {
            name: vector[self._columns(name)].reshape(shape).to(like[name].dtype)
            for name, shape in zip(self.names, self.shapes, strict=True)
        }

    def add_prior(self, name: str, statistics: Statistics, normal: Tensor, right: Tensor) -> None:
        """Add a normal prior to the normal equations, in place."""
        columns = self._columns(name)
        if len(statistics) == 2:
            precision, total = statistics
            normal.diagonal()[columns] += precision.flatten().to(normal)
        else:
            total = statistics[1]
            normal[columns, columns] += torch.block_diag(*statistics[2].to(normal))
        right[columns] += total.flatten().to(right)


def solve(normal: Tensor, right: Tensor, start: Tensor) -> Tensor:
    """The solution of the normal equations that is nearest to ``start``."""
    size = normal.diagonal().clamp(min=0).sqrt()
    unit = torch.where(size > 0, 1 / size, 0.0)
    values, vectors = torch.linalg.eigh(unit.unsqueeze(-1) * normal * unit)
    precision = len(values) * torch.finfo(values.dtype).eps * values.abs().amax()
    inverse = torch.where(values > precision, 1 / values, 0.0)
    residual = unit * (right - normal @ start)
    return start + unit * (vectors @ (inverse * (vectors.mT @ residual)))


def add_block_statistics(
    statistics: tuple[Tensor, ...],
    jacobian: Tensor,
    constant: Tensor,
    normal: Tensor,
    right: Tensor,
) -> None:
    """Add one argument to the normal equations, in place.

    :param statistics: of its blocks, weighted with their precisions: n and s of independent
        series; n, s and the precisions times n of correlated ones.
    :param constant: c, as many entries as the argument has.
    """
    if len(statistics) == 2:
        weight, total = (part.flatten().to(normal) for part in statistics)
        normal += jacobian.mT @ (weight.unsqueeze(-1) * jacobian)
        right += jacobian.mT @ (total - weight * constant)
        return
    precision = statistics[2].to(normal)  # (blocks, D, D)
    count, size = precision.shape[:2]
    own = jacobian.reshape(count, size, -1)
    normal += jacobian.mT @ (precision @ own).reshape(jacobian.shape)
    shift = (precision @ constant.reshape(count, size, 1)).flatten()
    right += jacobian.mT @ (statistics[1].to(normal).flatten() - shift)


def find_affine(
    candidates: list[str], runs: list[Run], refused: dict[str, str]
) -> tuple[list[str], list[AffineUse]]:
    """The parameters, of the candidates, in which all locations they reach are affine.

    :param refused: is told why another one is not.
    """
    names = list(candidates)
    while names:
        uses: list[AffineUse] = []
        bad: dict[str, str] = {}
        for argument in _arguments(runs[0]):
            if Role.of(argument.name) is not Role.LOCATION:
                continue
            found = _read_argument(argument, names, runs)
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


def _arguments(run: Run) -> list[Argument]:
    return [argument for site in run.sites.values() for argument in site.arguments.values()]


def _read_argument(
    argument: Argument, names: list[str], runs: list[Run]
) -> AffineUse | dict[str, str] | None:
    """How an argument depends on the parameters; or which of them stand in the way, and why."""
    here = [runs[0].params[name] for name in names]
    reached = [
        name for name, leaf in zip(names, here) if any(_reach(run, argument, name) for run in runs)
    ]
    if not reached:
        return None
    columns = sum(leaf.numel() for leaf in here)
    if argument.value.numel() * columns > _MOST:
        why = f"{argument.label} is too large for a Jacobian of {columns} columns"
        return dict.fromkeys(reached, why)
    found = [
        _jacobian(_at(run, argument), [run.params[name] for name in names]) for run in runs
    ]
    bad = {}
    start = 0
    for name, leaf in zip(names, here):
        own = [each[:, start : start + leaf.numel()] for each in found]
        start += leaf.numel()
        size = max(float(each.abs().max()) for each in own) if leaf.numel() else 0.0
        if any(bool(((each - own[0]).abs() > 1e-9 * size).any()) for each in own[1:]):
            bad[name] = f"{argument.label} is no affine function of it"
    if bad:
        return bad
    others = [name for name in runs[0].params if name not in names]
    if not any(_reach(run, argument, name) for run in runs for name in others):
        for run in runs[1:]:
            if not _same_constant(argument, found[0], names, runs[0], run):
                why = f"{argument.label} changes with it otherwise than its derivative says"
                return dict.fromkeys(reached, why)
    return AffineUse(argument.site, argument.name, found[0])


def _same_constant(
    argument: Argument, jacobian: Tensor, names: list[str], here: Run, there: Run
) -> bool:
    constants, size = [], 1.0
    for run in (here, there):
        value = _at(run, argument).detach().double().flatten()
        vector = torch.cat([run.params[name].detach().double().flatten() for name in names])
        constants.append(value - jacobian @ vector)
        size = max(size, float(value.abs().max()), float(vector.abs().max()))
    precision = torch.finfo(argument.value.dtype).eps ** 0.6
    return bool(((constants[0] - constants[1]).abs() <= precision * size).all())


def _at(run: Run, argument: Argument) -> Tensor:
    return run.sites[argument.site].arguments[argument.name].value


def _reach(run: Run, argument: Argument, name: str) -> bool:
    value = _at(run, argument)
    if not value.requires_grad:
        return False
    (found,) = torch.autograd.grad(
        value.sum(), run.params[name], retain_graph=True, allow_unused=True
    )
    return found is not None


def _jacobian(value: Tensor, leaves: list[Tensor]) -> Tensor:
    """``(entries of the value, entries of the leaves)``, float64, by as few sweeps as may be."""
    sizes = [leaf.numel() for leaf in leaves]
    if not value.requires_grad:
        return torch.zeros(value.numel(), sum(sizes), dtype=torch.float64, device=value.device)
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
    if value.numel() <= sum(sizes):
        rows = []
        for index in range(value.numel()):
            found = torch.autograd.grad(value.flatten()[index], leaves, **options)
            rows.append(_joined(found, leaves))
        return torch.stack(rows)
    # Forwards, by differentiating the product with a cotangent in that cotangent.
    cotangent = torch.zeros_like(value).requires_grad_()
    pulled = torch.autograd.grad(value, leaves, cotangent, create_graph=True, allow_unused=True)
    columns = []
    for each, leaf in zip(pulled, leaves):
        if each is None or not each.requires_grad:
            columns += [torch.zeros(value.numel(), dtype=torch.float64)] * leaf.numel()
            continue
        for index in range(leaf.numel()):
            (column,) = torch.autograd.grad(each.flatten()[index], cotangent, **options)
            columns.append(torch.zeros_like(value) if column is None else column)
    flat = [column.detach().to(value.device).double().flatten() for column in columns]
    return torch.stack(flat, 1)


def _joined(found: tuple[Tensor | None, ...], leaves: list[Tensor]) -> Tensor:
    parts = [
        torch.zeros_like(leaf) if part is None else part for part, leaf in zip(found, leaves)
    ]
    return torch.cat([part.detach().double().flatten() for part in parts])
