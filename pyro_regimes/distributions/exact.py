r"""Discrete distributions with exact log-probabilities, -inf for a probability of 0.

torch clamps the probabilities of its discrete distributions to :math:`[\epsilon, 1 - \epsilon]`.
In a hidden Markov model this makes an impossible path possible. The classes here subclass those of
torch and Pyro and compute ``log_prob`` from the unclamped probabilities. It is -inf for a
probability of 0, and the derivative of the logarithm is defined as 0 there. For other
probabilities both versions agree up to rounding, except where torch clamps.

:func:`exact_copy` replaces the classes of torch and Pyro by these.
"""

from __future__ import annotations

import types
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributions as torch_dist
from pyro.ops.special import log_binomial
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.utils import probs_to_logits
from torch.nn.functional import logsigmoid


def safe_log(probs: Tensor) -> Tensor:
    """The logarithm, with value -inf and derivative 0 at 0."""
    impossible = probs == 0
    return probs.masked_fill(impossible, 1.0).log().masked_fill(impossible, -torch.inf)


def exact_copy(distribution: Distribution, validate_args: bool | None = None) -> Distribution:
    """Copy a distribution and those it contains, with the classes of this module.

    Types are matched exactly, as a subclass may override the density. The copy can be expanded
    safely: Pyro's ``ExpandedDistribution.expand`` modifies the object.

    :param validate_args: whether the copy validates its values; None keeps the setting.
    """
    # torch.compile supports neither copy.copy nor an assignment to __class__.
    kind: type[Distribution] = _EXACT.get(type(distribution), type(distribution))
    copied = kind.__new__(kind)
    for name, value in vars(distribution).items():
        if isinstance(value, Distribution):
            value = exact_copy(value, validate_args)
        copied.__dict__[name] = value
    # After the copies, as Pyro's Independent has the setting of the distribution inside.
    if validate_args is not None:
        copied._validate_args = validate_args
    if type(distribution) in _CATEGORICALS:
        copied.__dict__["logits"] = _category_logits(copied)
    return copied


def _category_logits(distribution: Distribution) -> Tensor:
    """Log probabilities of the categories."""
    known = vars(distribution)
    if "probs" not in known:
        logits: Tensor = known["logits"]
        return logits
    exact = safe_log(known["probs"])
    if "logits" not in known:
        return exact
    if known["logits"].requires_grad and not known["probs"].requires_grad:
        given: Tensor = known["logits"]  # probs were computed later, without a graph
        return given
    clamped = _same(known["logits"], probs_to_logits(known["probs"]))
    return torch.where(clamped, exact, known["logits"])


def _same(logits: Tensor, clamped: Tensor) -> Tensor:
    """Whether logits and probabilities were computed from each other by torch.

    They are compared up to the last digits, which depend on the memory layout of the tensors.
    """
    tolerance = 8 * torch.finfo(logits.dtype).eps
    return (logits - clamped).abs() <= tolerance * clamped.abs()


def _binary_logits(
    distribution: Distribution, probs_name: str = "probs", logits_name: str = "logits"
) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p) of an event."""
    known = vars(distribution)
    later = probs_name in known and logits_name in known and not known[probs_name].requires_grad
    if later and known[logits_name].requires_grad:  # probs were computed without a graph
        known = {logits_name: known[logits_name]}
    if probs_name not in known:
        return logsigmoid(known[logits_name]), logsigmoid(-known[logits_name])
    probs: Tensor = known[probs_name]
    certain = probs == 1
    success = safe_log(probs)
    failure = (-probs.masked_fill(certain, 0.0)).log1p().masked_fill(certain, -torch.inf)
    if logits_name not in known:
        return success, failure
    logits: Tensor = known[logits_name]
    clamped = _same(logits, probs_to_logits(probs, is_binary=True))
    return (
        torch.where(clamped, success, logsigmoid(logits)),
        torch.where(clamped, failure, logsigmoid(-logits)),
    )


def _times(count: Tensor, logits: Tensor) -> Tensor:
    """``count * logits``, with 0 for a count of 0 of an event of probability 0."""
    impossible = logits == -torch.inf
    finite = count * logits.masked_fill(impossible, 0.0)
    return finite.masked_fill(impossible & ((count < 0) | (count > 0)), -torch.inf)


def _logsumexp(terms: Tensor) -> Tensor:
    """logsumexp over the last dim, with gradient 0 if all terms are -inf."""
    peak = terms.detach().amax(-1, keepdim=True)
    peak = peak.masked_fill(peak.isinf(), 0.0)
    return safe_log((terms - peak).exp().sum(-1)) + peak.squeeze(-1)


def _as_float(value: Tensor, like: Tensor) -> Tensor:
    """Convert a count, as torch computes log factorials of integers in single precision."""
    if value.is_floating_point():
        return value
    return value.to(torch.promote_types(like.dtype, torch.float32))


class _Exact:
    """Checks a value as torch does."""

    def log_prob(self: Any, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        density: Tensor = self._log_prob(value)
        return density


class _Categorical(_Exact):
    """A Categorical with exact logits; Pyro's ``log_prob`` cannot be compiled."""

    def _log_prob(self: Any, value: Tensor) -> Tensor:
        index, logits = torch.broadcast_tensors(value.long().unsqueeze(-1), self.logits)
        return logits.gather(-1, index[..., :1]).squeeze(-1)


