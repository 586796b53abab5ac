r"""Densities of counts and categories, exact where a probability is 0 or 1.

.. math::
    \text{Poisson} \quad & x \log \lambda - \lambda - \log x! \\
    \text{Bernoulli} \quad & x \log p + (1 - x) \log (1 - p) \\
    \text{Binomial} \quad & \log \tbinom{n}{x} + x \log p + (n - x) \log (1 - p) \\
    \text{Geometric} \quad & \log p + x \log (1 - p) \\
    \text{NegativeBinomial} \quad & \log \Gamma(x + r) - \log \Gamma(r) - \log x!
        + r \log (1 - p) + x \log p \\
    \text{Multinomial} \quad & \log n! - \sum_i \log x_i! + \sum_i x_i \log p_i

torch clamps probabilities to :math:`[\epsilon, 1 - \epsilon]`, so that nothing is impossible. Here
the density is -inf for an event of probability 0, and outside the support. Terms such as
:math:`\log x!` grow with the count and cancel. They are computed in float64, whatever the dtype of
the result, because in float32 a count of a million leaves no digit.

:math:`\log p` and :math:`\log (1 - p)` are two arguments, so that neither is rounded.
"""

from __future__ import annotations

import math

import torch
from pyro.ops.special import log_binomial
from torch import Tensor

from pyro_regimes.emissions import special
from pyro_regimes.emissions.arithmetic import over_event
from pyro_regimes.emissions.logs import Outcomes, is_empty, sum_of_products, times
from pyro_regimes.kernels.ops import can_be_seen, logsumexp, safe_log


def result_dtype(value: Tensor, argument: torch.dtype) -> torch.dtype:
    """The dtype of a density; an integer value does not change that of the argument."""
    other = value.dtype if value.is_floating_point() else torch.float32
    return torch.promote_types(argument, other)


def is_no_count(value: Tensor) -> Tensor:
    """Which values are negative, infinite or no integers; NaN is not among them."""
    return (value < 0) | (value > value.floor()) | (value == torch.inf)


def _without(value: Tensor, outside: Tensor) -> Tensor:
    """A value with 0 where it is outside the support, at which nothing is infinite or NaN."""
    return value if is_empty(outside) else torch.where(outside, 0.0, value)


def _impossible(density: Tensor, outside: Tensor) -> Tensor:
    """A density with -inf outside the support."""
    return density if is_empty(outside) else density.masked_fill(outside, -torch.inf)


#: log 0!, log 1!, log 2!, ...: looking up is ten times faster than computing.
_LOG_FACTORIALS = torch.arange(1, 4097, dtype=torch.float64, device="cpu").lgamma()


def log_factorial(value: Tensor) -> Tensor:
    """log x! of counts, float64."""
    if value.device.type == "cpu" and can_be_seen(value) and not value.requires_grad:
        if value.numel() and bool(value.max() < len(_LOG_FACTORIALS)):  # False if one is NaN
            found = _LOG_FACTORIALS.index_select(0, value.long().flatten())
            return found.reshape(value.shape)
    return (value + 1).lgamma()


def poisson(value: Tensor, rate: Tensor, event_dim: int = 0) -> Tensor:
    """The log density of a Poisson, summed over the last dims of the value."""
    dtype, value, rate = result_dtype(value, rate.dtype), value.double(), rate.double()
    event = value.shape[value.dim() - event_dim :]
    rate = rate.expand(torch.broadcast_shapes(rate.shape, event))
    outside = is_no_count(value)
    is_sound = is_empty(outside)
    value = value if is_sound else torch.where(outside, 0.0, value)
    # What all states share is summed before it is broadcast over them.
    density = sum_of_products(value, safe_log(rate), event_dim) - over_event(rate, event_dim)
    density = density - over_event(log_factorial(value), event_dim)
    if is_sound:
        return density.to(dtype)
    if event_dim:
        outside = outside.flatten(-event_dim).any(-1)
    return density.masked_fill(outside, -torch.inf).to(dtype)


def bernoulli(value: Tensor, event: Outcomes) -> Tensor:
    """The log density of a Bernoulli."""
    dtype = result_dtype(value, event.dtype)
    value = value.to(dtype)
    outside = is_no_count(value) | (value > 1)
    value = _without(value, outside)
    # Nothing cancels: in the argument's dtype, whatever that of the value is.
    success, failure = event.success.to(event.dtype), event.failure.to(event.dtype)
    density = times(value, success) + times(1 - value, failure)
    return _impossible(density, outside).to(dtype)


def binomial(
    value: Tensor, total_count: Tensor, event: Outcomes, tolerance: float = 0.0
) -> Tensor:
    """The log density of a Binomial.

    :param tolerance: see ``pyro.distributions.Binomial.approx_log_prob_tol``.
    """
    dtype = result_dtype(value, event.dtype)
    value, total_count = value.double(), total_count.double()
    outside = is_no_count(value) | (value > total_count)
    value = _without(value, outside)
    density = (
        log_binomial(total_count, value, tol=tolerance)
        + times(value, event.success)
        + times(total_count - value, event.failure)
    )
    return _impossible(density, outside).to(dtype)


