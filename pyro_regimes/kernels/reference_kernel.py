"""The reference with the signatures of a compiled kernel.

Operators in compiled graphs select their kernel when they run, and may use the reference
(:func:`.dispatch.kernel`). Arguments are flat, as in :mod:`.cpu.launch`.
"""

from __future__ import annotations

from torch import Tensor

from pyro_regimes.kernels import reference
from pyro_regimes.kernels.reference import log_likelihood
from pyro_regimes.kernels.tangent import tangent

__all__ = ["expectations", "log_likelihood", "tangent"]


def expectations(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The E-step; see :func:`.cpu.launch.expectations`."""
    value, smoothed, moved = reference.expectations(
        initial_logits, transition_logits, observation_logits, lengths
    )
    return value, smoothed, moved if moved.dim() == 4 else moved.unsqueeze(1)
