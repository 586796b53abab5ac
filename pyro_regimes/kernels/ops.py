"""The public functions of the recursions, which check their arguments and call a kernel.

The kernel is the compiled one for the tensors' device (``cpu/launch.py``, ``cuda/launch.py``) or
the reference (:mod:`.reference`). :func:`backend` selects a kernel for a block of code.

Every function takes log tensors of one hidden Markov chain, or of a batch of chains:

=======================  ===========================  ==========================================
argument                 shape                        meaning
=======================  ===========================  ==========================================
``initial_logits``       ``(..., K)``                 log initial probabilities
``transition_logits``    ``(..., 1 or T-1, K, K)``    log transition probabilities, (old, new)
``observation_logits``   ``(..., T, K)``              log density of each observation in each state
``lengths``              ``(...)`` integer            true lengths, 1 to T; None means all T
=======================  ===========================  ==========================================

A :class:`Packing` in the place of ``lengths`` says that the T steps are those of several sequences,
one after the other (:mod:`.packing`).

Batch dims ``...`` broadcast. The log tensors need not be normalised; they are terms of the path sum
of :mod:`pyro_regimes.kernels.reference`. Entries of -inf are valid. NaN and +inf are not checked
and give NaN. Padding may hold any value.
"""

from __future__ import annotations

from types import ModuleType
from typing import Callable

from torch import Tensor

from pyro_regimes.kernels import dispatch
from pyro_regimes.kernels.arguments import check_lengths, promoted_dtype
from pyro_regimes.kernels.autoregression import expectations as autoregression_expectations
from pyro_regimes.kernels.autoregression import log_densities as autoregression_log_densities
from pyro_regimes.kernels.autoregression import log_likelihood as autoregression_log_likelihood
from pyro_regimes.kernels.autoregression import posterior as autoregression_posterior
from pyro_regimes.kernels.dispatch import backend
from pyro_regimes.kernels.durations import min_duration_viterbi
from pyro_regimes.kernels.gaussian import chain as gaussian_chain
from pyro_regimes.kernels.gaussian.densities import check_sizes
from pyro_regimes.kernels.gaussian.densities import log_prob as gaussian_log_prob
from pyro_regimes.kernels.gaussian.missing import expected_moments
from pyro_regimes.kernels.gaussian.missing import is_served as has_kernel_for_missing
from pyro_regimes.kernels.gaussian.missing import log_prob as gaussian_log_prob_of_seen
from pyro_regimes.kernels.gaussian.weighted_sums import moments as weighted_moments
from pyro_regimes.kernels.lagged import expectations as lagged_expectations
from pyro_regimes.kernels.lagged import filter_probs as lagged_filter_probs
from pyro_regimes.kernels.lagged import log_likelihood as lagged_log_likelihood
from pyro_regimes.kernels.lagged import viterbi as lagged_viterbi
from pyro_regimes.kernels.likelihoods import Expectations
from pyro_regimes.kernels.logs import log_in_one_thread, logsumexp, safe_log
from pyro_regimes.kernels.packed import (
    complete_log_likelihood,
    expectations,
    filter_logits,
    filter_probs,
    log_likelihood,
    posterior,
    predict_probs,
    sample_posterior,
    sample_prior,
    viterbi,
)
from pyro_regimes.kernels.packing import Packing
from pyro_regimes.kernels.shapes import broadcast, without_repeats, without_time
from pyro_regimes.kernels.shares import shares_of
from pyro_regimes.kernels.stationary import maximise_stationary, stationary_probs
from pyro_regimes.kernels.totals import is_finite, sum_over
from pyro_regimes.kernels.transfers import Ahead
from pyro_regimes.kernels.transfers import Block as BlockExpectations
from pyro_regimes.kernels.transfers import backwards as backward_message
from pyro_regimes.kernels.transfers import begin as first_message
from pyro_regimes.kernels.transfers import combine as combine_transfers
from pyro_regimes.kernels.transfers import expectations as block_expectations
from pyro_regimes.kernels.transfers import forwards as forward_message
from pyro_regimes.kernels.transfers import look_ahead, outline, outline_of_ends, transfer
from pyro_regimes.kernels.transforms import can_be_seen

