from __future__ import annotations

import gzip
import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from pyro_regimes.data import build_sector_returns as build
from pyro_regimes.datasets import MISSING_VALUES, load_sector_returns, read_returns

EMBEDDED = Path(build.__file__).with_name("sector_returns.csv.gz")

WriteCSV = Callable[..., Path]


@pytest.fixture
def write_csv(tmp_path: Path) -> WriteCSV:
    def write(text: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / "series.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


# ---- the embedded data -----------------------------------------------------------------------


def test_sector_returns_are_the_documented_ones():
    values, dates, names = load_sector_returns()
    assert values.shape == (8312, 7) and values.dtype == np.float64
    assert dates.shape == (8312,) and dates.dtype == np.dtype("datetime64[D]")
    assert names == tuple(build.SECTORS)
    assert dates[0] == np.datetime64("1990-01-03") and dates[-1] == np.datetime64("2022-12-28")
    assert (np.diff(dates) > np.timedelta64(0, "D")).all()
    assert np.isfinite(values).all()
    first_row = [-0.583965, 2.081696, 6.081829, -0.876929, -0.187617, 0.071024, -0.645997]
    np.testing.assert_allclose(values[0], first_row, rtol=0, atol=5e-7)


def test_first_log_likelihood_of_the_sector_trace():
    """K = 1 needs no recursion: the tied Gaussian's log-likelihood from the sums of the file.

    It pins every digit of the file, where the check above looks at one row.
    """
    values = load_sector_returns().values
    np.testing.assert_allclose(
        [values.sum(), (values**2).sum()], [SUM_OF_VALUES, SUM_OF_SQUARES], rtol=1e-12
    )


def test_a_caller_may_change_what_it_loaded():
    first = load_sector_returns()
    expected_values, expected_dates = first.values.copy(), first.dates.copy()
    first.values[:] = 0
    first.dates[:] = np.datetime64("2000-01-01")
    second = load_sector_returns()
    np.testing.assert_array_equal(second.values, expected_values)
    np.testing.assert_array_equal(second.dates, expected_dates)
