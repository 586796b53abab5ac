"""The plain Gaussian hidden Markov model, recognised in a problem and iterated by one kernel.

:mod:`.fused_gaussian` makes the ordinary steps of this one model: initial and transition
probabilities, locations and full covariances, each a parameter of its own. Everything else, and a
step that is not ordinary, is left to :mod:`.climb`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.emissions import multivariate_normal
from pyro_regimes.infer.e_step import SiteData
from pyro_regimes.infer.fused_gaussian import Array, GaussianEM, Parameters
from pyro_regimes.infer.grouping import Groups
from pyro_regimes.infer.links import LINKS, Link
from pyro_regimes.infer.plan import Assignment, Plan
from pyro_regimes.infer.roles import Role
from pyro_regimes.kernels import ops

_ROLES = (Role.INITIAL, Role.TRANSITION, Role.LOCATION, Role.COVARIANCE)
#: What may stand in place of the covariances, which the kernel works on.
_SPREADS = {Role.COVARIANCE: "covariance", Role.FACTOR: "Cholesky factor"}


class Fused:
    """The kernel, and how it takes and gives the parameters of a problem."""

    def __init__(
        self, kernel: GaussianEM, names: list[str], shapes: list[tuple[int, ...]], spread: Link
    ) -> None:
        self._kernel, self._names, self._shapes = kernel, names, shapes
        self._spread = spread  # from what the model holds to covariances

    def read(self, params: dict[str, Tensor]) -> Parameters:
        """The kernel's arrays of the problem's tensors."""
        *others, spread = (
            params[name].detach().double().reshape(shape)
            for name, shape in zip(self._names, self._shapes, strict=True)
        )
        arrays = [*others, self._spread.forward(spread)]
        return Parameters(*(value.contiguous().numpy() for value in arrays))

    def write(self, parameters: Parameters, like: dict[str, Tensor]) -> dict[str, Tensor]:
        """The problem's tensors of the kernel's arrays."""
        *others, spread = (torch.from_numpy(value) for value in parameters)
        values = [*others, self._spread.inverse(spread)]
        return {
            name: value.to(like[name].dtype).reshape(like[name].shape)
            for name, value in zip(self._names, values, strict=True)
        }

    def step(self, parameters: Parameters) -> tuple[Array | None, Parameters | None]:
        """The losses ``(R,)`` before an ordinary step, and the parameters after it, or None."""
        likelihood, new = self._kernel.step(parameters)
        return None if likelihood is None else -likelihood, new


def find(plan: Plan, groups: Groups, sites: dict[str, SiteData], floor: float) -> Fused | None:
    """The kernel for a problem; None where it is another model, or on another device."""
    if plan.is_joint or len(sites) != 1 or len(plan.assignments) != len(_ROLES):
        return None
    (data,) = sites.values()
    by_role = {
        Role.COVARIANCE if each.role in _SPREADS else each.role: each for each in plan.assignments
    }
    if set(by_role) != set(_ROLES) or not _is_plain(data):
        return None
    hmm = data.site.hmm
    num_states, size = hmm.state_dim, hmm.observation_dist.event_shape[0]
    counts = {_num_models(by_role[role], data, num_states) for role in _ROLES}
    if counts != {groups.num_restarts}:
        return None
    value = _flat_value(data)
    if value is None:
        return None
    num_sequences, num_steps = data.batch_shape.numel(), value.shape[1]
    lengths = np.full(num_sequences, num_steps)
    if hmm.lengths is not None:
        lengths = hmm.lengths.expand(data.batch_shape).reshape(-1).to(torch.int64).numpy().copy()
    kernel = GaussianEM(value.numpy(), lengths, num_states, groups.num_restarts, floor)
    lead = (groups.num_restarts, num_states)
    shapes = [lead, (*lead, num_states), (*lead, size), (*lead, size, size)]
    held = _SPREADS[by_role[Role.COVARIANCE].role]
    spread = next(link for link in LINKS[Role.COVARIANCE] if link.name == held)
    return Fused(kernel, [by_role[role].name for role in _ROLES], shapes, spread)


def _is_plain(data: SiteData) -> bool:
    """Whether nothing is weighted or masked, and the compiled CPU kernels serve the data."""
    site = data.site
    return (
        site.family is multivariate_normal
        and data.weight is None
        and site.observation_mask is None
        and not site.varies
        and len(site.hmm.observation_dist.event_shape) == 1
        and data.dtype in (torch.float32, torch.float64)
        and data.value.dtype == data.dtype
        and data.batch_shape.numel() > 0
        and ops.has_fused_em(data.value, site.hmm.state_dim)
    )


def _num_models(each: Assignment, data: SiteData, num_states: int) -> int | None:
    """How many models in turn a parameter belongs to, if it is their very argument."""
    if len(each.uses) != 1 or not each.uses[0].whole or not each.link.is_identity:
        return None
    use = each.uses[0]
    if use.argument.endswith("_logits"):
        return None
    lead = data.site.arguments[use.argument].lead
    tail = 0 if each.role is Role.INITIAL else 1 if len(lead) < 2 else 2  # time and state
    if tail and (lead[-1] != num_states or lead[len(lead) - tail : -1].numel() != 1):
        return None
    # One for each of the first dims of the batch, or one for all.
    batch = lead[: len(lead) - tail]
    batch = torch.Size([1] * (len(data.batch_shape) - len(batch))) + batch
    for split in range(len(batch) + 1):
        ones = torch.Size([1] * (len(batch) - split))
        if batch == data.batch_shape[:split] + ones:
            return batch.numel()
    return None


def _flat_value(data: SiteData) -> Tensor | None:
    """``(N or 1, T, D)``; None where it would have to be copied for every model."""
    batch = data.value.shape[:-2]
    if batch.numel() not in (1, data.batch_shape.numel()):
        return None
    return data.value.reshape((-1,) + data.value.shape[-2:]).contiguous()
