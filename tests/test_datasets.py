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
from pyro_regimes.datasets import load_sector_returns, read_returns
from pyro_regimes.reading.cells import MISSING_VALUES

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


def test_every_row_enters_a_published_log_likelihood():
    """A three-state Gaussian HMM's log p(x), as hmmlearn 0.3.3 computed it from these data.

    States start from the terciles of the absolute mean return: means and biased covariances of
    their rows, 0.9 on the diagonal of A, pi uniform.
    """
    x = load_sector_returns().values
    num_states = 3
    size = np.abs(x.mean(axis=1))
    state = np.searchsorted(np.quantile(size, [1 / 3, 2 / 3]), size)
    log_b = np.empty((len(x), num_states))
    for k in range(num_states):
        mean = x[state == k].mean(axis=0)
        covariance = np.cov(x[state == k], rowvar=False, bias=True)
        whitened = np.linalg.solve(np.linalg.cholesky(covariance), (x - mean).T)
        log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
        log_b[:, k] = -0.5 * (log_det + (whitened**2).sum(axis=0))

    transition = np.where(np.eye(num_states, dtype=bool), 0.9, 0.05)
    predicted, log_likelihood = np.full(num_states, 1 / num_states), 0.0
    for row in log_b:
        joint = predicted * np.exp(row - row.max())
        log_likelihood += np.log(joint.sum()) + row.max()
        predicted = joint / joint.sum() @ transition
    np.testing.assert_allclose(log_likelihood, -103097.14601131604, rtol=1e-12, atol=0)


def test_a_caller_may_change_what_it_loaded():
    first = load_sector_returns()
    expected_values, expected_dates = first.values.copy(), first.dates.copy()
    first.values[:] = 0
    first.dates[:] = np.datetime64("2000-01-01")
    second = load_sector_returns()
    np.testing.assert_array_equal(second.values, expected_values)
    np.testing.assert_array_equal(second.dates, expected_dates)


# ---- the script that builds them -------------------------------------------------------------

PRICES = """Date,A,B,C\r
2020-01-01,1.0,10.0,4.0\r
2020-01-02,2.0,15.0,3.0\r
2020-01-03,1.0,15.0,6.0\r
"""


@pytest.fixture
def small_wheel(tmp_path: Path) -> Path:
    wheel = tmp_path / "skfolio-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(build.PRICES_IN_WHEEL, gzip.compress(PRICES.encode()))
    return wheel


def test_build_averages_simple_returns_within_sectors(small_wheel: Path):
    prices = build.read_prices(small_wheel)
    returns = build.sector_returns(prices, {"One": ("C",), "Two": ("B", "A")})
    assert returns.names == ["One", "Two"]
    assert returns.dates == ["2020-01-02", "2020-01-03"]
    assert returns.rows == [[-25.0, (50.0 + 100.0) / 2], [100.0, (0.0 - 50.0) / 2]]


def test_build_rounds_to_six_decimals():
    prices = build.Table(["2020-01-01", "2020-01-02"], ["A"], [[3.0], [4.0]])
    assert build.sector_returns(prices, {"S": ("A",)}).rows == [[33.333333]]


def test_build_writes_the_same_bytes_and_every_digit(small_wheel: Path, tmp_path: Path):
    returns = build.sector_returns(build.read_prices(small_wheel), {"S": ("A", "C")})
    returns.rows[0][0] = 0.1 + 0.2  # takes 17 digits
    build.write_csv(returns, tmp_path / "one.csv.gz")
    build.write_csv(returns, tmp_path / "another.csv.gz")
    content = (tmp_path / "one.csv.gz").read_bytes()
    assert content == (tmp_path / "another.csv.gz").read_bytes()
    assert gzip.decompress(content) == (
        b"date,S\n2020-01-02,0.30000000000000004\n2020-01-03,25.0\n"
    )


def test_build_refuses_a_stock_without_prices(small_wheel: Path):
    with pytest.raises(ValueError, match=r"expected prices of every stock.*\['Z'\]"):
        build.sector_returns(build.read_prices(small_wheel), {"S": ("A", "Z")})


def test_build_refuses_other_data(small_wheel: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(build, "SECTORS", {"S": ("A", "C")})
    output = tmp_path / "out.csv.gz"
    with pytest.raises(ValueError, match=r"shape.*expected \(8312, 7\), got \(2, 1\)"):
        build.main([str(small_wheel), "--output", str(output)])
    assert not output.exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t._replace(dates=["1990-01-02", *t.dates[1:]]), "first and last date"),
        (lambda t: t._replace(rows=[[0.0] * 7, *t.rows[1:]]), "first row"),
        (lambda t: t._replace(rows=[t.rows[0], [np.inf] * 7, *t.rows[2:]]), "finite values"),
    ],
)
def test_verify_sees_what_differs(change, message):
    values, dates, names = load_sector_returns()
    table = build.Table([str(date) for date in dates], list(names), values.tolist())
    build.verify(table)
    with pytest.raises(ValueError, match=message):
        build.verify(change(table))


