"""Arguments of a distribution inside another one, as arguments of the whole.

They have the name of their place before their own: ``parts.0.loc``, ``base_dist.concentration``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from pyro_regimes.emissions.base import Argument, Arguments, Joint, Pooled, Stats
from pyro_regimes.emissions.charts import Chart

V = TypeVar("V")


def own(given: dict[str, V], prefix: str) -> dict[str, V]:
    """The arguments of the inner distribution, by the names that its family has for them."""
    return {
        name.removeprefix(prefix): value
        for name, value in given.items()
        if name.startswith(prefix)
    }


def own_names(names: frozenset[str], prefix: str) -> frozenset[str]:
    """The same of names alone."""
    return frozenset(own(dict.fromkeys(names), prefix))


def _reduce(
    stats: Any,
    given: Arguments,
    weighted: bool,
    argument: Argument,
    prefix: str,
    inner: Callable[[Any], Stats],
) -> Pooled:
    return argument.reduce(inner(stats), own(given, prefix), weighted)


def _reduce_jointly(
    stats: Any, given: Arguments, joint: Joint, prefix: str, inner: Callable[[Any], Stats]
) -> Pooled:
    return joint.reduce(inner(stats), own(given, prefix))


def _unit(given: Arguments, chart: Chart, prefix: str) -> Tensor:
    assert chart.unit is not None
    return chart.unit(own(given, prefix))


def of_whole(
    argument: Argument, prefix: str, inner: Callable[[Any], Stats], **changes: Any
) -> Argument:
    """An argument of an inner distribution as one of the whole.

    It has the kind of the inner argument, so that a parameter may be used in several places.

    :param prefix: what stands before its name.
    :param inner: ``statistics of the whole -> statistics of the inner family``.
    :param changes: further fields to replace.
    """
    chart, joint = argument.chart, argument.joint
    if chart is not None and chart.unit is not None:
        chart = chart._replace(unit=partial(_unit, chart=chart, prefix=prefix))
    if joint is not None:
        joint = joint._replace(
            other=tuple(prefix + name for name in joint.other),
            reduce=partial(_reduce_jointly, joint=joint, prefix=prefix, inner=inner),
        )
    return replace(
        argument,
        name=prefix + argument.name,
        reduce=partial(_reduce, argument=argument, prefix=prefix, inner=inner),
        chart=chart,
        joint=joint,
        **changes,
    )
