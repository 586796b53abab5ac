"""Gaussian rows with missing entries by the compiled kernels of the CPU, without gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_regimes.kernels import transforms
from pyro_regimes.kernels.gaussian import densities


def is_served(value: Tensor, missing: Tensor, *others: Tensor) -> bool:
    """Whether the kernels take these tensors: on the CPU, and no gradient is wanted."""
    tensors = (value, *others)
    wanted = torch.is_grad_enabled() and any(each.requires_grad for each in tensors)
    alike = all(each.dtype == value.dtype for each in others)
    plain = not wanted and alike and transforms.can_be_seen(missing, *tensors)
    return plain and densities.is_served(*tensors)


def log_prob(value: Tensor, missing: Tensor, loc: Tensor, covariance: Tensor) -> Tensor:
    """The log densities of the observed entries, ``(..., T, K)``; 0 for a row without any.

    :param value: ``(..., T, D)``, finite.
    :param missing: in its shape.
    :param loc: ``(..., K or 1, D)``; its batch broadcasts with that of the value.
    :param covariance: ``(..., K or 1, D, D)``, likewise.
    """
    from pyro_regimes.kernels.cpu import missing as kernel

    num_states = max(loc.shape[-2], covariance.shape[-3])
    batch = torch.broadcast_shapes(value.shape[:-2], loc.shape[:-2], covariance.shape[:-3])
    at = _models(batch + (num_states,), loc, covariance)
    shape = batch + (value.shape[-2], num_states)
    out = torch.empty(shape, dtype=value.dtype, device="cpu")  # whatever the default device
    tables, patterns, rows = _tables(value, missing, batch)
    by_model = out.numpy().reshape((len(tables),) + shape[-2:])
    kernel.fill_seen_log_density(rows, patterns, tables, *at, by_model)
    return out


def expected_moments(
    value: Tensor, missing: Tensor, weights: Tensor, loc: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The weights, and the expected first and second moments about the locations.

    :param value: ``(..., T, D)``, finite; its batch broadcasts to that of the weights.
    :param missing: in its shape.
    :param weights: ``(..., T, K)``.
    :param loc: ``(..., K or 1, D)``; its batch broadcasts likewise.
    :param covariance: ``(..., K or 1, D, D)``, likewise.
    :return: ``(..., K)``, ``(..., K, D)`` and ``(..., K, D, D)``, float64.
    """
    from pyro_regimes.kernels.cpu import missing as kernel

    batch = weights.shape[:-2]
    shape = batch + weights.shape[-1:]
    at = _models(shape, loc, covariance)
    tables, patterns, rows = _tables(value, missing, batch)
    by_model = _array(weights).reshape((-1,) + weights.shape[-2:])
    found = kernel.sum_expected_moments(rows, patterns, tables, by_model, *at)
    weight, first, second = map(torch.from_numpy, found)
    size = value.shape[-1]
    return (
        weight.reshape(shape),
        first.reshape(shape + (size,)),
        second.reshape(shape + (size, size)),
    )


def _models(
    shape: torch.Size, loc: Tensor, covariance: Tensor
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The arguments of all models, ``(P, K, D)`` and ``(P, K, D, D)``, of ``(..., K)`` states."""
    size = loc.shape[-1]
    torch.linalg.cholesky(covariance)  # raises where one is not positive definite
    wide = loc.double().expand(shape + (size,)), covariance.double().expand(shape + (size, size))
    first, second = map(_array, wide)
    return first.reshape(-1, shape[-1], size), second.reshape(-1, shape[-1], size, size)


def _tables(
    value: Tensor, missing: Tensor, batch: torch.Size
) -> tuple[npt.NDArray[np.int64], Any, npt.NDArray[Any]]:
    """The table of each model, the patterns of all, and the tables ``(U, T, D)``."""
    from pyro_regimes.kernels.cpu import missing as kernel

    lead = value.shape[:-2]
    places = torch.arange(lead.numel(), device="cpu").reshape(lead)
    tables: npt.NDArray[np.int64] = places.expand(batch).reshape(-1).numpy()
    gone = _array(missing).reshape((-1,) + missing.shape[-2:])
    patterns = kernel.find_patterns(gone, np.ones(gone.shape[:2], dtype=np.bool_))
    return tables, patterns, _array(value).reshape(gone.shape)


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().contiguous().numpy()
    return array
