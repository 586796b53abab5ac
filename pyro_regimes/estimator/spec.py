"""The Gaussian hidden Markov model that :class:`.RegimeModel` fits, as a Pyro model function.

One function of Pyro, :func:`pyro_model`, serves the fit of many starts in one batch and the fitted
model alone; they differ in the shapes of their arguments only. :class:`Parameters` are what the
user sees; :func:`to_arguments` makes of them what ``pyro.param`` holds.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Callable, Mapping, NamedTuple

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes.distributions import RegimeHMM
from pyro_regimes.estimator.floors import EigenvaluesFrom, ScalesFrom

Array = npt.NDArray[np.float64]
PyroModel = Callable[..., None]

COVARIANCE_TYPES = ("full", "diag", "spherical", "tied")


class Parameters(NamedTuple):
    """A Gaussian hidden Markov model in NumPy; ``...`` is empty, or the number of starts.

    :param covariances: covariances for "full" ``(..., K, D, D)`` and "tied" ``(..., D, D)``,
        variances for "diag" ``(..., K, D)`` and "spherical" ``(..., K)``.
    """

    initial_probs: Array  #: ``(..., K)``
    transition_matrix: Array  #: ``(..., K, K)``, (old, new)
    means: Array  #: ``(..., K, D)``
    covariances: Array

    def select(self, start: int) -> Parameters:
        """One of several starts."""
        return Parameters(*(value[start] for value in self))


class Units(NamedTuple):
    r"""The coordinates :math:`z = (x - c) / u` to compute in, whatever the units of the series.

    .. math:: \log p(x) = \log p(z) - T \sum_d \log u_d
    """

    center: Array  #: ``(D,)``
    unit: Array  #: ``(D,)``, positive

    @classmethod
    def of(cls, center: Array, variances: Array, *, equal: bool) -> Units:
        """The standard deviations as units; the same for all series where ``equal``."""
        unit = np.sqrt(np.full_like(variances, variances.mean()) if equal else variances)
        return cls(center, np.where(unit > 0, unit, 1.0))

    @classmethod
    def of_parameters(cls, parameters: Parameters, covariance_type: str) -> Units:
        """About the units of the data that a model was fitted to."""
        means = parameters.means
        full = full_covariances(parameters.covariances, covariance_type, means.shape)
        variances = np.diagonal(full, axis1=-2, axis2=-1).mean(0) + means.var(0)
        return cls.of(means.mean(0), variances, equal=covariance_type == "spherical")

    def scale(self, data: Array) -> Array:
        """From x to z."""
        return (data - self.center) / self.unit

    def scale_parameters(self, parameters: Parameters, covariance_type: str) -> Parameters:
        """From the model of x to that of z."""
        return parameters._replace(
            means=self.scale(parameters.means),
            covariances=parameters.covariances / self._squares(covariance_type),
        )

    def unscale_parameters(self, parameters: Parameters, covariance_type: str) -> Parameters:
        """From the model of z to that of x."""
        return parameters._replace(
            means=self.center + self.unit * parameters.means,
            covariances=parameters.covariances * self._squares(covariance_type),
        )

    def log_jacobian(self, num_steps: int) -> float:
        """log p(z) - log p(x)."""
        return num_steps * float(np.log(self.unit).sum())

    def _squares(self, covariance_type: str) -> Array:
        if covariance_type in {"full", "tied"}:
            return np.outer(self.unit, self.unit)
        return np.square(self.unit[0] if covariance_type == "spherical" else self.unit)


def to_arguments(
    parameters: Parameters,
    covariance_type: str,
    *,
    data_dims: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """The tensors that :func:`pyro_model` takes.

    Several starts become the leftmost batch dim, to the left of the data's own and of time. A
    single set of parameters needs neither: it broadcasts over any data.

    :param data_dims: the number of the data's batch dims, 0 for ``(T, D)`` and 1 for ``(N, T, D)``.
    :param device: None for the CPU, whatever torch's default device.
    """
    device = torch.device("cpu") if device is None else device
    initial_probs, transition_matrix, means, covariances = parameters
    starts = initial_probs.shape[:-1]
    data = (1,) * data_dims if starts else ()
    time = (1,) if starts else ()

    def tensor(value: Array, *inserted: int) -> Tensor:
        shape = starts + inserted + value.shape[len(starts) :]
        return torch.tensor(value.reshape(shape), dtype=dtype, device=device)

    arguments = {
        "initial_probs": tensor(initial_probs, *data),
        "transition_probs": tensor(transition_matrix, *data, *time),
        "loc": tensor(means, *data, *time),
    }
    if covariance_type == "full":
        arguments["covariance_matrix"] = tensor(covariances, *data, *time)
    elif covariance_type == "tied":  # one for all states: (..., 1, D, D) among several starts
        arguments["covariance_matrix"] = tensor(covariances, *data, *time, *time)
    elif covariance_type == "diag":
        arguments["scale"] = tensor(np.sqrt(covariances), *data, *time)
    else:  # one for all series: (..., K, 1)
        arguments["scale"] = tensor(np.sqrt(covariances)[..., None], *data, *time)
    return arguments


def from_arguments(
    arguments: Mapping[str, Tensor], like: Parameters, covariance_type: str
) -> Parameters:
    """The inverse of :func:`to_arguments`.

    :param like: parameters of the shapes to return.
    """

    def array(name: str, shape: tuple[int, ...]) -> Array:
        return arguments[name].detach().cpu().double().numpy().reshape(shape).copy()

    if covariance_type in {"full", "tied"}:
        covariances = array("covariance_matrix", like.covariances.shape)
    else:
        covariances = array("scale", like.covariances.shape) ** 2
    return Parameters(
        array("initial_probs", like.initial_probs.shape),
        array("transition_probs", like.transition_matrix.shape),
        array("loc", like.means.shape),
        covariances,
    )


def regime_hmm(arguments: Mapping[str, Tensor], lengths: Tensor | None = None) -> RegimeHMM:
    """The distribution of whole sequences: full and tied, or diagonal and spherical Gaussians."""
    observation_dist: dist.TorchDistribution
    if "covariance_matrix" in arguments:
        observation_dist = dist.MultivariateNormal(
            arguments["loc"], covariance_matrix=arguments["covariance_matrix"]
        )
    else:
        observation_dist = dist.Normal(arguments["loc"], arguments["scale"]).to_event(1)
    return RegimeHMM(
        initial_probs=arguments["initial_probs"],
        transition_probs=arguments["transition_probs"],
        observation_dist=observation_dist,
        lengths=lengths,
    )


def _constraint(name: str, floor: float) -> constraints.Constraint:
    if name == "loc":
        return constraints.real
    if name == "scale":
        return ScalesFrom(floor**0.5) if floor else constraints.positive
    if name == "covariance_matrix":
        return EigenvaluesFrom(floor) if floor else constraints.positive_definite
    return constraints.simplex


def pyro_model(arguments: Mapping[str, Tensor], floor: float = 0.0) -> PyroModel:
    """A Pyro model function ``model(x, lengths=None)`` with one ``pyro.param`` an argument.

    :param arguments: starting values, as :func:`to_arguments` makes them; never written to.
    :param floor: the least variance, or eigenvalue of a covariance, by the constraints of their
        parameters; 0 for all positive ones.
    :return: a function of the observations ``(T, D)``, or ``(N, T, D)`` of N sequences, and their
        true ``lengths`` ``(N,)``. Its one sample site is "observations".
    """
    arguments = dict(arguments)

    def model(x: Tensor, lengths: Tensor | None = None) -> None:
        # A copy, for the store keeps and changes the very tensor that it is given.
        held = {
            name: pyro.param(name, partial(torch.clone, value), constraint=_constraint(name, floor))
            for name, value in arguments.items()
        }
        hmm = regime_hmm(held, lengths)
        data_dims = x.dim() - 2
        with ExitStack() as plates:
            batch_shape = torch.broadcast_shapes(hmm.batch_shape, x.shape[:-2])
            for dim in range(-len(batch_shape), 0):
                name = "sequences" if dim >= -data_dims else "starts"
                plates.enter_context(pyro.plate(name, batch_shape[dim], dim=dim))
            pyro.sample("observations", hmm, obs=x)

    return model


def full_covariances(covariances: Array, covariance_type: str, shape: tuple[int, int]) -> Array:
    """Covariance matrices ``(K, D, D)`` of any covariance type.

    :param shape: (K, D).
    """
    if covariance_type == "full":
        return covariances
    if covariance_type == "tied":
        return np.broadcast_to(covariances, (shape[0],) + covariances.shape)
    variances = covariances if covariance_type == "diag" else covariances[:, None]
    return np.broadcast_to(variances, shape)[:, :, None] * np.eye(shape[1])


def least_variance(covariances: Array, covariance_type: str, starts: int) -> Array:
    """The smallest variance in any direction, of any state, of each start: ``(starts,)``."""
    if covariance_type in {"full", "tied"}:
        return np.linalg.eigvalsh(covariances).reshape(starts, -1).min(-1)
    return covariances.reshape(starts, -1).min(-1)


def num_free_parameters(shape: tuple[int, int], covariance_type: str) -> int:
    """(K - 1) + K (K - 1) + K D, and those of the covariances.

    :param shape: (K, D).
    """
    n_regimes, n_series = shape
    symmetric = n_series * (n_series + 1) // 2
    covariances = {
        "full": n_regimes * symmetric,
        "diag": n_regimes * n_series,
        "spherical": n_regimes,
        "tied": symmetric,
    }[covariance_type]
    return n_regimes**2 - 1 + n_regimes * n_series + covariances


def draw(
    parameters: Parameters, covariances: Array, num_steps: int, rng: np.random.RandomState
) -> tuple[Array, npt.NDArray[np.int64]]:
    """One sequence and its states, from a generator of its own.

    :param covariances: of :func:`full_covariances`.
    :return: observations ``(T, D)`` and states ``(T,)``.
    """
    num_states, num_series = parameters.means.shape
    cumulative = parameters.transition_matrix.cumsum(-1)
    uniforms = rng.random_sample(num_steps)
    states = np.empty(num_steps, dtype=np.int64)
    row = parameters.initial_probs.cumsum()
    for step, uniform in enumerate(uniforms):
        # The last sum may be a little under 1, and the uniform above it.
        states[step] = min(np.searchsorted(row, uniform * row[-1], side="right"), num_states - 1)
        row = cumulative[states[step]]
    noise = rng.standard_normal((num_steps, num_series))
    roots = np.linalg.cholesky(covariances)
    observations = parameters.means[states] + np.einsum("tij,tj->ti", roots[states], noise)
    return observations, states
