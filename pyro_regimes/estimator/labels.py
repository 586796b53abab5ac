"""Values that a user gives with labels, as pandas does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro_regimes.messages import shown


def in_order(name: str, value: Any, labels: Sequence[str] | None) -> Any:
    """Values with labels in the order of these labels; others as they are.

    A pandas Series has its index, unless that numbers the values, and a dict its keys.

    :param name: of the argument, for messages.
    :param labels: None if they are not known.
    :raises ValueError: if the values have other labels.
    """
    is_series = hasattr(value, "iloc") and getattr(value, "ndim", 0) == 1
    if labels is None or not (is_series or isinstance(value, Mapping)):
        return value
    given, wanted = list(value.keys()), [str(label) for label in labels]
    if given == wanted or (is_series and given == list(range(len(given)))):
        return list(value) if is_series else list(value.values())
    if len(set(wanted)) < len(wanted) or len(given) != len(wanted) or {*given} != {*wanted}:
        raise ValueError(
            f"expected {name} to have the labels {shown(wanted)}, got {shown(given)}"
        )
    return [value[label] for label in wanted]
