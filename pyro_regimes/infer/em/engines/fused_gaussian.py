"""Gaussian hidden Markov models, recognised in a problem and iterated by one kernel.

:mod:`.gaussian_steps` makes the ordinary steps of these models. The kernel iterates on the
arguments of the model's distributions (:mod:`.gaussian_arguments`). An argument may equal a
parameter or be linked to it by a bijection, several blocks may share a parameter, and others may be
constants. All other models use :mod:`.tensors`, and so does a restart from its first step on that
is not ordinary (:mod:`.relay`).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_regimes import chain
from pyro_regimes.emissions import multivariate_normal as mvn
from pyro_regimes.emissions import normal
from pyro_regimes.infer.em.e_step import SiteData
from pyro_regimes.infer.em.engines.gaussian_arguments import Array, Part, read
from pyro_regimes.infer.em.engines.gaussian_steps import (
    GaussianEM,
    Parameters,
    Pseudo,
    Step,
    Updates,
)
from pyro_regimes.infer.em.m_step import as_stored_after
from pyro_regimes.infer.em.problem import Flags, Params, Problem, TensorState
from pyro_regimes.kernels import ops

S = TypeVar("S", bound=np.generic)

_INITIAL = (chain.INITIAL_PROBS, chain.INITIAL_LOGITS)
_TRANSITION = (chain.TRANSITION_PROBS, chain.TRANSITION_LOGITS)
_LOC = (mvn.LOC, normal.LOC)
_SPREAD = (mvn.COVARIANCE_MATRIX, mvn.SCALE_TRIL, normal.SCALE)


class FusedEngine:
    """Ordinary steps of a Gaussian model.

    :param parts: the arguments in the kernel's order.
    :param start: a state of the problem.
    """

    def __init__(
        self, problem: Problem, kernel: GaussianEM, parts: list[Part], start: TensorState
    ) -> None:
        self.problem = problem
        self._kernel, self._parts, self._start = kernel, parts, start
        self._kept, self._is_whole = np.ones(problem.groups.num_restarts, dtype=np.bool_), True

    @property
    def start(self) -> Parameters:
        """The kernel's arrays at the start."""
        return _arrays(self._parts)

    def write(self, arrays: Parameters) -> tuple[Params, Params]:
        """The problem's tensors of the kernel's arrays, and what the store holds of some."""
        params: Params = {}
        for part, value in zip(self._parts, arrays, strict=True):
            params |= part.write(value, self._start.params)
        leaves = {}
        for name, leaf in self._start.leaves.items():
            stored = as_stored_after(params[name], self._start.params[name], leaf)
            params[name], leaves[name] = stored
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
        return _spread_step(self._kernel.step(arrays.select(models)), arrays, models)

    def step_again(self, step: Step, arrays: Parameters, models: Flags) -> Step:
        """The last step, with that of some of its models repeated at other parameters."""
        again = self._kernel.step(arrays.select(models), models[self._kept])
        spread = _spread_step(again, step.after, models)
        is_ordinary = np.where(models, spread.is_ordinary, step.is_ordinary)
        return Step(
            np.where(models, spread.log_likelihood, step.log_likelihood),
            spread.after,
            is_ordinary,
            bool(is_ordinary[self._kept].all()),
        )

    def extrapolate(
        self, before: Parameters, now: Parameters, after: Parameters, bounds: Array, models: Flags
    ) -> tuple[Parameters, Array]:
        """Extrapolate two steps of some models; the others have the parameters after them.

        :param bounds: of the lengths, ``(R,)``.
        :return: with the lengths, as in :func:`.squarem.next_bounds`.
        """
        if models.all():
            found, lengths = self._kernel.extrapolate(before, now, after, bounds)
            return (found if (lengths > 1).all() else found.where(lengths > 1, after)), lengths
        first, second, third = (each.select(models) for each in (before, now, after))
        found, lengths = self._kernel.extrapolate(first, second, third, bounds[models])
        extrapolated = models.copy()
        extrapolated[models] = lengths > 1
        found = found.select(lengths > 1)
        return after.replaced(extrapolated, found), _spread(lengths, models)


def _arrays(parts: list[Part]) -> Parameters:
    initial, transition, loc, spread = (part.value for part in parts)
    num_models, num_states = initial.shape
    loc = loc.reshape(num_models, num_states, -1)
    return Parameters(initial, transition, loc, spread.reshape(loc.shape + (-1,)))


