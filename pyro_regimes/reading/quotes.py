"""The quotes of a day (open, high, low, close, volume), of which one is read as the prices."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyro_regimes.reading.table import base_name

# The fields of quotes, as vendors name them, in lower case.
CLOSE = ["adj close", "adjusted close", "adj. close", "adjclose", "adj_close", "adjusted_close"]
CLOSE += ["close", "close/last", "px_last", "last price", "last", "price", "settle", "schluss"]
CLOSE += ["schlusskurs", "zamkniecie"]
CLOSE.insert(0, "adjusted")
_OPEN_HIGH_LOW = {
    *["open", "high", "low", "px_open", "px_high", "px_low"],
    *["open price", "high price", "low price", "er\u00f6ffnung", "hoch", "tief"],
    *["otwarcie", "najwyzszy", "najnizszy"],
}
OTHERS = {
    *["volume", "vol", "vol.", "px_volume", "wolumen", "volumen", "st\u00fccke", "openint"],
    *["open interest", "change %", "dividends", "stock splits", "adj volume", "dividend amount"],
    *["net", "%chg", "chg", "% chg", "change", "change%", "% change", "percent change"],
    *["split coefficient", "capital gains", "turnover", "amount", "quote_volume", "vwap"],
}


def field_of(name: str) -> str:
    """The name of a field of quotes as the lists here have it: ``4. close`` is ``close``."""
    return re.sub(r"^\d+\. ", "", base_name(name)).replace("*", "").strip()


def are_prices(chosen: Sequence[str], fields: Sequence[str]) -> bool:
    """Whether the fields are quotes, and the chosen ones of them prices."""
    known = [field_of(field) for field in chosen]
    return choose_quote(fields) is not None and all(
        name in CLOSE or name in _OPEN_HIGH_LOW for name in known
    )


def split_names(names: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """The tickers and the fields of names such as ``ACME.Close`` or ``Close_ACME``.

    None if not all names are such, or the fields are no quotes.
    """
    known = sorted({*CLOSE, *_OPEN_HIGH_LOW, *OTHERS}, key=len, reverse=True)
    listed = "|".join(map(re.escape, known))
    ticker, field = "(?P<ticker>.+)", f"(?P<field>{listed})"
    for pattern in (f"{ticker}[._ ]{field}", f"{field}[._ ]{ticker}"):
        matches = [re.fullmatch(pattern, name, re.IGNORECASE) for name in names]
        found = [match for match in matches if match]
        fields = [match["field"] for match in found]
        if len(found) == len(names) and choose_quote(list(dict.fromkeys(fields))) is not None:
            return [match["ticker"] for match in found], fields
    return None


def choose_quote(fields: Sequence[str]) -> int | None:
    """The closing price among the fields of quotes; None if the fields are no quotes."""
    known = [field_of(field) for field in fields]
    closes = [known.index(name) for name in CLOSE if name in known]
    others = [name for name in known if name in _OPEN_HIGH_LOW or name in OTHERS]
    extra = [name for name in known if name not in OTHERS | _OPEN_HIGH_LOW | set(CLOSE)]
    num_quotes = sum(name in _OPEN_HIGH_LOW or name in CLOSE for name in known)
    if not closes or not (num_quotes >= 3 or (len(known) > 1 and not extra)):
        return None
    return closes[0] if others or len(closes) > 1 else None


def say_quote(source: str, field: str, fields: Sequence[str]) -> str:
    """The note on which of the fields was taken."""
    others = [each for each in fields if each != field]
    return (
        f"{source}: took {field!r} and left out {', '.join(map(repr, others))}; "
        "columns= (--columns) chooses others"
    )
