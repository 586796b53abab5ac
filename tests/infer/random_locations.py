"""The locations of a random model's observations, said in many ways.

Each function makes a tensor that broadcasts to ``batch + (T, K) + event``; its name is what the
description of a model says of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.infer.random_draws import Draws, Kinds, Layout, Read
from tests.infer.random_parameters import Registry

location = Kinds()


def _is_vector(layout: Layout) -> bool:
    return len(layout.event) == 1


def _has_batch(layout: Layout) -> bool:
    return bool(layout.data_batch) and not layout.restarts


def _start(draws: Draws, *shape: int) -> Tensor:
    return draws.level + 1.5 * draws.normal(*shape)


@location(4.0)
def mu_own(draws: Draws, registry: Registry, layout: Layout) -> Read:
    lead = layout.of_restarts if draws.chance(0.8) else ()
    lead = lead or draws.one_of([(), (1,)], [4.0, 1.0])
    return registry.real("loc", _start(draws, *lead, *layout.own), "location")


@location(0.7)
def mu_fixed(draws: Draws, registry: Registry, layout: Layout) -> Read:
    value = _start(draws, *layout.own)
    return lambda: value


@location(1.0)
def mu_tied_over_states(draws: Draws, registry: Registry, layout: Layout) -> Read:
    read = registry.real("loc", _start(draws, *layout.event), "location")
    return lambda: read().expand(layout.own)


@location(0.8, _is_vector)
def mu_tied_over_series(draws: Draws, registry: Registry, layout: Layout) -> Read:
    read = registry.real("loc", _start(draws, layout.num_states, 1), "location")
    return lambda: read().expand(layout.own)


@location(1.2, _is_vector)
def mu_by_sector_of_the_series_some_unused(
    draws: Draws, registry: Registry, layout: Layout
) -> Read:
    sector = draws.integers(2, *layout.event) + draws.integer(0, 8)
    read = registry.real("loc", _start(draws, layout.num_states, 10), "location")
    return lambda: read()[:, sector]


@location(1.2)
def mu_states_share_some_unused(draws: Draws, registry: Registry, layout: Layout) -> Read:
    place = draws.integers(2, layout.num_states) * 2 + 1
    read = registry.real("loc", _start(draws, 6, *layout.event), "location")
    return lambda: read()[place]


@location(0.8, _has_batch)
def mu_of_each_sequence(draws: Draws, registry: Registry, layout: Layout) -> Read:
    start = _start(draws, *layout.own) + 0.3 * draws.normal(*layout.batch, 1, *layout.own)
    return registry.real("loc", start, "location")


@location(1.2, _has_batch)
def mu_by_group_of_the_sequence_some_unused(
    draws: Draws, registry: Registry, layout: Layout
) -> Read:
    group = draws.integers(2, *layout.batch) + 3
    read = registry.real("loc", _start(draws, 7, *layout.own), "location")
    return lambda: read()[group].unsqueeze(-len(layout.own) - 1)


@location(0.8, lambda layout: layout.num_steps > 1)
def mu_by_season_some_unused(draws: Draws, registry: Registry, layout: Layout) -> Read:
    season = draws.integers(2, layout.num_steps) * 2
    read = registry.real("loc", _start(draws, 4, *layout.own), "location")
    return lambda: read()[season]


@location(0.5, lambda layout: layout.num_steps > 1)
def mu_where_low_or_high(draws: Draws, registry: Registry, layout: Layout) -> Read:
    low = registry.real("low", _start(draws, *layout.own), "location")
    high = registry.real("high", _start(draws, *layout.own), "location")
    where = draws.integers(2, layout.num_steps).bool().reshape(-1, *(1 for _ in layout.own))
    return lambda: torch.where(where, low(), high())


@location(0.8)
def mu_stacked(draws: Draws, registry: Registry, layout: Layout) -> Read:
    names = [f"loc{k}" for k in range(layout.num_states)]
    reads = [registry.real(name, _start(draws, *layout.event), "location") for name in names]
    return lambda: torch.stack([read() for read in reads])


@location(0.6)
def mu_one_state_fixed(draws: Draws, registry: Registry, layout: Layout) -> Read:
    first = _start(draws, 1, *layout.event)
    if layout.num_states == 1:
        return registry.real("loc", first, "location")
    start = _start(draws, layout.num_states - 1, *layout.event)
    read = registry.real("loc", start, "location")
    return lambda: torch.cat([first, read()])


@location(0.5)
def mu_flipped(draws: Draws, registry: Registry, layout: Layout) -> Read:
    read = registry.real("loc", _start(draws, *layout.own), "location")
    return lambda: read().flip(0)


@location(0.5, _is_vector)
def mu_transposed(draws: Draws, registry: Registry, layout: Layout) -> Read:
    read = registry.real("loc", _start(draws, *layout.own[::-1]), "location")
    return lambda: read().mT


@location(0.5)
def mu_read_twice(draws: Draws, registry: Registry, layout: Layout) -> Read:
    read = registry.real("loc", _start(draws, *layout.own), "location")
    return lambda: torch.stack([read()[k] for k in range(layout.num_states)])


# Affine in parameters.


@location(1.0)
def mu_base_and_difference(draws: Draws, registry: Registry, layout: Layout) -> Read:
    base = registry.real("base", _start(draws, 1, *layout.event), "location")
    rest = draws.normal(max(1, layout.num_states - 1), *layout.event)
    difference = registry.real("difference", rest, "location")

    def locs() -> Tensor:
        return torch.cat([base(), base() + difference()])[: layout.num_states]

    return locs


@location(0.6)
def mu_cumulated(draws: Draws, registry: Registry, layout: Layout) -> Read:
    read = registry.real("steps", _start(draws, *layout.own), "location")
    return lambda: read().cumsum(0)


@location(0.6)
def mu_half_and_shifted(draws: Draws, registry: Registry, layout: Layout) -> Read:
    read, shift = registry.real("loc", _start(draws, *layout.own), "location"), draws.normal()
    return lambda: shift - 0.5 * read()


@location(0.8, lambda layout: layout.num_steps > 6)
def mu_loadings_times_factors(draws: Draws, registry: Registry, layout: Layout) -> Read:
    factors = draws.normal(layout.num_steps, 2)
    read = registry.real("loadings", draws.normal(*layout.own, 2), "location")
    return lambda: torch.einsum("tf,k...f->tk...", factors, read())


@location(0.8, _has_batch)
def mu_state_and_sequence_effects(draws: Draws, registry: Registry, layout: Layout) -> Read:
    overall = registry.real("overall", _start(draws, *layout.own), "location")
    effect = registry.real("effect", 0.3 * draws.normal(*layout.batch), "location")
    ones = (1,) * (1 + len(layout.own))
    return lambda: overall() + effect().reshape(*layout.batch, *ones)


@location(0.6)
def mu_sum_of_two_that_no_data_tell_apart(
    draws: Draws, registry: Registry, layout: Layout
) -> Read:
    one = registry.real("one", _start(draws, *layout.own), "location")
    other = registry.real("other", draws.normal(*layout.event), "location")
    return lambda: one() + other()


# Not affine.


@location(1.2, closed=False)
def mu_ordered(draws: Draws, registry: Registry, layout: Layout) -> Read:
    first = registry.real("first", _start(draws, 1, *layout.event), "location")
    gaps = registry.real("log_gaps", 0.3 * draws.normal(*layout.own))
    return lambda: first() + gaps().exp().cumsum(0)


@location(0.75, closed=False)
def mu_tanh(draws: Draws, registry: Registry, layout: Layout) -> Read:
    read = registry.real("loc", 0.5 * draws.normal(*layout.own))
    return lambda: 2 * read().tanh()


@location(0.75, closed=False)
def mu_half_detached(draws: Draws, registry: Registry, layout: Layout) -> Read:
    """The gradient of such a model is not that of its density: EM has to refuse it."""
    read = registry.real("loc", _start(draws, *layout.own), "location")
    return lambda: 0.5 * read() + 0.5 * read().detach()
