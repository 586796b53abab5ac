"""Tests whether an argument equals a parameter, up to broadcasting and selection.

Values and derivatives are compared block by block in canonical coordinates, which do not depend on
the parametrisation: probabilities for initial and transition arguments (so that probs, logits,
log-probs and unnormalised probs all match), symmetrised covariances and precisions, and lower
triangles.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_regimes.emissions.base import blocks
from pyro_regimes.emissions.links import Link, noise
from pyro_regimes.infer.tracing import Slot
from pyro_regimes.kernels import ops

#: Names of nodes in autograd's graph that select entries, or repeat them.
_VIEWS = frozenset(
    f"{name}Backward0" for name in ("Alias", "Expand", "Select", "Slice", "Unsqueeze", "View")
)


def _canonical_slot(slot: Slot) -> Tensor:
    """The canonical blocks of an argument."""
    return blocks(slot.argument.canonical(slot.value), slot.event_dim)


def _canonical_parameter(parameter: Tensor, slot: Slot, link: Link) -> Tensor | None:
    """A parameter's canonical cells; None where they cannot be blocks of the argument."""
    event_dim = slot.event_dim
    shape = slot.value.shape[slot.value.dim() - event_dim :]
    if parameter.dim() < event_dim or parameter.shape[parameter.dim() - event_dim :] != shape:
        return None
    written = slot.argument.written(link, parameter)
    return blocks(slot.argument.canonical(written), event_dim)


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
def find_cells(slot: Slot, parameter: Tensor, link: Link) -> Tensor | None:
    """Match an argument's blocks with a parameter's cells by value, at a random point.

    There all cells differ, so that a match says which cell a block is. (The probabilities of a
    single state do not: if there are as many blocks as cells, each is taken for its own.)

    :return: for each block its cell or -1, on the CPU; None where no block matches.
    """
    target = _canonical_slot(slot).to(parameter.dtype)
    cells = _canonical_parameter(parameter, slot, link)
    if cells is None or not cells.isfinite().all():
        return None
    flat_target, flat_cells = (part.reshape(len(part), -1) for part in (target, cells))
    if len(target) == len(cells) and _close(flat_target, flat_cells).all():
        return torch.arange(len(cells), device="cpu")
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


def is_whole(slot: Slot, parameter: Tensor, link: Link) -> bool:
    """Whether the argument is the parameter itself, entry by entry in memory, through this link.

    Its blocks are then the parameter's cells wherever the model runs, and need no comparison.
    """
    value = slot.value
    num_lead = value.dim() - parameter.dim()
    if num_lead < 0 or parameter.dim() < slot.event_dim or value.numel() != parameter.numel():
        return False
    return (
        value.data_ptr() == parameter.data_ptr()
        and value.shape[num_lead:] == parameter.shape
        and value.stride()[num_lead:] == parameter.stride()
        and value.dtype == parameter.dtype
        and value.device == parameter.device
        and slot.argument.written(link, parameter) is parameter
    )


def is_valid(slot: Slot) -> bool:
    """Whether the argument has values that can be compared."""
    return ops.is_finite(slot.argument.canonical(slot.value.detach()))


@torch.no_grad()
def agrees(slot: Slot, parameter: Tensor, cells: Tensor, link: Link) -> bool:
    """Whether the argument's matched blocks have the values of the parameter's cells."""
    held = _canonical_parameter(parameter, slot, link)
    if held is None:
        return False
    used = cells.to(parameter.device)
    used = used[used >= 0]
    target = _canonical_slot(slot)[cells.to(parameter.device) >= 0]
    allowed = None
    if not link.is_identity and slot.event_dim == 2:
        allowed = 16 * noise(link, blocks(parameter, 2), held)[used]
    return bool(_close(target.to(parameter.dtype), held[used], allowed).all())


def viewed(value: Tensor) -> Tensor | None:
    """The leaf of which a tensor is a view, by what autograd recorded; None if it is no view."""
    if value.grad_fn is None:
        return value if value.requires_grad else None
    leaf: Tensor | None = getattr(below_views(value.grad_fn), "variable", None)
    return leaf


def below_views(node: Any) -> Any:
    """The node in autograd's graph that a chain of views begins with."""
    while node is not None and node.name() in _VIEWS:
        node = node.next_functions[0][0]
    return node


def is_same_view(slots: list[Slot], parameters: list[Tensor]) -> bool:
    """Whether an argument is the same view of a parameter in all runs.

    Its derivative is then that of the selection, because autograd recorded only views between them.
    """
    seen = set()
    for slot, parameter in zip(slots, parameters, strict=True):
        if viewed(slot.value) is not parameter:
            return False
        offset = slot.value.storage_offset() - parameter.storage_offset()
        seen.add((offset, slot.value.shape, slot.value.stride(), parameter.stride()))
    return len(seen) == 1


def same_derivative(slot: Slot, parameter: Tensor, cells: Tensor, link: Link) -> bool:
    """Whether the argument's vector-Jacobian product is that of a selection of cells.

    A random cotangent is pulled back through the model, and through the selection; canonical
    coordinates project it on the tangent space (of the simplex, of symmetric matrices).
    """
    target = _canonical_slot(slot).to(parameter.dtype)
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
    own = _canonical_parameter(leaf, slot, link)
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
