"""The spreads of a random model's observations: standard deviations and covariances."""

from __future__ import annotations

import math
from typing import Callable

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import softplus

from tests.infer.random_draws import Draws, Layout, Read
from tests.infer.random_parameters import Registry

#: What a real or positive parameter holds, and the standard deviation made of it.
_LINKS: dict[str, tuple[str, float, Callable[[Tensor], Tensor]]] = {
    "scale": ("standard deviation", 3.0, lambda value: value),
    "variance": ("variance", 1.0, torch.sqrt),
    "precision": ("precision", 1.0, torch.rsqrt),
    "log_scale": ("", 1.0, torch.exp),
    "log_variance": ("", 0.5, lambda value: (0.5 * value).exp()),
    "log_precision": ("", 0.5, lambda value: (-0.5 * value).exp()),
    "softplus": ("", 0.8, lambda value: 0.05 + softplus(value)),
    "half_scale": ("", 0.8, lambda value: 0.5 * value),
}

_NOT_CLOSED = ("softplus", "half_scale")


def _shapes(draws: Draws, layout: Layout) -> tuple[int, ...]:
    """Of a scale that broadcasts to ``batch + (T, K) + event``."""
    ones = tuple(1 for _ in layout.event)
    options = [(layout.own, 3.0), ((layout.num_states, *ones), 1.5), ((), 1.0), ((1,), 0.3)]
    if layout.event:
        options.append((layout.event, 1.5))
        options.append((layout.event[-1:], 0.5))
    if layout.restarts:
        options = [((*layout.of_restarts, *shape), w) for shape, w in options[:2]]
        options.append((layout.own, 1.0))
    elif layout.batch:
        options.append(((*layout.batch, 1, 1, *ones), 1.0))
        options.append(((*layout.batch, 1, *layout.own), 0.5))
    shapes, weights = zip(*options)
    return draws.one_of(shapes, weights)


def draw_scale(draws: Draws, registry: Registry, layout: Layout) -> Read:
    """A standard deviation; sometimes that of another site."""
    for name, made in registry.shared:
        if name == "scale" and draws.chance(0.5):
            draws.say("shares the scale")
            return made
    shape = _shapes(draws, layout)
    if draws.chance(0.12):
        value = draws.uniform(0.5, 2.0, *shape)
        draws.say(f"fixed scale {shape}")
        return lambda: value
    names = [name for name in _LINKS if name not in _NOT_CLOSED or not draws.only_closed]
    name = draws.one_of(names, [_LINKS[name][1] for name in names])
    holds, _, forward = _LINKS[name]
    start = draws.uniform(0.5, 2.0, *shape)
    is_real = name.startswith("log") or name == "softplus"
    if is_real:
        start = start.log() if draws.chance(0.5) else torch.zeros_like(start)
    num_cells = math.prod(shape[: len(shape) - len(layout.event)])
    draws.say(f"{name} {shape}" + (" from 0" if is_real and not start.any() else ""))
    if shape == layout.own and not is_real and draws.chance(0.15):
        draws.say("whose states share, some unused")
        place = draws.integers(2, layout.num_states) * 2
        wide = draws.uniform(0.5, 2.0, 4, *shape[1:])
        cells = registry.of_spread(registry.positive(name, wide, holds), name, num_cells)
        return lambda: forward(cells()[place])
    if layout.num_steps > 6 and not layout.batch and not is_real and draws.chance(0.1):
        draws.say("by season, some unused")
        season = draws.integers(2, layout.num_steps) * 2
        wide = draws.uniform(0.5, 2.0, 4, *layout.own)
        seasons = registry.of_spread(registry.positive(name, wide, holds), name, 4 * num_cells)
        return lambda: forward(seasons()[season])
    make = registry.real if is_real else registry.positive
    read = registry.of_spread(make(name, start, holds), name, num_cells)
    if not layout.batch or len(shape) <= len(layout.own):
        registry.shared.append(("scale", lambda: forward(read())))
    return lambda: forward(read())


def _factor_of_raw(raw: Tensor) -> Tensor:
    return raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())


def draw_matrix(draws: Draws, registry: Registry, layout: Layout) -> dict[str, Read]:
    """A covariance, its Cholesky factor or its inverse, as an argument of MultivariateNormal."""
    for argument, made in registry.shared:
        if argument != "scale" and draws.chance(0.5):
            draws.say(f"shares the {argument}")
            return {argument: made}
    *beside, size = layout.event  # (D,), or (S, D): S vectors side by side
    square = (size, size)
    options = [((layout.num_states, *beside, *square), 3.0), (square, 1.5)]
    if beside:
        options.append(((layout.num_states, 1, *square), 1.0))
    elif layout.restarts:
        options = [((*layout.of_restarts, layout.num_states, *square), 3.0), (square, 1.0)]
    elif layout.batch:
        options.append(((*layout.batch, 1, 1, *square), 0.7))
        options.append(((*layout.batch, 1, layout.num_states, *square), 0.3))
    shapes, weights = zip(*options)
    shape = draws.one_of(shapes, weights)
    start, num_cells = draws.covariance(*shape), math.prod(shape[:-1])
    argument = draws.one_of(["covariance_matrix", "scale_tril", "precision_matrix"], [2, 1, 1])
    raw_share = 0.0 if draws.only_closed else 3.0
    held = draws.one_of(
        ["covariance", "factor", "precision", "raw", "fixed"], [4, 2, 2, raw_share, 0.5]
    )
    draws.say(f"{argument} of {held} {shape}")
    if held == "fixed":
        value = start
        return {argument: _matrix(argument, "covariance", lambda: value)}
    if held == "raw":
        raw = torch.zeros(shape, dtype=draws.dtype)
        raw = raw if draws.chance(0.6) else 0.3 * draws.normal(*shape)
        own = registry.of_spread(registry.real("raw", raw), "raw", num_cells)
        return {argument: _matrix(argument, "factor", lambda: _factor_of_raw(own()))}
    constraint = constraints.positive_definite
    if held == "factor":
        start, constraint = torch.linalg.cholesky(start), constraints.lower_cholesky
    elif held == "precision":
        start = torch.linalg.inv(start)
    holds = "precision matrix" if held == "precision" else ""
    own = registry.add(held, start, constraint, holds)
    read = registry.of_spread(own, held, num_cells)
    if held == "covariance" and draws.chance(0.15):
        draws.say("transposed")
        return {argument: _matrix(argument, held, lambda: read().mT)}
    made = _matrix(argument, held, read)
    if len(shape) <= len(layout.own) + 1:
        registry.shared.append((argument, made))
    return {argument: made}


def _matrix(argument: str, held: str, read: Read) -> Read:
    """What an argument asks for, of what a parameter holds."""
    cholesky, inverse = torch.linalg.cholesky, torch.linalg.inv
    maps: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
        ("covariance_matrix", "factor"): lambda value: value @ value.mT,
        ("covariance_matrix", "precision"): lambda value: _symmetric(inverse(value)),
        ("scale_tril", "covariance"): cholesky,
        ("scale_tril", "precision"): lambda value: cholesky(_symmetric(inverse(value))),
        ("precision_matrix", "covariance"): lambda value: _symmetric(inverse(value)),
        ("precision_matrix", "factor"): torch.cholesky_inverse,
    }
    change = maps.get((argument, held), lambda value: value)
    return lambda: change(read())


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2
