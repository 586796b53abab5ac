"""The observation distributions of a random model, and data for them."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import constraints, transforms
from torch import Tensor

from tests.infer.random_draws import Draws, Kinds, Layout, Read
from tests.infer.random_parameters import Registry
from tests.infer.random_spreads import draw_matrix, draw_scale

emission = Kinds()


class Emission(NamedTuple):
    """An observation distribution, and data that it may have made."""

    make: Callable[[], Any]
    data: Tensor  #: ``data_batch + (T,) + event``
    is_checked: bool = True  #: whether the data are in its support: NaN is in none


class TemperedNormal(dist.Normal):
    """Another density than that of its base class, with the same arguments."""

    def log_prob(self, value: Tensor) -> Tensor:
        return 0.5 * super().log_prob(value)


class PenalisedMultivariateNormal(dist.MultivariateNormal):
    """Another density than that of its base class, with the same arguments."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) - 0.1 * self.loc.square().sum(-1)


def draw_data(draws: Draws, layout: Layout) -> Tensor:
    """Regimes that stay for some steps, with means and spreads of their own."""
    shape = (*layout.data_batch, layout.num_steps)
    leaves = draws.rng.random(shape) < 0.2
    fresh = draws.rng.integers(layout.num_states, size=shape)
    last = np.maximum.accumulate(np.where(leaves, np.arange(layout.num_steps), 0), -1)
    states = np.take_along_axis(fresh, last, -1)
    means = 1.5 * draws.rng.normal(size=layout.own)
    spreads = draws.rng.uniform(0.4, 1.2, size=layout.own)
    noise = draws.rng.normal(size=shape + layout.event)
    if layout.event:
        noise = noise + 0.4 * noise[..., :1]
    data = draws.tensor(draws.level + means[states] + spreads[states] * noise)
    if draws.chance(0.1):
        draws.say("data of another memory layout")
        data = data.movedim(-1, 0).contiguous().movedim(0, -1)
    if draws.dtype == torch.float64 and draws.chance(0.03):
        draws.say("float32 data")
        data = data.float()
    return data


def _normal(kind: Any, layout: Layout, loc: Read, scale: Read) -> Callable[[], Any]:
    return lambda: kind(loc(), scale()).to_event(len(layout.event))


def _is_scalar(layout: Layout) -> bool:
    return not layout.event


def _is_vector(layout: Layout) -> bool:
    return len(layout.event) == 1


@emission(4.0)
def normal(draws: Draws, registry: Registry, layout: Layout, loc: Read) -> Emission:
    make = _normal(dist.Normal, layout, loc, draw_scale(draws, registry, layout))
    return Emission(make, draw_data(draws, layout))


@emission(5.0, _is_vector)
def multivariate_normal(draws: Draws, registry: Registry, layout: Layout, loc: Read) -> Emission:
    matrix = draw_matrix(draws, registry, layout)

    def make() -> Any:
        return dist.MultivariateNormal(loc(), **{name: read() for name, read in matrix.items()})

    return Emission(make, draw_data(draws, layout))


@emission(6.0, lambda layout: len(layout.event) == 2)
def multivariate_normals_side_by_side(
    draws: Draws, registry: Registry, layout: Layout, loc: Read
) -> Emission:
    matrix = draw_matrix(draws, registry, layout)

    def make() -> Any:
        arguments = {name: read() for name, read in matrix.items()}
        return dist.MultivariateNormal(loc(), **arguments).to_event(1)

    return Emission(make, draw_data(draws, layout))


@emission(1, closed=False)
def normal_with_entries_masked(
    draws: Draws, registry: Registry, layout: Layout, loc: Read
) -> Emission:
    scale = draw_scale(draws, registry, layout)
    seen = draws.uniform(0.0, 1.0, layout.num_steps, 1, *layout.event) < 0.8
    data = draw_data(draws, layout)
    return Emission(
        lambda: dist.Normal(loc(), scale()).mask(seen).to_event(len(layout.event)), data
    )


@emission(1.0)
def normal_with_steps_masked(
    draws: Draws, registry: Registry, layout: Layout, loc: Read
) -> Emission:
    make = _normal(dist.Normal, layout, loc, draw_scale(draws, registry, layout))
    states = 1
    if draws.chance(0.3):
        draws.say("state by state")
        states = layout.num_states
    seen = draws.uniform(0.0, 1.0, layout.num_steps, states) < 0.8
    return Emission(lambda: make().mask(seen), draw_data(draws, layout))


@emission(0.5, _is_vector)
def multivariate_normal_with_steps_masked(
    draws: Draws, registry: Registry, layout: Layout, loc: Read
) -> Emission:
    base = multivariate_normal(draws, registry, layout, loc)
    seen = draws.uniform(0.0, 1.0, layout.num_steps, 1) < 0.8
    return base._replace(make=lambda: base.make().mask(seen))


@emission(0.8, closed=False)
def tempered_subclass_of_normal(
    draws: Draws, registry: Registry, layout: Layout, loc: Read
) -> Emission:
    make = _normal(TemperedNormal, layout, loc, draw_scale(draws, registry, layout))
    return Emission(make, draw_data(draws, layout))


