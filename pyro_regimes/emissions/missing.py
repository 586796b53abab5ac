r"""Gaussian vectors of which some entries are missing.

Let O and M be the observed and the missing entries of a row. Its density in a state is that of the
observed ones, :math:`N(x_O; \mu_O, \Sigma_{OO})`. The expectations of the missing ones given the
state are

.. math::
    \mathrm{E}[x_M] = \mu_M + \Sigma_{MO} \Sigma_{OO}^{-1} (x_O - \mu_O), \qquad
    \mathrm{Cov}[x_M] = \Sigma_{MM} - \Sigma_{MO} \Sigma_{OO}^{-1} \Sigma_{OM}

(Little and Rubin 2002, section 11.2). Rows with the same entries missing share a factorisation.

Only rows with missing entries are processed here, in blocks: a matrix for each row may take much
more memory than the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyro_regimes.emissions.base import Observed, add
from pyro_regimes.emissions.moments import Moments, take
from pyro_regimes.emissions.patterns import Patterns, distinct, is_constant
from pyro_regimes.kernels import ops

#: The matrices of a block have at most so many entries, or so many times those of ``(T, K)``.
_LEAST_BLOCK = 2**18
_SHARE = 4.0


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Products of many small matrices with vectors, for which BLAS is slow."""
    return (matrix * vector.unsqueeze(-2)).sum(-1)


def _at(rows: Tensor, argument: Tensor, dim: int) -> Tensor:
    """The values of some rows."""
    return argument if is_constant(argument, dim) else argument.index_select(dim, rows)


