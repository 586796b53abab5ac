"""Regimes at the HMM sites of a model, after inference by EM, SVI or NUTS."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_regimes.distributions import RegimeHMM, SwitchingAutoregression
from pyro_regimes.infer.draws import Model, make_draws, quiet, trace_at

KINDS = ("smoothed", "filtered", "viterbi")

#: The suffix of the name of the site that records the regimes.
SUFFIX = "_regimes"


def record_regimes(model: Model, kind: str = "smoothed") -> Model:
    """Add to a model a deterministic site with the regimes of each observed RegimeHMM.

    The site is named ``<name>_regimes``. Use the result like any model: with
    :class:`pyro.infer.Predictive` it returns the regimes of every draw.

    :param kind: "smoothed" or "filtered" for probabilities ``(..., T, K)``; "viterbi" for paths
        ``(..., T)``.
    :raises ValueError: if the kind is unknown. The model raises it if a site holds a subclass of
        RegimeHMM that overrides the density but not the regimes.
    """
    _check_kind(kind)

    def recorded(*args: Any, **kwargs: Any) -> Any:
        trace: Any = poutine.trace(model).get_trace(*args, **kwargs)
        for name, node in list(trace.nodes.items()):
            if node["type"] != "sample" or not node["is_observed"]:
                continue
            found = find_hmm(node)
            if found is not None:
                _check_type(name, type(found), "viterbi" if kind == "viterbi" else "posterior")
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
    r"""The regimes at each HMM site, averaged over the posterior, or at the point estimate.

    After EM, or SVI without latent sites, the parameters of the store are a point estimate. From a
    guide ``num_samples`` draws are taken (one if all its sites are points); samples are used as
    they are. The probabilities are averaged over the draws,

    .. math:: p(q_t = k \mid x) \approx \frac1S \sum_s p(q_t = k \mid x, \theta_s).

    Draws may number their states differently. With ``align`` the states of each draw are first
    matched to maximise the overlap :math:`\sum_t p(q_t = k) p'(q_t = k)` of the probabilities
    (Hungarian algorithm). The reference is the first draw, then the average.

    The model and the guide run without the caller's handlers. Parameters that they create are not
    kept in the store.

    :param guide_or_samples: a guide; a dict of samples by site, each ``(S, ...)``, as
        ``MCMC.get_samples()`` returns; or None.
    :param args: arguments of the model (and the guide).
    :param kind: "smoothed"; "filtered", without look-ahead; or "viterbi", the most frequent state
        of the draws' paths at each step.
    :param num_samples: number of draws from a guide.
    :param align: whether to match the states of different draws.
    :return: by site: ``(..., T, K)``, or a LongTensor ``(..., T)`` of paths.
    :raises ValueError: if the kind is unknown; if the model observes no RegimeHMM, or a subclass
        that overrides the density but not the regimes; or if the guide or the samples have a name
        that is not a latent site of the model, or a value whose shape differs from the site's.
    """
    _check_kind(kind)
    with quiet():
        draws = make_draws(guide_or_samples, args, kwargs, num_samples)
        found: dict[str, list[Tensor]] = {}
        paths: dict[str, list[Tensor]] = {}
        recorded = record_regimes(model, "filtered" if kind == "filtered" else "smoothed")
        decoded = record_regimes(model, "viterbi")
        for draw in draws:
            _collect(recorded, draw, args, kwargs, found)
            if kind == "viterbi":
                _collect(decoded, draw, args, kwargs, paths)
        if not found:
            raise ValueError("expected an observed RegimeHMM site in the model, got none")
        result = {}
        for name, probs in found.items():
            orders = [torch.arange(probs[0].shape[-1], device=probs[0].device)] * len(probs)
            if align and len(probs) > 1:
                orders = _match(probs)
            if kind == "viterbi":
                result[name] = _vote(paths[name], orders)
            else:
                pairs = zip(probs, orders, strict=True)
                result[name] = torch.stack([each[..., order] for each, order in pairs]).mean(0)
    return result


def find_hmm(node: Any) -> RegimeHMM | SwitchingAutoregression | None:
    """The distribution of a site with regimes, or an instance of a subclass, without wrappers."""
    hmm = node["fn"]
    while isinstance(hmm, (Independent, ExpandedDistribution, MaskedDistribution)):
        hmm = hmm.base_dist
    return hmm if isinstance(hmm, (RegimeHMM, SwitchingAutoregression)) else None


def _check_type(site: str, kind: type[Distribution], method: str) -> None:
    """Raise for a subclass that overrides the density but not the regimes."""
    base = RegimeHMM if issubclass(kind, RegimeHMM) else SwitchingAutoregression
    own_density = kind.log_prob is not base.log_prob
    if own_density and getattr(kind, method) is getattr(base, method):
        raise ValueError(
            f"expected {kind.__name__} to define {method}, as it has a log_prob of its own, got "
            f"the {method} of {base.__name__} at {site!r}, whose regimes belong to another density"
        )


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"expected kind to be one of {KINDS}, got {kind!r}")


def _regimes(hmm: Any, value: Tensor, kind: str) -> Tensor:
    if kind == "viterbi":
        path: Tensor = hmm.viterbi(value)
        return path
    if type(hmm).posterior is RegimeHMM.posterior:
        only: Tensor = getattr(hmm, f"{kind}_probs")(value)
        return only
    posterior = hmm.posterior(value)
    probs: Tensor = getattr(posterior, f"{kind}_probs")
    return probs


def _collect(
    model: Model,
    draw: dict[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    found: dict[str, list[Tensor]],
) -> None:
    """Run a model with recorded regimes at a draw; add the regimes of each site to ``found``."""
    trace = trace_at(draw, model, args, kwargs)
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and name.endswith(SUFFIX) and find_hmm(node) is None:
            site = name[: -len(SUFFIX)]
            if site in trace.nodes:
                found.setdefault(site, []).append(node["value"].detach())


def _match(draws: list[Tensor]) -> list[Tensor]:
    """For each draw, the order of its states that matches the other draws."""
    orders = [_order(draw, draws[0]) for draw in draws]
    aligned = [draw[..., order] for draw, order in zip(draws, orders, strict=True)]
    mean = torch.stack(aligned).mean(0)
    return [_order(draw, mean) for draw in draws]


def _order(probs: Tensor, reference: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment  # slow to import

    num_states = probs.shape[-1]
    overlap = reference.reshape(-1, num_states).mT @ probs.reshape(-1, num_states)
    columns = linear_sum_assignment(overlap.double().cpu().numpy(), maximize=True)[1]
    return torch.as_tensor(columns, device=probs.device)


def _vote(paths: list[Tensor], orders: list[Tensor]) -> Tensor:
    """The most frequent state of the paths at each step; -1 if they have none."""
    num_states = len(orders[0])
    shape = paths[0].shape + (num_states,)
    votes = torch.zeros(shape, dtype=torch.long, device=paths[0].device)
    for path, order in zip(paths, orders, strict=True):
        own = torch.argsort(order).to(path.device)[path.clamp(min=0)]
        votes += torch.nn.functional.one_hot(own, num_states) * (path >= 0).unsqueeze(-1)
    return votes.argmax(-1).masked_fill(votes.sum(-1) == 0, -1)
