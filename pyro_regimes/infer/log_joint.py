"""The log joint density of a model as a function of free coordinates of its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Callable

import numpy as np
import pyro
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_regimes.infer.charts import Chart, make_chart
from pyro_regimes.infer.handing import HandOut
from pyro_regimes.infer.information import Derivatives
from pyro_regimes.infer.isolation import copy_of_store, isolated
from pyro_regimes.infer.subsampling import is_subsampled
from pyro_regimes.infer.trace_checks import check_store
from pyro_regimes.infer.tracing import constraint_of, trace_model

Model = Callable[..., Any]


class Joint:
    """The log joint density of a model as a function of its free coordinates."""

    def __init__(
        self, model: Model, guide: Model | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._call = model, guide, args, kwargs
        before = {name for name, _ in pyro.get_param_store().named_parameters()}
        with torch.no_grad():
            handed = self.trace({})[1]
        check_store(handed.values)
        made = [name for name in handed.values if name not in before]
        if made:
            raise ValueError(
                f"expected fitted parameters in Pyro's parameter store, got none for {made}; fit "
                "the model first"
            )
        if not handed.values:
            raise ValueError("expected a model with parameters, got one without a pyro.param")
        self.estimates = {name: value.detach() for name, value in handed.values.items()}
        self.charts = [
            make_chart(name, value, constraint_of(name)) for name, value in self.estimates.items()
        ]

    def trace(self, values: Mapping[str, Tensor]) -> tuple[dict[str, Any], HandOut]:
        """Run the model at these parameters: its sites with log densities, by name.

        :raises ValueError: if it has a latent site without a point, or a subsampled plate.
        """
        model, guide, args, kwargs = self._call
        handed = HandOut(dict(values))
        trace, placed = trace_model(model, guide, args, kwargs, handed)
        if is_subsampled(trace):
            raise ValueError(
                "expected a model that sees all data, got one with a subsampled plate: call it "
                "without subsampling"
            )
        sites = {
            name: node
            for name, node in trace.nodes.items()
            if node["type"] == "sample" and not site_is_subsample(node)
        }
        latent = [n for n, node in sites.items() if not node["is_observed"] and n not in placed]
        if latent:
            raise ValueError(
                f"expected every latent site to have a point, got none for {latent}: pass a guide "
                "with points, such as AutoDelta"
            )
        with handed.substitution():
            trace.compute_log_prob()
        return sites, handed

    def log_density(self, u: Tensor) -> Tensor:
        """The log joint density at free coordinates ``(P,)``, a scalar."""
        sites, _ = self.trace(values_at(self.charts, u))
        parts = [node["log_prob_sum"].double() for node in sites.values()]
        total: Tensor = torch.stack(parts).sum()
        return total

    @property
    def num_free(self) -> int:
        """The number P of free coordinates."""
        return sum(len(chart.labels) for chart in self.charts)

    def hold_at_bounds(self, found: Derivatives) -> Derivatives:
        """Take coordinates that are too near a bound from the charts and from the derivatives."""
        near = [
            chart.near_bound(part)
            for chart, part in parts(self.charts, found.information.diagonal())
        ]
        self.charts = [c.keep(~which) for c, which in zip(self.charts, near, strict=True)]
        kept = ~torch.cat(near)
        return found._replace(
            gradient=found.gradient[kept], information=found.information[kept][:, kept]
        )


@contextmanager
def undisturbed() -> Iterator[None]:
    """A context with the caller's parameters, without handlers, that leaves the random state."""
    with isolated(copy_of_store()), torch.inference_mode(False), torch.enable_grad():
        state = pyro.util.get_rng_state()
        try:
            yield
        finally:
            pyro.util.set_rng_state(state)


def parts(charts: list[Chart], u: Tensor) -> Iterator[tuple[Chart, Tensor]]:
    """Each chart with its part of the free vector."""
    sizes = [len(chart.labels) for chart in charts]
    return zip(charts, u.split(sizes), strict=True)


def blocks(charts: list[Chart], covariance: Tensor) -> list[Tensor]:
    """The covariance of the coordinates of each chart."""
    sizes = [len(chart.labels) for chart in charts]
    ends = np.cumsum(sizes)
    return [covariance[end - n : end, end - n : end] for end, n in zip(ends, sizes)]


def values_at(charts: list[Chart], u: Tensor) -> dict[str, Tensor]:
    """The values of the parameters at free coordinates, by name."""
    return {chart.name: chart.value(part) for chart, part in parts(charts, u)}
