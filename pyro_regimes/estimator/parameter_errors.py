"""Standard errors of the parameters of a fitted regime model."""

from __future__ import annotations

import re
from typing import Callable, NamedTuple

import numpy as np
import torch
from pyro.params.param_store import ParamStoreDict
from pyro.poutine import trace

from pyro_regimes.estimator.annotations import Annotations
from pyro_regimes.estimator.convergence import Flags
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.parameters import CHAIN_ATTRIBUTES, Array, Parameters
from pyro_regimes.estimator.pyro_model import (
    CHAIN_ARGUMENTS,
    argument_names,
    from_arguments,
    pyro_model,
    stationary_initial,
    to_arguments,
)
from pyro_regimes.estimator.sequences import pack
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.states import Bools
from pyro_regimes.estimator.stickiness import sticky_guide
from pyro_regimes.estimator.units import Units
from pyro_regimes.infer.information import transformed
from pyro_regimes.infer.isolation import isolated, plain_torch
from pyro_regimes.infer.uncertainty import StandardErrors, standard_errors
from pyro_regimes.messages import shown

#: The step of differences, in standard errors of a coordinate given the others.
_STEP = 1e-3

#: The share of a value by which rounding may move it.
_ROUNDING = 64 * float(np.finfo(np.float64).eps)


class Held(NamedTuple):
    """What a fit does not estimate."""

    fixed: list[str]  #: names of attributes
    initial: str
    mask: Bools | None  #: of the transition matrix
    stickiness: float


class ParameterErrors(NamedTuple):
    """The uncertainty of the parameters of a fitted model, in the units of the data.

    The entries are those of all attributes, one after the other. What a fit holds (``fixed``
    parameters, initial probabilities unless they are free, transitions that are not allowed) has
    the error 0.
    """

    standard_errors: dict[str, Array]  #: by attribute, in its shape; NaN where there is none
    names: list[str]  #: of the entries, such as ``means[0, 1]``
    covariance: Array  #: ``(Q, Q)``, of the entries; NaN where there is none
    notes: list[str]  #: what has no standard error and why, and other doubts
    method: str  #: "observed" or "sandwich", with the kind of the scores
    free: StandardErrors  #: of the Pyro model, in the units in which it is computed
    chart: Chart  #: the parameters as a function of the free vector of that model

    def delta(
        self, function: Callable[[Parameters], Array], *, is_centered: bool = False
    ) -> Array:
        """The covariance of numbers ``(n,)`` that follow from the parameters, by the delta method.

        Their derivatives are central differences with Richardson's extrapolation.

        :param is_centered: whether they are the same with series less their typical level. Other
            numbers lose digits where the level is many times the spread.
        """
        covariance = self.free.covariance
        with plain_torch(covariance.device):
            jacobian = torch.from_numpy(self.chart.jacobian(self.free, function, is_centered))
            return transformed(covariance, jacobian.to(covariance)).cpu().numpy()

    def draw(self, num_samples: int, seed: int) -> list[Parameters]:
        """Draws from the asymptotic normal distribution, as in :meth:`.StandardErrors.draw`."""
        with plain_torch(self.free.covariance.device):
            return [self.chart.parameters(each) for each in self.free.draw(num_samples, seed)]


class Chart(NamedTuple):
    """The parameters of a model in the units of the data, from arguments of its Pyro model."""

    spec: Spec
    estimates: Parameters  #: in the units of the data
    units: Units
    scaled: Parameters  #: the estimates in these units
    constants: dict[str, torch.Tensor]  #: the arguments that are no parameters, and others
    initial: str

    def parameters(
        self, values: dict[str, torch.Tensor], is_centered: bool = False
    ) -> Parameters:
        """The parameters where the Pyro model's have these values.

        :param is_centered: of series less their typical level.
        """
        units = self.units
        if is_centered:
            units = units._replace(center=np.zeros_like(units.center))
        found = from_arguments(self.constants | values, self.scaled, self.spec)
        if self.initial == "stationary":
            matrix = torch.from_numpy(found.transition_matrix)
            found = found._replace(initial_probs=stationary_initial(matrix).numpy())
        return found._replace(emission=self.spec.unscale(found.emission, units))

    def jacobian(
        self,
        free: StandardErrors,
        function: Callable[[Parameters], Array],
        is_centered: bool = False,
    ) -> Array:
        """Derivatives of numbers ``(n,)`` in the free vector ``(P,)``: ``(n, P)``."""

        device = free.information.device

        def at(u: Array) -> Array:
            values = free.at(torch.from_numpy(u).to(device))
            return function(self.parameters(values, is_centered))

        curvature = free.information.diagonal().cpu().numpy()
        steps = _STEP / np.sqrt(np.where(curvature > 0, curvature, 1.0))
        columns = []
        for j, step in enumerate(steps):
            e = np.zeros(len(steps))
            e[j] = step
            with np.errstate(invalid="ignore"):  # a regime that is never left: inf - inf
                near, far = (at(n * e) - at(-n * e) for n in (1, 2))
            slope = (8 * near - far) / (12 * step)
            moved = np.abs(near) > _ROUNDING * np.abs(at(e))
            columns.append(np.where(moved | np.isnan(near), slope, 0.0))
        n = len(at(np.zeros(len(steps))))
        return np.stack(columns, -1) if columns else np.zeros((n, 0))