@pytest.mark.skipif(
    "PYRO_REGIMES_SKFOLIO_WHEEL" not in os.environ,
    reason="PYRO_REGIMES_SKFOLIO_WHEEL names no skfolio wheel",
)
def test_rebuild_from_the_real_wheel(tmp_path: Path):
    output = tmp_path / "out.csv.gz"
    build.main([os.environ["PYRO_REGIMES_SKFOLIO_WHEEL"], "--output", str(output)])
    # the text, as another zlib may compress it differently
    assert gzip.decompress(output.read_bytes()) == gzip.decompress(EMBEDDED.read_bytes())


# ---- a user's own file -----------------------------------------------------------------------


def test_returns_keep_their_units(write_csv: WriteCSV):
    text = "Date,a,b\n2020-01-02,0.01,-3e-2\n2020-01-03,0.30000000000000004,1\n"
    path = write_csv(text)
    values, dates, names = read_returns(str(path))
    np.testing.assert_array_equal(values, [[0.01, -0.03], [0.1 + 0.2, 1.0]])
    np.testing.assert_array_equal(dates, np.array(["2020-01-02", "2020-01-03"], "datetime64[D]"))
    assert values.dtype == np.float64 and dates.dtype == np.dtype("datetime64[D]")
    assert names == ("a", "b")
    assert path.read_text() == text


def test_prices_become_simple_returns_in_percent(write_csv: WriteCSV):
    path = write_csv("day,a,b\n2020-01-02,10,4\n2020-01-03,11,3\n2020-01-06,5.5,3\n")
    values, dates, names = read_returns(path, prices=True)
    np.testing.assert_allclose(values, [[10, -25], [-50, 0]], rtol=1e-13, atol=0)
    assert [str(date) for date in dates] == ["2020-01-03", "2020-01-06"]
    assert names == ("a", "b")


def test_two_rows_of_prices_make_one_return(write_csv: WriteCSV):
    path = write_csv("date,a,b\n2020-01-02,10,4\n2020-01-03,10,5\n")
    np.testing.assert_allclose(read_returns(path, prices=True).values, [[0, 25]], atol=1e-12)


def test_the_embedded_file_reads_the_same(tmp_path: Path):
    path = tmp_path / "sectors.csv"
    path.write_bytes(gzip.decompress(EMBEDDED.read_bytes()))
    for read, loaded in zip(read_returns(path), load_sector_returns()):
        np.testing.assert_array_equal(read, loaded)


def test_what_pandas_writes_reads_the_same(write_csv: WriteCSV):
    pandas = pytest.importorskip("pandas")
    index = pandas.date_range("2020-01-01", periods=3, freq="D")
    frame = pandas.DataFrame({"a": [0.1, 1 / 3, -2.0], "b": [1.0, 2.0, 3.0]}, index=index)
    read = read_returns(write_csv(frame.to_csv()))
    np.testing.assert_array_equal(read.values, frame.to_numpy())
    np.testing.assert_array_equal(read.dates, index.to_numpy().astype("datetime64[D]"))
    assert read.names == ("a", "b")


GOOD_FILES = {
    "date not first": "a,DATE\n1,2020-01-02\n2,2020-01-03\n",
    "first column of another name": "when,a\n2020-01-02,1\n2020-01-03,2\n",
    "first column without a name": ",a\n2020-01-02,1\n2020-01-03,2\n",
    "byte order mark": "\ufeffdate,a\n2020-01-02,1\n2020-01-03,2\n",
    "CRLF": "date,a\r\n2020-01-02,1\r\n2020-01-03,2\r\n",
    "old Mac line ends": "date,a\r2020-01-02,1\r2020-01-03,2\r",
    "blanks": "  date , a \n 2020-01-02 , 1 \n2020-01-03,\t2\n",
    "quotes": '"date", "a"\n"2020-01-02","1"\n"2020-01-03","2"\n',
    "blank lines": "\n\ndate,a\n2020-01-02,1\n\n2020-01-03,2\n,\n \n",
    "no last line end": "date,a\n2020-01-02,1\n2020-01-03,2",
    "time of day": "date,a\n2020-01-02 16:00:00,1\n2020-01-03 16:00:00,2\n",
    "compact dates": "date,a\n20200102,1\n20200103,2\n",
    "slashes, year first": "date,a\n2020/01/02,1\n2020/01/03,2\n",
    "month names": 'date,a\n"Jan 2, 2020",1\n"Jan 3, 2020",2\n',
}


