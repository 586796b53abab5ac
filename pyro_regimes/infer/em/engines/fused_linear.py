"""Models whose density is linear in functions of the observation, recognised in a problem.

These are counts, categories and waiting times; :mod:`.linear_steps` makes their ordinary steps.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from pyro_regimes.emissions import entries
from pyro_regimes.emissions.base import Linear
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
from pyro_regimes.infer.em.engines.kernel_arguments import Part
from pyro_regimes.infer.em.engines.linear_steps import Emission, LinearEM, Updates
from pyro_regimes.infer.em.problem import Problem, TensorState


def find(problem: Problem, start: TensorState, extrapolates: bool) -> FusedEngine | str:
    """The engine for a problem, or the reason why there is none.

    :param extrapolates: whether every other step is extrapolated.
    """
    if extrapolates:
        return "it extrapolates Gaussian models only"
    reason = why_not_problem(problem)
    if reason is not None:
        return reason
    (data,) = problem.sites.values()
    family = data.site.family
    if family is None or family.linear is None:
        return "the density is not linear in functions of the observation"
    if data.site.varies:
        return "the observation distribution varies in time"
    reason = why_not_data(data)
    if reason is not None:
        return reason
    parts = read_chain(problem, data)
    if isinstance(parts, str):
        return parts
    own = tuple(argument for argument in family.arguments if argument.links)
    of_family = read_parts(problem, data, [own])
    if isinstance(of_family, str):
        return of_family
    parts = [*parts, *of_family]
    reason = why_not_parts(parts)
    if reason is not None:
        return reason
    pseudo = find_pseudo(problem, start, parts)
    if isinstance(pseudo, str):
        return pseudo
    part = parts[2]
    arrays = Parameters(each.value for each in parts)
    event_shape = data.site.hmm.observation_dist.event_shape
    natural = family.linear.natural(torch.from_numpy(part.value), len(event_shape))
    read = partial(_read_arrays, problem.groups.num_restarts, family.linear, natural.shape[2:])
    found = read(data)
    if isinstance(found, str):
        return found
    dtype = data.site.slots[part.argument.name].value.dtype
    kernel = LinearEM(
        found.value,
        found.lengths,
        arrays,
        _updates(parts),
        pseudo,
        Emission(family.linear, part.argument, event_shape, dtype),
        torch.empty(0, dtype=data.dtype).numpy().dtype,
    )
    kernel.is_stationary = is_stationary(parts)
    what = f"a model of {type(data.site.base).__name__} observations"
    troubles = "a state without data, or a parameter at its bound"
    return FusedEngine(problem, kernel, parts, arrays, start, what, troubles, read)


def _read_arrays(
    num_restarts: int, linear: Linear, shape: torch.Size, data: SiteData
) -> Arrays | str:
    """The functions of the data of a site, or the reason why they are not served."""
    value = _read(data, linear, shape)
    if value is None:
        return "some observations are impossible, or some of their entries are missing"
    value = flatten(data, value, data.batch_shape.numel() // num_restarts)
    if value is None:
        return "the data would have to be copied for every restart"
    return Arrays(value.numpy(), lengths_of(data, value.shape[1]), None)


def _read(data: SiteData, linear: Linear, shape: torch.Size) -> Tensor | None:
    """The functions of the data, ``(..., T, S)``, or rows of the table, ``(..., T, D)``.

    :param shape: of the coefficients of one state.
    :return: None if some observation is impossible, or is missing in part.
    """
    event_dim = len(data.site.hmm.observation_dist.event_shape)
    found = linear.read(data.value, event_dim)
    if found is None:
        return None
    if linear.is_table:
        num_categories = shape[-1]
        found = found.reshape(found.shape[: data.value.dim() - event_dim] + (-1,))
        if found.numel() and int(found.max()) >= num_categories:
            return None
        found = found + num_categories * torch.arange(found.shape[-1])
    if data.missing is not None:
        rows, others = entries.parts_of(data.missing, event_dim)
        if others is not None:
            return None
        found = found.masked_fill(rows.unsqueeze(-1), shape.numel() if linear.is_table else 0)
    return found


def _updates(parts: list[Part]) -> Updates:
    initial, rows, emission = parts
    free = torch.from_numpy(emission.is_free)
    return Updates(bool(initial.is_free.all()), free_rows(rows), None if free.all() else free)