def _blocks(rows: Tensor, each: int, like: Tensor) -> tuple[Tensor, ...]:
    """Split rows into blocks.

    :param each: the number of entries of the matrices of one row.
    :param like: log densities or weights ``(..., T, K)``.
    """
    most = max(_LEAST_BLOCK, int(_SHARE * like.numel()))
    return rows.split(max(1, most // max(1, each))) if len(rows) else ()


def _rows_of(missing: Tensor) -> Tensor:
    """The rows in which entries of any sequence are missing, of ``(..., T, D)``."""
    return missing.any(-1).reshape(-1, missing.shape[-2]).any(0).nonzero().squeeze(-1)


def log_prob(
    value: Tensor,
    missing: Tensor,
    loc: Tensor,
    covariance: Tensor,
    complete: Callable[[Tensor], Tensor],
) -> Tensor:
    """The log densities of the observed entries, ``(..., T, K)``.

    A backward pass computes each block again. Where Python cannot look at the mask, all rows are
    processed at once.

    :param value: ``(..., T, D)``, finite; entries that are missing may hold any number.
    :param missing: ``(..., T, D)``.
    :param loc: ``(..., 1 or T, K, D)``.
    :param covariance: ``(..., 1 or T, K, D, D)``.
    :param complete: the log densities of values of which none are missing.
    """
    if not ops.can_be_seen(missing):
        return _log_prob(value, missing, loc, covariance)
    num_lead = value.dim() - 2
    compiled = _compiled_log_prob(value, missing, loc, covariance)
    if compiled is not None:
        return compiled
    whole = complete(value)
    shape = whole.shape
    lead = loc.shape[-3 - num_lead : -2] + covariance.shape[-4 - num_lead : -3]
    if all(size == 1 for size in lead):
        # The rows of all sequences become those of one.
        value, missing = value.reshape(-1, value.shape[-1]), missing.reshape(-1, value.shape[-1])
        loc = loc.reshape(loc.shape[: -3 - num_lead] + (1,) + loc.shape[-2:])
        covariance = covariance.reshape(
            covariance.shape[: -4 - num_lead] + (1,) + covariance.shape[-3:]
        )
        whole = whole.reshape(shape[: len(shape) - 2 - num_lead] + (len(value), shape[-1]))
    rows = _rows_of(missing)
    if missing.dim() == 2:  # those with the same entries missing beside each other
        rows = rows[distinct(missing[rows])[1].argsort()]
    each = whole.shape[:-2].numel() * shape[-1] * value.shape[-1] ** 2
    blocks, densities = _blocks(rows, each, whole), []
    for block in blocks:
        part = (
            value.index_select(-2, block), missing.index_select(-2, block),
            _at(block, loc, -3), _at(block, covariance, -4),
        )  # fmt: skip
        if len(blocks) == 1 or not torch.is_grad_enabled() or not ops.can_be_seen(*part):
            density = _log_prob(*part)
        else:
            density = checkpoint(_log_prob, *part, use_reentrant=False, preserve_rng_state=False)
        densities.append(density.expand(whole.shape[:-2] + density.shape[-2:]))
    if densities:
        whole = whole.index_copy(-2, rows, torch.cat(densities, -2).to(whole.dtype))
    return whole.reshape(shape)


def _compiled_log_prob(
    value: Tensor, missing: Tensor, loc: Tensor, covariance: Tensor
) -> Tensor | None:
    """The same by the compiled kernel, for arguments that are constant in time; else None."""
    if not (is_constant(loc, -3) and is_constant(covariance, -4)):
        return None
    at = ops.without_time(loc, 2), ops.without_time(covariance, 3)
    if not ops.has_kernel_for_missing(value, missing, *at):
        return None
    num_lead = value.dim() - 2
    dims = loc.shape[-3 - num_lead : -2] + covariance.shape[-4 - num_lead : -3]
    if not num_lead or any(size > 1 for size in dims):
        return ops.gaussian_log_prob_of_seen(value, missing, *at)
    # The rows of all sequences become those of one.
    size, lead = value.shape[-1], value.shape[:-1]
    at = (
        at[0].reshape(at[0].shape[: max(0, at[0].dim() - 2 - num_lead)] + at[0].shape[-2:]),
        at[1].reshape(at[1].shape[: max(0, at[1].dim() - 3 - num_lead)] + at[1].shape[-3:]),
    )
    flat = value.reshape(-1, size), missing.reshape(-1, size)
    density = ops.gaussian_log_prob_of_seen(*flat, *at)
    return density.reshape(density.shape[:-2] + lead + density.shape[-1:])


def _log_prob(value: Tensor, missing: Tensor, loc: Tensor, covariance: Tensor) -> Tensor:
    """The same, of all rows at once."""
    patterns = Patterns.of(missing, covariance)
    whitened = _times(patterns.of_rows(patterns.whitening, 3), value.unsqueeze(-2) - loc)
    num_seen = (~missing).to(loc.dtype).sum(-1, keepdim=True)
    found: Tensor = -0.5 * (whitened.square().sum(-1) + math.log(2 * math.pi) * num_seen)
    return found - patterns.of_rows(patterns.log_scale, 1)


def conditional(
    value: Tensor, missing: Tensor, loc: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """Means and variances of all entries given the observed ones, ``(..., T, K, D)``.

    :param value: ``(..., T, D)``, finite; entries that are missing may hold any number.
    :param missing: ``(..., T, D)``.
    :param loc: ``(..., 1 or T, K, D)``.
    :param covariance: ``(..., 1 or T, K, D, D)``.
    """
    batch = torch.broadcast_shapes(value.shape[:-2], loc.shape[:-3], covariance.shape[:-4])
    num_states = max(loc.shape[-2], covariance.shape[-3])
    shape = batch + (value.shape[-2], num_states, value.shape[-1])
    each = value.new_zeros(()).expand(shape[:-1])  # of the size of densities
    mean = value.unsqueeze(-2).expand(shape).clone()
    variance = torch.zeros_like(mean)
    for block in _blocks(_rows_of(missing), shape.numel() // shape[-3] * shape[-1], each):
        part = (
            value.index_select(-2, block), missing.index_select(-2, block),
            _at(block, loc, -3), _at(block, covariance, -4),
        )  # fmt: skip
        for total, found in zip((mean, variance), _conditional(*part), strict=True):
            total.index_copy_(-3, block, found.expand(batch + found.shape[-3:]).to(total.dtype))
    return mean, variance


def _conditional(
    value: Tensor, missing: Tensor, loc: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """The same, of all rows at once."""
    patterns = Patterns.of(missing, covariance)
    part = patterns.whitening @ covariance
    slopes = part.mT @ patterns.whitening
    expected = _times(patterns.of_rows(slopes, 3), value.unsqueeze(-2) - loc)
    variance = covariance.diagonal(dim1=-2, dim2=-1) - part.square().sum(-2)
    return loc + expected, patterns.of_rows(variance.clamp(min=0), 2)


def moments(
    observed: Observed, loc: Tensor, covariance: Tensor, with_second: bool
) -> Moments:
    """The expected moments about the locations, of the observed and of the missing entries.

    :param observed: with ``missing``.
    :param loc: ``(..., 1 or T, K, D)``.
    :param covariance: ``(..., 1 or T, K, D, D)``.
    """
    assert observed.missing is not None
    if observed.varies:  # each row has moments of its own
        return _moments(observed, loc, covariance, with_second)
    missing, weights = observed.missing.squeeze(-2), observed.weights
    value = observed.value.squeeze(-2)
    if is_constant(loc, -3) and is_constant(covariance, -4):
        at = ops.without_time(loc, 2), ops.without_time(covariance, 3)
        if ops.has_kernel_for_missing(value, missing, weights, *at):
            given = (value, missing.expand(value.shape), weights, *at)
            weight, first, second = ops.expected_moments(*given)
            weight, first = weight.unsqueeze(-2).unsqueeze(-1), first.unsqueeze(-3)
            return Moments(loc, weight, first, second.unsqueeze(-4) if with_second else None)
    whole = torch.where(missing.any(-1, keepdim=True), 0.0, weights)
    found = take(observed._replace(weights=whole, missing=None), loc, True, with_second)
    each = weights.shape[:-2].numel() * weights.shape[-1] * missing.shape[-1] ** 2
    for block in _blocks(_rows_of(missing), each, weights):
        rows = Observed(
            observed.value.index_select(-3, block),
            (weights - whole).index_select(-2, block),
            False,
            observed.missing.index_select(-3, block),
        )
        part = _moments(rows, _at(block, loc, -3), _at(block, covariance, -4), with_second)
        found = add(found, part)._replace(origin=loc)
    return found


def _moments(observed: Observed, loc: Tensor, covariance: Tensor, with_second: bool) -> Moments:
    """The same, of all rows at once."""
    assert observed.missing is not None
    patterns = Patterns.of(observed.missing.squeeze(-2), covariance)
    # The slopes of the regression of all entries on the observed ones, (..., P, K, D, D).
    part = patterns.whitening @ covariance
    slopes = part.mT @ patterns.whitening
    expected = _times(patterns.of_rows(slopes, 3), observed.value - loc)  # about the locations
    weight = observed.weights.unsqueeze(-1)
    first, second = weight * expected, None
    if with_second:
        residual = covariance - part.mT @ part
        if observed.varies:
            own = weight.unsqueeze(-1) * patterns.of_rows(residual, 3)
            second = first.unsqueeze(-1) * expected.unsqueeze(-2) + own
        else:
            second = torch.einsum("...tki,...tkj->...kij", first, expected)
            own = patterns.over_rows(observed.weights)[..., None, None] * residual
            second = (second + own.sum(-4)).unsqueeze(-4)
        second = (second + second.mT) / 2
    if observed.varies:
        return Moments(loc, weight, first, second)
    return Moments(loc, weight.sum(-3, keepdim=True), first.sum(-3, keepdim=True), second)
