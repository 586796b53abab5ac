"""Draws of latent sites, from a guide or from samples, and runs of a model at a draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import dropwhile
from numbers import Integral
from typing import Any, Callable

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_regimes.infer.isolation import copy_of_store, isolated

Model = Callable[..., Any]


@contextmanager
def quiet() -> Iterator[None]:
    """A context with the caller's parameters, without handlers and gradients."""
    with isolated(copy_of_store()), torch.inference_mode(False), torch.no_grad():
        yield


def point_values(guide: Model, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """The values of latent sites at a guide's medians or points, for example to initialise NUTS.

    ::

        em = EM(model, guide)
        em.run(x)
        kernel = NUTS(model, init_strategy=init_to_value(values=point_values(guide, x)))

    NUTS does not read the parameters of latent sites from the store.
    """
    with quiet():
        if hasattr(guide, "median"):
            guide(*args, **kwargs)  # an autoguide creates its parameters at its first call
            medians = guide.median(*args, **kwargs)
            return {name: value.detach().clone() for name, value in medians.items()}
        return draw_sites(guide, *args, **kwargs)


def draw_sites(guide: Model, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """Draw the values of the model's latent sites from a guide."""
    trace: Any = poutine.trace(guide).get_trace(*args, **kwargs)
    nodes = {name: trace.nodes[name] for name in trace.stochastic_nodes}
    return {
        name: node["value"].detach().clone()
        for name, node in nodes.items()
        if not node["infer"].get("is_auxiliary")
    }


def make_draws(
    guide_or_samples: Model | dict[str, Tensor] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_samples: int,
) -> list[dict[str, Tensor]]:
    """The values of the latent sites in each draw, by name.

    :param guide_or_samples: as in :func:`.infer_regimes`.
    :param args: arguments of the guide.
    :param num_samples: number of draws from a guide; one if all its sites are points.
    :raises ValueError: if the samples do not have equal numbers of draws, or an argument is not
        valid.
    """
    if guide_or_samples is None:
        return [{}]
    if isinstance(guide_or_samples, dict):
        for name, value in guide_or_samples.items():
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"expected samples to be tensors, got {type(value).__name__} for {name!r}"
                )
        counts = {
            name: len(value) if value.dim() else 0 for name, value in guide_or_samples.items()
        }
        if not counts or len(set(counts.values())) != 1 or 0 in counts.values():
            raise ValueError(
                f"expected samples to have equal positive numbers of draws by site, got {counts}"
            )
        count = next(iter(counts.values()))
        return [
            {name: value[index] for name, value in guide_or_samples.items()}
            for index in range(count)
        ]
    if not callable(guide_or_samples):
        raise ValueError(
            "expected guide_or_samples to be a guide, a dict of samples or None, got "
            f"{type(guide_or_samples).__name__}"
        )
    if isinstance(num_samples, bool) or not isinstance(num_samples, Integral) or num_samples < 1:
        raise ValueError(f"expected num_samples to be a positive integer, got {num_samples!r}")
    first = draw_sites(guide_or_samples, *args, **kwargs)
    second = draw_sites(guide_or_samples, *args, **kwargs)
    if all(torch.equal(value, second[name]) for name, value in first.items()):
        return [first]  # a point
    rest = [draw_sites(guide_or_samples, *args, **kwargs) for _ in range(num_samples - 2)]
    return [first, second, *rest][:num_samples]


def trace_at(
    draw: dict[str, Tensor], model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The trace of a model at the values of one draw.

    :raises ValueError: if the draw lacks a latent site of the model, has a name that is none, or a
        value of another shape.
    """
    with _AtDraw(draw) as at_draw:
        trace: Any = poutine.trace(model).get_trace(*args, **kwargs)
    unknown = [
        name
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and not site_is_subsample(node)
    ]
    if unknown:
        raise ValueError(
            "expected guide_or_samples to give a value to every latent site, got none for "
            f"{unknown}"
        )
    if at_draw.left:
        raise ValueError(
            "expected guide_or_samples to hold latent sites of the model only, which has no site "
            f"{list(at_draw.left)}"
        )
    return trace


class _AtDraw(Messenger):
    """Set the latent sites of a model to the values of one draw.

    Unlike ``poutine.condition``, it reports names that the model does not have.
    """

    def __init__(self, draw: dict[str, Tensor]) -> None:
        super().__init__()
        self._draw = draw
        self.left = dict.fromkeys(draw)  #: the names that the model has not reached yet

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self._draw:
            return
        self.left.pop(name, None)
        if msg["infer"].get("_deterministic"):
            return  # it follows from the others
        if msg["is_observed"]:
            raise ValueError(
                f"expected samples of latent sites, got some of {name!r}, which the model observes"
            )
        value = self._draw[name]
        if not site_is_subsample(msg):
            _check_shape(name, value, msg["fn"].shape())
        msg["value"], msg["is_observed"], msg["done"] = value, True, True

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self._draw:
            raise ValueError(
                f"expected samples of latent sites, got some of {msg['name']!r}, which is a "
                "parameter; set it in the parameter store"
            )


def _check_shape(name: str, value: Tensor, shape: torch.Size) -> None:
    """Check the shape of a draw, up to leading dims of size 1, as Pyro does."""
    found, expected = (list(dropwhile((1).__eq__, each)) for each in (value.shape, shape))
    if found != expected:
        raise ValueError(
            f"expected each draw to have shape {tuple(shape)} for {name!r}, got "
            f"{tuple(value.shape)}; samples have one more dim in front, that of the draws"
        )
