"""Whether an argument is a parameter: the same in value and derivative, broadcast or selected.

Both are compared block by block in canonical coordinates, in which every way of saying the same
thing agrees: probabilities for initial and transition arguments (so that probs, logits, log-probs
and unnormalised probs all match), symmetrised covariances and precisions, lower triangles.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyro_regimes.infer.links import LINKS, Link
from pyro_regimes.infer.roles import Role
from pyro_regimes.infer.tracing import Argument


def blocks(value: Tensor, event_dim: int) -> Tensor:
    """``(blocks, *block)``"""
    return value.reshape((-1,) + value.shape[value.dim() - event_dim :])


def canonical(value: Tensor, role: Role, logits: bool) -> Tensor:
    """A tensor in the coordinates in which arguments and parameters are compared."""
    if role.is_chain:
        return value.softmax(-1) if logits else value / value.sum(-1, keepdim=True)
    if role in (Role.COVARIANCE, Role.PRECISION):
        return (value + value.mT) / 2
    return value.tril() if role is Role.FACTOR else value


def canonical_argument(argument: Argument, role: Role) -> Tensor:
    """An argument's canonical blocks."""
    value = canonical(argument.value, role, argument.name.endswith("_logits"))
    return blocks(value, argument.event_dim)


def _canonical_parameter(
    parameter: Tensor, argument: Argument, role: Role, link: Link
) -> Tensor | None:
    """A parameter's canonical cells; None where they cannot be blocks of the argument."""
    event_dim = argument.event_dim
    shape = argument.value.shape[argument.value.dim() - event_dim :]
    if parameter.dim() < event_dim or parameter.shape[parameter.dim() - event_dim :] != shape:
        return None
    return blocks(canonical(link.forward(parameter), role, logits=False), event_dim)


def _tolerance(value: Tensor) -> float:
    return torch.finfo(value.dtype).eps ** 0.6  # 4e-10 in float64, 7e-5 in float32


def _close(actual: Tensor, expected: Tensor) -> Tensor:
    """Block by block, relative to the block's largest entry: ``(blocks,)``."""
    tolerance = _tolerance(expected)
    actual, expected = actual.reshape(len(actual), -1), expected.reshape(len(expected), -1)
    if not actual.shape[1]:
        return torch.ones(len(actual), dtype=torch.bool, device=actual.device)
    size = expected.abs().amax(-1, keepdim=True)
    return ((actual - expected).abs() <= tolerance * size).all(-1)


def _distance(actual: Tensor, expected: Tensor) -> Tensor:
    """The sum of the differences in each block, of ``(blocks, entries)``."""
    return (actual - expected).abs().sum(-1)


@torch.no_grad()
def find_cells(argument: Argument, parameter: Tensor, role: Role) -> tuple[Tensor, Link] | None:
    """Match an argument's blocks with a parameter's cells by value, at a random point.

    There all cells differ, so that a match says which cell a block is.

    :return: for each block its cell or -1 (on the CPU), and what the parameter holds; None where
        no block matches.
    """
    target = canonical_argument(argument, role).to(parameter.dtype)
    for link in LINKS[role]:
        cells = _canonical_parameter(parameter, argument, role, link)
        if cells is None:
            return None
        if not cells.isfinite().all() or role.is_chain and not (cells >= 0).all():
            continue  # it cannot be this
        flat_target, flat_cells = (part.reshape(len(part), -1) for part in (target, cells))
        generator = torch.Generator().manual_seed(0)
        weights = torch.rand(flat_cells.shape[1], generator=generator, dtype=torch.float64)
        weights = weights.to(flat_cells)
        codes, order = (flat_cells @ weights).sort()
        place = torch.searchsorted(codes, (flat_target @ weights).contiguous())
        nearest = order[place.clamp(0, len(order) - 1)]
        for offset in (-2, -1, 1):  # the neighbours on both sides: the closest is the one
            candidate = order[(place + offset).clamp(0, len(order) - 1)]
            closer = _distance(flat_target, flat_cells[candidate])
            closer = closer < _distance(flat_target, flat_cells[nearest])
            nearest = torch.where(closer, candidate, nearest)
        best = torch.where(_close(flat_target, flat_cells[nearest]), nearest, -1)
        if (best >= 0).any():
            return best.cpu(), link
    return None


@torch.no_grad()
def agrees(
    argument: Argument, parameter: Tensor, role: Role, cells: Tensor, link: Link
) -> bool:
    """Whether the argument's matched blocks have the values of the parameter's cells."""
    held = _canonical_parameter(parameter, argument, role, link)
    if held is None:
        return False
    cells = cells.to(parameter.device)
    target = canonical_argument(argument, role)[cells >= 0].to(parameter.dtype)
    return bool(_close(target, held[cells[cells >= 0]]).all())