def _spread_step(step: Step, arrays: Parameters, models: Flags) -> Step:
    """A step of some models, as one of all."""
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
    if plan.affine.names:
        return "locations are affine in parameters"
    (data,) = sites.values()
    reason = _why_not_gaussian(data)
    if reason is not None:
        return reason
    parts = []
    given = {slot.argument for slot in data.site.slots.values()}
    for kinds in (_INITIAL, _TRANSITION, _LOC, _SPREAD):
        argument = next((each for each in kinds if each in given), None)
        if argument is None and kinds is _INITIAL:
            return "the chain starts from its stationary distribution"
        if argument is None:
            return "it serves covariances, Cholesky factors and standard deviations"
        part = read(plan, data, argument, groups.num_restarts)
        if part is None:
            return f"{argument.name} varies in time, or over the sequences of a restart"
        parts.append(part)
    reason = _why_not_served(parts)
    if reason is not None:
        return reason
    counts = {name: pooled.counts for name, pooled in problem.pseudo.items()}
    initial, transition = (part.pseudo(counts) for part in parts[:2])
    constant = np.zeros(groups.num_restarts)
    if counts:
        with np.errstate(invalid="ignore"):  # -inf less -inf
            constant = problem.log_prior(start.params).numpy()
            constant = constant - _log_prior(parts[0].value, initial)
            constant = constant - _log_prior(parts[1].value, transition)
    if not np.isfinite(constant).all():
        return "a prior is not finite at the start"
    num_sequences = data.batch_shape.numel()
    value = _flat_value(data, num_sequences // groups.num_restarts)
    if value is None:
        return "the data would have to be copied for every restart"
    kernel = GaussianEM(
        value.numpy(),
        _lengths(data, num_sequences, value.shape[1]),
        _arrays(parts),
        _updates(parts),
        Pseudo(initial, transition, constant),
        problem.min_eigenvalue,
    )
    return FusedEngine(problem, kernel, parts, start)


def _why_not_gaussian(data: SiteData) -> str | None:
    """The reason why the compiled CPU kernel does not serve the data; None if it does."""
    site = data.site
    served = site.family is mvn.MULTIVARIATE_NORMAL or site.family is normal.NORMAL
    if not served or site.varies or len(site.hmm.observation_dist.event_shape) > 1:
        return "observations are no Gaussian vectors that are constant in time"
    if data.weight is not None or site.observation_mask is not None:
        return "observations are weighted or masked"
    if data.missing is not None:
        return "some entries are missing"
    if site.hmm.allowed_states is not None:
        return "some states are not allowed"
    if site.hmm._gaps is not None:
        return "observations are not equally spaced"
    if data.dtype not in (torch.float32, torch.float64) or data.value.dtype != data.dtype:
        return "it serves float32 and float64, with parameters no wider than the data"
    if data.batch_shape.numel() == 0 or not ops.has_fused_em(data.value, site.hmm.state_dim):
        return "it serves data on the CPU, and at most 128 states"
    return None


def _why_not_served(parts: list[Part]) -> str | None:
    """The reason why the kernel does not serve the parameters; None if it does."""
    *chain_parts, loc, spread = parts
    if not all(part.is_alike for part in parts):
        return "restarts share their parameters in different ways"
    if any(part.is_shared for part in (*chain_parts, loc)):
        return "states share a location or probabilities"
    for part in parts:
        for each in part.held:
            if len(each.assignment.uses) > 1:
                return "a parameter is several arguments"
            if each.assignment.event_dim == 2 and not each.assignment.link.is_identity:
                return "a matrix is held by a link"
            if each.assignment.prior is not None and part not in chain_parts:
                return "it serves priors of probabilities only"
    return None


def _log_prior(probs: Array, pseudo: Array) -> Array:
    """The log densities of Dirichlet priors, up to their constants, ``(P,)``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(pseudo == 0, 0.0, pseudo * np.log(probs))
    total: Array = terms.reshape(len(probs), -1).sum(-1)
    return total


def _updates(parts: list[Part]) -> Updates:
    initial, rows, loc, spread = parts
    num_states, size = rows.value.shape[-1], loc.value.size // initial.value.size
    is_free = np.repeat(loc.is_free, num_states * size // len(loc.owner))
    return Updates(
        bool(initial.is_free.all()),
        rows.is_free,
        is_free.reshape(num_states, size),
        spread.owner.astype(np.int64),
    )


def _lengths(data: SiteData, num_sequences: int, num_steps: int) -> npt.NDArray[np.int64]:
    lengths = data.site.hmm.lengths
    if lengths is None:
        return np.full(num_sequences, num_steps)
    return lengths.expand(data.batch_shape).reshape(-1).to(torch.int64).numpy().copy()


def _flat_value(data: SiteData, each: int) -> Tensor | None:
    """``(V, T, D)``, such that sequence n has row n mod V; None where it would have to be copied.

    :param each: how many sequences a model has.
    """
    value = data.value
    if not data.site.hmm.observation_dist.event_shape:
        value = value.unsqueeze(-1)
    batch = value.shape[:-2]
    batch = batch[next((dim for dim, size in enumerate(batch) if size > 1), len(batch)) :]
    ends_alike = batch == data.batch_shape[len(data.batch_shape) - len(batch) :]
    if not ends_alike or each < batch.numel() < data.batch_shape.numel():
        return None
    return value.reshape((-1,) + value.shape[-2:]).contiguous()
