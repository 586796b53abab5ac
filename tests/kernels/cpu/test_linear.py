"""Densities that are linear in functions of the observation, and their sums, against NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from pyro_regimes.kernels.cpu import linear
from tests import seeds

SIZES = [(1, 1, 1, 1, 1), (3, 2, 45, 5, 2), (4, 4, 33, 3, 3), (6, 3, 32, 1, 7), (2, 1, 300, 4, 40)]


@pytest.fixture(params=SIZES, ids=str)
def problem(request: pytest.FixtureRequest) -> tuple[np.ndarray, ...]:
    """Values of V sequences, coefficients of P models, and the weights of N."""
    count, rows, num_steps, num_states, size = request.param
    rng, num_models = seeds.rng(1), count if count % 2 else count // 2
    value = rng.standard_normal((rows, num_steps, size))
    natural = rng.standard_normal((num_models, num_states, size))
    return value, natural, rng.random_sample((count, num_steps, num_states))


def of_each(problem: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of every sequence, its values and its model's coefficients."""
    value, natural, weights = problem
    count = len(weights)
    rows = value[np.arange(count) % len(value)]
    return rows, natural[np.arange(count) // (count // len(natural))]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_products(problem: tuple[np.ndarray, ...], dtype: type) -> None:
    value, natural, weights = problem
    rows, own = of_each(problem)
    out = np.full(weights.shape, np.nan, dtype)
    linear.fill_products(value, natural, out)
    expected = np.einsum("nts,nks->ntk", rows, own)
    tolerance = 1e-12 if dtype is np.float64 else 1e-6
    np.testing.assert_allclose(out, expected, rtol=tolerance, atol=tolerance)
    sums = linear.sum_products(value, weights.astype(dtype))
    expected = np.einsum("nts,ntk->nks", rows, weights.astype(dtype), dtype=np.float64)
    np.testing.assert_allclose(sums, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_lookups(problem: tuple[np.ndarray, ...], dtype: type) -> None:
    value, natural, weights = problem
    num_rows = 6
    value = (np.abs(value) * 1e6).astype(np.int64) % num_rows
    table = np.log(seeds.rng(2).random_sample((len(natural), num_rows, natural.shape[1])))
    table[:, 2] = -np.inf
    rows, own = of_each((value, table, weights))
    out = np.full(weights.shape, np.nan, dtype)
    linear.fill_lookups(value, table, out)
    expected = np.stack([each[where].sum(-2) for each, where in zip(own, rows)])
    tolerance = 1e-12 if dtype is np.float64 else 1e-6
    np.testing.assert_allclose(out, expected.astype(dtype), rtol=tolerance)
    sums = linear.sum_lookups(value, weights.astype(dtype), len(natural), num_rows)
    is_row = rows[..., np.newaxis] == np.arange(num_rows)
    expected = np.einsum("ntdr,ntk->nrk", is_row, weights.astype(dtype), dtype=np.float64)
    expected = expected.reshape((len(natural), -1) + expected.shape[1:]).sum(1)
    np.testing.assert_allclose(sums, expected, rtol=1e-12)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_threads_and_neighbours_change_no_digit(threads: Callable[[int], None]) -> None:
    """A long sequence is cut into chunks, which threads share."""
    rng, (num_steps, num_states, size, num_rows) = seeds.rng(3), (200_000, 3, 2, 5)
    value = rng.randint(0, num_rows, (2, num_steps, size))
    weights = rng.random_sample((2, num_steps, num_states))
    table = rng.standard_normal((2, num_rows, num_states))
    numbers = rng.standard_normal((2, num_steps, size))
    found = []
    for number in (1, 2):
        threads(number)
        density, product = np.empty_like(weights), np.empty_like(weights)
        linear.fill_lookups(value, table, density)
        linear.fill_products(numbers, table[:, :size].swapaxes(1, 2).copy(), product)
        sums = linear.sum_lookups(value, weights, 2, num_rows)
        found.append((density, product, sums, linear.sum_products(numbers, weights)))
    density, product = np.empty_like(weights[1:]), np.empty_like(weights[1:])
    linear.fill_lookups(value[1:], table[1:], density)
    linear.fill_products(numbers[1:], table[1:, :size].swapaxes(1, 2).copy(), product)
    sums = linear.sum_lookups(value[1:], weights[1:], 1, num_rows)
    alone = density, product, sums, linear.sum_products(numbers[1:], weights[1:])
    for one, other, own in zip(*found, alone, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one[1:], own)
