"""Every file of ``tests/data/formats`` is read to the right numbers, or refused with the remedy.

The files have the shapes in which vendors publish data, with numbers made up here.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from pyro_regimes.datasets import read_returns

FORMATS = Path(__file__).parents[1] / "data" / "formats"
NEEDS = {".parquet": "pyarrow", ".xlsx": "openpyxl"}


class Read(NamedTuple):
    """What a file is read to.

    :param dates: all dates, as text; None for the numbers of rows.
    :param values: one list for each name.
    """

    names: list[str]
    dates: list[str] | None
    values: list[list[float]]
    periods: float | None
    options: dict[str, Any] = {}
    notes: list[str] = []
    time_zone: str | None = None


class Refused(NamedTuple):
    """A pattern for the message of the error, from the name of the file on."""

    message: str
    options: dict[str, Any] = {}


DAYS = ["2024-01-02", "2024-01-03", "2024-01-04"]
MONTHS = ["2024-01-31", "2024-02-29"]
AB = Read(["a", "b"], MONTHS, [[1.5, 0.5], [-2, 3]], 12)
PRICES = ["these are prices; prices=True .--prices. turns them into returns"]
QUOTES = ["took '{}' and left out", *PRICES]
MISSING = r"drop_missing=True \(--drop-missing\) leaves these rows out"
NAN = float("nan")
SORT = r"; the newest row comes first; sort=True \(--sort\) sorts the rows"


def quotes(name: str, field: str, dates: list[str], values: list[float], periods: float = 252):
    return Read([name], dates, [values], periods, {}, [each.format(field) for each in QUOTES])


def two_quotes(field: str, first: list[float], second: list[float]) -> Read:
    notes = [each.format(field) for each in QUOTES]
    return Read(["ACME", "BOLT"], DAYS, [first, second], 252, {}, notes)


CASES: list[tuple[str, Read | Refused]] = [
    # yfinance and Yahoo
    ("yfinance_history.csv", quotes("Close", "Close", DAYS, [101.5, 103, 102])),
    ("yfinance_download_one.csv", quotes("ACME", "Adj Close", DAYS, [50.5, 51.25, 50])),
    ("yfinance_download_many.csv", two_quotes("Close", [51, 51.75, 50.5], [20, 20.5, 21])),
    ("yfinance_by_ticker.csv", two_quotes("Close", [51, 51.75, 50.5], [20, 20.5, 21])),
    ("yfinance_two_rows.csv", two_quotes("Adj Close", [50.5, 51.25, 50], [19.5, 20, 20.25])),
    (
        "yfinance_two_rows.csv",
        Read(["ACME"], DAYS, [[51, 51.75, 50.5]], 252, {"columns": ["Close", "ACME"]}, PRICES),
    ),
    (
        "yfinance_download_many.csv",
        Read(
            ["BOLT Open", "BOLT Close"],
            DAYS,
            [[19, 20, 20.5], [20, 20.5, 21]],
            252,
            {"columns": ["Open", "Close", "BOLT"]},
            PRICES,
        ),
    ),
    (
        "yfinance_download_many.csv",
        Refused(
            r"expected columns to name columns.*'BOLD' \(did you mean 'BOLT'\?\)",
            {"columns": ["BOLD"]},
        ),
    ),
    (
        "yfinance_intraday.csv",
        Read(
            ["Close"],
            [f"2024-03-{each}" for each in ("08T20:00", "08T20:30", "11T13:30", "11T14:00")],
            [[100.5, 101.5, 102, 100.25]],
            504,
            {},
            [each.format("Close") for each in QUOTES],
            "UTC",
        ),
    ),
    ("yahoo_site.csv", Refused(f"line 3: expected dates in ascending order.*{SORT}")),
    (
        "yahoo_site.csv",
        Read(
            ["Adj Close**"],
            DAYS[1:],
            [[100 * (102.8 / 101.3 - 1), 100 * (101.8 / 102.8 - 1)]],
            252,
            {"sort": True, "prices": True},
            ["took 'Adj Close..' and left out"],
        ),
    ),
    # Stooq
    ("stooq_english.csv", quotes("Close", "Close", DAYS, [10.5, 11.5, 11])),
    (
        "stooq_english.csv",
        Read(
            ["High", "Low"],
            DAYS,
            [[11, 12, 11.75], [9, 10, 10]],
            252,
            {"columns": ["High", "Low"]},
            PRICES,
        ),
    ),
    ("stooq_polish.csv", quotes("Zamkniecie", "Zamkniecie", DAYS, [10.5, 11.5, 11])),
    (
        "stooq_bulk.txt",
        quotes("ACME.US", "<CLOSE>", DAYS, [10.5, 11.5, 11])._replace(
            notes=["left out '<PER>', which has the text 'D'", "took '<CLOSE>'", *PRICES]
        ),
    ),
    (
        "stooq_hourly.txt",
        quotes(
            "ACME.US",
            "<CLOSE>",
            [f"2024-01-{each}" for each in ("02T09:30", "02T10:30", "03T09:30", "03T10:30")],
            [10.5, 11.5, 11, 11.25],
            504,
        ),
    ),
    # Bloomberg, Refinitiv
    (
        "bloomberg_export.csv",
        quotes("PX_LAST", "PX_LAST", ["2024-01-12", "2024-01-15", "2024-01-16"], [10.5, 11.5, 11]),
    ),
    (
        "bloomberg_missing.csv",
        Read(
            ["ACME US Equity", "BOLT US Equity"],
            ["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30"],
            [[1.5, -0.5, NAN, 0.75], [NAN, 0.25, 0.5, -1.25]],
            12,
            {},
            [
                r"2 cells are missing values, in 2 of 4 rows: 1 in 'ACME US Equity' \(first on "
                rf"line 4\), 1 in 'BOLT US Equity' \(first on line 2\)\. {MISSING}"
            ],
        ),
    ),
    (
        "bloomberg_missing.csv",
        Read(
            ["ACME US Equity", "BOLT US Equity"],
            ["2024-02-29", "2024-04-30"],
            [[-0.5, 0.75], [0.25, -1.25]],
            12,
            {"drop_missing": True},
            ["dropped 2 of 4 rows.*the first is 2024-01-31"],
        ),
    ),
    ("refinitiv.csv", quotes("Close", "Close", DAYS, [1234.5, 1240, 1230.25])),
    (
        "refinitiv.csv",
        Read(["%Chg"], DAYS, [[0.28, 0.45, -0.79]], 252, {"columns": ["%Chg"]}),
    ),
    # FRED
    (
        "fred_daily.csv",
        Read(
            ["RATE10"],
            ["2024-01-12", "2024-01-15", "2024-01-16", "2024-01-17"],
            [[4.01, NAN, 4.07, 4.1]],
            252,
            {},
            [rf"1 cell .* in 1 of 4 rows: 1 in 'RATE10' \(first on line 3\)\. {MISSING}"],
        ),
    ),
    (
        "fred_daily.csv",
        Read(
            ["RATE10"],
            ["2024-01-12", "2024-01-16", "2024-01-17"],
            [[4.01, 4.07, 4.1]],
            252,
            {"drop_missing": True},
            ["dropped 1 of 4 rows.*Missing: 1 in 'RATE10'"],
        ),
    ),
    (
        "fred_quarterly.csv",
        Read(
            ["GROWTH"],
            ["2023-01-01", "2023-04-01", "2023-07-01", "2023-10-01"],
            [[2.2, 2.1, 4.9, 3.4]],
            4,
        ),
    ),
    (
        "fred_old_header.txt",
        Read(["VALUE"], ["2023-01-01", "2023-02-01", "2023-03-01"], [[2.2, 2.1, -4.9]], 12),
    ),
    # Kenneth French, Robert Shiller
    (
        "french_monthly.csv",
        Read(
            ["Mkt-RF", "SMB", "HML", "RF"],
            ["2024-01-01", "2024-02-01", "2024-03-01"],
            [[0.71, 5.07, 2.83], [-5.74, -0.78, -1.16], [-2.47, -3.52, 4.19], [0.47, 0.42, 0.43]],
            12,
            {},
            ["read up to the blank line before line 10, 'Annual Factors"],
        ),
    ),
    (
        "french_daily.csv",
        Read(
            ["Mkt-RF", "SMB"],
            ["1926-07-01", "1926-07-02", "1926-07-06"],
            [[0.09, 0.45, 0.17], [-0.25, -0.33, 0.3]],
            252,
            {},
            ["before line 8, 'Copyright of the author'"],
        ),
    ),
    (
        "french_missing.csv",
        Read(
            ["Agric", "Soda"],
            ["1926-07-01", "1926-08-01", "1926-09-01", "1926-10-01"],
            [[2.37, 2.23, -0.57, 1.1], [NAN, NAN, 1.5, -0.75]],
            12,
            {},
            [r"in 2 of 4 rows: 2 in 'Soda' \(first on line 4\)\."],
        ),
    ),
    (
        "french_missing.csv",
        Read(
            ["Agric"],
            ["1926-07-01", "1926-08-01", "1926-09-01", "1926-10-01"],
            [[2.37, 2.23, -0.57, 1.1]],
            12,
            {"columns": ["Agric"]},
        ),
    ),
    (
        "shiller.csv",
        Read(
            ["P", "D"],
            ["1871-09-01", "1871-10-01", "1871-11-01"],
            [[4.84, 4.59, 4.64], [0.26, 0.26, 0.27]],
            12,
        ),
    ),
    # quarters, months, weeks, years
    (
        "quarters.csv",
        Read(["gdp"], ["1947-01-01", "1947-04-01", "1947-07-01"], [[1.5, -0.25, 0.75]], 4),
    ),
    (
        "quarters_oecd.csv",
        Read(
            ["A", "B"],
            ["2020-01-01", "2020-04-01", "2020-07-01"],
            [[1.5, -9.25, 8.75], [2, -8, 7]],
            4,
        ),
    ),
    (
        "months_m.csv",
        Read(["cpi"], ["1990-01-01", "1990-02-01", "1990-03-01"], [[0.5, 0.25, 0.1]], 12),
    ),
    (
        "month_names.csv",
        Read(["fund"], ["2024-01-01", "2024-02-01", "2024-03-01"], [[0.5, -1.25, 2]], 12),
    ),
    (
        "weeks.csv",
        Read(["sales"], ["2024-01-01", "2024-01-08", "2024-01-15"], [[0.5, 0.25, -0.1]], 52),
    ),
    (
        "years.csv",
        Read(
            ["stocks", "bonds"],
            ["1990-01-01", "1991-01-01", "1992-01-01"],
            [[-3.1, 30.47, 7.62], [6.24, 15, 9.36]],
            1,
        ),
    ),
    # decimal commas, groups of digits, percent signs, currencies
    (
        "german_excel.csv",
        Read(
            ["Rendite Aktien", "Rendite Anleihen"],
            DAYS,
            [[1.25, -0.75, 0.5], [-0.1, 0.05, 0.15]],
            252,
        ),
    ),
    ("german_umlaut.csv", quotes("Schluss", "Schluss", DAYS, [1240.5, 1255.25, 1200])),
    (
        "german_umlaut.csv",
        Read(
            ["Er\u00f6ffnung", "Volumen"],
            DAYS,
            [[1234.5, 1240.5, 1255.25], [1_000_000, 1_100_000, 900_000]],
            252,
            {"columns": ["Er\u00f6ffnung", "Volumen"]},
        ),
    ),
    (
        "french_locale.csv",
        Read(
            ["indice"],
            ["2024-01-31", "2024-02-29", "2024-03-29"],
            [[7656.75, 7927.43, 8205.81]],
            12,
        ),
    ),
    ("swiss.csv", Read(["SMI"], DAYS, [[11130.5, 11090.25, 11151]], 252)),
    (
        "percent.csv",
        Read(
            ["Fund A", "Fund B"],
            ["2024-01-31", "2024-02-29", "2024-03-31"],
            [[1.25, -2, 0.5], [-0.4, 0.1, 1.3]],
            12,
        ),
    ),
    ("accounting.csv", Read(["P&L"], DAYS, [[1250, -2000.5, 300.25]], 252)),
    ("investing.csv", Refused(f"line 3: expected dates in ascending order.*{SORT}")),
    (
        "investing.csv",
        quotes(
            "Price", "Price", ["2024-01-12", "2024-01-15", "2024-01-16"], [1225, 1230, 1234.5]
        )._replace(options={"sort": True}),
    ),
    (
        "investing.csv",
        Refused(
            "line 2, column 'Vol.': expected a number, got '1.20M'; correct it, or choose other",
            {"sort": True, "columns": ["Vol."]},
        ),
    ),
    (
        "nasdaq_site.csv",
        quotes(
            "Close/Last",
            "Close/Last",
            ["2024-01-11", "2024-01-12", "2024-01-16"],
            [185.59, 185.92, 183.63],
        )._replace(options={"sort": True}),
    ),
    ("doubtful_decimal.csv", Refused("got '1,234', which may be 1234 or 1.234; say decimal='.'")),
    ("doubtful_decimal.csv", Read(["a"], MONTHS, [[1.234, 2.345]], 12, {"decimal": ","})),
    ("doubtful_decimal.csv", Read(["a"], MONTHS, [[1234, 2345]], 12, {"decimal": "."})),
    # separators, encodings, remarks
    ("utf16_tab.txt", AB._replace(names=["A", "B"])),
    ("tab.tsv", AB._replace(names=["a b", "c"])),
    ("pipe.txt", AB),
    ("blanks.dat", AB),
    ("bom.csv", AB._replace(names=["a"], values=[[1.5, 0.5]])),
    ("units_row.csv", AB._replace(names=["Oil USD", "Gas EUR"])),
    ("trailing_commas.csv", AB),
    (
        "comments.csv",
        Read(
            ["a"],
            ["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30"],
            [[1.5, NAN, 0.5, 2]],
            12,
            {},
            [r"in 1 of 4 rows: 1 in 'a' \(first on line 7\)\."],
        ),
    ),
    (
        "comments.csv",
        Read(
            ["a"],
            ["2024-01-31", "2024-03-31", "2024-04-30"],
            [[1.5, 0.5, 2]],
            12,
            {"drop_missing": True},
            ["dropped 1 of 4 rows"],
        ),
    ),
    (
        "terminal_names.csv",
        Read(["FX [EUR/USD]", "red [31m", "two lines"], MONTHS, [[1.5, 0.5], [-2, 3], [1, 2]], 12),
    ),
    # no dates
    ("one_column.csv", Read(["returns"], None, [[0.5, -1.25, 2]], None)),
    ("one_column_decimal_comma.csv", Read(["Rendite"], None, [[0.5, -1.25, 2]], None)),
    ("no_dates.csv", Read(["a", "b"], None, [[0.5, -1.25, 2], [1, 2, 1.5]], None)),
    ("row_numbers.csv", Read(["a", "b"], None, [[0.5, -1.25, 2], [1, 2, 1.5]], None)),
    # days and months, two digits for a year, times of the day
    (
        "day_first_clear.csv",
        Read(["a"], ["2024-01-30", "2024-01-31", "2024-02-01"], [[1.5, 0.5, 2]], 252),
    ),
    (
        "day_first_clear.csv",
        Refused(
            r"line 2, column 'Date': expected a date.*with dayfirst=False \(--no-dayfirst\) got "
            "'30/01/2024'",
            {"dayfirst": False},
        ),
    ),
    (
        "day_first_ambiguous.csv",
        Refused(
            "line 2, column 'Date'.*got '01/02/2024', which may be 2024-01-02 or 2024-02-01; say "
            r"dayfirst=True or dayfirst=False \(--dayfirst or --no-dayfirst\)"
        ),
    ),
    (
        "day_first_ambiguous.csv",
        Read(
            ["a"],
            ["2024-02-01", "2024-02-02", "2024-02-05"],
            [[1.5, 0.5, 2]],
            252,
            {"dayfirst": True},
        ),
    ),
    (
        "day_first_ambiguous.csv",
        Read(
            ["a"],
            ["2024-01-02", "2024-02-02", "2024-05-02"],
            [[1.5, 0.5, 2]],
            6.04,  # no regular distance: 2 in 121 days
            {"dayfirst": False},
        ),
    ),
    (
        "two_digit_years.csv",
        Read(["a"], ["2024-01-30", "2024-01-31", "2024-02-01"], [[1.5, 0.5, 2]], 252),
    ),
    (
        "minutes.csv",
        Read(
            ["ret"],
            [f"2024-01-0{day}T09:3{minute}" for day in (2, 3) for minute in range(3)],
            [[0.1, -0.2, 0.05] * 2],
            756,
        ),
    ),
    (
        "utc_hours.csv",
        Read(
            ["BTC"],
            ["2024-01-06T22:00", "2024-01-06T23:00", "2024-01-07T00:00"],
            [[0.1, -0.2, 0.05]],
            1.5 * 365,
            time_zone="UTC",
        ),
    ),
    ("exchange_milliseconds.csv", quotes("close", "close", DAYS, [42.5, 44.5, 43])),
    (
        "am_pm.csv",
        Read(
            ["a"],
            ["2024-01-30T09:30", "2024-01-30T16:00", "2024-01-31T09:30"],
            [[1.5, 0.5, 2]],
            1.5 * 252,
        ),
    ),
    # long format
    ("long.csv", AB._replace(names=["ACME", "BOLT"])),
    ("long.csv", AB._replace(names=["BOLT"], values=[[-2, 3]], options={"columns": ["BOLT"]})),
    ("long_by_ticker.csv", AB._replace(names=["BOLT", "ACME"], values=[[-2, 3], [1.5, 0.5]])),
    (
        "long_quotes.csv",
        two_quotes("Close", [51, 51.75, 50.5], [20, 20.5, 21]),
    ),
    (
        "long_crsp.csv",
        Read(["10001", "10002"], MONTHS, [[0.015, -0.02], [0.005, 0.03]], 12),
    ),
    (
        "long_repeated.csv",
        Refused(
            r"line 3: expected one row per date and series, got 'ACME' on 2024-01-31 again \(first "
            r"on line 2\); remove one"
        ),
    ),
    ("long_two_values.csv", Refused(r"long format.*got \['ret', 'size'\]; choose one with col")),
    (
        "long_two_values.csv",
        AB._replace(names=["ACME", "BOLT"], options={"columns": ["ret"]}),
    ),
    # JSON, compressed files
    ("records.json", AB),
    ("lines.json", AB),
    ("pandas_split.json", AB),
    ("pandas_index.json", AB),
    ("pandas_columns.json", AB),
    (
        "alpha_vantage.json",
        quotes("4. close", "4. close", DAYS, [10.5, 11.5, 11])._replace(options={"sort": True}),
    ),
    ("not_a_table.json", Refused(r"expected JSON records.*\['error'\].*write it with DataFrame")),
    ("plain.csv.gz", AB),
    ("one_file.zip", AB),
    ("two_files.zip", Refused(r"expected an archive of one file, got 2: .*; unpack it")),
    # Parquet, Excel
    ("index.parquet", AB),
    (
        "time_zone.parquet",
        Read(
            ["ret"],
            ["2024-01-02T14:30", "2024-01-02T15:30", "2024-01-03T14:30"],
            [[0.1, -0.2, 0.3]],
            1.5 * 252,
            time_zone="America/New_York",
        ),
    ),
    ("plain.xlsx", AB._replace(names=["A", "B"])),
    (
        "titles.xlsx",
        AB._replace(names=["Fund [A]", "Fund B"], notes=["read the sheet 'Returns', not"]),
    ),
    ("two_header_rows.xlsx", two_quotes("Close", [51, 51.75, 50.5], [20, 20.5, 21])),
    ("old_excel.xls", Refused("an Excel file of the format before 2007.*; save it as .xlsx")),
    # refused
    ("newest_first.csv", Refused(f"line 3.*got 2024-01-03 after 2024-01-04{SORT}")),
    ("newest_first.csv", Read(["a"], DAYS, [[2, 0.5, 1.5]], 252, {"sort": True})),
    ("header_only.csv", Refused(r"rows of data below the header \['date', 'a', 'b'\].*check that")),
    ("headerless.csv", Refused("expected a header line of column names.*add a line such as")),
    ("web_page.csv", Refused("got a web page; download the data themselves")),
    ("text_cell.csv", Refused("line 3, column 'b': expected a number, got 'suspended'; correct")),
    ("text_cell.csv", AB._replace(names=["a"], values=[[1.5, 0.5]], options={"columns": ["a"]})),
    ("footer.csv", Refused("line 4: expected 2 cells.*Source: a vendor.*remove it if it is a rem")),
    ("long_row.csv", Refused("line 3: expected 2 cells, as in the header, got 3.*correct the")),
    (
        "gap.csv",
        Read(
            ["GM", "F"],
            ["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30", "2024-05-31"],
            [[NAN, NAN, 1, 2, 0], [2, 3, NAN, 1, 2]],
            12,
            {},
            [
                r"3 cells.* in 3 of 5 rows: 2 in 'GM' \(first on line 2\), 1 in 'F' \(first on "
                rf"line 4\)\. {MISSING}"
            ],
        ),
    ),
]


@pytest.mark.parametrize(
    "name, expected", CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)]
)
def test_a_file_is_read_or_refused_with_the_remedy(name: str, expected: Read | Refused):
    path = FORMATS / name
    if path.suffix in NEEDS:
        pytest.importorskip(NEEDS[path.suffix])
    if isinstance(expected, Refused):
        with pytest.raises(ValueError, match=f"{name}.*{expected.message}"):
            read_returns(path, **expected.options)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        returns = read_returns(path, **expected.options)
    assert returns.names == tuple(expected.names)
    np.testing.assert_allclose(returns.values.T, expected.values, rtol=1e-13, atol=1e-13)
    if expected.dates is None:
        np.testing.assert_array_equal(returns.dates, np.arange(len(returns.values)))
    else:
        assert returns.dates.tolist() == np.array(expected.dates, returns.dates.dtype).tolist()
        assert np.issubdtype(returns.dates.dtype, np.datetime64)
        assert (returns.dates.dtype == "datetime64[D]") == ("T" not in expected.dates[0])
    assert returns.periods_per_year == expected.periods
    assert returns.time_zone == expected.time_zone
    messages = [str(warning.message) for warning in caught]
    assert {warning.category for warning in caught} <= {UserWarning}
    assert len(messages) == len(expected.notes)
    for message, note in zip(messages, expected.notes):
        assert re.search(note, message), message


def test_no_file_is_without_a_case():
    files = {path.name for path in FORMATS.iterdir()}
    assert files == {name for name, _ in CASES} and len(files) >= 40
