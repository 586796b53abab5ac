r"""Scores of the independent contributions to a log-likelihood.

The contributions of a :class:`.RegimeHMM` are its sequences, or its rows. The score of row t is the
derivative of its one-step-ahead log predictive density, :math:`\log p(x_t \mid x_1, \dots,
x_{t-1})` (Hamilton 1996). With the expected score of the path up to t, given its state at t,

.. math::
    u_t(j) = \dot b_t(j) + \sum_i p(q_{t-1} = i \mid q_t = j, x_1, \dots, x_{t-1})
    (u_{t-1}(i) + \dot A_{ij}),

that of the first t rows is :math:`\sum_j p(q_t = j \mid x_1, \dots, x_t) u_t(j)`, and scores of
rows are differences of these.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_regimes.infer.information import columns_of_jacobian, jacobian
from pyro_regimes.infer.nodes import read_hmm
from pyro_regimes.kernels import ops


class Contributions(NamedTuple):
    """Scores of all contributions to a log-likelihood."""

    scores: Tensor  #: ``(n, P)``
    kind: str  #: "sequence" or "row"


def find_scores(nodes: dict[str, Any], point: Tensor) -> Contributions:
    """The scores of the observed sites of a trace.

    They are those of sequences if there are more sequences than coordinates, else those of rows.
    A site without a hidden path contributes the elements of its batch in either case.

    :param nodes: observed sites, with their log densities computed, by name.
    :param point: the coordinates, ``(P,)``, on which they depend.
    :raises ValueError: if they are fewer than the coordinates, or rows have no densities.
    """
    by_sequence = [_of_elements(node, point) for node in nodes.values()]
    scores = torch.cat(by_sequence)
    if len(scores) > len(point):
        return Contributions(scores, "sequence")
    scores = torch.cat([_of_rows(name, node, point) for name, node in nodes.items()])
    if len(scores) <= len(point):
        raise ValueError(
            f"expected more rows than the {len(point)} free parameters for method='sandwich', got "
            f"{len(scores)}; use method='observed'"
        )
    return Contributions(scores, "row")


def _of_elements(node: Any, point: Tensor) -> Tensor:
    """The scores of each element of the batch, ``(n, P)``."""
    hmm = read_hmm(node)
    if hmm is not None and hmm.packing is not None:
        rows, firsts = _row_scores(hmm, node["value"], point)  # (..., T, P)
        ends = torch.cat([firsts[1:], firsts.new_tensor([rows.shape[-2]])])
        sums = rows.cumsum(-2)[..., ends - 1, :]
        sums = torch.cat([sums[..., :1, :], sums.diff(dim=-2)], -2)
        return _weighted(node, sums).flatten(0, -2)
    values = node["log_prob"].flatten()
    if len(values) <= len(point):
        return jacobian(values, point)
    return columns_of_jacobian(values, point)


def _of_rows(name: str, node: Any, point: Tensor) -> Tensor:
    """The scores of each row of an HMM's sequences, or of each element of another site."""
    hmm = read_hmm(node)
    if hmm is not None:
        return _weighted(node, _row_scores(hmm, node["value"], point)[0]).flatten(0, -2)
    return _of_elements(node, point)


def _weighted(node: Any, scores: Tensor) -> Tensor:
    """Scores ``(..., T, P)`` by the scale and the mask of their sequences."""
    scale, mask = node["scale"], node["mask"]
    if isinstance(scale, Tensor) and scale.dim():
        scale = scale[..., None, None]
    scores = scores * scale
    if isinstance(mask, Tensor):
        mask = mask[..., None, None] if mask.dim() else mask
        return torch.where(mask, scores, 0.0)
    return scores if mask in (None, True) else torch.zeros_like(scores)


def _row_scores(hmm: Any, value: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """The score of each row, ``(..., T, P)``, 0 on padding, and the first row of each sequence."""
    if not value.is_floating_point():
        value = value.long()
    initial, transition, logits, lengths = hmm.chain(value)
    num_steps = logits.shape[-2]
    batch, firsts = logits.shape[:-2], torch.zeros(1, dtype=torch.long, device=logits.device)
    valid = torch.ones(num_steps, dtype=torch.bool, device=logits.device).expand(*batch, -1)
    if isinstance(lengths, ops.Packing):
        firsts = lengths.firsts
    elif lengths is not None:
        valid = torch.arange(num_steps, device=logits.device) < lengths.unsqueeze(-1)
    # Impossible states and transitions do not move.
    chain = [torch.where(each.isfinite(), each, 0.0) for each in (initial, transition, logits)]
    of_initial, of_transition, of_logits = (columns_of_jacobian(each, point) for each in chain)
    filtered = ops.filter_logits(initial.detach(), transition.detach(), logits.detach(), lengths)
    moving = transition.detach().double()
    starts = {int(first) for first in firsts}
    scores, before = [], torch.zeros((*batch, len(point)), dtype=torch.float64)
    for t in range(num_steps):
        own = of_logits[..., t, :, :].double()  # (..., K, P)
        if t in starts:
            score = own + of_initial
            before = torch.zeros_like(score.sum(-2))
        else:
            here = 0 if moving.shape[-3] == 1 else t - 1
            paths = filtered[..., t - 1, :].double().unsqueeze(-1) + moving[..., here, :, :]
            shares = (paths - paths.logsumexp(-2, keepdim=True)).exp().nan_to_num()
            arriving = score.unsqueeze(-2) + of_transition[..., here, :, :, :]
            score = own + (shares.unsqueeze(-1) * arriving).sum(-3)
        weights = filtered[..., t, :].double().exp().nan_to_num()
        total = (weights.unsqueeze(-1) * score).sum(-2)  # of the rows so far
        scores.append(torch.where(valid[..., t, None], total - before, 0.0))
        before = total
    return torch.stack(scores, -2), firsts
