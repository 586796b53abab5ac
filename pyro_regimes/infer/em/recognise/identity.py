"""Whether an argument is a parameter: the same in value and derivative, broadcast or selected.

Both are compared block by block in canonical coordinates, in which every way of saying the same
thing agrees: probabilities for initial and transition arguments (so that probs, logits, log-probs
and unnormalised probs all match), symmetrised covariances and precisions, lower triangles.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyro_regimes.emissions.links import Link, noise
from pyro_regimes.emissions.roles import Role
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


def _close(actual: Tensor, expected: Tensor, noise: Tensor | None = None) -> Tensor:
    """Block by block, relative to the block's largest entry: ``(blocks,)``.

    :param noise: by which blocks may differ, where that is more.
    """
    tolerance: Tensor | float = _tolerance(expected)
    if noise is not None:
        tolerance = noise.clamp(min=tolerance).unsqueeze(-1)
    actual, expected = actual.reshape(len(actual), -1), expected.reshape(len(expected), -1)
    if not actual.shape[1]:
        return torch.ones(len(actual), dtype=torch.bool, device=actual.device)
    size = expected.abs().amax(-1, keepdim=True)
    return ((actual - expected).abs() <= tolerance * size).all(-1)


def _distance(actual: Tensor, expected: Tensor) -> Tensor:
    """The sum of the differences in each block, of ``(blocks, entries)``."""
    return (actual - expected).abs().sum(-1)


@torch.no_grad()
def find_cells(
    argument: Argument, parameter: Tensor, role: Role, link: Link
) -> Tensor | None:
    """Match an argument's blocks with a parameter's cells by value, at a random point.

    There all cells differ, so that a match says which cell a block is.

    :return: for each block its cell or -1, on the CPU; None where no block matches.
    """
    target = canonical_argument(argument, role).to(parameter.dtype)
    cells = _canonical_parameter(parameter, argument, role, link)
    if cells is None or not cells.isfinite().all() or role.is_chain and not (cells >= 0).all():
        return None
    flat_target, flat_cells = (part.reshape(len(part), -1) for part in (target, cells))
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(
        flat_cells.shape[1], generator=generator, dtype=torch.float64, device="cpu"
    ).to(flat_cells)
    codes, order = (flat_cells @ weights).sort()
    place = torch.searchsorted(codes, (flat_target @ weights).contiguous())
    nearest = order[place.clamp(0, len(order) - 1)]
    for offset in (-2, -1, 1):  # the neighbours on both sides: the closest is the one
        candidate = order[(place + offset).clamp(0, len(order) - 1)]
        closer = _distance(flat_target, flat_cells[candidate])
        closer = closer < _distance(flat_target, flat_cells[nearest])
        nearest = torch.where(closer, candidate, nearest)
    best = torch.where(_close(flat_target, flat_cells[nearest]), nearest, -1)
    return best.cpu() if (best >= 0).any() else None


@torch.no_grad()
def agrees(
    argument: Argument, parameter: Tensor, role: Role, cells: Tensor, link: Link
) -> bool:
    """Whether the argument's matched blocks have the values of the parameter's cells."""
    held = _canonical_parameter(parameter, argument, role, link)
    if held is None:
        return False
    used = cells.to(parameter.device)
    used = used[used >= 0]
    target = canonical_argument(argument, role)[cells.to(parameter.device) >= 0]
    allowed = None
    if not link.is_identity and argument.event_dim == 2:
        allowed = 16 * noise(link, blocks(parameter, 2), held)[used]
    return bool(_close(target.to(parameter.dtype), held[used], allowed).all())


def same_derivative(
    argument: Argument, parameter: Tensor, role: Role, cells: Tensor, link: Link
) -> bool:
    """Whether the argument's vector-Jacobian product is that of a selection of cells.

    A random cotangent is pulled back through the model, and through the selection; canonical
    coordinates project it on the tangent space (of the simplex, of symmetric matrices).
    """
    target = canonical_argument(argument, role).to(parameter.dtype)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(
        target.shape, generator=generator, dtype=torch.float64, device="cpu"
    ).to(target)
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

    :param role: of the arguments that depend on it.
    :param mild: stay near, for a model that cannot run far away.
    """
    old = value.detach().cpu().double()
    draw = _Draw(old, constraint, torch.Generator().manual_seed(seed), seed, mild)
    for candidate in _candidates(draw, role, value.dtype):
        drawn = candidate.to(value.dtype)
        if drawn.isfinite().all() and constraint.check(drawn).all():
            return drawn.to(value)
    transform = transform_to(constraint)
    moved = transform.inv(old)
    shift = draw.normal(moved.shape)
    return transform(moved + (0.5 if mild else 3.0) * shift).to(value)