@emission(0.8, _is_vector, closed=False)
def penalised_subclass_of_multivariate_normal(
    draws: Draws, registry: Registry, layout: Layout, loc: Read
) -> Emission:
    matrix = draw_matrix(draws, registry, layout)

    def make() -> Any:
        arguments = {name: read() for name, read in matrix.items()}
        return PenalisedMultivariateNormal(loc(), **arguments)

    return Emission(make, draw_data(draws, layout))


def _with_gaps(draws: Draws, layout: Layout) -> Tensor:
    data = draw_data(draws, layout)
    return data.masked_fill(draws.uniform(0.0, 1.0, *data.shape) < 0.15, torch.nan)


@emission(0.8, closed=False)
def nan_masked_normal(draws: Draws, registry: Registry, layout: Layout, loc: Read) -> Emission:
    make = _normal(dist.NanMaskedNormal, layout, loc, draw_scale(draws, registry, layout))
    return Emission(make, _with_gaps(draws, layout), is_checked=False)


@emission(0.8, _is_vector, closed=False)
def nan_masked_multivariate_normal(
    draws: Draws, registry: Registry, layout: Layout, loc: Read
) -> Emission:
    matrix = draw_matrix(draws, registry, layout)

    def make() -> Any:
        arguments = {name: read() for name, read in matrix.items()}
        return dist.NanMaskedMultivariateNormal(loc(), **arguments)

    return Emission(make, _with_gaps(draws, layout), is_checked=False)


@emission(0.6, closed=False)
def log_normal(draws: Draws, registry: Registry, layout: Layout, loc: Read) -> Emission:
    make = _normal(dist.LogNormal, layout, loc, draw_scale(draws, registry, layout))
    return Emission(make, draw_data(draws, layout).exp())


@emission(0.8, closed=False)
def normal_through_an_affine_transform(
    draws: Draws, registry: Registry, layout: Layout, loc: Read
) -> Emission:
    scale = draw_scale(draws, registry, layout)
    shift = registry.real("shift", draws.normal(*layout.own))
    size = registry.positive("size", draws.uniform(0.5, 1.5))

    def make() -> Any:
        through = [transforms.AffineTransform(shift(), size())]
        base = dist.Normal(loc(), scale())
        return dist.TransformedDistribution(base, through).to_event(len(layout.event))

    return Emission(make, draw_data(draws, layout))


@emission(0.6)
def student_t(draws: Draws, registry: Registry, layout: Layout, loc: Read) -> Emission:
    scale = draw_scale(draws, registry, layout)
    df = registry.positive("df", draws.uniform(3.0, 8.0))
    return Emission(
        lambda: dist.StudentT(df(), loc(), scale()).to_event(len(layout.event)),
        draw_data(draws, layout),
    )


@emission(0.6, _is_vector)
def low_rank_multivariate_normal(
    draws: Draws, registry: Registry, layout: Layout, loc: Read
) -> Emission:
    factor = registry.real("factor", 0.3 * draws.normal(*layout.own, 1))
    diagonal = registry.positive("diagonal", draws.uniform(0.5, 1.5, *layout.own))
    return Emission(
        lambda: dist.LowRankMultivariateNormal(loc(), factor(), diagonal()),
        draw_data(draws, layout),
    )


@emission(0.6, _is_scalar, closed=False)
def poisson(draws: Draws, registry: Registry, layout: Layout, loc: Read) -> Emission:
    data = (0.5 * (draw_data(draws, layout) - draws.level)).clamp(max=3.0).exp().round()
    return Emission(lambda: dist.Poisson((0.3 * (loc() - draws.level)).exp()), data)


@emission(0.8, _is_scalar, closed=False)
def categorical(draws: Draws, registry: Registry, layout: Layout, loc: Read) -> Emission:
    data = torch.bucketize(draw_data(draws, layout) - draws.level, draws.tensor([-1.0, 1.0]))
    start = draws.simplex(layout.num_states, 3)
    if layout.num_states > 1 and draws.chance(0.6):
        draws.say("with a probability of exactly 0")
        start[0, 1] = 0.0
        start = start / start.sum(-1, keepdim=True)
    if draws.chance(0.5):
        return Emission(lambda: dist.Categorical(start), data)
    read = registry.add("probs", start, constraints.simplex)
    return Emission(lambda: dist.Categorical(read()), data)


@emission(0.6, _is_scalar)
def mixture_of_two_normals(
    draws: Draws, registry: Registry, layout: Layout, loc: Read
) -> Emission:
    weights = registry.simplex("weights", draws.simplex(layout.num_states, 2))
    apart, scale = draws.tensor([-0.5, 0.5]), draws.uniform(0.5, 1.0)

    def make() -> Any:
        parts = dist.Normal(loc().unsqueeze(-1) + apart, scale)
        return dist.MixtureSameFamily(dist.Categorical(weights()), parts)

    return Emission(make, draw_data(draws, layout))
