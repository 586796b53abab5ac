"""The hidden Markov model of :class:`.RegimeModel` as a Pyro model function.

:func:`pyro_model` is used both to fit many starts in one batch and for the fitted model. Only the
shapes of the arguments differ. :class:`.Parameters` hold the arrays that the user sees;
:func:`to_arguments` converts them to the tensors of ``pyro.param``.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from functools import partial
from typing import Any, Callable, Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes.distributions import RegimeHMM, stationary_probs
from pyro_regimes.estimator.parameters import CHAIN_ATTRIBUTES, Array, Parameters
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.stickiness import sticky_rows
from pyro_regimes.estimator.weighting import weighted_batches

PyroModel = Callable[..., None]

CHAIN_ARGUMENTS = ("initial_probs", "transition_probs")


def to_arguments(
    parameters: Parameters,
    spec: Spec,
    *,
    data_dims: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """Convert parameters to the arguments of :func:`pyro_model`.

    Several starts become the leftmost batch dim, to the left of the batch dims of the data and of
    time. A single set of parameters needs no such dims, because it broadcasts over any data.

    :param data_dims: the number of the data's batch dims, 1 for weighted sequences.
    :param device: None is the CPU, not torch's default device.
    """
    device = torch.device("cpu") if device is None else device
    starts = parameters.initial_probs.shape[:-1]
    data = (1,) * data_dims if starts else ()
    time = (1,) if starts else ()

    def tensor(value: Array, *inserted: int) -> Tensor:
        shape = starts + inserted + value.shape[len(starts) :]
        return torch.tensor(value.reshape(shape), dtype=dtype, device=device)

    arguments = {
        "initial_probs": tensor(parameters.initial_probs, *data),
        "transition_probs": tensor(parameters.transition_matrix, *data, *time),
    }
    for name, value in spec.to_arguments(parameters.emission).items():
        arguments[name] = tensor(value, *data, *time)
    return arguments


def from_arguments(arguments: Mapping[str, Tensor], like: Parameters, spec: Spec) -> Parameters:
    """The inverse of :func:`to_arguments`.

    :param like: parameters of the shapes to return.
    """
    arrays = {
        name: value.detach().cpu().double().numpy().copy() for name, value in arguments.items()
    }
    return Parameters(
        arrays["initial_probs"].reshape(like.initial_probs.shape),
        arrays["transition_probs"].reshape(like.transition_matrix.shape),
        spec.from_arguments(arrays, like.emission),
    )


def argument_names(names: Collection[str], spec: Spec) -> frozenset[str]:
    """The names of the arguments of :func:`pyro_model` for those of fitted attributes."""
    attributes = CHAIN_ATTRIBUTES + spec.attributes
    of = dict(zip(attributes, CHAIN_ARGUMENTS + spec.arguments, strict=True))
    return frozenset(of[name] for name in names)


def stationary_initial(transition_probs: Tensor) -> Tensor:
    """The stationary distribution of each transition matrix, without the dim of time."""
    matrix = transition_probs if transition_probs.dim() == 2 else transition_probs.squeeze(-3)
    return stationary_probs(matrix)


def regime_hmm(
    arguments: Mapping[str, Tensor],
    spec: Spec,
    missing: str = "marginalise",
    **beside: Tensor | None,
) -> RegimeHMM:
    """Build the distribution of whole sequences.

    :param missing: as in :class:`.RegimeHMM`.
    :param beside: its arguments that are no parameters.
    """
    others: Mapping[str, Any] = beside
    return RegimeHMM(
        initial_probs=arguments["initial_probs"],
        transition_probs=arguments["transition_probs"],
        observation_dist=spec.observation_dist(arguments),
        missing=missing,
        **others,
    )


def pyro_model(
    arguments: Mapping[str, Tensor],
    spec: Spec,
    floor: float = 0.0,
    fixed: Collection[str] = (),
    initial: str = "free",
    stickiness: float = 0.0,
    missing: str = "marginalise",
    packed: bool = False,
) -> PyroModel:
    """Make a Pyro model function ``model(x, lengths=None)``, one ``pyro.param`` per argument.

    :param arguments: initial values from :func:`to_arguments`; they are not modified.
    :param floor: the least variance, or eigenvalue of a covariance, in the constraints of the
        parameters; 0 allows all positive values.
    :param fixed: names of the arguments that are constants, and no parameters.
    :param initial: "free"; "uniform", which leaves ``initial_probs`` as they are; or "stationary",
        which makes them a function of the transition matrix.
    :param stickiness: of the prior of the transition matrix (:mod:`.stickiness`). If positive, the
        matrix is a latent site, whose point :func:`.sticky_guide` has.
    :param missing: "refuse" if no data have missing entries, which a compiled graph cannot see.
    :param packed: whether batches of observations are data sets ``(..., T, D)``, of which each has
        sequences of these lengths one after the other, instead of padded sequences.
    :return: a function of the observations ``(T, D)`` and of the ``lengths`` ``(N,)`` of the N
        sequences in them, one after the other; or of padded observations ``(N, T, D)`` and the true
        ``lengths`` of the sequences. NaN is a missing entry. Its one sample site is "observations".
        Further arguments are those of :meth:`.Annotations.of_model`; with ``weights`` there are
        several sites.
    """
    arguments = dict(arguments)
    constant = {*fixed} if initial == "free" else {*fixed, "initial_probs"}
    domains = {
        name: constraints.simplex if name in CHAIN_ARGUMENTS else spec.constraint(name, floor)
        for name in arguments.keys() - constant
    }

    def model(
        x: Tensor,
        lengths: Tensor | None = None,
        allowed_states: Tensor | None = None,
        weights: Tensor | None = None,
        gaps: Tensor | None = None,
    ) -> None:
        # A copy, because the store keeps and modifies the tensor that it is given.
        held = {
            name: value
            if name in constant
            else pyro.param(name, partial(torch.clone, value), constraint=domains[name])
            for name, value in arguments.items()
            if not (stickiness and name == "transition_probs")
        }
        if stickiness:
            held["transition_probs"] = sticky_rows(arguments["transition_probs"], stickiness)
        if initial == "stationary":
            held["initial_probs"] = stationary_initial(held["transition_probs"])
        known = {"allowed_states": allowed_states, "gaps": gaps}
        if weights is None:
            known["lengths" if x.dim() > 2 and not packed else "packed_lengths"] = lengths
            _observe("", regime_hmm(held, spec, missing, **known), x)
            return
        for number, batch in enumerate(weighted_batches(x, lengths, weights, **known), 1):
            hmm = regime_hmm(held, spec, missing, **batch.beside)
            _observe(f"_{number}", hmm, batch.x, batch.weights)

    return model


def _observe(suffix: str, hmm: RegimeHMM, x: Tensor, weights: Tensor | None = None) -> None:
    """Observe sequences ``(..., T, D)``.

    :param suffix: of the names of the site and its plates.
    :param weights: of the sequences.
    """
    with ExitStack() as plates:
        batch_shape = torch.broadcast_shapes(hmm.batch_shape, x.shape[:-2])
        for dim in range(-len(batch_shape), 0):
            name = "sequences" if dim >= 2 - x.dim() else "starts"
            plates.enter_context(pyro.plate(f"{name}{suffix}", batch_shape[dim], dim=dim))
        if weights is not None:
            plates.enter_context(pyro.poutine.scale(scale=weights))
        pyro.sample(f"observations{suffix}", hmm, obs=x)


def prior_model(
    num_regimes: int,
    spec: Spec,
    mean: Tensor,
    scale: Tensor,
    missing: str = "marginalise",
) -> Callable[[Tensor], None]:
    """Make the same model with a latent site for each parameter, for MAP, VI and NUTS.

    Initial and transition probabilities are uniform on the simplex. Gaussian locations have the
    prior ``Normal(mean, 3 scale)`` and precisions ``Gamma(2, scale^2)``. Precision matrices have
    ``Wishart(D + 2, diag(scale^-2) / (D + 2))``, whose mean is the precision matrix of independent
    series. Rates of a Poisson have the prior ``Gamma(1, 1 / mean)``.

    :param mean: mean of each series, ``(D,)``.
    :param scale: standard deviation of each series, ``(D,)``.
    :param missing: as in :func:`pyro_model`.
    """
    simplex = torch.ones(num_regimes, dtype=mean.dtype, device=mean.device)

    def model(x: Tensor) -> None:
        initial_probs = pyro.sample("initial_probs", dist.Dirichlet(simplex))
        rows = dist.Dirichlet(simplex.expand(num_regimes, num_regimes)).to_event(1)
        transition_probs = pyro.sample("transition_probs", rows)
        hmm = RegimeHMM(
            initial_probs=initial_probs,
            transition_probs=transition_probs,
            observation_dist=spec.sample_observation_dist(num_regimes, mean, scale),
            missing=missing,
        )
        pyro.sample("observations", hmm, obs=x)

    return model


def site_values(arguments: Mapping[str, Tensor], spec: Spec) -> dict[str, Tensor]:
    """Values of the sites of :func:`prior_model` for the arguments of one set of parameters."""
    return {**{name: arguments[name] for name in CHAIN_ARGUMENTS}, **spec.site_values(arguments)}
