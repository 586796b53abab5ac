"""Which compiled engine serves a problem."""

from __future__ import annotations

from pyro_regimes.infer.em.engines import fused_autoregression, fused_gaussian, fused_linear
from pyro_regimes.infer.em.engines.fused import FusedEngine
from pyro_regimes.infer.em.problem import Problem, TensorState
from pyro_regimes.infer.tuple_chain import TupleChain


def find_fused(problem: Problem, start: TensorState, extrapolates: bool) -> FusedEngine | str:
    """The compiled engine of a closed problem, or the reason why there is none.

    :param extrapolates: whether every other step is extrapolated.
    """
    if any(isinstance(data.site.hmm, TupleChain) for data in problem.sites.values()):
        return fused_autoregression.find(problem, start)
    families = [data.site.family for data in problem.sites.values()]
    if any(family is not None and family.linear is not None for family in families):
        return fused_linear.find(problem, start, extrapolates)
    return fused_gaussian.find(problem, start)
