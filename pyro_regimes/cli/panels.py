"""Several sequences in one table, named by a column."""

from __future__ import annotations

from typing import Any


def panels(data: Any, by: str | None) -> tuple[dict[str, Any], Any, list[int] | None]:
    """The rows of each sequence together, in the order in which sequences appear.

    :param data: a DataFrame, perhaps with dates as its index.
    :param by: the column that names the sequence of each row; None is one sequence.
    :return: columns that label the rows, the table, and the number of rows of each sequence.
    :raises ValueError: if there is no such column, a row has no name, or the dates of a sequence
        are not in order.
    """
    has_dates = data.index.dtype.kind == "M"
    label = "date" if has_dates else "row"
    if by is None:
        return {label: data.index.to_numpy()}, data, None
    from pyro_regimes.estimator.inputs import check_dates

    if by not in data.columns:
        raise ValueError(f"expected --by to name a column, got {by!r}; there are {[*data.columns]}")
    gaps = data[by].isna().to_numpy().nonzero()[0]
    if len(gaps):
        raise ValueError(
            f"expected a name in the column {by!r} of every row, got none in row {gaps[0]}; fill it"
        )
    parts = [part for _, part in data.groupby(by, sort=False)]
    for part in parts:
        try:
            check_dates(part)
        except ValueError as error:
            raise ValueError(f"{by} {part[by].iloc[0]!r}: {error}") from None
    together = _joined(parts)
    labels = {by: together[by].to_numpy(), label: together.index.to_numpy()}
    return labels, together.reset_index(drop=True), [len(part) for part in parts]


def _joined(parts: list[Any]) -> Any:
    import pandas

    return pandas.concat(parts)
