"""Rebuild ``sector_returns.csv.gz``, the embedded daily returns of seven equity sectors::

    pip download --no-deps skfolio==1.12.2
    python pyro_regimes/data/build_sector_returns.py skfolio-1.12.2-py3-none-any.whl

The prices of 20 stocks are read out of the wheel; skfolio itself is neither installed nor
imported. Only the standard library is used, so that any Python can check the file.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import math
import zipfile
from pathlib import Path
from typing import NamedTuple

PRICES_IN_WHEEL = "skfolio/datasets/data/sp500_dataset.csv.gz"

SECTORS = {
    "InfoTech": ("AAPL", "AMD", "MSFT"),
    "Financials": ("BAC", "JPM"),
    "ConsDiscretionary": ("BBY", "HD"),
    "Energy": ("CVX", "RRC", "XOM"),
    "Industrials": ("GE",),
    "HealthCare": ("JNJ", "LLY", "MRK", "PFE", "UNH"),
    "ConsStaples": ("KO", "PEP", "PG", "WMT"),
}

# Of a return in percent. The prices have three decimals, so nothing is lost; and the published
# log-likelihoods that the tests compare with were computed from returns rounded here.
DECIMALS = 6

EXPECTED_SHAPE = (8312, 7)
EXPECTED_DATES = ("1990-01-03", "2022-12-28")
EXPECTED_FIRST_ROW = (-0.583965, 2.081696, 6.081829, -0.876929, -0.187617, 0.071024, -0.645997)


class Table(NamedTuple):
    """Named columns over dates: ``rows[t][d]`` is the value of ``names[d]`` on ``dates[t]``."""

    dates: list[str]
    names: list[str]
    rows: list[list[float]]


def read_prices(wheel: str | Path) -> Table:
    """The stocks' adjusted closing prices, as skfolio ships them.

    :param wheel: path of the skfolio wheel.
    :raises KeyError: if the wheel has no such file of prices.
    """
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read(PRICES_IN_WHEEL)).decode("utf-8")
    header, *lines = csv.reader(io.StringIO(text, newline=""))
    return Table(
        dates=[line[0] for line in lines],
        names=header[1:],
        rows=[[float(price) for price in line[1:]] for line in lines],
    )


def sector_returns(prices: Table, sectors: dict[str, tuple[str, ...]]) -> Table:
    r"""Daily returns in percent, rounded to :data:`DECIMALS`, each sector the mean of its stocks:

    .. math:: r_{t,d} = \frac{100}{|d|} \sum_{i \in d} \left(\frac{p_{t,i}}{p_{t-1,i}} - 1\right).

    :param prices: T + 1 rows of prices.
    :param sectors: the names of each sector's stocks.
    :returns: T rows, one column a sector, in the order of ``sectors``.
    :raises ValueError: if a stock of ``sectors`` has no prices.
    """
    missing = sorted(set().union(*sectors.values()) - set(prices.names))
    if missing:
        raise ValueError(f"expected prices of every stock in sectors, got none of {missing}")
    columns = [[prices.names.index(stock) for stock in stocks] for stocks in sectors.values()]
    # fsum rounds once, whatever the Python version and the order of the stocks
    rows = [
        [
            round(100 * math.fsum(new[i] / old[i] - 1 for i in column) / len(column), DECIMALS)
            for column in columns
        ]
        for old, new in zip(prices.rows, prices.rows[1:])
    ]
    return Table(prices.dates[1:], list(sectors), rows)


def verify(returns: Table) -> None:
    """Check that ``returns`` are the series on which the project's numbers rest.

    :raises ValueError: naming the first check that fails.
    """
    checks = {
        "shape": (EXPECTED_SHAPE, (len(returns.rows), len(returns.names))),
        "first and last date": (EXPECTED_DATES, (returns.dates[0], returns.dates[-1])),
        "first row": (EXPECTED_FIRST_ROW, tuple(returns.rows[0])),
        "finite values": (True, all(math.isfinite(value) for row in returns.rows for value in row)),
    }
    for what, (expected, got) in checks.items():
        if got != expected:
            raise ValueError(f"{what} of the sector returns: expected {expected}, got {got}")


def write_csv(returns: Table, output: str | Path) -> None:
    """Write ``returns`` as a gzipped CSV, every float in the shortest form that reads back exactly.

    :param output: path of the file to write. No time and no name goes into it, so the same returns
        make the same bytes.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["date", *returns.names])
    for date, row in zip(returns.dates, returns.rows):
        writer.writerow([date, *map(repr, row)])
    with (
        open(output, "wb") as file,
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as archive,
    ):
        archive.write(text.getvalue().encode("ascii"))


def main(argv: list[str] | None = None) -> None:
    """Read the wheel that the command line names, check the result, and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", help="path of a skfolio wheel")
    parser.add_argument(
        "--output",
        default=Path(__file__).with_name("sector_returns.csv.gz"),
        help="file to write (default: next to this script)",
    )
    arguments = parser.parse_args(argv)
    returns = sector_returns(read_prices(arguments.wheel), SECTORS)
    verify(returns)
    write_csv(returns, arguments.output)


if __name__ == "__main__":
    main()
