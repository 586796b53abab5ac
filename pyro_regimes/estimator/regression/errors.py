"""Standard errors of a Markov-switching regression, of all numbers that the user sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.params.param_store import ParamStoreDict
from pyro.poutine import trace
from torch import Tensor

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression.fitting import packed_lengths
from pyro_regimes.estimator.regression.form import Form, RegressionParameters
from pyro_regimes.estimator.regression.rows import Rows
from pyro_regimes.infer.isolation import isolated
from pyro_regimes.infer.uncertainty import standard_errors

#: Arguments that may be on a bound, where there is no standard error, by their attributes.
_PROBABILITIES = {"initial_probs": "initial_probs", "transition_probs": "transition_matrix"}


class RegressionErrors(NamedTuple):
    """Standard errors in the units of the data; NaN where there is none."""

    values: RegressionParameters  #: in the shapes of the parameters
    covariance: Array  #: of the coefficients ``(K P, K P)``, regime by regime
    notes: list[str]
    method: str


def regression_errors(
    form: Form, parameters: RegressionParameters, rows: Rows, sizes: list[int], method: str
) -> RegressionErrors:
    """The standard errors at the maximum, by the delta method from :func:`.standard_errors`.

    :param rows: those of the fit.
    :param method: "observed" or "sandwich".
    """
    arguments = form.to_arguments(parameters)
    model = form.pyro_model(arguments, form.tensors(rows), packed_lengths(sizes))
    found = delta_errors(model, arguments, form.from_arguments, method)
    values = RegressionParameters._make(map(found.errors.get, RegressionParameters._fields))
    return RegressionErrors(values, found.covariance, found.notes, found.method)


class DeltaErrors(NamedTuple):
    """Standard errors of functions of the parameters of a Pyro model."""

    errors: dict[str, Any]  #: of each function, in its shape
    covariance: Array  #: of the one named "coefficients"
    notes: list[str]
    method: str


def delta_errors(
    model: Callable[[], Any],
    arguments: Mapping[str, Tensor],
    functions: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    method: str,
) -> DeltaErrors:
    """The standard errors of what the user sees, by the delta method.

    :param arguments: of the model, at the maximum.
    :param functions: of the arguments to what the user sees.
    """
    with isolated(ParamStoreDict()), torch.no_grad():
        trace(model).get_trace()
        free = standard_errors(model, method=method)
    constants = {name: v for name, v in arguments.items() if name not in free.estimates}
    found = functions(arguments)
    names, shapes = list(found), [tuple(value.shape) for value in found.values()]
    derived = free.delta(
        lambda values: torch.cat(
            [each.flatten() for each in functions({**constants, **values}).values()]
        )
    )
    errors: dict[str, Any] = {}
    begin = 0
    covariance = derived.covariance.numpy()
    every = derived.standard_errors.numpy()
    for name, shape in zip(names, shapes, strict=True):
        size = int(np.prod(shape))
        errors[name] = every[begin : begin + size].reshape(shape)
        if name == "coefficients":
            own = covariance[begin : begin + size, begin : begin + size]
        begin += size
    for name, attribute in _PROBABILITIES.items():
        if name in free.estimates and attribute in errors:
            errors[attribute][free.standard_errors[name].isnan().numpy()] = np.nan
    return DeltaErrors(errors, own, list(free.notes), free.method)
