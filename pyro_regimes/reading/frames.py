"""Reads Excel workbooks, Parquet and JSON."""

from __future__ import annotations

import io
import json
from typing import Any

from pyro_regimes.reading.cells import clean_name
from pyro_regimes.reading.packages import pandas, require
from pyro_regimes.reading.source import Source
from pyro_regimes.reading.table import Table, locate

_HEAD_ROWS = 200


def read_excel(source: Source) -> Table:
    """Read the first sheet of a workbook that has a table."""
    require("openpyxl", f"{source.name}: reading .xlsx")
    content = io.BytesIO(source.content)
    try:
        sheets = pandas().read_excel(
            content, sheet_name=None, header=None, dtype=object, engine="openpyxl"
        )
    except Exception as error:  # of many kinds, by the part that is broken
        raise ValueError(
            f"{source.name}: expected an Excel workbook, got a broken one ({error}); save it again"
        ) from error
    filled = {name: sheet for name, sheet in sheets.items() if not sheet.dropna(how="all").empty}
    if not filled:
        raise ValueError(
            f"{source.name}: expected a header row and rows of data, got an empty workbook; "
            "check that it was saved"
        )
    first, *others = filled
    sheet = filled[first].dropna(axis=1, how="all")
    rows = sheet.head(_HEAD_ROWS).values.tolist()
    layout = locate(source.name, rows)
    header = [[clean_name(cell) for cell in rows[i]] for i in layout.header]
    body = sheet.iloc[layout.data :].dropna(how="all")
    numbers = body.index.to_numpy() + 1
    notes = (f"{source.name}: read the sheet {first!r}, not {others}",) if others else ()
    columns = [body.iloc[:, i].reset_index(drop=True).infer_objects() for i in range(layout.width)]
    return Table(source.name, header, columns, lambda row: f"row {numbers[row]}", notes=notes)


def read_parquet(source: Source) -> Table:
    """Read a Parquet file."""
    require("pyarrow", f"{source.name}: reading .parquet")
    try:
        frame = pandas().read_parquet(io.BytesIO(source.content), engine="pyarrow")
    except Exception as error:  # of many kinds, by the part that is broken
        raise ValueError(
            f"{source.name}: expected a Parquet file, got a broken one ({error}); write it again"
        ) from error
    return _from_frame(source.name, frame)


def read_json(source: Source) -> Table:
    """Read JSON in one of the layouts of ``pandas.DataFrame.to_json``, or one record a line.

    A dictionary in which only one entry is a table, as web services answer, is read as that table.
    """
    try:
        text = source.content.decode("utf-8-sig")
        try:
            data = json.loads(text)
        except json.JSONDecodeError:
            data = [json.loads(line) for line in text.splitlines() if line.strip()]
        frame = _with_dates(_json_frame(data))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{source.name}: expected JSON records, columns or a split table as pandas writes "
            f"them, got something else ({error}); write it with DataFrame.to_json"
        ) from error
    return _from_frame(source.name, frame)


def _json_frame(data: Any) -> Any:
    pd = pandas()
    if isinstance(data, list):
        if not all(isinstance(row, dict) for row in data):
            raise ValueError("a list whose entries are not all records")
        return pd.DataFrame(data)
    if "columns" in data and "data" in data:
        index = data.get("index")
        return pd.DataFrame(data["data"], columns=data["columns"], index=index)
    if "schema" in data and "data" in data:
        return pd.DataFrame(data["data"])
    tables = [value for value in data.values() if isinstance(value, dict)]
    depth_two = [
        table for table in tables if table and all(isinstance(row, dict) for row in table.values())
    ]
    lists = [value for value in data.values() if isinstance(value, list)]
    if len(depth_two) == 1 and len(depth_two) < len(data):
        return pd.DataFrame.from_dict(depth_two[0], orient="index")
    if len(lists) == 1 < len(data) and all(isinstance(row, dict) for row in lists[0]):
        return pd.DataFrame(lists[0])
    if len(tables) == len(data):
        frame = pd.DataFrame(data)
        # orient="index" has a record for each date
        outer = frame.columns.astype(str)
        return frame.T if outer.str.match(r"\d{4}-\d\d|-?\d{9,}").all() else frame
    if len(lists) == len(data):
        return pd.DataFrame(data)
    raise ValueError(f"a dictionary with the entries {list(data)[:5]}")


def _with_dates(frame: Any) -> Any:
    """pandas writes the dates of an index as milliseconds since 1970 by default."""
    for name, column in frame.items():
        if column.dtype == object and column.map(type).isin([dict, list]).any():
            raise ValueError(f"a table within the column {name!r}")
    texts = frame.index.astype(str)
    if texts.str.fullmatch(r"-?\d{9,13}").all():
        frame.index = pandas().to_datetime(texts.astype("int64"), unit="ms")
    return frame


def _from_frame(name: str, frame: Any) -> Table:
    pd = pandas()
    numbered = isinstance(frame.index, pd.RangeIndex) or (
        frame.index.inferred_type == "string" and list(frame.index[:2]) == ["0", "1"]
    )
    if numbered:
        frame = frame.reset_index(drop=True)
    else:
        levels = frame.index.names
        frame = frame.reset_index(names=["" if level is None else level for level in levels])
    if frame.empty:
        raise ValueError(
            f"{name}: expected rows of data in the columns {list(frame.columns)[:8]}, got none; "
            "check that the file was written completely"
        )
    depth = frame.columns.nlevels
    header = [
        [clean_name(cell) for cell in frame.columns.get_level_values(level)]
        for level in range(depth)
    ]
    columns = [frame.iloc[:, i] for i in range(frame.shape[1])]
    return Table(name, header, columns, lambda row: f"record {row + 1}")
