r"""Derivatives of an autoregression's log-likelihood, in one pass over gamma.

By Fisher's identity they are those of :math:`\sum_t \sum_u \gamma_t(u) \log b_t(u)` with gamma
fixed. With :math:`z = (a_{tk} - c_u) / \sigma_k`, the derivative in :math:`a_{tk}` is
:math:`-\sum_u \gamma_t(u) z / \sigma_k` over the tuples whose last state is k, that in :math:`c_u`
is :math:`\sum_t \gamma_t(u) z / \sigma_k`, and that in :math:`\sigma_k`
:math:`\sum_t \sum_u \gamma_t(u) (z^2 - 1) / \sigma_k`. Residuals are formed for each tuple, since
their squares are all that is left of much larger numbers where regimes are far apart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from pyro_regimes.kernels.cpu import simd
from pyro_regimes.kernels.cpu.jit import compiled


@cache
def accumulate(num_states: int, width: int) -> Callable[..., None]:
    """The kernel for so many states and tuples, with all tuples in one vector."""

    @compiled
    def run(
        gamma: Any,  # (N, T, S)
        ahead: Any,  # (N or 1, T, 1 or K): a
        centre: Any,  # (N or 1, S): c
        scales: Any,  # (N or 1, S)
        weight: Any,  # (N,)
        first: int,
        last: int,
        of_ahead: Any,  # (N, T, 1 or K), filled
        of_centre: Any,  # (N, S), filled
        of_scales: Any,  # (N, S), filled
    ) -> None:
        ones, state = simd.splat(1.0, width), simd.splat(1.0, num_states)
        for n in range(first, last):
            shares, here = gamma[n].reshape(-1), ahead[n % len(ahead)].reshape(-1)
            level = simd.load(centre[n % len(centre)], 0, ones)
            simd.store(of_scales[n], 0, simd.load(scales[n % len(scales)], 0, ones))
            of_scales[n] = 1.0 / of_scales[n]
            rate, to_ahead = simd.load(of_scales[n], 0, ones), of_ahead[n].reshape(-1)
            to_centre = to_scales = simd.splat(0.0, ones)
            minus = simd.splat(-weight[n], state)
            for t in range(gamma.shape[1]):
                share = simd.multiply(simd.load(shares, t * width, ones), rate)
                if ahead.shape[2] == 1:
                    wide = simd.splat(here[t], ones)
                else:
                    wide = simd.repeat_all(simd.load(here, t * num_states, state), ones)
                z = simd.multiply(simd.subtract(wide, level), rate)
                pull = simd.multiply(share, z)
                to_centre = simd.add(to_centre, pull)
                to_scales = simd.add(to_scales, simd.subtract(simd.multiply(pull, z), share))
                if ahead.shape[2] == 1:
                    to_ahead[t] = -weight[n] * simd.total(pull)
                else:
                    lanes = simd.multiply(minus, simd.fold(pull, state))
                    simd.store(to_ahead, t * num_states, lanes)
            factor = simd.splat(weight[n], ones)
            simd.store(of_centre[n], 0, simd.multiply(factor, to_centre))
            simd.store(of_scales[n], 0, simd.multiply(factor, to_scales))

    return run