@pytest.mark.parametrize("text", GOOD_FILES.values(), ids=GOOD_FILES.keys())
def test_good_files(text: str, write_csv: WriteCSV):
    values, dates, names = read_returns(write_csv(text))
    np.testing.assert_array_equal(values, [[1.0], [2.0]])
    assert [str(date) for date in dates] == ["2020-01-02", "2020-01-03"]
    assert names == ("a",)


@pytest.mark.parametrize(
    "days, expected",
    [
        (["12/31/2020", "01/02/2021"], ["2020-12-31", "2021-01-02"]),
        (["31/12/2020", "02/01/2021"], ["2020-12-31", "2021-01-02"]),
        # the column settles what its first date leaves open
        (["01/12/2020", "01/13/2020"], ["2020-01-12", "2020-01-13"]),
        (["12/01/2020", "13/01/2020"], ["2020-01-12", "2020-01-13"]),
    ],
)
def test_the_column_tells_days_from_months(days, expected, write_csv: WriteCSV):
    rows = "".join(f"{day},{i}\n" for i, day in enumerate(days))
    dates = read_returns(write_csv("date,a\n" + rows)).dates
    assert [str(date) for date in dates] == expected


def test_rows_with_missing_values_are_left_out_with_one_warning(write_csv: WriteCSV):
    path = write_csv("date,a,b\n2020-01-01,1,1\n2020-01-02,,1\n2020-01-03,2,NA\n2020-01-04,4,5\n")
    message = "dropped 2 of 4 rows, which have a missing value; the first is 2020-01-02"
    with pytest.warns(UserWarning, match=message) as record:
        values, dates, _ = read_returns(path, drop_missing=True)
    assert len(record) == 1 and record[0].filename == __file__
    np.testing.assert_array_equal(values, [[1, 1], [4, 5]])
    assert [str(date) for date in dates] == ["2020-01-01", "2020-01-04"]

    with pytest.warns(UserWarning, match=message):
        values, dates, _ = read_returns(path, prices=True, drop_missing=True)
    np.testing.assert_allclose(values, [[300, 400]], rtol=1e-13, atol=0)
    assert [str(date) for date in dates] == ["2020-01-04"]


def test_missing_values_are_kept_with_one_warning(write_csv: WriteCSV):
    rows = [",1", "1,", "2,NA", "4,5", "5,4"]
    lines = [f"2020-01-0{day},{row}" for day, row in enumerate(rows, 1)]
    path = write_csv("\n".join(["date,a,b", *lines]) + "\n")
    message = "3 cells are missing values, in 3 of 5 rows: 1 in 'a' .first on line 2., 2 in 'b'"
    with pytest.warns(UserWarning, match=message) as record:
        values, dates, _ = read_returns(path)
    assert len(record) == 1 and record[0].filename == __file__
    nan = np.nan
    np.testing.assert_array_equal(values.T, [[nan, 1, 2, 4, 5], [1, nan, nan, 5, 4]])
    assert len(dates) == 5
    with pytest.warns(UserWarning, match=f"{message}.*; a missing price leaves the returns before"):
        values, dates, _ = read_returns(path, prices=True)
    np.testing.assert_allclose(values.T, [[nan, 100, 100, 25], [nan, nan, nan, -20]], rtol=1e-13)
    assert str(dates[0]) == "2020-01-02"


def test_missing_values_are_those_of_pandas():
    pandas = pytest.importorskip("pandas")
    lines = "".join(f"x,{token}\n" for token in sorted(MISSING_VALUES))
    column = pandas.read_csv(io.StringIO("first,second\n" + lines))["second"]
    assert len(column) == len(MISSING_VALUES) and column.isna().all()


