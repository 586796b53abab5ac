"""Random models for EM, each from one integer: independent choices of everything a model may say.

``python -m tests.infer.random_models --first 0 --count 300`` draws and checks so many models and
prints a line for each; :mod:`.random_checks` says what is checked.
"""

from __future__ import annotations

import argparse
import math
import time
from contextlib import ExitStack
from typing import Any, Callable, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor

from pyro_regimes import RegimeHMM
from tests.infer.random_chains import Chain, initial, transition
from tests.infer.random_checks import check
from tests.infer.random_draws import Draws, Layout, Model, RandomModel, Read, draw_layout
from tests.infer.random_emissions import Emission, emission
from tests.infer.random_locations import location
from tests.infer.random_parameters import Registry


class TemperedHMM(RegimeHMM):
    """Another density than that of its base class, with the same arguments."""

    def log_prob(self, value: Tensor) -> Tensor:
        return 0.5 * super().log_prob(value)


class Site(NamedTuple):
    """One observed RegimeHMM."""

    name: str
    layout: Layout
    chain: Chain
    emission: Emission
    lengths: Tensor | None
    location: Read


def _draw_site(
    draws: Draws,
    registry: Registry,
    layout: Layout,
    name: str,
    chain: Chain | None = None,
    loc: Read | None = None,
) -> Site:
    if chain is None:
        chain = initial.draw(draws, layout)(draws, registry, layout)
        moves = transition.draw(draws, layout)(draws, registry, layout)
        chain = moves if len(moves) > 1 else chain | moves
    kind = emission.draw(draws, layout)
    if loc is None:
        if kind.__name__ == "categorical":
            loc = lambda: draws.tensor(0.0)  # noqa: E731 (it has no location)
        else:
            loc = location.draw(draws, layout)(draws, registry, layout)
    made = kind(draws, registry, layout, loc)
    lengths = None
    if layout.num_steps > 1 and draws.chance(0.3 if layout.data_batch else 0.1):
        lengths = 1 + draws.integers(layout.num_steps, *layout.data_batch)
        draws.say(f"lengths {lengths.tolist()}")
    return Site(name, layout, chain, made, lengths, loc)


def _draw_weights(draws: Draws, layout: Layout) -> list[Callable[[], Any]]:
    """Handlers around a site."""
    handlers: list[Callable[[], Any]] = []
    if draws.chance(0.15):
        scale: Any = float(draws.uniform(0.3, 3.0))
        if layout.batch and draws.chance(0.6):
            scale = draws.uniform(0.3, 3.0, *layout.batch)
        draws.say("scaled" + (" one by one" if isinstance(scale, Tensor) else ""))
        handlers.append(lambda: poutine.scale(scale=scale))
    if layout.batch and draws.chance(0.12):
        mask = draws.uniform(0.0, 1.0, *layout.batch) < 0.7
        mask.view(-1)[0] = True
        draws.say("some sequences masked")
        handlers.append(lambda: poutine.mask(mask=mask))
    return handlers


def _draw_observe(draws: Draws, site: Site) -> Model:
    """The statement that observes a site."""
    name, layout = site.name, site.layout
    kind: type[RegimeHMM] = RegimeHMM
    if not draws.only_closed and draws.chance(0.08):
        draws.say("a tempered subclass of RegimeHMM")
        kind = TemperedHMM
    handlers = _draw_weights(draws, layout)
    given: dict[str, Any] = {} if site.lengths is None else {"lengths": site.lengths}
    if not site.emission.is_checked:
        given["validate_args"] = False
    if draws.chance(0.2):
        given["duration"] = layout.num_steps
    is_event = bool(layout.batch) and draws.chance(0.1)
    mask = None
    if layout.batch and draws.chance(0.08):
        draws.say("hmm.mask")
        mask = draws.uniform(0.0, 1.0, *layout.batch) < 0.7
        mask.view(-1)[-1] = True
    if is_event:
        draws.say("hmm.to_event instead of plates")
        handlers = []

    def observe() -> None:
        chain = {key: read() for key, read in site.chain.items()}
        hmm: Any = kind(observation_dist=site.emission.make(), **chain, **given)
        if is_event:
            hmm = hmm.expand(layout.batch)
        if mask is not None:
            hmm = hmm.mask(mask)
        if is_event:
            hmm = hmm.to_event(len(layout.batch))
        with ExitStack() as stack:
            for number, size in enumerate(() if is_event else layout.batch):
                dim = number - len(layout.batch)
                stack.enter_context(pyro.plate(f"{name} plate {number}", size, dim=dim))
            for handler in handlers:
                stack.enter_context(handler())
            pyro.sample(name, hmm, obs=site.emission.data)

    return observe


def _peek(read: Read, registry: Registry) -> Tensor:
    """What a model would read, with a store and random numbers that are nobody else's."""
    with pyro.get_param_store().scope(), torch.random.fork_rng(), torch.no_grad():
        registry.begin()
        return read().detach().clone()


