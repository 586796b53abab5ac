"""The parameters of several fits of one model as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_regimes.estimator.parameter_errors import by_name
from pyro_regimes.estimator.regime_model import RegimeModel
from pyro_regimes.reading.packages import require

if TYPE_CHECKING:
    import pandas as pd


def parameter_table(
    models: Sequence[RegimeModel | None], regimes: list[str], series: list[str], index: Any
) -> pd.DataFrame:
    """A row for each fit, NaN where there is none.

    Columns have the attribute, without the underscore, and the place in it: names of regimes and of
    series, in the order of the dims.

    :param index: of the rows.
    """
    pandas = require("pandas", "parameters")
    rows: list[dict[tuple[str, tuple[int, ...]], float]] = []
    labels: dict[tuple[str, tuple[int, ...]], tuple[str, str]] = {}
    chain = {"initial_probs": [regimes], "transition_matrix": [regimes, regimes]}
    for model in models:
        rows.append({})
        if model is None:
            continue
        hmm = model._hmm()
        for name, value in by_name(hmm.parameters).items():
            names = chain.get(name) or hmm.spec.place_names(name, regimes, series)
            for place in np.ndindex(value.shape):
                words = (along[i] for along, i in zip(names, place, strict=True))
                rows[-1][name, place] = value[place]
                labels[name, place] = name, ", ".join(words)
    values = [[row.get(place, np.nan) for place in labels] for row in rows]
    columns = pandas.MultiIndex.from_tuples(labels.values())
    return pandas.DataFrame(values, index=index, columns=columns)