def same_derivative(
    argument: Argument, parameter: Tensor, role: Role, cells: Tensor, link: Link
) -> bool:
    """Whether the argument's vector-Jacobian product is that of a selection of cells.

    A random cotangent is pulled back through the model, and through the selection; canonical
    coordinates project it on the tangent space (of the simplex, of symmetric matrices).
    """
    target = canonical_argument(argument, role).to(parameter.dtype)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(target.shape, generator=generator, dtype=torch.float64).to(target)
    if not target.requires_grad:
        return False
    (actual,) = torch.autograd.grad(
        target, parameter, cotangent, retain_graph=True, allow_unused=True
    )
    if actual is None:
        return False
    leaf = parameter.detach().requires_grad_()
    own = _canonical_parameter(leaf, argument, role, link)
    assert own is not None
    cells = cells.to(parameter.device)
    pooled = torch.zeros_like(own).index_add(0, cells[cells >= 0], cotangent[cells >= 0])
    (expected,) = torch.autograd.grad(own, leaf, pooled)
    if link.is_lower:
        actual, expected = actual.tril(), expected.tril()
    # The logarithm of a probability that is exactly 0 has no derivative to compare.
    known = actual.isfinite() & expected.isfinite()
    actual, expected = actual[known], expected[known]
    if not expected.numel():
        return True
    size = max(1.0, float(cotangent.abs().max())) * expected.abs().max()
    return bool(((actual - expected).abs() <= 100 * _tolerance(expected) * size).all())


def random_value(
    value: Tensor,
    role: Role | None,
    constraint: constraints.Constraint,
    seed: int,
    mild: bool = False,
) -> Tensor:
    """A random admissible value of a parameter, far from its present one.

    Far, because a clamp is the identity inside its bounds. The signs and orders of magnitude of
    two draws, with seeds below and from 1,000, are opposed.

    :param mild: stay near, for a model that cannot run far away.
    """
    generator = torch.Generator().manual_seed(seed)
    up = seed < 1_000

    def normal() -> Tensor:
        return torch.randn(value.shape, generator=generator, dtype=torch.float64)

    def uniform(low: float, high: float) -> Tensor:
        drawn = torch.rand(value.shape, generator=generator, dtype=torch.float64)
        return low + (high - low) * drawn

    def admissible(candidate: Tensor) -> bool:
        return bool(candidate.isfinite().all()) and bool(constraint.check(candidate).all())

    old = value.detach().cpu().double()
    sign = 1.0 if up else -1.0
    size = 1.0 + old.abs()
    candidates = []
    if role is not None and role.is_chain:
        logits = normal() * (1.0 if mild else 4.0)
        if not up and not mild and value.dim() and value.shape[-1] > 1:
            # Every row has a small entry, to meet a floor, if not so small that rounding shows.
            low, high = logits.amin(-1, keepdim=True), logits.amax(-1, keepdim=True)
            logits = logits * (-0.4 * math.log(torch.finfo(value.dtype).eps)) / (high - low)
        candidates = [
            logits if constraint is constraints.real else None,
            logits.exp() if not _is_simplex(constraint) else None,
            logits.softmax(-1),
        ]
        if mild:  # probabilities that were given no constraint bear nothing else
            candidates.reverse()
    elif role is Role.LOCATION:
        sides = torch.Generator().manual_seed(seed % 1_000)  # the same for both draws
        side = torch.rand(value.shape, generator=sides, dtype=torch.float64).round() * 2 - 1
        candidates = [
            old + normal() if mild else sign * side * size * 10 ** uniform(2, 4),
        ]
    elif role is Role.SCALE and _is_positive(constraint, old):
        candidates = [old * 10 ** (sign * (uniform(0, 0.5) if mild else uniform(2, 4)))]
    elif role is not None and value.dim() >= 2 and value.shape[-1] == value.shape[-2]:
        span = 0.5 if mild else 2.0
        vectors = torch.linalg.qr(normal())[0]
        spread = 10 ** (sign * uniform(0, span)[..., 0]) * old.abs().amax((-1, -2)).unsqueeze(-1)
        matrix = (vectors * spread.unsqueeze(-2)) @ vectors.mT
        matrix = (matrix + matrix.mT) / 2
        candidates = [matrix, torch.linalg.cholesky(matrix)]
        if role is Role.FACTOR:
            candidates.reverse()
    for candidate in candidates:
        if candidate is not None and admissible(candidate.to(value.dtype)):
            return candidate.to(value)
    transform = transform_to(constraint)
    moved = transform.inv(old)
    shift = torch.randn(moved.shape, generator=generator, dtype=torch.float64)
    return transform(moved + (0.5 if mild else 3.0) * shift).to(value)


def _is_positive(constraint: constraints.Constraint, value: Tensor) -> bool:
    ones = torch.ones_like(value)
    return bool(constraint.check(ones).all()) and not bool(constraint.check(-ones).any())


def _is_simplex(constraint: constraints.Constraint) -> bool:
    return constraint is constraints.simplex