BAD_RETURNS = {
    "empty file": ("", "expected a header line and rows of data, got an empty file"),
    "blank lines only": ("\n \n,,\n", "expected a header line.*got an empty (file|table)"),
    "header only": ("date,a\n", r"expected rows of data below the header \['date', 'a'\]"),
    "no header": (
        "2020-01-01,1\n2020-01-02,2\n",
        r"expected a header line of column names, got the data \['2020-01-01', '1'\]",
    ),
    "no header, slashes": (
        "13/01/2020,1,2\n14/01/2020,2,3\n",
        r"expected a header line of column names, got the data \['13/01/2020', '1', '2'\]",
    ),
    "no header, time of day": (
        "2020-01-01 16:00,1\n2020-01-02 16:00,2\n",
        "expected a header line",
    ),
    "no header, compact": ("20200101,1\n20200102,2\n", "expected a header line"),
    "no header, month names": ('"Jan 2, 2020",1\n"Jan 3, 2020",2\n', "expected a header line"),
    "no series": ("date\n2020-01-01\n", "at least one series.*got only the column 'date'"),
    "repeated names": (
        "date,a, a\n2020-01-01,1,2\n",
        r"expected different column names, got \['a'\] more than once",
    ),
    "two date columns": (
        "date,a,Date\n2020-01-01,1,2020-01-01\n",
        r"expected one column of dates, got \['date', 'Date'\]",
    ),
    "series without a name": (
        "date,a,\n2020-01-01,1,2\n",
        "expected a name for every series, got none for column 3",
    ),
    "long row": (
        "date,a\n2020-01-01,1\n\n2020-01-02,2,3\n",
        "line 4: expected 2 cells, as in the header, got 3",
    ),
    "short row": (
        "date,a\n2020-01-01,1\nSource: us\n",
        r"line 3: expected 2 cells, as in the header, got 1: \['Source: us'\]",
    ),
    "text": (
        "date,a,b\n2020-01-01,1,2\n2020-01-02,1,two\n",
        "line 3, column 'b': expected a number, got 'two'",
    ),
    "comma in groups of two": (
        'date,a,b\n2020-01-01,"1,50",0.5\n',
        "column 'a': expected a number, got '1,50'",
    ),
    "underscore": ("date,a\n2020-01-01,1_5\n", "expected a number, got '1_5'"),
    "infinity": (
        "date,a\n2020-01-01,1\n2020-01-02,-inf\n",
        "line 3, column 'a': expected a finite number, got '-inf'",
    ),
    "too large": (
        "date,a\n2020-01-01,1e999\n",
        "expected a finite number, got '(inf|1e999)'",
    ),
    "not a date": (
        "date,a\n2020-01-01,1\n2020-02-30,2\n",
        "line 3, column 'date': expected a date such as 1990-01-31.*got '2020-02-30'",
    ),
    "first date unreadable": (
        "day,a\nMonday,1\n",
        "line 2, column 'day': expected a date.*got 'Monday'",
    ),
    "first dates unreadable, others not": (
        "date,a\nstart,1\nsoon,2\n2020-01-03,2\n2020-01-04,2\n2020-01-05,3\n",
        "line 2, column 'date': expected a date.*got 'start'",
    ),
    "first date unreadable, and a blank line": (
        "date,a\n\nstart,1\n2020-01-03,2\n2020-01-04,2\n2020-01-05,3\n",
        "line 3, column 'date': expected a date.*got 'start'",
    ),
    "first row with text": (
        "date,a,b\nstart,n1,5\n2020-01-03,2,1\n2020-01-04,2,3\n2020-01-05,3,4\n",
        "line 2, column 'date': expected a date.*got 'start'",
    ),
    "first row too short": (
        "date,a,b\n2020-01-02,1\n2020-01-03,2,1\n2020-01-04,2,3\n",
        "line 2: expected 3 cells, as in the header, got 2",
    ),
    "first row too long": (
        "date,a\n2020-01-02,1,5\n2020-01-03,2\n2020-01-04,2\n",
        "line 2: expected 2 cells, as in the header, got 3",
    ),
    "a word above the first row": (
        "date,a,b\nstart\n2020-01-03,2,1\n2020-01-04,2,3\n",
        "line 2: expected 3 cells, as in the header, got 1",
    ),
    "missing date": ("date,a\n2020-01-01,1\n,2\n", "line 3.*expected a date.*got ''"),
    "first date missing": ("date,a\n,1\n2020-01-01,2\n", "line 2.*expected a date.*got ''"),
    "two date formats": (
        "date,a\n2020-01-01,1\n2020/01/02,2\n",
        "line 3.*in one format throughout, got '2020/01/02'",
    ),
    "a time zone in some rows": (
        "date,a\n2020-01-01T00:00:00Z,1\n2020-01-02T00:00:00,1\n",
        "line 3.*expected a time with its zone.*got '2020-01-02T00:00:00'",
    ),
    "day or month": (
        "date,a\n02/01/2020,1\n03/01/2020,2\n",
        "line 2.*got '02/01/2020', which may be 2020-02-01 or 2020-01-02",
    ),
    "two-digit year, day or month": (
        "date,a\n03/01/20,1\n",
        "got '03/01/20', which may be 2020-03-01 or 2020-01-03; say dayfirst=True",
    ),
    "two-digit year in the future": ("date,a\n31-Dec-50,1\n", "years of four digits"),
    "repeated dates": (
        "date,a\n2020-01-02,1\n2020-01-03,2\n2020-01-02,3\n",
        r"line 4: expected one row per date, got 2020-01-02 again \(first on line 2\)",
    ),
    "the same time twice": (
        "date,a\n2020-01-02 09:30,1\n2020-01-02 16:00,2\n2020-01-02 16:00,3\n",
        "line 4: expected one row per date, got 2020-01-02T16:00:00 again",
    ),
    "descending dates": (
        "date,a\n2020-01-03,1\n2020-01-02,2\n",
        "line 3: expected dates in ascending order, got 2020-01-02 after 2020-01-03",
    ),
    "constant": (
        "date,a,b\n2020-01-02,1,0.5\n2020-01-03,2,0.5\n",
        "column 'b': expected a series that varies, got the return 0.5 in all 2 rows",
    ),
    "nothing but missing values": (
        "date,a,b\n2020-01-02,1,\n2020-01-03,2,\n",
        r"column 'b': expected some values, got only missing ones in 2 rows; leave it out with col",
    ),
    "constant where it is not missing": (
        "date,a,b\n2020-01-02,1,\n2020-01-03,,2\n2020-01-04,1,3\n",
        "column 'a': expected a series that varies, got the return 1.0 in all 2 rows",
    ),
    "open quote": (
        'date,a\n2020-01-01,"1\n2020-01-02,2\n',
        "expected text with.*closed quotes, got",
    ),
}


