r"""The optimisers of SVI.

"Adam" and "ClippedAdam" have a constant learning rate. That of "DecayingAdam" falls exponentially
from the given rate to a hundredth of it: step s of S has the rate :math:`r\,0.01^{s / S}`. This is
the schedule that Pyro's tutorials recommend, the option ``lrd`` of Pyro's ``ClippedAdam``, here
without clipping.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

OPTIMISERS = ("Adam", "ClippedAdam", "DecayingAdam")

#: The last learning rate of DecayingAdam, as a share of the first.
FINAL_SHARE = 0.01


class Optimiser(NamedTuple):
    """One of :data:`OPTIMISERS` with its learning rate."""

    name: str
    rate: float
    num_steps: int = 1  #: of the run, over which DecayingAdam's rate falls

    def __str__(self) -> str:
        return f"{self.name}({self.rate:g})"

    def of_pyro(self) -> Any:
        """For :class:`pyro.infer.SVI`."""
        return PyroOptim(self._kind(), self._settings())

    def of_leaves(self, leaves: list[Tensor]) -> torch.optim.Optimizer:
        """For all parameters at once."""
        settings = self._settings()
        if self.name == "Adam":
            settings["foreach"] = True
        found: torch.optim.Optimizer = self._kind()(leaves, **settings)
        return found

    def _kind(self) -> Any:
        return torch.optim.Adam if self.name == "Adam" else ClippedAdam

    def _settings(self) -> dict[str, Any]:
        if self.name != "DecayingAdam":
            return {"lr": self.rate}
        decay = FINAL_SHARE ** (1 / self.num_steps)
        return {"lr": self.rate, "lrd": decay, "clip_norm": math.inf}