def _draw_second_site(draws: Draws, registry: Registry, first: Site) -> Site:
    """Another sequence, for which some arguments are those of the first site."""
    event = first.layout.event
    layout = Layout(first.layout.num_states, event, (), False, draws.integer(5, 40))
    draws.say(f"second site T={layout.num_steps}:")
    loc = first.location
    wants = draws.chance(0.7) and _peek(loc, registry).shape == layout.own
    draws.say("shares the location" if wants else "with a location of its own")
    chain = None
    shapes = [_peek(read, registry).dim() for read in first.chain.values()]
    if shapes == [1, 2] and draws.chance(0.6):
        draws.say("shares the chain")
        chain = first.chain
    return _draw_site(draws, registry, layout, "y", chain, loc if wants else None)


def _draw_other_sites(draws: Draws, registry: Registry, site: Site) -> list[Model]:
    """Statements beside the observed RegimeHMM."""
    others: list[Model] = []
    size = _peek(site.location, registry).numel()
    share = 0.0 if draws.only_closed else 0.12
    if draws.chance(share):
        draws.say("a second likelihood of the location")
        seen = draws.normal(size)

        def likelihood() -> None:
            held = site.location().flatten()
            pyro.sample("second", dist.Normal(held, 1.0).to_event(1), obs=seen)

        others.append(likelihood)
    if draws.chance(share):
        draws.say("a factor of the location")
        others.append(
            lambda: pyro.factor("penalty", -0.3 * site.location().square().sum())  # type: ignore
        )
    if draws.chance(0.05):
        draws.say("a constant factor")
        others.append(lambda: pyro.factor("constant", draws.tensor(3.0)))  # type: ignore
    if draws.chance(0.05):
        draws.say("a parameter that nothing uses")
        others.append(registry.real("unused", draws.normal(2)))
    return others


def _draw_floor(draws: Draws, sites: list[Site], registry: Registry) -> float:
    """A floor on variances, at least where some cell may have few data."""
    floor = float(draws.one_of([1e-4, 1e-2, 0.1]))
    if draws.dtype == torch.float32:  # which has no digits for the conditions that others allow
        return 0.1
    fewest = min(math.prod(site.layout.data_batch) * site.layout.num_steps for site in sites)
    most = max([sites[0].layout.num_states, *registry.spreads.values()])
    return 0.0 if fewest > 25 * most and draws.chance(0.9) else floor


def draw_model(seed: int) -> RandomModel:
    """The model of one seed.

    :raises AssertionError: if ``Trace_ELBO`` does not accept it, or its loss is not finite.
    """
    draws = Draws(seed)
    num_states = draws.one_of([1, 2, 3, 4], [0.08, 0.45, 0.32, 0.15])
    event: tuple[int, ...] = draws.one_of(
        [(), (1,), (2,), (3,), (2, 2)], [0.33, 0.1, 0.29, 0.23, 0.05]
    )
    how = draws.one_of(["pyro.param", "PyroModule", "pyro.module"], [0.8, 0.15, 0.05])
    share = draws.one_of([0.0, 0.35, 0.8], [0.75, 0.15, 0.1]) if how == "pyro.param" else 0.0
    if how != "pyro.param":
        draws.say(f"by {how}")
    registry = Registry(draws, how, share)
    sites = [_draw_site(draws, registry, draw_layout(draws, num_states, event), "x")]
    others = _draw_other_sites(draws, registry, sites[0])
    if draws.chance(0.12):
        sites.append(_draw_second_site(draws, registry, sites[0]))
    statements = [_draw_observe(draws, site) for site in sites] + others

    def body() -> None:
        registry.begin()
        for statement in statements:
            statement()

    model: Model = body
    if how == "PyroModule":
        registry.module.forward = body  # type: ignore[method-assign]
        model = registry.module
    if len(registry.starts) > 1 and draws.chance(0.1):
        name, value = registry.starts.popitem()
        draws.say(f"{name} conditioned on")
        model = poutine.condition(model, data={name: value})
    if draws.chance(0.05):
        draws.say("all of it scaled")
        model = poutine.scale(model, scale=0.7)
    guide = None
    if registry.starts:
        guide = AutoDelta(model, init_loc_fn=init_to_value(values=registry.starts))
    floor = _draw_floor(draws, sites, registry)
    draws.say(f"floor {floor:g}" if floor else "no floor")
    data = [site.emission.data for site in sites]
    said, spreads = "; ".join(draws.phrases), set(registry.spreads)
    return RandomModel(seed, said, model, guide, floor, spreads, data, draws.dtype)


def main() -> None:
    """Draw and check many models."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=100, help="how many")
    parser.add_argument("--num-steps", type=int, default=3000, help="steps of EM, at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts: dict[str, int] = {}
    for seed in range(options.first, options.first + options.count):
        start = time.perf_counter()
        report = check(draw_model(seed), options.num_steps)
        counts[report.verdict] = counts.get(report.verdict, 0) + 1
        seconds = time.perf_counter() - start
        print(f"{seed} [{report.description}] {report.summary} ({seconds:.1f} s)", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