class _Draw(NamedTuple):
    """What a draw is made of."""

    old: Tensor  #: the present value, float64 on the CPU
    constraint: constraints.Constraint
    generator: torch.Generator
    seed: int
    mild: bool

    @property
    def sign(self) -> float:
        return 1.0 if self.seed < 1_000 else -1.0

    def normal(self, shape: torch.Size | None = None) -> Tensor:
        shape = self.old.shape if shape is None else shape
        return torch.randn(shape, generator=self.generator, dtype=torch.float64, device="cpu")

    def uniform(self, low: float, high: float) -> Tensor:
        drawn = torch.rand(
            self.old.shape, generator=self.generator, dtype=torch.float64, device="cpu"
        )
        return low + (high - low) * drawn


def _candidates(draw: _Draw, role: Role | None, dtype: torch.dtype) -> list[Tensor]:
    """Values to try, in this order; the first that is finite and admissible is taken."""
    if role is None:
        return []
    if role.is_chain:
        return _random_rows(draw, dtype)
    if role is Role.LOCATION:
        return [_random_location(draw)]
    if role is Role.SCALE:
        if not _is_positive(draw.constraint, draw.old):
            return []
        size = draw.uniform(0, 0.5) if draw.mild else draw.uniform(2, 4)
        return [draw.old * 10 ** (draw.sign * size)]
    return _random_matrices(draw, role)


def _random_rows(draw: _Draw, dtype: torch.dtype) -> list[Tensor]:
    """Rows of probabilities, or what becomes one."""
    logits = draw.normal() * (1.0 if draw.mild else 4.0)
    if draw.sign < 0 and not draw.mild and draw.old.dim() and draw.old.shape[-1] > 1:
        # Every row has a small entry, to meet a floor, if not so small that rounding shows.
        low, high = logits.amin(-1, keepdim=True), logits.amax(-1, keepdim=True)
        logits = logits * (-0.4 * math.log(torch.finfo(dtype).eps)) / (high - low)
    candidates = [logits.softmax(-1)]
    if draw.constraint is not constraints.simplex:
        candidates.insert(0, logits.exp())
    if draw.constraint is constraints.real:
        candidates.insert(0, logits)
    if draw.mild:  # probabilities that were given no constraint bear nothing else
        candidates.reverse()
    return candidates


def _random_location(draw: _Draw) -> Tensor:
    if draw.mild:
        return draw.old + draw.normal()
    sides = torch.Generator().manual_seed(draw.seed % 1_000)  # the same for both draws
    drawn = torch.rand(draw.old.shape, generator=sides, dtype=torch.float64, device="cpu")
    side = drawn.round() * 2 - 1
    return draw.sign * side * (1.0 + draw.old.abs()) * 10 ** draw.uniform(2, 4)


def _random_matrices(draw: _Draw, role: Role) -> list[Tensor]:
    """Positive definite matrices and Cholesky factors, where the present value is one of them."""
    old = draw.old
    if old.dim() < 2 or old.shape[-1] != old.shape[-2] or not old.numel():
        return []
    kinds = (constraints.positive_definite, constraints.lower_cholesky)
    if not any(bool(kind.check(old).all()) for kind in kinds):
        return []
    vectors = torch.linalg.qr(draw.normal())[0]
    exponent = draw.sign * draw.uniform(0, 0.5 if draw.mild else 2.0)[..., 0]
    spread = 10**exponent * old.abs().amax((-1, -2)).unsqueeze(-1)
    matrix = (vectors * spread.unsqueeze(-2)) @ vectors.mT
    matrix = (matrix + matrix.mT) / 2
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool(info.any()):
        return []
    return [factor, matrix] if role is Role.FACTOR else [matrix, factor]


def _is_positive(constraint: constraints.Constraint, value: Tensor) -> bool:
    ones = torch.ones_like(value)
    return bool(constraint.check(ones).all()) and not bool(constraint.check(-ones).any())
