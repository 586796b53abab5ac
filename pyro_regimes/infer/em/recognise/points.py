"""Runs the model at random points, where a parameter and a function of it are told apart."""

from __future__ import annotations

from typing import Callable, Optional

import torch
from torch import Tensor

from pyro_regimes.distributions.checks import at_random_point
from pyro_regimes.emissions.base import Argument
from pyro_regimes.emissions.draws import random_value
from pyro_regimes.infer.em.recognise.dependence import Reached, reached_in
from pyro_regimes.infer.em.recognise.stationary import find_stationary, with_stationary
from pyro_regimes.infer.tracing import Run, Slot, constraint_of

#: Runs the model at given values of its parameters, or at those of the store.
Reader = Callable[[Optional[dict[str, Tensor]]], Run]

#: Shares of a step of what may be coefficients of covariates, if no whole step can be made.
_SHARES = (1e-2, 1e-4, 1e-6, 1e-8)

TWO_KINDS = "used in arguments that have different updates"


def run_at_three_points(current: Run, read: Reader) -> tuple[
    Run, list[Run], dict[str, list[Argument]], dict[str, str], list[str]
]:
    """Runs at the stored parameters and at two random points.

    :return: the first run; all; the arguments that depend on each parameter; parameters that cannot
        be set, with the reason; and the sites with a stationary start, which they have at each
        point.
    """
    stationary = find_stationary(current, list(current.sites))
    while True:
        here = with_stationary(current, stationary)
        held, refused = _arguments_of(here, reached_in(here))
        others = [run_elsewhere(read, here.params, held, draw) for draw in (0, 1)]
        agreed = stationary
        for run in others:
            agreed = find_stationary(run, agreed)
        if agreed == stationary:
            runs = [here, *(with_stationary(run, stationary) for run in others)]
            return here, runs, held, refused, stationary
        stationary = agreed


def _arguments_of(
    run: Run, reached: Reached
) -> tuple[dict[str, list[Argument]], dict[str, str]]:
    """The arguments that depend on each parameter, one of a kind; and parameters of two kinds."""
    found: dict[str, dict[str, list[Slot]]] = {}
    for slot in run.slots:
        for name in (name for name in run.params if name in reached[slot.site, slot.name]):
            kinds = found.setdefault(name, {})
            kinds.setdefault(slot.argument.kind, []).append(slot)
    refused = {}
    for name, kinds in found.items():
        if len(kinds) > 1:
            used = " and ".join(slot.label for slots in kinds.values() for slot in slots)
            refused[name] = f"{TWO_KINDS}, {used}"
    return {
        name: [slots[0].argument for slots in kinds.values()] for name, kinds in found.items()
    }, refused


def run_elsewhere(
    read: Reader,
    params: dict[str, Tensor],
    held: dict[str, list[Argument]],
    draw: int,
    mildness: tuple[bool, ...] = (False, True),
) -> Run:
    """Run the model at a random admissible point, as far away as the model can be evaluated.

    Coefficients of covariates may have to stay near the current ones, as covariates have units.
    """
    failure: Exception | None = None
    links = {name for name, each in held.items() if all(one.predictors for one in each)}
    shrunk = _SHARES if links.intersection(params) else ()
    for mild, share in [(mild, 1.0) for mild in mildness] + [(True, share) for share in shrunk]:
        values = {
            name: random_value(
                value,
                held[name][0].draw if name in held else None,
                constraint_of(name),
                seed=1_000 * draw + index,
                mild=mild,
            )
            for index, (name, value) in enumerate(params.items())
        }
        for name in links.intersection(params) if share < 1 else ():
            values[name] = params[name].detach().lerp(values[name], share)
        for value in values.values():
            value.requires_grad_()
        try:
            with at_random_point():
                return read(values)
        except (ValueError, RuntimeError) as error:
            if _is_out_of_memory(error):
                raise
            failure = error
    raise ValueError(
        f"expected a model that runs at any admissible value of its parameters {list(params)}, "
        f"got at a random one: {failure}"
    ) from failure


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error is an out-of-memory error; torch has no class for these on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
