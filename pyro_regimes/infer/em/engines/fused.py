"""The engine of models whose ordinary steps one compiled kernel makes, and which models they are.

:mod:`.fused_gaussian` and :mod:`.fused_linear` find the kernel of a problem. The kernel iterates on
the arguments of the model's distributions (:mod:`.kernel_arguments`). An argument may equal a
parameter or be linked to it by a bijection, and others may be constants. All other models use
:mod:`.tensors`, and so does a restart from its first step on that is not ordinary (:mod:`.relay`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_regimes import chain
from pyro_regimes.emissions.base import Argument
from pyro_regimes.infer.em.e_step import SiteData
from pyro_regimes.infer.em.engines.chain_steps import Parameters, Pseudo, Step
from pyro_regimes.infer.em.engines.kernel_arguments import Array, Part, read
from pyro_regimes.infer.em.m_step import as_stored_after
from pyro_regimes.infer.em.problem import Flags, Params, Problem, TensorState
from pyro_regimes.infer.em.recognise.plan import Use
from pyro_regimes.kernels import ops

S = TypeVar("S", bound=np.generic)

_STATIONARY = (chain.STATIONARY_PROBS, chain.STATIONARY_LOGITS)
_INITIAL = (chain.INITIAL_PROBS, chain.INITIAL_LOGITS)
_TRANSITION = (chain.TRANSITION_PROBS, chain.TRANSITION_LOGITS)


class Kernel(Protocol):
    """Makes steps of P models, see :class:`.ChainEM`."""

    def step(self, parameters: Parameters, models: Flags | None = None) -> Step:
        """See :meth:`.ChainEM.step`."""

    def keep(self, models: Flags) -> None:
        """See :meth:`.ChainEM.keep`."""

    def extrapolate(
        self, before: Parameters, now: Parameters, after: Parameters, bounds: Array
    ) -> tuple[Parameters, Array]:
        """See :meth:`.ChainEM.extrapolate`."""


class Arrays(NamedTuple):
    """The data of a site as the kernels take them."""

    value: npt.NDArray[Any]  #: ``(V, T, D)``
    lengths: npt.NDArray[np.int64]  #: ``(N, S)``
    missing: npt.NDArray[np.bool_] | None  #: in the shape of the value


class FusedEngine:
    """Ordinary steps of one kind of model.

    :param kernel: makes the steps.
    :param parts: the arguments in the kernel's order.
    :param arrays: their values, as the kernel takes them.
    :param start: a state of the problem.
    :param what: the kind of model, for ``em.plan``.
    :param troubles: why a step of it may not be ordinary, likewise.
    :param read: reads the data of a site for the kernel, or says why it does not serve them.
    """

    def __init__(
        self,
        problem: Problem,
        kernel: Kernel,
        parts: list[Part],
        arrays: Parameters,
        start: TensorState,
        what: str,
        troubles: str,
        read: Callable[[SiteData], Arrays | str],
    ) -> None:
        self.problem, self.start, self.what, self.troubles = problem, arrays, what, troubles
        self.kernel, self.read = kernel, read
        self._parts, self._start = parts, start
        self._kept, self._is_whole = np.ones(problem.groups.num_restarts, dtype=np.bool_), True

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
                self.kernel.keep(models[self._kept])
            self._kept, self._is_whole = models, bool(models.all())
        if self._is_whole:
            return self.kernel.step(arrays)
        return _spread_step(self.kernel.step(arrays.select(models)), arrays, models)

    def step_again(self, step: Step, arrays: Parameters, models: Flags) -> Step:
        """The last step, with that of some of its models repeated at other parameters."""
        again = self.kernel.step(arrays.select(models), models[self._kept])
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
            found, lengths = self.kernel.extrapolate(before, now, after, bounds)
            return (found if (lengths > 1).all() else found.where(lengths > 1, after)), lengths
        first, second, third = (each.select(models) for each in (before, now, after))
        found, lengths = self.kernel.extrapolate(first, second, third, bounds[models])
        extrapolated = models.copy()
        extrapolated[models] = lengths > 1
        found = found.select(lengths > 1)
        return after.replaced(extrapolated, found), _spread(lengths, models)


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


def why_not_problem(problem: Problem) -> str | None:
    """The reason why no kernel serves a problem, whatever its observations; None if one may."""
    plan, sites = problem.plan, problem.sites
    if plan.is_joint or len(sites) != 1:
        return "restarts are watched as one" if plan.is_joint else "several sites are observed"
    if problem.constraints:
        return "a parameter has a constraint that its maximum may not meet"
    if plan.affine.names:
        return "locations are affine in parameters"
    if not all(isinstance(use, Use) for each in plan.assignments for use in each.uses):
        return "an argument is a product of parameters or constants"
    return None


def why_not_data(data: SiteData) -> str | None:
    """The reason why no kernel serves the data of a site, whatever its family."""
    site = data.site
    if data.weight is not None or site.observation_mask is not None:
        return "observations are weighted or masked"
    if site.hmm.allowed_states is not None:
        return "some states are not allowed"
    if site.hmm._gaps is not None:
        return "observations are not equally spaced"
    if data.dtype not in (torch.float32, torch.float64):
        return "it serves float32 and float64"
    if data.batch_shape.numel() == 0 or not ops.has_fused_em(data.value, site.hmm.state_dim):
        return "it serves data on the CPU, and at most 128 states"
    return None


def read_chain(problem: Problem, data: SiteData) -> list[Part] | str:
    """The initial and the transition probabilities, or the reason why they are not served."""
    if any(slot.argument in _STATIONARY for slot in data.site.slots.values()):
        return _read_stationary(problem, data)
    return read_parts(problem, data, [_INITIAL, _TRANSITION])


def _read_stationary(problem: Problem, data: SiteData) -> list[Part] | str:
    """The transition probabilities, and in front of them the distribution that they imply."""
    most = ops.fused_em().MAX_STATIONARY_STATES
    if data.site.hmm.state_dim > most:
        return f"it serves chains of at most {most} states that start from stationary distributions"
    parts = read_parts(problem, data, [_STATIONARY])
    if isinstance(parts, str):
        return parts
    (transition,) = parts
    if any(each.assignment.prior is not None for each in transition.held):
        return "it serves no priors of chains that start from their stationary distributions"
    initial = ops.stationary_probs(torch.from_numpy(transition.value)).numpy()
    return [Part(chain.INITIAL_PROBS, initial, []), transition]


def is_stationary(parts: list[Part]) -> bool:
    """Whether the chain starts from its stationary distribution."""
    return parts[1].argument in _STATIONARY


def free_rows(transition: Part) -> Flags:
    """Which rows of the transition probabilities hold a parameter, ``(K,)``."""
    num_rows = transition.value.shape[-1] // len(transition.is_free)
    return transition.is_free.repeat(num_rows)


def read_parts(
    problem: Problem, data: SiteData, kinds: Sequence[tuple[Argument, ...]]
) -> list[Part] | str:
    """The arguments of a site: of each kind that which it has, or why one is not served."""
    given = {slot.argument for slot in data.site.slots.values()}
    parts = []
    for kind in kinds:
        argument = next((each for each in kind if each in given), None)
        if argument is None:
            return f"it serves {' or '.join(each.name for each in kind)}, and the site has others"
        part = read(problem.plan, data, argument, problem.groups.num_restarts)
        if part is None:
            return f"{argument.name} varies in time, or over the sequences of a restart"
        parts.append(part)
    return parts


def why_not_parts(parts: list[Part]) -> str | None:
    """The reason why no kernel serves the parameters; the first two are those of the chain."""
    if not all(part.is_alike for part in parts):
        return "restarts share their parameters in different ways"
    if any(part.is_shared for part in parts[:3]):
        return "states share a location or probabilities"
    for part in parts:
        for each in part.held:
            if len(each.assignment.uses) > 1:
                return "a parameter is several arguments"
            if each.assignment.event_dim == 2 and not each.assignment.link.is_identity:
                return "a matrix is held by a link"
            if each.assignment.prior is not None and part not in parts[:2]:
                return "it serves priors of probabilities only"
    return None


def find_pseudo(problem: Problem, start: TensorState, parts: list[Part]) -> Pseudo | str:
    """The priors of the chain, or the reason why they are not served."""
    counts = {name: pooled.counts for name, pooled in problem.pseudo.items()}
    initial, transition = (part.pseudo(counts) for part in parts[:2])
    constant = np.zeros(problem.groups.num_restarts)
    if counts:
        with np.errstate(invalid="ignore"):  # -inf less -inf
            constant = problem.log_prior(start.params).numpy()
            constant = constant - _log_prior(parts[0].value, initial)
            constant = constant - _log_prior(parts[1].value, transition)
    if not np.isfinite(constant).all():
        return "a prior is not finite at the start"
    return Pseudo(initial, transition, constant)


def _log_prior(probs: Array, pseudo: Array) -> Array:
    """The log densities of Dirichlet priors, up to their constants, ``(P,)``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(pseudo == 0, 0.0, pseudo * np.log(probs))
    total: Array = terms.reshape(len(probs), -1).sum(-1)
    return total


def lengths_of(data: SiteData, num_steps: int) -> npt.NDArray[np.int64]:
    """The lengths of the S sequences in each row, ``(N, S)``."""
    hmm, num_rows = data.site.hmm, data.batch_shape.numel()
    if hmm.packed_lengths is not None:
        return hmm.packed_lengths.expand(num_rows, -1).to(torch.int64).contiguous().numpy()
    if hmm.lengths is None:
        return np.full((num_rows, 1), num_steps)
    return hmm.lengths.expand(data.batch_shape).reshape(-1, 1).to(torch.int64).numpy().copy()


def flatten(data: SiteData, value: Tensor, each: int) -> Tensor | None:
    """``(V, T, S)``, such that sequence n has row n mod V; None where it would have to be copied.

    :param value: ``(..., T, S)``, of the site's sequences.
    :param each: how many sequences a model has.
    """
    batch = value.shape[:-2]
    batch = batch[next((dim for dim, size in enumerate(batch) if size > 1), len(batch)) :]
    ends_alike = batch == data.batch_shape[len(data.batch_shape) - len(batch) :]
    if not ends_alike or each < batch.numel() < data.batch_shape.numel():
        return None
    return value.reshape((-1,) + value.shape[-2:]).contiguous()