class _Bernoulli(_Exact):
    def _log_prob(self: Any, value: Tensor) -> Tensor:
        success, failure = _binary_logits(self)
        value = _as_float(value, success)
        return _times(value, success) + _times(1 - value, failure)


class _Binomial(_Exact):
    def _log_prob(self: Any, value: Tensor) -> Tensor:
        success, failure = _binary_logits(self)
        value = _as_float(value, success)
        tolerance = getattr(self, "approx_log_prob_tol", 0.0)  # a setting of Pyro
        return (
            log_binomial(self.total_count, value, tol=tolerance)
            + _times(value, success)
            + _times(self.total_count - value, failure)
        )


class _Geometric(_Exact):
    def _log_prob(self: Any, value: Tensor) -> Tensor:
        success, failure = _binary_logits(self)
        value = _as_float(value, success)
        return _times(value, failure) + success


class _NegativeBinomial(_Exact):
    def _log_prob(self: Any, value: Tensor) -> Tensor:
        success, failure = _binary_logits(self)
        value = _as_float(value, success)
        nothing = self.total_count == 0  # then 0 is the only possible value
        total_count = self.total_count.masked_fill(nothing, 1.0)
        ways = (total_count + value).lgamma() - (value + 1).lgamma() - total_count.lgamma()
        density = ways + _times(total_count, failure) + _times(value, success)
        return torch.where(nothing, safe_log((value == 0).to(density.dtype)), density)


class _Poisson(_Exact):
    def _log_prob(self: Any, value: Tensor) -> Tensor:
        value = _as_float(value, self.rate)
        return _times(value, safe_log(self.rate)) - self.rate - (value + 1).lgamma()


class _Multinomial(_Exact):
    def _log_prob(self: Any, value: Tensor) -> Tensor:
        value = _as_float(value, self.logits)
        ways = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
        return ways + _times(value, self.logits).sum(-1)


class ExactMixture(_Exact):
    """A ``MixtureSameFamily`` with an exact density."""

    def _log_prob(self: Any, value: Tensor) -> Tensor:
        weights = self.mixture_distribution.logits.log_softmax(-1)
        return _logsumexp(self.component_distribution.log_prob(self._pad(value)) + weights)


class _Independent:
    """An Independent that supports a batch of size 0, unlike torch's."""

    def log_prob(self: Any, value: Tensor) -> Tensor:
        density: Tensor = self.base_dist.log_prob(value)
        event_dims = tuple(range(-self.reinterpreted_batch_ndims, 0))
        return density.sum(event_dims) if event_dims else density


class _ZeroInflated(_Exact):
    def _log_prob(self: Any, value: Tensor) -> Tensor:
        gate, no_gate = _binary_logits(self, "gate", "gate_logits")
        density = no_gate + self.base_dist.log_prob(value)
        both = torch.stack(torch.broadcast_tensors(gate, density), -1)
        return torch.where(value == 0, _logsumexp(both), density)


#: Other distributions, such as mixtures, contain these; a copy has exact logits.
_CATEGORICALS = (torch_dist.Categorical, dist.Categorical)

#: The class that replaces another.
_EXACT: dict[type[Distribution], type[Distribution]] = {}

for _mixin, _names in {
    _Categorical: ["Categorical"],
    _Bernoulli: ["Bernoulli"],
    _Binomial: ["Binomial"],
    _Geometric: ["Geometric"],
    _NegativeBinomial: ["NegativeBinomial"],
    _Poisson: ["Poisson"],
    _Multinomial: ["Multinomial"],
    ExactMixture: ["MixtureSameFamily"],
    _Independent: ["Independent"],
    _ZeroInflated: [
        "ZeroInflatedDistribution",
        "ZeroInflatedPoisson",
        "ZeroInflatedNegativeBinomial",
    ],
}.items():
    for _module, _prefix in ((torch_dist, "ExactTorch"), (dist, "Exact")):
        for _name in _names:
            if hasattr(_module, _name):
                _base = getattr(_module, _name)
                _class = types.new_class(_prefix + _name, (_mixin, _base))
                _class.__module__ = __name__  # for pickle
                globals()[_class.__name__] = _EXACT[_base] = _class
