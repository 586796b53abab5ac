r"""The loops of an EM step of a hidden Markov model on arrays.

Densities, the E-step and weighted sums are the kernels that every model uses. Of Gaussian
observations :func:`prepare` and :func:`maximise` run before and after them, and of others
:func:`prepare_chain` and :func:`maximise_chain`, for P independent models at once. A whole step on
arrays avoids tensor operations: a few hundred short operations take longer than the kernels do for
some thousand observations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_regimes.kernels.cpu.densities import fill_log_density
from pyro_regimes.kernels.cpu.jit import compiled
from pyro_regimes.kernels.cpu.launch import sweep_arrays
from pyro_regimes.kernels.cpu.linear import fill_lookups, fill_products, sum_lookups, sum_products
from pyro_regimes.kernels.cpu.m_step import cholesky, maximise, maximise_chain
from pyro_regimes.kernels.cpu.missing import (
    fill_seen_log_density,
    find_patterns,
    sum_expected_moments,
)
from pyro_regimes.kernels.cpu.moments import sum_moments
from pyro_regimes.kernels.cpu.stationary import MAX_STATES as MAX_STATIONARY_STATES
from pyro_regimes.kernels.cpu.stationary import fill_stationary, maximise_stationary

__all__ = [
    "MAX_STATIONARY_STATES",
    "fill_log_density",
    "fill_lookups",
    "fill_products",
    "fill_seen_log_density",
    "fill_stationary",
    "find_patterns",
    "maximise",
    "maximise_chain",
    "maximise_stationary",
    "prepare",
    "prepare_chain",
    "sum_expected_moments",
    "sum_lookups",
    "sum_moments",
    "sum_products",
    "sweep_arrays",
]


@compiled
def _factorise(spread: Any, factor: Any) -> bool:
    """The Cholesky factors ``(K, D, D)`` or standard deviations ``(K, D, 1)`` of spreads.

    Where they are not positive definite the factor is the identity.

    :return: whether all are.
    """
    size, is_full = spread.shape[1], spread.shape[2] == spread.shape[1]
    sound = True
    for k in range(len(spread)):
        own = True
        if is_full:
            own = cholesky(spread[k], 0.0, 0.0, factor[k])
        else:
            for d in range(size):
                own = own and spread[k, d, 0] > 0.0
                factor[k, d, 0] = math.sqrt(spread[k, d, 0])
        if not own:
            sound = False
            for d in range(size):
                for e in range(factor.shape[2]):
                    factor[k, d, e] = 1.0 if d == e or not is_full else 0.0
    return sound


@compiled
def _log_prior(probs: Any, pseudo: Any) -> float:
    """The log density of a Dirichlet distribution, up to its constant."""
    total = 0.0
    for k in range(len(probs)):
        if pseudo[k] != 0.0:
            total += pseudo[k] * (math.log(probs[k]) if probs[k] > 0.0 else -np.inf)
    return total


@compiled
def prepare_chain(
    initial: Any,  # (P, K)
    transition: Any,  # (P, K, K)
    pseudo_initial: Any,  # (P, K): the Dirichlet priors' concentrations, less one
    pseudo_transition: Any,  # (P, K, K)
    log_initial: Any,  # (P or N, K)
    log_transition: Any,  # (P or N, 1, K, K)
    log_prior: Any,  # (P,)
) -> None:
    """The logits of the chain, and the log density of its priors."""
    num_states = initial.shape[1]
    each = len(log_initial) // len(initial)
    for p in range(len(initial)):
        log_prior[p] = _log_prior(initial[p], pseudo_initial[p])
        for i in range(num_states):
            log_prior[p] += _log_prior(transition[p, i], pseudo_transition[p, i])
    for n in range(len(log_initial)):
        p = n // each
        total = 0.0
        for i in range(num_states):
            total += initial[p, i]
        for i in range(num_states):
            row = 0.0
            for j in range(num_states):
                row += transition[p, i, j]
            log_initial[n, i] = math.log(initial[p, i] / total) if initial[p, i] > 0 else -np.inf
            for j in range(num_states):
                entry = transition[p, i, j]
                log_transition[n, 0, i, j] = math.log(entry / row) if entry > 0 else -np.inf


@compiled
def prepare(
    initial: Any,  # (P, K)
    transition: Any,  # (P, K, K)
    loc: Any,  # (P, K, D)
    spread: Any,  # (P, K, D, D or 1)
    pseudo_initial: Any,  # (P, K): the Dirichlet priors' concentrations, less one
    pseudo_transition: Any,  # (P, K, K)
    log_initial: Any,  # (P or N, K)
    log_transition: Any,  # (P or N, 1, K, K)
    mean: Any,  # (P or N, K, D)
    factor: Any,  # (P or N, K, D, D or 1)
    log_prior: Any,  # (P,)
    sound: Any,  # (P,)
) -> bool:
    """What the kernels take, and of which models every spread is positive definite.

    :return: whether those of all models are.
    """
    pseudo = (pseudo_initial, pseudo_transition)
    prepare_chain(initial, transition, *pseudo, log_initial, log_transition, log_prior)
    each = len(log_initial) // len(initial)
    whole = True
    for p in range(len(initial)):
        sound[p] = True
    for n in range(len(log_initial)):
        p = n // each
        for i in range(loc.shape[1]):  # numba takes a second to compile an array's assignment
            for d in range(loc.shape[2]):
                mean[n, i, d] = loc[p, i, d]
        if not _factorise(spread[p], factor[n]):
            sound[p] = whole = False
    return whole
