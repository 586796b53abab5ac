"""The hidden chain of a random model: initial and transition probabilities, said in many ways.

Each function makes the keyword arguments of a :class:`RegimeHMM` for one of the two; its name is
what the description of a model says of it.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from tests.infer.random_draws import Draws, Kinds, Layout, Read
from tests.infer.random_parameters import Registry

Chain = dict[str, Read]  # by the name of the argument
Maker = Callable[[Draws, Registry, Layout], Chain]


initial = Kinds()
transition = Kinds()


def _as_given(draws: Draws, role: str, read: Read) -> Chain:
    """Probabilities as such, or their logarithm as logits."""
    if draws.chance(0.3):
        return {f"{role}_logits": lambda: read().log()}
    return {f"{role}_probs": read}


def _as_softmax(draws: Draws, role: str, read: Read) -> Chain:
    """Real weights of the states, made probabilities here or by the distribution."""
    kind = draws.one_of(["logits", "softmax", "log_softmax"])
    if kind == "softmax":
        return {f"{role}_probs": lambda: read().softmax(-1)}
    if kind == "log_softmax":
        return {f"{role}_logits": lambda: read().log_softmax(-1)}
    return {f"{role}_logits": read}


@initial(2.0)
def pi_fixed(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    value = draws.simplex(layout.num_states)
    return {"initial_probs": lambda: value}


@initial(0.3, lambda layout: layout.num_states > 1)
def pi_fixed_at_one_state(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    value = torch.eye(layout.num_states, dtype=draws.dtype)[0]
    return {"initial_probs": lambda: value}


@initial(2.0)
def pi_simplex(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    lead = layout.of_restarts[: len(layout.batch)] if draws.chance(0.7) else ()
    return _as_given(
        draws, "initial", registry.simplex("initial", draws.simplex(*lead, layout.num_states))
    )


@initial(1.0)
def pi_real(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    return _as_softmax(draws, "initial", registry.real("initial", draws.normal(layout.num_states)))


@initial(0.5, lambda layout: bool(layout.batch))
def pi_of_each_sequence(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    start = draws.simplex(*layout.batch, layout.num_states)
    return {"initial_probs": registry.simplex("initial", start)}


@transition(1.0)
def A_fixed(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    value = draws.stochastic(layout.num_states, layout.num_states)
    return {"transition_probs": lambda: value}


def _square(layout: Layout, draws: Draws) -> tuple[int, ...]:
    lead = layout.of_restarts if draws.chance(0.7) else ()
    return (*lead, layout.num_states, layout.num_states)


@transition(3.0)
def A_simplex(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    start = draws.stochastic(*_square(layout, draws))
    return _as_given(draws, "transition", registry.simplex("transition", start))


@transition(1.5)
def A_real(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    start = draws.normal(*_square(layout, draws))
    return _as_softmax(draws, "transition", registry.real("transition", start))


@transition(0.5)
def A_real_from_zero(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    start = torch.zeros(layout.num_states, layout.num_states, dtype=draws.dtype)
    return _as_softmax(draws, "transition", registry.real("transition", start))


@transition(1.0)
def A_unnormalised(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    start = 5 * draws.stochastic(*_square(layout, draws))
    read = registry.positive("transition", start)
    if draws.chance(0.5):
        return {"transition_logits": lambda: read().log()}

    def normalised() -> Tensor:
        weights = read()
        return weights / weights.sum(-1, keepdim=True)

    return {"transition_probs": normalised}


@transition(0.7)
def A_rows_apart_one_fixed(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    start = draws.stochastic(layout.num_states, layout.num_states)
    rows: list[Read] = [registry.simplex(f"row{k}", row) for k, row in enumerate(start)]
    if layout.num_states > 1:
        rows[0] = lambda: start[0]
    return {"transition_probs": lambda: torch.stack([row() for row in rows])}


@transition(0.7)
def A_tied_row(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    read = registry.simplex("row", draws.simplex(layout.num_states))
    return {"transition_probs": lambda: read().expand(layout.num_states, layout.num_states)}


@transition(0.8, lambda layout: layout.num_states > 2)
def A_structural_zeros(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    near = torch.ones(layout.num_states, layout.num_states).tril(1).triu(-1)
    start = draws.stochastic(layout.num_states, layout.num_states) * near.to(draws.dtype)
    read = registry.simplex("transition", start / start.sum(-1, keepdim=True))
    return {"transition_probs": read}


@transition(0.7, lambda layout: layout.num_steps > 2)
def A_by_season_one_unused(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    season = draws.integers(2, layout.num_steps - 1)
    start = draws.stochastic(3, layout.num_states, layout.num_states)
    read = registry.simplex("transition", start)
    return {"transition_probs": lambda: read()[season]}


@transition(0.3, lambda layout: 2 < layout.num_steps < 10)
def A_of_every_step(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    start = draws.stochastic(layout.num_steps - 1, layout.num_states, layout.num_states)
    return {"transition_probs": registry.simplex("transition", start)}


@transition(0.4, lambda layout: bool(layout.batch))
def A_of_each_sequence(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    start = draws.stochastic(*layout.batch, 1, layout.num_states, layout.num_states)
    return {"transition_probs": registry.simplex("transition", start)}


@transition(0.6)
def A_rows_permuted(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    start = draws.stochastic(layout.num_states, layout.num_states)
    read, order = registry.simplex("transition", start), torch.arange(layout.num_states).flip(0)
    return {"transition_probs": lambda: read()[order]}


@transition(0.8, closed=False)
def A_states_renamed(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    start = draws.stochastic(layout.num_states, layout.num_states)
    read, order = registry.simplex("transition", start), torch.arange(layout.num_states).flip(0)
    return {"transition_probs": lambda: read()[order][:, order]}


@transition(0.8, closed=False)
def A_logits_transposed(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    read = registry.real("transition", draws.normal(layout.num_states, layout.num_states))
    return {"transition_logits": lambda: read().mT}


@transition(1.0, lambda layout: layout.num_states > 1, closed=False)
def A_probability_to_stay(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    read = registry.real("stay", draws.normal())
    eye = torch.eye(layout.num_states, dtype=draws.dtype)

    def probs() -> Tensor:
        stay = read().sigmoid()
        return eye * stay + (1 - eye) * (1 - stay) / (layout.num_states - 1)

    return {"transition_probs": probs}


@transition(0.6, closed=False)
def A_tempered_logits(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    read = registry.real("transition", draws.normal(layout.num_states, layout.num_states))
    return {"transition_logits": lambda: 2 * read()}


@transition(1.0, lambda layout: layout.num_steps > 2, closed=False)
def A_logits_with_a_covariate(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    covariate = draws.normal(layout.num_steps - 1, 1, 1)
    base = registry.real("transition", draws.normal(layout.num_states, layout.num_states))
    slope = registry.real("slope", 0.3 * draws.normal(layout.num_states, layout.num_states))
    return {"transition_logits": lambda: base() + covariate * slope()}


@transition(0.5, closed=False)
def A_and_pi_is_its_first_row(draws: Draws, registry: Registry, layout: Layout) -> Chain:
    start = draws.stochastic(layout.num_states, layout.num_states)
    read = registry.simplex("transition", start)
    return {"initial_probs": lambda: read()[0], "transition_probs": read}
