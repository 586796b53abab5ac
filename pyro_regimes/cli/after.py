"""The option --after: the probabilities of the regimes just before the first row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_regimes.cli.options import Start

if TYPE_CHECKING:
    import numpy as np

    from pyro_regimes.datasets import Returns
    from pyro_regimes.estimator import RegimeModel

_FILTERED = "filtered_"


def read_start(
    start: Start, after: str | None, model: RegimeModel, returns: Returns
) -> dict[str, Any]:
    """The arguments ``start`` and ``after`` of the methods of a model.

    :param after: probabilities with commas between them, or the name of a states.csv.
    :raises ValueError: if it is neither, the file does not suit the model or does not end before
        the first row, or ``start`` is given, too.
    """
    if after is None:
        return {"start": start.value}
    if start is not Start.auto:
        raise ValueError(f"expected either --after or --start, got both (--start {start.value})")
    numbers = _numbers(after)
    return {"after": _filtered_before(Path(after), model, returns) if numbers is None else numbers}


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


def _filtered_before(path: Path, model: RegimeModel, returns: Returns) -> np.ndarray:
    """The filtered probabilities of the last row of a table of states before the first of the data.

    Rows that both have are those of the data.
    """
    import numpy as np
    import pandas

    if not path.is_file():
        raise ValueError(
            "expected --after to be probabilities, such as 0.9,0.1, or the name of a states.csv, "
            f"got {str(path)!r}, which is no file"
        )
    try:
        states = pandas.read_csv(path)
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(
            f"expected --after to name a table of states (states.csv), got {str(path)!r}: {error}"
        ) from error
    names = [f"{_FILTERED}{name}" for name in model.regime_names_]
    missing = [name for name in names if name not in states]
    if missing or not len(states):
        raise ValueError(
            "expected --after to be probabilities, such as 0.9,0.1, or a states.csv of this "
            f"model with the columns {', '.join(names)}, got {str(path)!r} without "
            f"{', '.join(missing) or 'rows'}"
        )
    first = returns.dates[0]
    if "date" in states and np.issubdtype(returns.dates.dtype, np.datetime64):
        dates = [_date(cell) for cell in states["date"]]
        states = states[[date is None or date < first for date in dates]]
        if not len(states):
            raise ValueError(
                f"expected --after to have a row before the first row of DATA, {first}, got "
                f"{str(path)!r}, whose first row is {dates[0]}"
            )
    found: np.ndarray = states[names].iloc[-1].to_numpy(float)
    return found


def _date(cell: Any) -> np.datetime64 | None:
    import numpy as np

    try:
        return np.datetime64(str(cell))
    except ValueError:
        return None
