"""Hamilton's autoregression, recognised in a problem.

:mod:`.autoregressive_steps` makes its ordinary steps.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from pyro_regimes.emissions.lagged_normal import COEFFICIENTS, LOC, SCALE
from pyro_regimes.infer.em.e_step import SiteData
from pyro_regimes.infer.em.engines.autoregressive_steps import AutoregressiveEM, Updates
from pyro_regimes.infer.em.engines.chain_steps import Parameters
from pyro_regimes.infer.em.engines.fused import (
    Arrays,
    FusedEngine,
    flatten,
    free_rows,
    is_stationary,
    read_chain,
    read_parts,
    why_not_data,
    why_not_problem,
)
from pyro_regimes.infer.em.engines.kernel_arguments import Part
from pyro_regimes.infer.em.problem import Problem, TensorState

_FAMILY = [(LOC,), (COEFFICIENTS,), (SCALE,)]


def find(problem: Problem, start: TensorState) -> FusedEngine | str:
    """The engine for a problem, or the reason why there is none."""
    reason = why_not_problem(problem)
    if reason is not None:
        return reason
    (data,) = problem.sites.values()
    reason = why_not_data(data)
    if reason is not None:
        return reason
    if any(slot.value.dtype != torch.float64 for slot in data.site.slots.values()):
        return "it serves float64"
    if problem.pseudo:
        return "it serves no priors of an autoregression"
    parts = read_chain(problem, data)
    if isinstance(parts, str):
        return parts
    of_family = read_parts(problem, data, _FAMILY)
    if isinstance(of_family, str):
        return of_family
    parts = [*parts, *of_family]
    reason = _why_not_parts(parts)
    if reason is not None:
        return reason
    read = partial(_read, problem.groups.num_restarts)
    found = read(data)
    if isinstance(found, str):
        return found
    arrays = Parameters(each.value for each in parts)
    floor, num_series = problem.min_eigenvalue, data.batch_shape.numel()
    kernel = AutoregressiveEM(found.value, num_series, arrays, _updates(parts), floor)
    kernel.is_stationary = is_stationary(parts)
    troubles = "a regime without data, or normal equations without a solution"
    return FusedEngine(problem, kernel, parts, arrays, start, "an autoregression", troubles, read)


def _why_not_parts(parts: list[Part]) -> str | None:
    """The reason why the kernel does not serve the parameters; None if it does."""
    if not all(part.is_alike for part in parts):
        return "restarts share their parameters in different ways"
    if any(part.is_shared for part in parts[:2]):
        return "regimes share probabilities"
    if any(len(each.assignment.uses) > 1 for part in parts for each in part.held):
        return "a parameter is several arguments"
    return None


def _read(num_restarts: int, data: SiteData) -> Arrays | str:
    """The rows of a site, or the reason why they are not served."""
    rows = flatten(data, data.value.double(), data.batch_shape.numel() // num_restarts)
    if rows is None:
        return "the data would have to be copied for every restart"
    return Arrays(rows.numpy(), np.empty((0, 0), dtype=np.int64), None)


def _updates(parts: list[Part]) -> Updates:
    initial, transition, loc, coefficients, scale = parts
    return Updates(
        bool(initial.is_free.all()),
        free_rows(transition),
        bool(loc.is_free[0]),
        coefficients.owner,
        scale.owner,
    )
