"""Tables of numbers and categories."""

from __future__ import annotations

import io

import numpy as np
import pandas
import pytest

from pyro_regimes.reading.mixed import read_mixed


def test_numbers_text_and_dates():
    text = b"quarter;rate;group;flag\n2001Q1;1,5;a;True\n2001Q2;;b;False\n2001Q3;3,25;a;True\n"
    found = read_mixed(io.BytesIO(text))
    np.testing.assert_array_equal(found["rate"], [1.5, np.nan, 3.25])
    assert list(found["group"]) == ["a", "b", "a"] and list(found["flag"]) == [True, False, True]
    days = np.array(["2001-01-01", "2001-04-01", "2001-07-01"], dtype="datetime64[D]")
    np.testing.assert_array_equal(found.index.to_numpy().astype("datetime64[D]"), days)


def test_other_kinds_of_files(tmp_path):
    frame = pandas.DataFrame({"y": [1.0, 2.0, 4.0], "group": ["a", "b", "a"]})
    frame.to_parquet(tmp_path / "data.parquet")
    frame.to_excel(tmp_path / "data.xlsx", index=False)
    for name in ("data.parquet", "data.xlsx"):
        found = read_mixed(tmp_path / name)
        assert list(found["y"]) == [1.0, 2.0, 4.0] and list(found["group"]) == ["a", "b", "a"]


def test_refused():
    with pytest.raises(ValueError, match="column 'x': expected a number as in most rows, got 'o'"):
        read_mixed(io.BytesIO(b"x,y\n1,2\n3,4\no,5\n"))
    with pytest.raises(ValueError, match="got 'x' more than once"):
        read_mixed(io.BytesIO(b"x,x,y\n1,2,3\n3,4,5\n"))
