"""Reading beyond the files of test_formats: random tables, streams, options, missing packages."""

from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyro_regimes.datasets import read_returns

FORMATS = Path(__file__).parents[1] / "data" / "formats"
HEAD = "date,a,b\n2024-01-31,1.5,-2\n2024-02-29,0.5,3\n"


def read(text: str, **options):
    return read_returns(io.BytesIO(text.encode()), **options)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.floats(-1e12, 1e12, allow_subnormal=False), st.floats(-10, 10, allow_subnormal=False)
        ),
        min_size=2,
        max_size=30,
    ),
    st.sampled_from([(",", "."), (";", ","), (";", "."), ("\t", ","), ("\t", "."), ("|", ".")]),
    st.sampled_from(["%Y-%m-%d", "%d.%m.%Y", "%Y%m%d", "%d-%b-%Y", "%Y/%m/%d", "%b %d, %Y"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_pandas_writes_reads_the_same(rows, marks, date_format, encoding, line_end):
    separator, decimal = marks
    values = np.array(rows) + 0.0
    values[0] = [0.5, 0.25]  # a number that has one decimal mark only
    values[1] = [1.5, 1.25]
    days = pd.date_range("2019-12-30", periods=len(values), freq="B")
    frame = pd.DataFrame(values, days.strftime(date_format), ["Re\u00e9l", "b c"])
    text = frame.to_csv(
        sep=separator, decimal=decimal, index_label="Date", lineterminator=line_end
    )
    returns = read_returns(io.BytesIO(text.encode(encoding)))
    np.testing.assert_array_equal(returns.values, values)
    assert [str(day) for day in returns.dates] == [str(day.date()) for day in days]
    assert returns.names == ("Re\u00e9l", "b c") and returns.periods_per_year == 252


@pytest.mark.parametrize(
    "freq, periods",
    [
        ("B", 252),
        ("D", 365),
        ("W", 52),
        ("2W", 26),
        ("ME", 12),
        ("MS", 12),
        ("BME", 12),
        ("QE", 4),
        ("QS", 4),
        ("2QE", 2),
        ("YE", 1),
    ],
)
def test_the_frequency_is_that_of_the_dates(freq, periods):
    days = pd.date_range("2001-01-01", periods=40, freq=freq)
    frame = pd.DataFrame({"a": np.arange(40) % 7}, index=days)
    assert read(frame.to_csv(index_label="date")).periods_per_year == periods
    gaps = frame.drop(index=days[[5, 11, 12, 30]])  # holidays
    assert read(gaps.to_csv(index_label="date")).periods_per_year == periods


@pytest.mark.parametrize("minutes, rows_a_day", [(1, 390), (5, 78), (30, 13)])
def test_intraday_rows_are_counted(minutes, rows_a_day):
    days = pd.bdate_range("2024-01-02", periods=6)
    times = [
        day + pd.Timedelta(hours=9, minutes=30 + minutes * i)
        for day in days
        for i in range(rows_a_day)
    ]
    frame = pd.DataFrame({"a": np.arange(len(times)) % 7}, index=times)
    returns = read(frame.to_csv(index_label="time"))
    assert returns.periods_per_year == 252 * rows_a_day
    assert returns.frequency == f"intraday, {rows_a_day} a day"
    assert returns.dates[1] - returns.dates[0] == np.timedelta64(minutes, "m")


def test_the_rows_left_out_do_not_change_the_frequency():
    months = pd.date_range("2001-01-31", periods=12, freq="ME")
    values = [1.0, np.nan, 2.0, np.nan, 3.0, np.nan, 4.0, 5.0, np.nan, 1.0, np.nan, 2.0]
    text = pd.DataFrame({"a": values}, index=months).to_csv(index_label="date")
    with pytest.warns(UserWarning, match="dropped 5 of 12 rows"):
        assert read(text, drop_missing=True).periods_per_year == 12
    with pytest.warns(UserWarning, match="5 cells are missing values"):
        assert read(text).periods_per_year == 12
    with pytest.warns(UserWarning, match="1 cell is a missing value, in 1 of 12 rows"):
        read(pd.DataFrame({"a": [np.nan, *range(1, 12)]}, index=months).to_csv(index_label="date"))


def test_a_time_zone_is_kept():
    returns = read_returns(FORMATS / "yfinance_intraday.csv", prices=True, columns=["Close"])
    index = returns.to_frame().index
    assert str(index.tz) == "UTC" and index[0] == pd.Timestamp("2024-03-08 15:30-05:00")
    one = "time,a\n2024-01-02T09:30:00+01:00,1\n2024-01-02T10:30:00+01:00,2\n"
    returns = read(one)
    assert returns.time_zone == "UTC+01:00" and str(returns.dates[0]) == "2024-01-02T08:30:00"
    assert returns.to_frame().index[0].isoformat() == "2024-01-02T09:30:00+01:00"


def test_fractions_of_seconds_are_kept():
    text = "time,a\n2024-01-02 09:30:00,1\n2024-01-02 09:30:00.250,2\n2024-01-02 09:30:01,0\n"
    steps = np.diff(read(text).dates) / np.timedelta64(1, "ms")
    assert steps.tolist() == [250, 750]


def test_a_decimal_comma_below_the_first_rows():
    zeros = "".join(f"{day};0\n" for day in np.arange("2000-01-01", "2001-01-01", dtype="M8[D]"))
    assert read("date;a\n" + zeros + "2001-01-01;1,5\n").values[-1].tolist() == [1.5]
    with pytest.raises(ValueError, match="got '1,234', which may be 1234 or 1.234"):
        read("date;a\n" + zeros + "2001-01-01;1,234\n")


def test_a_zero_before_three_digits_has_one_reading():
    text = "date;a\n2024-01-31;0{0}567\n2024-02-29;-1{0}234\n"
    for mark in ",.":
        assert read(text.format(mark)).values.T.tolist() == [[0.567, -1.234]]
    with pytest.raises(ValueError, match="line 2, column 'a': expected a number, got '0,567'"):
        read(text.format(","), decimal=".")


def test_text_far_below_the_first_rows_has_its_line():
    lines = [f"{day},1.{i}" for i, day in enumerate(np.arange("1700", "1990", dtype="M8[D]"))]
    lines[100_000] = lines[100_000].split(",")[0] + ",closed"
    with pytest.raises(ValueError, match="line 100002, column 'a': expected a number, got 'closed"):
        read("date,a\n" + "\n".join(lines))


def test_a_header_after_the_sign_of_a_remark():
    # as numpy.savetxt writes it
    returns = read("# a b\n1.5 -2\n0.5 3\n")
    assert returns.names == ("a", "b") and returns.values.tolist() == [[1.5, -2], [0.5, 3]]


def test_a_header_without_a_name_for_the_names_of_rows():
    # as R's write.table writes it; a first row of data must not be taken for the header
    returns = read('"a" "b"\n"1" 0.5 1\n"2" 0.7 2\n')
    assert returns.names == ("a", "b") and returns.values.tolist() == [[0.5, 1], [0.7, 2]]
    with pytest.raises(ValueError, match="expected a header line"):
        read('"1" 0.5 1\n"2" 0.7 2\n')


def test_row_numbers_beside_dates_are_no_series():
    # as pandas and R write them
    text = ",date,a\n0,2024-01-31,1\n1,2024-02-29,2\n"
    assert read(text).names == ("a",)
    assert read('"","a","date"\n"1",1,"2024-01-31"\n"2",2,"2024-02-29"\n').names == ("a",)


@pytest.mark.parametrize("pattern", ["{ticker}.{field}", "{field}_{ticker}", "{ticker} {field}"])
def test_tickers_and_fields_in_one_name(pattern):
    names = [
        pattern.format(ticker=ticker, field=field)
        for ticker in ("ACME", "BRK.B")
        for field in ("Open", "High", "Low", "Close", "Volume", "Adjusted")
    ]
    numbers = {day: ",".join(str(day + i) for i in range(12)) for day in (2, 3)}
    rows = "".join(f"2024-01-0{day},{cells}\n" for day, cells in numbers.items())
    with pytest.warns(UserWarning, match="took 'Adjusted' and left out|these are prices"):
        returns = read("date," + ",".join(names) + "\n" + rows)
    assert returns.names == ("ACME", "BRK.B") and returns.values.tolist() == [[7, 13], [8, 14]]
    with pytest.warns(UserWarning, match="these are prices"):
        returns = read("date," + ",".join(names) + "\n" + rows, columns=["Open", "ACME"])
    assert returns.values.tolist() == [[2], [3]]
    returns = read("date," + ",".join(names) + "\n" + rows, columns=names[:1])
    assert returns.names == (names[0],) and returns.values.tolist() == [[2], [3]]


def test_steps_of_time_are_no_series():
    returns = read("time,x\n0.0,1.5\n0.1,0.5\n0.2,3\n")
    assert returns.names == ("x",) and returns.dates.tolist() == [0, 1, 2]
    assert returns.periods_per_year is None


def test_identifiers_keep_their_zeros():
    text = "date,ticker,value\n2024-01-31,0700,1\n2024-01-31,0005,2\n2024-02-29,0700,3\n"
    text += "2024-02-29,0005,4\n"
    assert read(text).names == ("0700", "0005")


@pytest.mark.parametrize(
    "first, second, day",
    [
        ("01/2020", "02/2020", "2020-01-01"),
        ("2020-1", "2020-2", "2020-01-01"),
        ("2020/01", "2020/02", "2020-01-01"),
        ("Q1/2020", "Q2/2020", "2020-01-01"),
        ("2020:Q2", "2020:Q3", "2020-04-01"),
        ("May 2020", "June 2020", "2020-05-01"),
        ("May-20", "Jun-20", "2020-05-01"),
        ("January 2, 2020", "January 3, 2020", "2020-01-02"),
        ("2 January 2020", "3 January 2020", "2020-01-02"),
        ("02Jan2020", "03Jan2020", "2020-01-02"),
        ("2020.01.02", "2020.01.03", "2020-01-02"),
        ("2.1.2020", "3.1.2020", "2020-01-02"),
        ("2020-01-02T00:00:00.000Z", "2020-01-03T00:00:00.000Z", "2020-01-02"),
        ("2020-01-02 00:00:00+01:00", "2020-01-03 00:00:00+01:00", "2020-01-02"),
        ("1577923200", "1578009600", "2020-01-02"),
        ("2020-W02", "2020-W03", "2020-01-06"),
        ("43831", "43832", None),
        ("Montag", "Dienstag", None),
        ("2020-13-01", "2020-13-02", None),
    ],
)
def test_formats_of_dates(first, second, day):
    text = f'date,a\n"{first}",1\n"{second}",2\n'
    if day is None:
        with pytest.raises(ValueError, match="line [23], column 'date': expected a date such as"):
            read(text)
    else:
        assert str(read(text).dates[0]) == day


def test_names_in_rows_are_free_of_control_characters():
    text = "date,ticker,value\n2024-01-31,\x1b[1mA,1\n2024-01-31,B\u202ec,2\n"
    text += "2024-02-29,\x1b[1mA,3\n2024-02-29,B\u202ec,4\n"
    assert read(text).names == ("[1mA", "B c")


def test_a_column_of_one_text_is_left_out_and_named():
    with pytest.warns(UserWarning, match="left out 'b', which has the text 'EUR' in all rows"):
        assert read("date,a,b\n2024-01-31,1,EUR\n2024-02-29,2,EUR\n").names == ("a",)


def test_a_stream_of_text_is_refused():
    with pytest.raises(ValueError, match="expected a stream of bytes, got str; open the file with"):
        read_returns(io.StringIO(HEAD))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"columns": "a"}, "expected columns to be a list of names, got 'a'"),
        ({"columns": [1]}, r"expected columns to be a list of names, got \[1\]"),
        ({"columns": []}, "expected columns to name different columns"),
        ({"columns": ["a", "a"]}, "expected columns to name different columns"),
        ({"columns": ["c"]}, r"got 'c'.*; the file has \['a', 'b'\]"),
        ({"decimal": "x"}, "expected decimal to be"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        read(HEAD, **options)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\x1f\x8b broken", "expected a gzip file, got a broken one .*fetch it again"),
        (b"PK\x03\x04 broken", "expected a zip archive, got one that cannot be read"),
        (b'{"a": ', "expected JSON records"),
        (b'[{"date": "2024-01-31", "a": {"b": 1}}]', "got something else .a table within the col"),
        (b"[1, 2]", "a list whose entries are not all records"),
        (b"[]", "expected rows of data in the columns"),
        (
            b'[{"date": "2024-01-31", "a": 1' + b"0" * 400 + b"}]",
            "record 1, column 'a': expected a number, got '1000|int too large",
        ),
        (
            b"date,ticker,a\n2024-01-31,NA,1\n2024-01-31,X,1\n2024-01-31,Y,1\n",
            "line 2, column 'ticker': expected the name of a series, got a missing value",
        ),
        (b"date,a\n2024-01-31,1\rx\n", "expected"),
        (b'date,a\n2024-01-31,"' + b"1" * 300_000 + b'"\n', "expected"),
        (b'date,a\n"' + b"\n" * 300_000, "expected"),
    ],
)
def test_broken_files_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        read_returns(io.BytesIO(content))


