"""The compiled steps of :mod:`.fused` over the ranks of a process group.

The sums of the E-step add up, in one message for each step. All ranks then make the same M-step,
and the same decision where a step is not ordinary.
"""

from __future__ import annotations

import numpy as np
import torch

from pyro_regimes.infer.em.engines.chain_steps import (
    Array,
    ChainEM,
    Flags,
    Parameters,
    Step,
    Sums,
)
from pyro_regimes.infer.em.engines.finding import find_fused
from pyro_regimes.infer.em.engines.fused import FusedEngine
from pyro_regimes.infer.em.problem import Problem, TensorState
from pyro_regimes.infer.em.ranks import Ranks


def find_on_ranks(problem: Problem, start: TensorState, extrapolates: bool) -> FusedEngine | str:
    """The compiled engine of a closed problem on all ranks, or the reason why one has none."""
    ranks = problem.ranks
    assert ranks is not None
    weights = [data.weight for data in problem.sites.values()]
    is_empty = all(weight is not None and not bool(weight.any()) for weight in weights)
    own = problem
    if is_empty:  # the engine need not know that what stands for the sequences has no weight
        sites = {name: data._replace(weight=None) for name, data in problem.sites.items()}
        own = problem._replace(sites=sites)
    found = find_fused(own, start, extrapolates)
    reason = why_not_on_all(found if isinstance(found, str) else None, problem)
    if reason is not None:
        return reason
    assert isinstance(found, FusedEngine) and isinstance(found.kernel, ChainEM)
    found.problem = problem
    found.kernel = RankKernel(found.kernel, ranks, is_empty)
    found.what += f", added up over {ranks.size} ranks"
    return found


def why_not_on_all(reason: str | None, problem: Problem) -> str | None:
    """The reason why the engine of some rank does not serve; None if those of all do.

    :param reason: that of this rank.
    """
    assert problem.ranks is not None
    dtypes = {str(data.dtype) for data in problem.sites.values()}
    found = problem.ranks.objects((reason, dtypes))
    for rank, (each, _) in enumerate(found):
        if each is not None:
            return reason or f"on rank {rank} {each}"
    if any(own != dtypes for _, own in found):  # bounds of rounding, and so decisions, differ
        return "the data of the ranks are of different dtypes"
    return None


class RankKernel:
    """Steps on the sequences of all ranks.

    :param kernel: that of this rank.
    :param is_empty: whether this rank has no sequences.
    """

    def __init__(self, kernel: ChainEM, ranks: Ranks, is_empty: bool) -> None:
        self._kernel, self._ranks, self._is_empty = kernel, ranks, is_empty

    def step(self, parameters: Parameters, models: Flags | None = None) -> Step:
        """See :meth:`.ChainEM.step`."""
        sums = self._kernel.expect(parameters, models)[0]
        return self._kernel.maximise(parameters, add_up(sums, self._ranks, self._is_empty))

    def keep(self, models: Flags) -> None:
        """See :meth:`.ChainEM.keep`."""
        self._kernel.keep(models)

    def extrapolate(
        self, before: Parameters, now: Parameters, after: Parameters, bounds: Array
    ) -> tuple[Parameters, Array]:
        """See :meth:`.ChainEM.extrapolate`."""
        return self._kernel.extrapolate(before, now, after, bounds)


def add_up(sums: Sums, ranks: Ranks, is_empty: bool = False) -> Sums:
    """The sums over all ranks; priors count once.

    :param is_empty: whether those of this rank do not count.
    """
    own = [sums.log_likelihood, sums.starts, sums.counts, *sums.moments]
    if is_empty:
        own = [np.zeros_like(part) for part in own]
    found = ranks.add([torch.from_numpy(np.asarray(part, np.float64)) for part in own])
    log_likelihood, starts, counts, *moments = (part.numpy() for part in found)
    return sums._replace(
        log_likelihood=log_likelihood, starts=starts, counts=counts, moments=tuple(moments)
    )
