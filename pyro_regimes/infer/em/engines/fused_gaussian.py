"""Gaussian hidden Markov models, recognised in a problem.

:mod:`.gaussian_steps` makes the ordinary steps of these models. Several blocks of their covariances
may share a parameter.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from pyro_regimes.emissions import multivariate_normal as mvn
from pyro_regimes.emissions import normal
from pyro_regimes.infer.em.e_step import SiteData
from pyro_regimes.infer.em.engines.chain_steps import Parameters
from pyro_regimes.infer.em.engines.fused import (
    Arrays,
    FusedEngine,
    find_pseudo,
    flatten,
    free_rows,
    is_stationary,
    lengths_of,
    read_chain,
    read_parts,
    why_not_data,
    why_not_parts,
    why_not_problem,
)
from pyro_regimes.infer.em.engines.gaussian_steps import GaussianEM, Updates
from pyro_regimes.infer.em.engines.kernel_arguments import Part
from pyro_regimes.infer.em.problem import Problem, TensorState

_LOC = (mvn.LOC, normal.LOC)
_SPREAD = (mvn.COVARIANCE_MATRIX, mvn.SCALE_TRIL, normal.SCALE)


def find(problem: Problem, start: TensorState) -> FusedEngine | str:
    """The engine for a problem, or the reason why there is none."""
    reason = why_not_problem(problem)
    if reason is not None:
        return reason
    (data,) = problem.sites.values()
    reason = _why_not_gaussian(data) or why_not_data(data)
    if reason is not None:
        return reason
    parts = read_chain(problem, data)
    if isinstance(parts, str):
        return parts
    of_family = read_parts(problem, data, [_LOC, _SPREAD])
    if isinstance(of_family, str):
        return of_family
    parts = [*parts, *of_family]
    reason = why_not_parts(parts)
    if reason is not None:
        return reason
    pseudo = find_pseudo(problem, start, parts)
    if isinstance(pseudo, str):
        return pseudo
    read = partial(_read, problem.groups.num_restarts)
    found = read(data)
    if isinstance(found, str):
        return found
    arrays = _arrays(parts)
    kernel = GaussianEM(
        found.value,
        found.lengths,
        arrays,
        _updates(parts),
        pseudo,
        problem.min_eigenvalue,
        found.missing,
    )
    kernel.is_stationary = is_stationary(parts)
    troubles = "a floor, a state without data, or a covariance near singularity"
    return FusedEngine(problem, kernel, parts, arrays, start, "a Gaussian model", troubles, read)


def _read(num_restarts: int, data: SiteData) -> Arrays | str:
    """The data of a site, or the reason why they are not served."""
    is_vector = bool(data.site.hmm.observation_dist.event_shape)
    vectors = data.value if is_vector else data.value.unsqueeze(-1)
    each, missing = data.batch_shape.numel() // num_restarts, None
    value = flatten(data, vectors, each)
    if value is None:
        return "the data would have to be copied for every restart"
    if data.missing is not None:
        missing = flatten(data, data.missing.reshape(vectors.shape), each)
        if missing is None or len(value) not in (each, data.batch_shape.numel()):
            return "data with missing entries would have to be copied"
    lengths = lengths_of(data, value.shape[1])
    return Arrays(value.numpy(), lengths, None if missing is None else missing.numpy())


def _why_not_gaussian(data: SiteData) -> str | None:
    """The reason why observations are not those of the kernel; None if they are."""
    site = data.site
    served = site.family is mvn.MULTIVARIATE_NORMAL or site.family is normal.NORMAL
    if not served or site.varies or len(site.hmm.observation_dist.event_shape) > 1:
        return "it serves Gaussian vectors, counts, categories and waiting times, constant in time"
    if data.value.dtype != data.dtype:
        return "it serves parameters that are no wider than the data"
    if not any(slot.argument in _SPREAD for slot in site.slots.values()):
        return "it serves covariances, Cholesky factors and standard deviations"
    return None


def _arrays(parts: list[Part]) -> Parameters:
    initial, transition, loc, spread = (part.value for part in parts)
    num_models, num_states = initial.shape
    loc = loc.reshape(num_models, num_states, -1)
    return Parameters((initial, transition, loc, spread.reshape(loc.shape + (-1,))))


def _updates(parts: list[Part]) -> Updates:
    initial, rows, loc, spread = parts
    num_states, size = rows.value.shape[-1], loc.value.size // initial.value.size
    is_free = np.repeat(loc.is_free, num_states * size // len(loc.owner))
    return Updates(
        bool(initial.is_free.all()),
        free_rows(rows),
        is_free.reshape(num_states, size),
        spread.owner.astype(np.int64),
    )
