"""The number of steps between the rows of a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pyro_regimes.distributions.gaps import Gaps
from pyro_regimes.estimator.by_row import by_row
from pyro_regimes.estimator.inputs import is_missing
from pyro_regimes.estimator.sequences import first_rows
from pyro_regimes.messages import shown

Steps = npt.NDArray[np.int64]

_LONGEST = 2**31 - 1


def read_gaps(gaps: Any, X: Any, sizes: list[int], *, is_after: bool = False) -> Steps | None:
    """The number of steps from the row before to each row, ``(T,)``.

    :param gaps: as in :meth:`.RegimeModel.fit`.
    :param X: the data, whose index and keys those of ``gaps`` must equal.
    :param sizes: the number of rows of each sequence.
    :param is_after: whether something is known of the row before the first of each sequence. NaN is
        one step there; elsewhere the number of the first row does not count, and is 1.
    :return: None if every row follows the one before at once.
    :raises ValueError: if they are not valid.
    """
    if gaps is None:
        return None
    values = by_row("gaps", gaps, X, sizes)
    if values.ndim != 1 or values.dtype.kind not in "iufO":
        remedy = ""
        if values.dtype.kind == "m":
            remedy = "; divide by the length of a step, such as np.timedelta64(1, 'D')"
        raise ValueError(
            "expected gaps to be integers (T,), the number of steps since the row before, got "
            f"shape {values.shape} of dtype {values.dtype}{remedy}"
        )
    steps = np.ones(len(values))
    firsts = first_rows(sizes)
    counts = np.ones(len(values), np.bool_)
    counts[firsts] = [
        is_after and not (is_missing(each) or each != each) for each in values[firsts]
    ]
    try:
        steps[counts] = values[counts].astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected gaps to be integers (T,), got {shown(gaps)}") from error
    wrong = np.flatnonzero(~((steps >= 1) & (steps <= _LONGEST) & (steps == np.floor(steps))))
    if len(wrong):
        where = "after the first row of a sequence"
        if wrong[0] in firsts:
            where = "where after is given, or NaN for one step at the first row of a sequence"
        raise ValueError(
            f"expected gaps to be integers from 1 to {_LONGEST} {where}, got {values[wrong[0]]} at "
            f"row {wrong[0]}"
        )
    found: Steps = steps.astype(np.int64)
    return None if (found == 1).all() else found


def row_logits(step_logits: Tensor, beside: Mapping[str, Tensor]) -> Tensor:
    """The logits of the transitions from row to row.

    :param step_logits: those of one step, ``(1, K, K)``.
    :param beside: arguments of the distribution, of which "gaps" may be one.
    """
    gaps = Gaps.of(beside.get("gaps"))
    return step_logits if gaps is None else gaps.transition_logits(step_logits)
