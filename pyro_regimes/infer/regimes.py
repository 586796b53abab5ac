"""Regimes after any inference: EM, SVI or NUTS, at every HMM site of a model."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Callable

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_regimes.infer.tracing import PYRO_LOCK, read_hmm

Model = Callable[..., Any]

KINDS = ("smoothed", "filtered", "viterbi")

#: What stands after the name of a site in the name of its regimes.
SUFFIX = "_regimes"


def record_regimes(model: Model, kind: str = "smoothed") -> Model:
    """The model, with the regimes of each observed RegimeHMM as a deterministic site beside it.

    It goes wherever a model goes: under :class:`pyro.infer.Predictive` it gives the regimes of
    every draw, as site ``<name>_regimes``.

    :param kind: "smoothed" or "filtered" for probabilities ``(..., T, K)``; "viterbi" for paths
        ``(..., T)``.
    :raises ValueError: if the kind is another.
    """
    _check_kind(kind)

    def recorded(*args: Any, **kwargs: Any) -> Any:
        trace: Any = poutine.trace(model).get_trace(*args, **kwargs)
        for name, node in list(trace.nodes.items()):
            if node["type"] != "sample" or not node["is_observed"]:
                continue
            found = read_hmm(node)
            if found is not None:
                regimes = _regimes(found, node["value"], kind)
                pyro.deterministic(f"{name}{SUFFIX}", regimes, event_dim=regimes.dim())
        return trace.nodes["_RETURN"]["value"]

    return recorded


def infer_regimes(
    model: Model,
    guide_or_samples: Model | dict[str, Tensor] | None = None,
    *args: Any,
    kind: str = "smoothed",
    num_samples: int = 100,
    align: bool = True,
    **kwargs: Any,
) -> dict[str, Tensor]:
    r"""The regimes at each HMM site, averaged over whatever is known of the parameters.

    After EM, or SVI without latent sites, the parameters of the store are one point. A guide is
    drawn from ``num_samples`` times (once if all its sites are points), samples are taken one by
    one, and probabilities are averaged,

    .. math:: p(q_t = k \mid x) \approx \frac1S \sum_s p(q_t = k \mid x, \theta_s).

    States have no names of their own, and draws may have swapped them: with ``align`` those of
    each draw are first matched with the others', so that the overlap
    :math:`\sum_t p(q_t = k) p'(q_t = k)` of the probabilities is largest (Hungarian algorithm; the
    first draw is the measure, then the average).

    :param guide_or_samples: a guide; a dict of samples by site, each ``(S, ...)``, as
        ``MCMC.get_samples()`` returns; or None.
    :param args: to the model (and the guide).
    :param kind: "smoothed"; "filtered", without look-ahead; or "viterbi": at each step the state
        that most of the draws' paths are in.
    :param num_samples: draws from a guide.
    :param align: whether to match the states of different draws.
    :return: by site: ``(..., T, K)``, or a LongTensor ``(..., T)`` of paths.
    :raises ValueError: if the kind is another, or the model observes no RegimeHMM.
    """
    _check_kind(kind)
    with PYRO_LOCK, torch.no_grad():
        draws = _draw(model, guide_or_samples, args, kwargs, num_samples)
        found: dict[str, list[Tensor]] = {}
        paths: dict[str, list[Tensor]] = {}
        recorded = record_regimes(model, "filtered" if kind == "filtered" else "smoothed")
        decoded = record_regimes(model, "viterbi")
        for draw in draws:
            at_draw = poutine.condition(recorded, data=draw)
            _collect(at_draw, args, kwargs, found)
            if kind == "viterbi":
                _collect(poutine.condition(decoded, data=draw), args, kwargs, paths)
    if not found:
        raise ValueError("expected an observed RegimeHMM site in the model, got none")
    result = {}
    for name, probs in found.items():
        orders = [torch.arange(probs[0].shape[-1])] * len(probs)
        if align and len(probs) > 1:
            orders = _match(probs)
        if kind == "viterbi":
            result[name] = _vote(paths[name], orders)
        else:
            pairs = zip(probs, orders, strict=True)
            result[name] = torch.stack([each[..., order] for each, order in pairs]).mean(0)
    return result


def point_values(guide: Model, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """The values of latent sites at a guide's medians, or at its points: where NUTS may start.

    ::

        em = EM(model, guide)
        em.run(x)
        kernel = NUTS(model, init_strategy=init_to_value(values=point_values(guide, x)))

    NUTS does not read the parameters of latent sites from the store.
    """
    with PYRO_LOCK, torch.no_grad():
        if hasattr(guide, "median"):
            guide(*args, **kwargs)  # an autoguide is made at its first call
            medians = guide.median(*args, **kwargs)
            return {name: value.detach().clone() for name, value in medians.items()}
        return draw_sites(guide, *args, **kwargs)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"expected kind to be one of {KINDS}, got {kind!r}")


def _regimes(hmm: Any, value: Tensor, kind: str) -> Tensor:
    if kind == "viterbi":
        path: Tensor = hmm.viterbi(value)
        return path
    posterior = hmm.posterior(value)
    probs: Tensor = getattr(posterior, f"{kind}_probs")
    return probs


def draw_sites(guide: Model, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """One draw from a guide: the values of the model's latent sites."""
    trace: Any = poutine.trace(guide).get_trace(*args, **kwargs)
    nodes = {name: trace.nodes[name] for name in trace.stochastic_nodes}
    return {
        name: node["value"].detach().clone()
        for name, node in nodes.items()
        if not node["infer"].get("is_auxiliary")
    }