def geometric(value: Tensor, event: Outcomes) -> Tensor:
    """The log density of the number of failures before a success."""
    dtype, value = result_dtype(value, event.dtype), value.double()
    outside = is_no_count(value)
    density = times(_without(value, outside), event.failure) + event.success
    return _impossible(density, outside).to(dtype)


#: From here on the asymptotic series of gamma functions are exact to rounding.
_LARGE = 32.0


def log_ways(start: Tensor, steps: Tensor) -> Tensor:
    r""":math:`\log \Gamma(r + x) - \log \Gamma(r) - \log x!` in float64.

    With a and b the smaller and the larger of r and x + 1, it is
    :math:`\log (\Gamma(r + x) / \Gamma(b)) - \log \Gamma(a)`. Nothing larger than these two is
    subtracted, so that no digits are lost if r or x is large.
    """
    is_start = start > steps
    larger = torch.where(is_start, start, steps + 1)
    smaller, more = torch.where(is_start, steps + 1, start), torch.where(is_start, steps, start - 1)
    ratio = special.log_gamma_ratio(larger, more) + more * larger.log()
    return ratio - smaller.lgamma()


def harmonic(start: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\sum_{j < x} 1 / (r + j)` and :math:`\sum_{j < x} 1 / (r + j)^2`, float64.

    They are the first derivative of :func:`log_ways` in r and minus the second, for counts x.
    """
    first = (start + steps).digamma() - start.digamma()
    second = torch.polygamma(1, start) - torch.polygamma(1, start + steps)
    low = start.clamp(min=_LARGE)
    high, share = low + steps, steps / low
    below, above = low**-2, high**-2
    digamma = share.log1p() + 0.5 * share / high - _digamma_tail(above) + _digamma_tail(below)
    trigamma = share / high * (1 + 0.5 / low + 0.5 / high)
    trigamma = trigamma + _trigamma_tail(below) / low - _trigamma_tail(above) / high
    is_small = start < _LARGE
    return torch.where(is_small, first, digamma), torch.where(is_small, second, trigamma)


def _digamma_tail(square: Tensor) -> Tensor:
    return square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))


def _trigamma_tail(square: Tensor) -> Tensor:
    return square * (1 / 6 - square * (1 / 30 - square * (1 / 42 - square / 30)))


def negative_binomial(value: Tensor, total_count: Tensor, event: Outcomes) -> Tensor:
    """The log density of the number of successes before ``total_count`` failures."""
    dtype = result_dtype(value, event.dtype)
    value, total_count = value.double(), total_count.double()
    outside = is_no_count(value)
    value = _without(value, outside)
    nothing = total_count == 0  # then 0 is the only possible value
    total_count = total_count.masked_fill(nothing, 1.0)
    ways = log_ways(total_count, value)
    density = ways + times(total_count, event.failure) + times(value, event.success)
    density = torch.where(nothing, safe_log((value == 0).to(density.dtype)), density)
    return _impossible(density, outside).to(dtype)


def multinomial(value: Tensor, logits: Tensor, total_count: Tensor | int) -> Tensor:
    """The log density of a Multinomial, over the last dim.

    :param logits: log probabilities.
    """
    dtype, value = result_dtype(value, logits.dtype), value.double()
    total = value.sum(-1)
    outside = is_no_count(value).any(-1) | (total < total_count) | (total > total_count)
    value = _without(value, outside.unsqueeze(-1))
    ways = log_factorial(value.sum(-1)) - log_factorial(value).sum(-1)
    density = ways + times(value, logits.double()).sum(-1)
    return _impossible(density, outside).to(dtype)


def categorical(value: Tensor, logits: Tensor) -> Tensor:
    """The log density of a Categorical; the categories are the last dim of ``logits``."""
    outside = is_no_count(value) | (value >= logits.shape[-1])
    unknown = value.isnan()
    index = value.masked_fill(outside | unknown, 0).long()
    is_constant = logits.dim() > 1 and math.prod(logits.shape[:-2]) == 1
    if is_constant and index.shape[-1:] == (1,) and logits.dim() <= index.dim() + 1:
        # Constant in time: its gradient does not have a row for every observation.
        density = logits.reshape(logits.shape[-2:]).mT[index.squeeze(-1)]
    else:
        index, logits = torch.broadcast_tensors(index.unsqueeze(-1), logits)
        density = logits.gather(-1, index[..., :1]).squeeze(-1)
    return density.masked_fill(outside, -torch.inf).masked_fill(unknown, torch.nan)


def categories(value: Tensor, event_dim: int) -> Tensor | None:
    """The categories of a table, int64; None if a value is not a count."""
    return None if bool(is_no_count(value).any()) else value.long()


def zero_inflated(value: Tensor, density: Tensor, gate: Outcomes) -> Tensor:
    """The log density of a mixture with a point mass at 0.

    :param density: the log density of the other component.
    :param gate: of the point mass.
    """
    dtype = result_dtype(value, torch.promote_types(density.dtype, gate.dtype))
    density = gate.failure + density
    both = torch.stack(torch.broadcast_tensors(gate.success, density), -1)
    return torch.where(value == 0, logsumexp(both), density).to(dtype)
