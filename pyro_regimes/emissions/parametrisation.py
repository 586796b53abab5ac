"""Which of two parametrisations, probabilities or logits, a distribution was given."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.utils import probs_to_logits

from pyro_regimes.emissions.logs import safe_log_complement
from pyro_regimes.kernels.ops import safe_log

#: Two conversions may differ by so many units of rounding, depending on the memory layout.
_ULPS = 8


def read_given(
    distribution: Distribution, probs: str = "probs", logits: str = "logits"
) -> dict[str, Tensor]:
    """The one of two attributes that the caller passed, by its name.

    torch computes the other one when somebody reads it, with probabilities clamped, and keeps it.
    Where it does not tell which was given, the result is the logits, exact where they are those of
    clamped probabilities.

    :param probs: the name of the probabilities, of which a Categorical has rows.
    :param logits: the name of their logits.
    """
    known = vars(distribution)
    # torch's ``_param`` is the one that was given, until the distribution is expanded.
    if logits not in known or probs in known and known.get("_param") is known[probs]:
        return {probs: known[probs]}
    if probs not in known or known[logits].requires_grad and not known[probs].requires_grad:
        return {logits: known[logits]}  # or the probabilities were computed without a graph
    is_binary = not hasattr(distribution, "_num_events")
    clamped = probs_to_logits(known[probs], is_binary=is_binary)
    exact = safe_log(known[probs])
    if is_binary:
        exact = exact - safe_log_complement(known[probs])
    tolerance = _ULPS * torch.finfo(clamped.dtype).eps
    same = (known[logits] - clamped).abs() <= tolerance * clamped.abs()
    return {logits: torch.where(same, exact, known[logits])}