def _draw(
    model: Model,
    guide_or_samples: Model | dict[str, Tensor] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_samples: int,
) -> list[dict[str, Tensor]]:
    """The values of latent sites, draw by draw."""
    if guide_or_samples is None:
        return [{}]
    if isinstance(guide_or_samples, dict):
        counts = {
            name: len(value) if value.dim() else 0 for name, value in guide_or_samples.items()
        }
        if not counts or len(set(counts.values())) != 1 or 0 in counts.values():
            raise ValueError(
                f"expected samples of one positive number of draws for each site, got {counts}"
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


def _collect(
    model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], found: dict[str, list[Tensor]]
) -> None:
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
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and name.endswith(SUFFIX) and read_hmm(node) is None:
            site = name[: -len(SUFFIX)]
            if site in trace.nodes:
                found.setdefault(site, []).append(node["value"].detach())


def _match(draws: list[Tensor]) -> list[Tensor]:
    """For each draw the order of its states that matches the others'."""
    orders = [_order(draw, draws[0]) for draw in draws]
    aligned = [draw[..., order] for draw, order in zip(draws, orders, strict=True)]
    mean = torch.stack(aligned).mean(0)
    return [_order(draw, mean) for draw in draws]


def _order(probs: Tensor, reference: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment  # takes its time to import

    num_states = probs.shape[-1]
    overlap = reference.reshape(-1, num_states).mT @ probs.reshape(-1, num_states)
    columns = linear_sum_assignment(overlap.double().cpu().numpy(), maximize=True)[1]
    return torch.as_tensor(columns, device=probs.device)


def _vote(paths: list[Tensor], orders: list[Tensor]) -> Tensor:
    """At each step the state of most paths; -1 where they have none."""
    num_states = len(orders[0])
    votes = torch.zeros(paths[0].shape + (num_states,), device=paths[0].device)
    for path, order in zip(paths, orders, strict=True):
        own = torch.argsort(order).to(path.device)[path.clamp(min=0)]
        votes += torch.nn.functional.one_hot(own, num_states) * (path >= 0).unsqueeze(-1)
    return votes.argmax(-1).masked_fill(votes.sum(-1) == 0, -1)