@pytest.mark.parametrize("text, message", BAD_RETURNS.values(), ids=BAD_RETURNS.keys())
def test_bad_returns(text: str, message: str, write_csv: WriteCSV):
    with pytest.raises(ValueError, match=f"series.csv.*{message}"):
        read_returns(write_csv(text))


BAD_PRICES = {
    "zero": (
        "date,a\n2020-01-01,1\n2020-01-02,0\n",
        "line 3, column 'a': expected a positive price, got '0'",
    ),
    "negative": (
        "date,a,b\n2020-01-01,1,-2.5\n2020-01-02,1,2\n",
        "line 2, column 'b': expected a positive price, got '-2.5'",
    ),
    "one row": (
        "date,a\n2020-01-01,1\n",
        r"expected at least 2 rows of prices without missing values, got 1 \(of 1\)",
    ),
    "one complete row": (
        "date,a\n2020-01-01,1\n2020-01-02,null\n",
        r"column 'a': expected some values, got only missing ones in 1 rows",
    ),
    "constant": (
        "date,a,b\n2020-01-01,3,1\n2020-01-02,3,2\n2020-01-03,3,1\n",
        "column 'a': expected a series that varies, got the return 0.0 in all 2 rows",
    ),
    "overflow": (
        "date,a\n2020-01-01,1\n2020-01-02,1e-300\n2020-01-03,1e300\n",
        "column 'a': expected prices with finite returns, got an overflow on 2020-01-03",
    ),
}


@pytest.mark.parametrize("text, message", BAD_PRICES.values(), ids=BAD_PRICES.keys())
def test_bad_prices(text: str, message: str, write_csv: WriteCSV):
    with pytest.raises(ValueError, match=f"series.csv.*{message}"):
        read_returns(write_csv(text), prices=True)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_other_encodings(encoding: str, write_csv: WriteCSV):
    path = write_csv("date,\u00e9\n2020-01-01,1\n", encoding=encoding)
    assert read_returns(path).names == ("\u00e9",)


def test_bytes_that_are_no_text(tmp_path: Path):
    path = tmp_path / "series.csv"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="series.csv: expected text in UTF-8.*save the table as"):
        read_returns(path)


@pytest.mark.parametrize("prices, need", [(False, "1 row of returns"), (True, "2 rows of prices")])
def test_nothing_is_left_without_the_missing_values(prices, need, write_csv: WriteCSV):
    path = write_csv("date,a,b\n2020-01-02,1,\n2020-01-03,,1\n")
    with pytest.raises(ValueError, match=f"expected at least {need}.*got 0 .of 2.; choose"):
        read_returns(path, prices=prices, drop_missing=True)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        read_returns(tmp_path / "nowhere.csv")


def test_a_directory(tmp_path: Path):
    with pytest.raises(IsADirectoryError, match="expected path to name a file, got the dir"):
        read_returns(tmp_path)


def test_without_pandas_the_error_says_what_to_install(write_csv: WriteCSV, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-regimes\[app\]'"):
        read_returns(write_csv("date,a\n2020-01-01,1\n2020-01-02,2\n"))
    assert load_sector_returns().values.shape == (8312, 7)
