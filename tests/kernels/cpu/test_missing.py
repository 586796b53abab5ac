"""Rows with missing entries: densities and expected moments against a loop over the rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from pyro_regimes.kernels.cpu import missing
from pyro_regimes.kernels.cpu.missing import (
    fill_seen_log_density,
    find_patterns,
    sum_expected_moments,
)
from tests import seeds

K = 2


def case(tables: int, models: int, num_rows: int, size: int, full: bool, seed: int = 0):
    """Data, missing entries, locations and spreads, and weights."""
    rng = seeds.rng(seed)
    value = rng.standard_normal((tables, num_rows, size)) * 3
    gone = rng.random_sample(value.shape) < 0.4
    gone[:, : num_rows // 3] = gone[:, :1]  # many rows of one pattern, and few of others
    gone[:, num_rows // 2] = True
    root = rng.standard_normal((models, K, size, size))
    spread = root @ root.swapaxes(-1, -2) + np.eye(size)
    if not full:
        spread = np.ascontiguousarray(np.diagonal(spread, axis1=-2, axis2=-1))[..., None]
    loc, weights = rng.standard_normal((models, K, size)), rng.rand(models, num_rows, K)
    return value, gone, loc, spread, weights


def by_rows(value, gone, loc, spread, weights):
    """The densities ``(S, K)``, and the expected moments, of one model."""
    num_rows, size = value.shape
    full = spread.shape[-1] == size
    density = np.zeros((num_rows, K))
    total = np.zeros((K, 1 if full else size))
    first, second = np.zeros((K, size)), np.zeros((K, size, spread.shape[-1]))
    for t in range(num_rows):
        seen = ~gone[t]
        if not seen.any():
            continue
        for k in range(K):
            covariance = spread[k] if full else np.diag(spread[k, :, 0])
            inner = covariance[np.ix_(seen, seen)]
            density[t, k] = multivariate_normal(loc[k, seen], inner).logpdf(value[t, seen])
            weight = weights[t, k]
            if full:
                slopes = covariance[:, seen] @ np.linalg.inv(inner)
                expected = slopes @ (value[t, seen] - loc[k, seen])
                total[k] += weight
                first[k] += weight * expected
                residual = covariance - slopes @ covariance[seen]
                second[k] += weight * (np.outer(expected, expected) + residual)
            else:
                expected = np.where(seen, value[t] - loc[k], 0.0)
                total[k] += weight * seen
                first[k] += weight * expected
                second[k, :, 0] += weight * expected**2
    return density, (total, first, second)


@pytest.mark.parametrize("full", [True, False], ids=["full", "diagonal"])
@pytest.mark.parametrize("size", [1, 2, 5, 9])
@pytest.mark.parametrize("tables, models", [(1, 1), (1, 3), (3, 3)])
def test_against_a_loop(tables, models, size, full):
    value, gone, loc, spread, weights = case(tables, models, 150, size, full)
    patterns = find_patterns(gone, np.ones(gone.shape[:2], dtype=bool))
    own = np.arange(models) % tables
    out = np.full((models, 150, K), np.nan)
    fill_seen_log_density(value, patterns, own, loc, spread, out)
    found = sum_expected_moments(value, patterns, own, weights, loc, spread)
    for p, table in enumerate(own):
        given = value[table], gone[table], loc[p], spread[p], weights[p]
        density, moments = by_rows(*given)
        np.testing.assert_allclose(out[p], density, rtol=1e-11, atol=1e-11)
        for each, expected in zip(found, moments, strict=True):
            np.testing.assert_allclose(each[p], expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("full", [True, False], ids=["full", "diagonal"])
def test_float32_and_padding(full):
    value, gone, loc, spread, weights = case(2, 2, 90, 4, full)
    counts = np.arange(90) < np.array([[90], [37]])
    patterns = find_patterns(gone, counts)
    own = np.arange(2)
    out = np.full((2, 90, K), np.nan, dtype=np.float32)
    narrow = value.astype(np.float32)
    fill_seen_log_density(narrow, patterns, own, loc, spread, out)
    assert np.isnan(out[1, 37:]).all()  # not written
    found = sum_expected_moments(narrow, patterns, own, weights.astype(np.float32), loc, spread)
    for p, size in enumerate([90, 37]):
        given = value[p, :size], gone[p, :size], loc[p], spread[p], weights[p, :size]
        density, moments = by_rows(*given)
        np.testing.assert_allclose(out[p, :size], density, rtol=1e-4, atol=1e-4)
        for each, expected in zip(found, moments, strict=True):
            np.testing.assert_allclose(each[p], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("full", [True, False], ids=["full", "diagonal"])
def test_sums_depend_neither_on_threads_nor_on_other_models(full, monkeypatch):
    monkeypatch.setattr(missing, "grain_of", lambda *_: 3)  # many chunks
    value, gone, loc, spread, weights = case(3, 3, 400, 5, full)
    patterns = find_patterns(gone, np.ones(gone.shape[:2], dtype=bool))
    together = sum_expected_moments(value, patterns, np.arange(3), weights, loc, spread)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        many = sum_expected_moments(value, patterns, np.arange(3), weights, loc, spread)
        out = np.empty((2, 3, 400, K))
        fill_seen_log_density(value, patterns, np.arange(3), loc, spread, out[0])
        torch.set_num_threads(1)
        fill_seen_log_density(value, patterns, np.arange(3), loc, spread, out[1])
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(out[0], out[1])
    for one, other in zip(together, many, strict=True):
        np.testing.assert_array_equal(one, other)
    for p in range(3):
        alone = sum_expected_moments(
            value, patterns, np.array([p]), weights[p : p + 1], loc[p : p + 1], spread[p : p + 1]
        )
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_array_equal(one[p], other[0])
        expected = by_rows(value[p], gone[p], loc[p], spread[p], weights[p])[1]
        for one, other in zip(together, expected, strict=True):
            np.testing.assert_allclose(one[p], other, rtol=1e-10, atol=1e-9)


def test_every_row_is_in_one_block_of_its_pattern():
    gone = seeds.rng(4).random_sample((2, 500, 70)) < 0.01  # more columns than an integer has bits
    gone[0, 7], gone[1, 400:] = True, True
    counts = np.ones((2, 500), dtype=bool)
    counts[1, 450:] = False
    patterns = find_patterns(gone, counts)
    for table in range(2):
        begin, end = patterns.first_blocks[table : table + 2]
        rows = []
        for start, count, pattern in patterns.blocks[begin:end]:
            assert 1 <= count <= missing.WIDTH
            own = patterns.rows[start : start + count]
            order, seen = patterns.columns[pattern], patterns.num_seen[pattern]
            assert not gone[table, own][:, order[:seen]].any()
            assert gone[table, own][:, order[seen:]].all()
            rows += own.tolist()
        empty = patterns.empty[slice(*patterns.first_empty[table : table + 2])].tolist()
        assert sorted(rows + empty) == np.flatnonzero(counts[table]).tolist()
        assert empty == ([7] if table == 0 else list(range(400, 450)))


def test_nothing_observed_at_all():
    value, gone, loc, spread, weights = case(1, 1, 20, 3, True)
    patterns = find_patterns(np.ones_like(gone), np.ones((1, 20), dtype=bool))
    out = np.full((1, 20, K), np.nan)
    fill_seen_log_density(value, patterns, np.zeros(1, np.int64), loc, spread, out)
    assert (out == 0).all()
    found = sum_expected_moments(value, patterns, np.zeros(1, np.int64), weights, loc, spread)
    assert all((each == 0).all() for each in found)