__all__ = [
    "Ahead",
    "BlockExpectations",
    "Expectations",
    "Packing",
    "autoregression_expectations",
    "autoregression_log_densities",
    "autoregression_log_likelihood",
    "autoregression_posterior",
    "backend",
    "backward_message",
    "block_expectations",
    "broadcast",
    "can_be_seen",
    "check_lengths",
    "combine_transfers",
    "complete_log_likelihood",
    "describe_kernel",
    "expectations",
    "expected_moments",
    "filter_logits",
    "filter_probs",
    "first_message",
    "forward_message",
    "fused_em",
    "gaussian_log_likelihood",
    "gaussian_log_prob",
    "gaussian_log_prob_of_seen",
    "has_fused_em",
    "has_gaussian_kernel",
    "has_kernel_for_missing",
    "is_finite",
    "lagged_em",
    "lagged_expectations",
    "lagged_filter_probs",
    "lagged_log_likelihood",
    "lagged_viterbi",
    "log_in_one_thread",
    "log_likelihood",
    "logsumexp",
    "look_ahead",
    "maximise_stationary",
    "min_duration_viterbi",
    "outline",
    "outline_of_ends",
    "posterior",
    "predict_probs",
    "promoted_dtype",
    "rest_threads",
    "safe_log",
    "sample_posterior",
    "sample_prior",
    "shares_of",
    "squarem",
    "stationary_probs",
    "sum_over",
    "transfer",
    "viterbi",
    "weighted_moments",
    "without_repeats",
    "without_time",
]


def describe_kernel(value: Tensor, num_states: int) -> str:
    """What computes the recursions for these observations, and why nothing faster does."""
    return dispatch.describe(value.device.type, num_states)


def has_gaussian_kernel(value: Tensor) -> bool:
    """Whether there is a compiled kernel for the Gaussian densities of these observations."""
    return (
        value.device.type == "cpu"
        and value.is_floating_point()
        and dispatch.choose(value) in ("cpu", "")
    )


def gaussian_log_likelihood(
    initial_logits: Tensor,
    transition_logits: Tensor,
    value: Tensor,
    loc: Tensor,
    factor: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    r""":math:`\log p(x)` with :math:`b_k(x_t) = N(x_t; \mu_k, L_k L_k^\top)`; batch dims broadcast.

    This composes :func:`gaussian_log_prob` and :func:`.likelihoods.log_likelihood`, in one kernel
    if that is faster.

    :param value: ``(..., T, D)``.
    :param loc: ``(..., K or 1, D)``.
    :param factor: the lower Cholesky factor ``(..., K or 1, D, D)``, or standard deviations
        ``(..., K or 1, D, 1)``.
    :return: ``(...)``, float64.
    :raises ValueError: if D is not the same in all.
    """
    check_sizes(value, loc, factor)
    given = (initial_logits, transition_logits, value, loc, factor)
    if gaussian_chain.is_served(lengths, *given):
        return gaussian_chain.log_likelihood(*given, lengths)
    density = gaussian_log_prob(value, loc, factor)
    return log_likelihood(initial_logits, transition_logits, density, lengths)


def has_fused_em(value: Tensor, num_states: int) -> bool:
    """Whether :func:`fused_em` supports these data with this number of states."""
    if value.device.type != "cpu" or value.is_inference():
        return False
    if dispatch.choose(value) != "cpu":
        return False
    from pyro_regimes.kernels.cpu import scaled

    return num_states <= scaled.MAX_STATES


def squarem() -> Callable[..., None]:
    """The compiled extrapolation of EM's steps of a Gaussian chain, :mod:`.cpu.extrapolation`."""
    from pyro_regimes.kernels.cpu import extrapolation

    return extrapolation.squarem


def rest_threads() -> None:
    """Put torch's idle threads to rest before compiled kernels run, see :mod:`.cpu.resting`."""
    from pyro_regimes.kernels.cpu import resting

    resting.rest_threads()


def fused_em() -> ModuleType:
    """The compiled loops of a whole EM step, :mod:`.cpu.em_step`.

    numba is imported at the first call.
    """
    from pyro_regimes.kernels.cpu import em_step

    return em_step


def lagged_em() -> ModuleType:
    """The compiled loops of an EM step of an autoregression, :mod:`.cpu.lagged_em`."""
    from pyro_regimes.kernels.cpu import lagged_em as found

    return found
