"""log_prob with the gradient of every parameter: RegimeHMM and Pyro's DiscreteHMM.

The model is Gaussian with unconstrained parameters. DiscreteHMM makes a transition before its first
observation, so an equal model can be written in two ways, and both are tried:

- T transition slices, the first of which has our initial logits in every row;
- one transition matrix for all steps, as most users pass it; our initial logits are then those of
  DiscreteHMM after one transition.

Each is checked against the equal RegimeHMM. The faster of the two is reported.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import transform_to

from benchmarks.measure import relative_difference
from benchmarks.peer_workloads import Problem
from pyro_regimes import RegimeHMM

Parameters = dict[str, Tensor]
LogProb = Callable[[Parameters, Tensor], Tensor]

_LOWER = transform_to(constraints.lower_cholesky)


def make_parameters(problem: Problem, dtype: str) -> tuple[Parameters, Tensor]:
    """Unconstrained parameters with gradient, and the observations.

    Parameters have no batch dims, or ``(R, 1, ...)`` for R starts: dimension -2 is always time.
    """
    start, starts = problem.start, problem.workload.num_starts > 1
    roots = torch.tensor(np.linalg.cholesky(start.covariance))
    values = {
        "initial_logits": torch.tensor(start.initial).log(),
        "transition_logits": torch.tensor(start.transition).log(),
        "loc": torch.tensor(start.loc),
        "root": _LOWER.inv(roots),
    }
    if starts:
        for name in ("transition_logits", "loc", "root"):
            values[name] = values[name].unsqueeze(1)
    data = torch.tensor(problem.data if problem.workload.num_sequences > 1 else problem.data[0])
    kind = getattr(torch, dtype)
    parameters = {name: value.to(kind).requires_grad_() for name, value in values.items()}
    return parameters, data.to(kind)


def ours(parameters: Parameters, data: Tensor) -> Tensor:
    """RegimeHMM, whose first observation is emitted by the initial state."""
    return RegimeHMM(
        parameters["initial_logits"], parameters["transition_logits"], _observation(parameters)
    ).log_prob(data)


def ours_after_transition(parameters: Parameters, data: Tensor) -> Tensor:
    """RegimeHMM whose initial state is DiscreteHMM's after one transition."""
    transition = parameters["transition_logits"].log_softmax(-1)
    first = transition if transition.dim() == 2 else transition.squeeze(-3)
    initial = parameters["initial_logits"].log_softmax(-1)
    initial = (initial.unsqueeze(-1) + first).logsumexp(-2)
    return RegimeHMM(initial, parameters["transition_logits"], _observation(parameters)).log_prob(
        data
    )


def discrete_in_slices(parameters: Parameters, data: Tensor) -> Tensor:
    """DiscreteHMM with our meaning: its first transition has our initial logits as rows."""
    initial, transition = parameters["initial_logits"], parameters["transition_logits"]
    transition = transition.unsqueeze(0) if transition.dim() == 2 else transition
    batch, num_states = initial.shape[:-1], initial.shape[-1]
    first = initial[..., None, None, :].expand(*batch, 1, num_states, num_states)
    rest = transition.expand(*batch, data.shape[-2] - 1, num_states, num_states)
    slices = torch.cat([first, rest], -3)
    return dist.DiscreteHMM(initial, slices, _observation(parameters)).log_prob(data)


def discrete_homogeneous(parameters: Parameters, data: Tensor) -> Tensor:
    """DiscreteHMM with one transition matrix for all steps."""
    return dist.DiscreteHMM(
        parameters["initial_logits"],
        parameters["transition_logits"],
        _observation(parameters),
        duration=data.shape[-2],
    ).log_prob(data)


#: DiscreteHMM's two forms, each with ours of the same meaning.
FORMS: dict[str, tuple[LogProb, LogProb]] = {
    "in slices": (discrete_in_slices, ours),
    "homogeneous": (discrete_homogeneous, ours_after_transition),
}


def value_and_gradients(
    log_prob: LogProb, parameters: Parameters, data: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The log-likelihood of all sequences or starts, and its gradients."""
    value = log_prob(parameters, data)
    return value.detach(), torch.autograd.grad(value.sum(), list(parameters.values()))


def difference(log_prob: LogProb, expected: LogProb, problem: Problem, dtype: str) -> float:
    """The largest relative difference of value and gradients from those expected, in float64."""
    value, gradients = value_and_gradients(log_prob, *make_parameters(problem, dtype))
    truth, true_gradients = value_and_gradients(expected, *make_parameters(problem, "float64"))
    pairs = [(value, truth), *zip(gradients, true_gradients, strict=True)]
    return float(np.max([relative_difference(*pair) for pair in pairs]))


def _observation(parameters: Parameters) -> dist.MultivariateNormal:
    return dist.MultivariateNormal(parameters["loc"], scale_tril=_LOWER(parameters["root"]))
