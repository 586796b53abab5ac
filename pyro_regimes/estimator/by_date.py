"""The regimes of the rows of a table, as a table of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from pyro_regimes.estimator.inputs import as_tables
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.reading.packages import require
from pyro_regimes.reading.returns import Returns

if TYPE_CHECKING:
    import pandas as pd


def regimes_frame(
    index: Any,
    names: Sequence[str],
    path: npt.NDArray[Any],
    filtered_probs: Array,
    smoothed_probs: Array,
) -> pd.DataFrame:
    """A row for each row of the data; the names of the columns say which of them look ahead.

    :param index: of the rows; None numbers them.
    :param path: the most likely path, ``(T,)``, -1 where there is none.
    :return: the columns of :meth:`.RegimeModel.regimes`.
    :raises ImportError: if pandas is not installed (it is part of the ``app`` extra).
    """
    pandas = require("pandas", "regimes")
    columns = {"viterbi": [names[k] if k >= 0 else "" for k in path], "viterbi_number": path}
    for kind, probs in (("filtered", filtered_probs), ("smoothed", smoothed_probs)):
        columns |= {f"{kind}_{name}": probs[:, k] for k, name in enumerate(names)}
    return pandas.DataFrame(columns, index=index)


def index_of(X: Any, num_rows: int) -> Any:
    """The index of a table or a series, or numbers of rows; of several, with their keys in front.

    :param X: the data, in any form that a model takes.
    """
    pandas = require("pandas", "regimes")
    if isinstance(X, Returns):
        X = X.to_frame()
    if isinstance(X, Mapping) and not hasattr(X, "shape"):
        keys, tables = list(X), list(X.values())
    elif isinstance(X, (list, tuple)) and as_tables(X)[1]:
        keys, tables = list(range(len(X))), list(X)
    else:
        return X.index if hasattr(X, "iloc") else pandas.RangeIndex(num_rows)
    each = [table.index if hasattr(table, "iloc") else range(len(table)) for table in tables]
    rows = [(key, row) for key, index in zip(keys, each, strict=True) for row in index]
    return pandas.MultiIndex.from_tuples(rows, names=["sequence", None])
