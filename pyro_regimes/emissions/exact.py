r"""Discrete distributions with exact log-probabilities, -inf for a probability of 0.

torch clamps the probabilities of its discrete distributions to :math:`[\epsilon, 1 - \epsilon]`.
In a hidden Markov model this makes an impossible path possible. The classes here subclass those of
torch and Pyro and compute ``log_prob`` from the unclamped probabilities
(:mod:`pyro_regimes.emissions.counts`). It is -inf for a probability of 0, and the derivative of the
logarithm is defined as 0 there. For other probabilities both versions agree up to rounding, except
where torch clamps.

:func:`exact_copy` replaces the classes of torch and Pyro by these.
"""

from __future__ import annotations

import types
from typing import Any

import pyro.distributions as dist
import torch.distributions as torch_dist
from torch import Tensor
from torch.distributions import Distribution

from pyro_regimes.emissions import counts
from pyro_regimes.emissions.logs import Outcomes, outcomes_of_logits, outcomes_of_probs
from pyro_regimes.emissions.parametrisation import read_given
from pyro_regimes.kernels.ops import logsumexp, safe_log


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
        elif isinstance(value, tuple) and any(isinstance(each, Distribution) for each in value):
            value = tuple(exact_copy(each, validate_args) for each in value)
        copied.__dict__[name] = value
    # After the copies, as Pyro's Independent has the setting of the distribution inside.
    if validate_args is not None:
        copied._validate_args = validate_args
    if type(distribution) in _CATEGORICALS:
        copied.__dict__["logits"] = _category_logits(copied)
    return copied


def _category_logits(distribution: Distribution) -> Tensor:
    """Log probabilities of the categories."""
    ((name, given),) = read_given(distribution).items()
    return safe_log(given) if name == "probs" else given


def _outcomes(distribution: Distribution, probs: str = "probs", logits: str = "logits") -> Outcomes:
    """Log probabilities of an event and of its complement."""
    ((name, given),) = read_given(distribution, probs, logits).items()
    return outcomes_of_probs(given) if name == probs else outcomes_of_logits(given)


class _Exact:
    """Checks a value as torch does."""

    def log_prob(self: Any, value: Tensor) -> Tensor:
        """The exact log-probability of a value, which is checked first if the copy validates."""
        if self._validate_args:
            self._validate_sample(value)
        density: Tensor = self._log_prob(value)
        return density


class _Categorical(_Exact):
    """A Categorical with exact logits; Pyro's ``log_prob`` cannot be compiled."""

    def _log_prob(self: Any, value: Tensor) -> Tensor:
        return counts.categorical(value, self.logits)


class _Bernoulli(_Exact):
    def _log_prob(self: Any, value: Tensor) -> Tensor:
        return counts.bernoulli(value, _outcomes(self))


class _Binomial(_Exact):
    def _log_prob(self: Any, value: Tensor) -> Tensor:
        tolerance = getattr(self, "approx_log_prob_tol", 0.0)  # a setting of Pyro
        return counts.binomial(value, self.total_count, _outcomes(self), tolerance)


class _Geometric(_Exact):
    def _log_prob(self: Any, value: Tensor) -> Tensor:
        return counts.geometric(value, _outcomes(self))


class _NegativeBinomial(_Exact):
    def _log_prob(self: Any, value: Tensor) -> Tensor:
        return counts.negative_binomial(value, self.total_count, _outcomes(self))


class _Poisson(_Exact):
    def _log_prob(self: Any, value: Tensor) -> Tensor:
        return counts.poisson(value, self.rate)


class _Multinomial(_Exact):
    def _log_prob(self: Any, value: Tensor) -> Tensor:
        return counts.multinomial(value, self.logits, self.total_count)


class ExactMixture(_Exact):
    """A ``MixtureSameFamily`` with an exact density."""

    def _log_prob(self: Any, value: Tensor) -> Tensor:
        weights = self.mixture_distribution.logits.log_softmax(-1)
        return logsumexp(self.component_distribution.log_prob(self._pad(value)) + weights)


class _Independent:
    """An Independent that supports a batch of size 0, unlike torch's."""

    def log_prob(self: Any, value: Tensor) -> Tensor:
        """The sum over the event dims."""
        density: Tensor = self.base_dist.log_prob(value)
        event_dims = tuple(range(-self.reinterpreted_batch_ndims, 0))
        return density.sum(event_dims) if event_dims else density


class _ZeroInflated(_Exact):
    def _log_prob(self: Any, value: Tensor) -> Tensor:
        gate = _outcomes(self, "gate", "gate_logits")
        return counts.zero_inflated(value, self.base_dist.log_prob(value), gate)


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
