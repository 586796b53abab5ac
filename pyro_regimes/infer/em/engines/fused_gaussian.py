"""The plain Gaussian hidden Markov model, recognised in a problem and iterated by one kernel.

:mod:`.gaussian_steps` makes the ordinary steps of this one model: initial and transition
probabilities, locations and full covariances, each a parameter of its own. Every other model is
left to :mod:`.tensors`, and so is a restart from a step on that is not ordinary (:mod:`.relay`).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_regimes.chain import INITIAL_PROBS, TRANSITION_PROBS
from pyro_regimes.emissions import multivariate_normal as mvn
from pyro_regimes.emissions.base import Argument
from pyro_regimes.emissions.links import COVARIANCE, Link
from pyro_regimes.infer.em.e_step import SiteData
from pyro_regimes.infer.em.engines.gaussian_steps import GaussianEM, Parameters, Step
from pyro_regimes.infer.em.m_step import as_stored
from pyro_regimes.infer.em.problem import Flags, Params, Problem, TensorState
from pyro_regimes.infer.em.recognise.plan import Assignment
from pyro_regimes.kernels import ops

S = TypeVar("S", bound=np.generic)

_CHAIN_AND_LOC = (INITIAL_PROBS, TRANSITION_PROBS, mvn.LOC)
#: What the kernel takes as covariances, by the links from them.
_SPREADS: dict[Argument, Link] = {
    argument: next(link for link in COVARIANCE if link.name == argument.links[0].name)
    for argument in (mvn.COVARIANCE_MATRIX, mvn.SCALE_TRIL)
}


class FusedEngine:
    """Ordinary steps of a plain Gaussian model.

    :param names: of the parameters, in the kernel's order.
    :param shapes: in which the kernel takes them.
    :param spread: the link from what the model holds to covariances.
    :param start: a state of the problem.
    """

    def __init__(
        self,
        problem: Problem,
        kernel: GaussianEM,
        names: list[str],
        shapes: list[tuple[int, ...]],
        spread: Link,
        start: TensorState,
    ) -> None:
        self.problem = problem
        self._kernel, self._names, self._shapes = kernel, names, shapes
        self._spread, self._start = spread, start
        self._kept, self._is_whole = np.ones(problem.groups.num_restarts, dtype=np.bool_), True

    def read(self, params: Params) -> Parameters:
        """The kernel's arrays of the problem's tensors."""
        *others, spread = (
            params[name].detach().double().reshape(shape).contiguous().numpy()
            for name, shape in zip(self._names, self._shapes, strict=True)
        )
        if not self._spread.is_identity:
            # Not by a matrix product of torch, which rounds by where in memory a matrix begins.
            factor = np.tril(spread)
            spread = np.einsum("rkij,rklj->rkil", factor, factor)
        return Parameters(*(*others, spread))

    def write(self, arrays: Parameters) -> tuple[Params, Params]:
        """The problem's tensors of the kernel's arrays, and what the store holds of some."""
        *others, spread = (torch.from_numpy(value) for value in arrays)
        values = [*others, self._spread.inverse(spread)]
        like = self._start.params
        params = {
            name: value.to(like[name].dtype).reshape(like[name].shape)
            for name, value in zip(self._names, values, strict=True)
        }
        leaves = {}
        for name in self._start.leaves:
            params[name], leaves[name] = as_stored(params[name])
        return params, leaves

    def step(self, arrays: Parameters, models: Flags) -> Step:
        """One EM step of some models; the others keep their parameters.

        A model that was left out once may not be included again.
        """
        if models is not self._kept:
            if (models != self._kept).any():
                self._kernel.keep(models[self._kept])
            self._kept, self._is_whole = models, bool(models.all())
        if self._is_whole:
            return self._kernel.step(arrays)
        step = self._kernel.step(arrays.select(models))
        return Step(
            _spread(step.log_likelihood, models),
            arrays.replaced(models, step.after),
            _spread(step.is_ordinary, models),
            step.is_whole,
        )


def _spread(values: npt.NDArray[S], models: Flags) -> npt.NDArray[S]:
    """Values for some models, and 0 for the others."""
    whole = np.zeros(len(models), values.dtype)
    whole[models] = values
    return whole


def find(problem: Problem, start: TensorState) -> FusedEngine | str:
    """The engine for a problem, or the reason why there is none."""
    plan, groups, sites = problem.plan, problem.groups, problem.sites
    if plan.is_joint or len(sites) != 1:
        return "restarts are watched as one" if plan.is_joint else "several sites are observed"
    if problem.constraints:
        return "a parameter has a constraint that its maximum may not meet"
    (data,) = sites.values()
    held = {each.argument: each for each in plan.assignments}
    spread = next((argument for argument in _SPREADS if argument in held), None)
    wanted = (*_CHAIN_AND_LOC, spread)
    if spread is None or len(plan.assignments) != 4 or set(held) != set(wanted):
        return "it serves probabilities, locations and full covariances, each one parameter"
    if any(each.prior is not None for each in plan.assignments):
        return "it serves no priors"
    reason = _why_not_plain(data)
    if reason is not None:
        return reason
    hmm = data.site.hmm
    num_states, size = hmm.state_dim, hmm.observation_dist.event_shape[0]
    counts = {_num_models(each, data, num_states) for each in held.values()}
    if counts != {groups.num_restarts}:
        return "parameters are shared, selected or transformed"
    num_sequences = data.batch_shape.numel()
    value = _flat_value(data, num_sequences // groups.num_restarts)
    if value is None:
        return "the data would have to be copied for every restart"
    num_steps = value.shape[1]
    lengths = np.full(num_sequences, num_steps)
    if hmm.lengths is not None:
        lengths = hmm.lengths.expand(data.batch_shape).reshape(-1).to(torch.int64).numpy().copy()
    kernel = GaussianEM(
        value.numpy(), lengths, num_states, groups.num_restarts, problem.min_eigenvalue
    )
    lead = (groups.num_restarts, num_states)
    shapes = [lead, (*lead, num_states), (*lead, size), (*lead, size, size)]
    names = [held[argument].name for argument in (*_CHAIN_AND_LOC, spread)]
    return FusedEngine(problem, kernel, names, shapes, _SPREADS[spread], start)


def _why_not_plain(data: SiteData) -> str | None:
    """The reason why the compiled CPU kernel does not serve the data; None if it does."""
    site = data.site
    if site.family is not mvn.MULTIVARIATE_NORMAL or site.varies:
        return "observations are no multivariate Gaussians that are constant in time"
    if data.weight is not None or site.observation_mask is not None:
        return "observations are weighted or masked"
    if data.dtype not in (torch.float32, torch.float64) or data.value.dtype != data.dtype:
        return "it serves float32 and float64"
    if data.batch_shape.numel() == 0 or not ops.has_fused_em(data.value, site.hmm.state_dim):
        return "it serves data on the CPU, and at most 128 states"
    return None


def _num_models(each: Assignment, data: SiteData, num_states: int) -> int | None:
    """The number of models that a parameter has values for, if it is an unchanged argument."""
    if len(each.uses) != 1 or not each.uses[0].whole or not each.link.is_identity:
        return None
    lead = data.site.slots[each.uses[0].argument].lead
    tail = min(each.argument.num_own_dims, max(len(lead), 1))  # time and state
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


def _flat_value(data: SiteData, each: int) -> Tensor | None:
    """``(V, T, D)``, such that sequence n has row n mod V; None where it would have to be copied.

    :param each: how many sequences a model has.
    """
    batch = data.value.shape[:-2]
    batch = batch[next((dim for dim, size in enumerate(batch) if size > 1), len(batch)) :]
    ends_alike = batch == data.batch_shape[len(data.batch_shape) - len(batch) :]
    if not ends_alike or each < batch.numel() < data.batch_shape.numel():
        return None
    return data.value.reshape((-1,) + data.value.shape[-2:]).contiguous()