def parameter_errors(
    hmm: FittedHMM,
    held: Held,
    data: Array,
    sizes: list[int],
    method: str,
) -> ParameterErrors:
    """The standard errors of fitted parameters, computed in float64.

    :param data: those of the fit, ``(T, D)``.
    :raises ValueError: if the method cannot be used.
    """
    check_weights(hmm.annotations, method)
    with plain_torch(hmm.device):
        free, chart = _of_pyro_model(hmm, held, data, sizes, method)
        return _of_attributes(free, chart, held)


def _of_pyro_model(
    hmm: FittedHMM, held: Held, data: Array, sizes: list[int], method: str
) -> tuple[StandardErrors, Chart]:
    """Those of the Pyro model, in units in which it is computed."""
    spec, parameters = hmm.spec, hmm.parameters
    units = spec.units_of(parameters.emission)
    scaled = parameters._replace(emission=spec.scale(parameters.emission, units))
    arguments = to_arguments(scaled, spec, device=hmm.device)
    constant = argument_names(held.fixed, spec)
    model = pyro_model(
        arguments, spec, fixed=constant, initial=held.initial, stickiness=held.stickiness
    )
    guide = sticky_guide(arguments["transition_probs"]) if held.stickiness else None
    x, lengths = pack(units.scale(data), sizes, dtype=torch.float64, device=hmm.device)
    beside = hmm.annotations.of_model(torch.float64, hmm.device)
    with isolated(ParamStoreDict()), torch.no_grad():
        if guide is not None:
            guide()
        trace(model).get_trace(x, lengths, **beside)
        free = standard_errors(model, guide, x, lengths, method=method, **beside)
    return free, Chart(spec, parameters, units, scaled, arguments, held.initial)


def _of_attributes(free: StandardErrors, chart: Chart, held: Held) -> ParameterErrors:
    names = (*CHAIN_ATTRIBUTES, *chart.spec.attributes)
    jacobian = torch.from_numpy(chart.jacobian(free, flat, is_centered=True))
    covariance = transformed(free.covariance, jacobian.to(free.covariance)).cpu().numpy()
    values = by_name(chart.estimates)
    bounds = _without_errors(free, chart, held)
    missing = np.concatenate([bounds[name].ravel() for name in names])
    covariance[missing] = np.nan
    covariance[:, missing] = np.nan
    errors, start = {}, 0
    with np.errstate(invalid="ignore"):
        every = np.sqrt(np.maximum(covariance.diagonal(), 0))
    for name in names:
        size = values[name].size
        errors[name] = every[start : start + size].reshape(values[name].shape)
        start += size
    places = [
        f"{name}[{', '.join(map(str, index))}]"
        for name in names
        for index in np.ndindex(values[name].shape)
    ]
    others = [
        _renamed(note, chart.spec) for note in free.notes if not note.startswith("on a bound")
    ]
    notes = [*_on_bounds(places, missing), *others]
    return ParameterErrors(errors, places, covariance, notes, free.method, free, chart)


def _without_errors(free: StandardErrors, chart: Chart, held: Held) -> dict[str, Flags]:
    """Which entries of each attribute are on a bound, though a fit may move them."""
    scaled = chart.scaled
    values = by_name(scaled)
    flags: dict[str, Flags] = {n: np.zeros(v.shape, np.bool_) for n, v in values.items()}
    arguments = _attributes(chart.spec)
    for each in free.charts:
        own = each.on_bound.cpu().numpy()
        name = arguments[each.name]
        flags[name] = own.reshape(flags[name].shape)
    if held.mask is not None:
        allowed = held.mask
        # A row with one transition is known.
        known = ~allowed | (allowed.sum(-1, keepdims=True) == 1)
        flags["transition_matrix"] = flags["transition_matrix"] & ~known
    return flags


def _on_bounds(places: list[str], missing: Flags) -> list[str]:
    names = [name for name, flag in zip(places, missing, strict=True) if flag]
    return [f"on a bound, without a standard error: {', '.join(names)}"] if names else []


def _renamed(note: str, spec: Spec) -> str:
    """A note with the names of attributes in the place of those of arguments."""
    for argument, name in _attributes(spec).items():
        note = re.sub(rf"(?<![\w.]){argument}\[", f"{name}[", note)
    return note


def _attributes(spec: Spec) -> dict[str, str]:
    """The attribute of each argument of the Pyro model."""
    arguments = (*CHAIN_ARGUMENTS, *spec.arguments)
    return dict(zip(arguments, (*CHAIN_ATTRIBUTES, *spec.attributes), strict=True))


def by_name(parameters: Parameters) -> dict[str, Array]:
    """The attributes by name, in the order of :class:`ParameterErrors`."""
    chain = dict(zip(CHAIN_ATTRIBUTES, parameters[:2], strict=True))
    return {**chain, **parameters.emission}


def flat(parameters: Parameters) -> Array:
    """All entries of the attributes, one after the other."""
    return np.concatenate([value.ravel() for value in by_name(parameters).values()])


def check_weights(annotations: Annotations, method: str) -> None:
    """:raises ValueError: if sequences have weights, of which the scores would not be sums."""
    if method != "observed" and annotations.weights is not None:
        raise ValueError(
            f"expected no sample_weight for method={method!r}, got "
            f"{shown(annotations.weights)}; use method='observed'"
        )