def test_a_broken_workbook():
    pytest.importorskip("openpyxl")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("xl/workbook.xml", "<broken")
    content.seek(0)
    with pytest.raises(ValueError, match="expected an Excel workbook, got a broken one"):
        read_returns(content)


def test_a_broken_parquet_file():
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="expected a Parquet file, got a broken one"):
        read_returns(io.BytesIO(b"PAR1 broken"))


@pytest.mark.parametrize(
    "package, name",
    [("pandas", "tab.tsv"), ("pyarrow", "index.parquet"), ("openpyxl", "plain.xlsx")],
)
def test_a_missing_package_is_named(package, name, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"needs {package}( 2.2 or later)?: pip install 'pyro-regimes\[app\]'"
    with pytest.raises(ImportError, match=message):
        read_returns(FORMATS / name)


@pytest.mark.slow
def test_importing_datasets_imports_no_pandas():
    script = "import sys, pyro_regimes.datasets; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_a_text_is_read_without_copies_of_it():
    text = ("a,b\n" + "0.1234567890123456,-1.234567890123456\n0.5,0.25\n" * 40_000).encode()
    tracemalloc.start()
    read_returns(io.BytesIO(text))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(text) + 6 * 8 * 2 * 80_000  # the text, and a few arrays of the numbers


@pytest.mark.parametrize("lines", [2**17 // 4 - 1, 2**17 // 4, 40_000])
def test_a_blank_line_ends_the_table_wherever_it_is(lines):
    text = "a,b\n" + "1,2\n2,3\n" * (lines // 2) + "\nSource: nobody\n"
    with pytest.warns(UserWarning, match="read up to the blank line before line"):
        assert len(read(text).values) == 2 * (lines // 2)


def test_a_letter_of_two_bytes_at_the_end_of_the_first_lines():
    accents = "\u00e9" * 2_000
    for pad in range(3):
        lines = [f"{i}.5,{'x' * pad}{accents}\n" for i in range(100)]
        with pytest.warns(UserWarning, match="left out 'b'"):
            values = read("a,b\n" + "".join(lines)).values
        np.testing.assert_array_equal(values, np.arange(0.5, 100)[:, None])


def test_a_volume_beside_prices_is_told():
    text = "date,Index,Volume\n2024-01-30,100,5000\n2024-01-31,101,6000\n"
    with pytest.warns(UserWarning, match="took 'Volume' for prices, too; columns="):
        assert read(text, prices=True).names == ("Index", "Volume")
    assert read(text, prices=True, columns=["Index", "Volume"]).names == ("Index", "Volume")
