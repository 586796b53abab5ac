r"""The check of convergence: compares EM's result with the gradient of the model itself.

EM iterates on tensors that it has read from the model. If it has misread the model, its losses
still fall and converge, but to the wrong point. When a run has converged, the model's own
objective (the ``log_prob`` of its distributions) is therefore differentiated once. At an optimum of
EM, three things hold (Dempster, Laird and Rubin 1977):

1. The objective is minus EM's loss.
2. Its gradient g in every parameter is the gradient of Q at the same point (Fisher's identity).
3. In the directions in which parameters are free, g is almost 0. This is measured by the expected
   gain of one step, :math:`\tfrac12 g^\top I_c^{-1} g`, where :math:`I_c` is the information of the
   complete data.

All three are measured in nats. Parameters with a closed form use the coordinates of
:class:`.Natural`. Parameters in which locations are affine are treated jointly. For parameters that
an optimiser updates, the expected gain is that of the best step along the gradient,
:math:`\tfrac12 (g^\top g)^2 / g^\top I_c g`, which is a lower bound.

Directions that are not free are those of restarts whose likelihood is not finite, cells without a
maximum, variances at the floor, and probabilities that are exactly 0. Parameters that were rolled
back and frozen are not excluded: their expected gain must be almost 0, too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.distributions import observation
from pyro_regimes.infer.em import measures
from pyro_regimes.infer.em.ascent import rounding as rounding_of
from pyro_regimes.infer.em.e_step import Expected, observation_logits
from pyro_regimes.infer.em.loop import Loop
from pyro_regimes.infer.em.problem import Problem, TensorState, complete
from pyro_regimes.infer.em.session import Call, Session
from pyro_regimes.infer.hidden_chain import chain_logits

#: Tolerance for objectives and expected gains, in units of ``tol``.
_SLACK = 10.0

_SAME_STATES = (
    "have the same parameters, so that EM cannot tell them apart: start them differently"
)
_WRONG_FAMILY = "nats in one observation: correct the family"
_KNOWN_CAUSES = (_SAME_STATES, _WRONG_FAMILY)

#: The number of observations at which densities are compared, of all sequences together.
_MOST_STEPS = 64

#: The least number of time steps for that, and of a first selection of states that may be equal.
_FEW_STEPS = 8


class Finding(NamedTuple):
    """A disagreement between the model and EM."""

    name: str  #: the parameter; empty for the loss and for a check that could not run
    what: str
    restarts: list[int]  #: the restarts concerned
    is_told: bool = False  #: whether an earlier warning has reported it


def check(
    session: Session, call: Call, loop: Loop, tol: float, is_maximum: bool = True
) -> list[Finding]:
    """Compare the model's own objective and gradient with those of a converged run.

    :param session: runs the model; the parameter store holds the final parameters.
    :param loop: the converged run.
    :param tol: the tolerance with which it converged.
    :param is_maximum: False if the parameters are not to be those of a maximum, as of one chunk of
        the data that they were fitted to.
    :return: the disagreements larger than ten times ``tol`` and than rounding.
    """
    every = list(range(len(loop.now.losses)))
    try:
        return _compare(session, call, loop, tol, every, is_maximum)
    except (torch.linalg.LinAlgError, torch.OutOfMemoryError) as error:
        what = f"the model's own objective could not be differentiated: {error}"
        return [Finding("", what, every)]


def _compare(
    session: Session, call: Call, loop: Loop, tol: float, every: list[int], is_maximum: bool
) -> list[Finding]:
    problem, state = loop.problem, complete(loop.problem, loop.start, loop.now)
    natural = measures.perturbed(problem, state.params)
    with torch.enable_grad():
        objective, gradients = measures.differentiate(session, call, natural)
    rounding = rounding_of(state.params)
    found = _other_losses(problem, state, objective, _SLACK * tol, rounding)
    found += _other_densities(state, every)
    found += _same_states(problem, state)
    with np.errstate(invalid="ignore"):
        bound = np.fmax(_SLACK * tol, rounding * (1 + abs(state.losses)))
    for name, mismatch, gain in measures.measure(session, call, loop, state, gradients):
        apart, short = ~(mismatch <= bound), ~(gain <= bound)
        if apart.any():
            what = f"the model's gradient and EM's are {mismatch[apart].max():.3g} nats apart"
            found.append(Finding(name, what, apart.nonzero()[0].tolist()))
        elif short.any() and is_maximum:
            what = f"by the model's own gradient a step could gain {gain[short].max():.3g} nats"
            found.append(Finding(name, what, short.nonzero()[0].tolist(), _is_frozen(loop, name)))
    return found


def _other_losses(
    problem: Problem,
    state: TensorState,
    objective: measures.Objective,
    slack: float,
    rounding: float,
) -> list[Finding]:
    """Restarts whose loss is not the model's own; all, if only the sum can be compared."""
    ours, every = np.asarray(state.losses), list(range(len(state.losses)))
    theirs = objective.losses(problem)
    if theirs is None:
        ours, theirs = np.array([problem.loss(state.losses)]), np.array([-objective.total])
    with np.errstate(invalid="ignore"):
        apart = np.isfinite(ours) & ~(
            abs(theirs - ours) <= np.fmax(slack, rounding * (1 + abs(ours)))
        )
    if not apart.any():
        return []
    worst = int(np.where(apart, np.nan_to_num(abs(theirs - ours), nan=np.inf), -1.0).argmax())
    what = (
        f"the model's own loss is {theirs[worst]:.10g} and EM's {ours[worst]:.10g}, "
        f"{abs(theirs[worst] - ours[worst]):.3g} nats apart"
    )
    return [Finding("", what, every if len(ours) != len(every) else apart.nonzero()[0].tolist())]


def _is_frozen(loop: Loop, names: str) -> bool:
    """Whether a parameter, or one of several, was rolled back, which a warning has reported."""
    frozen = loop.ascent.frozen
    return any(frozen[name].any() for name in names.split(" and ") if name in frozen)


def message(findings: list[Finding], moved: list[str]) -> str:
    """The text of the warning about some findings.

    :param moved: parameters that an optimiser moves.
    """
    lines = []
    for each in findings:
        whose = f"parameter {each.name!r}: " if each.name else ""
        lines.append(f"\n  {whose}{each.what}")
    text = (
        "EM: the log-likelihood stopped rising, but the check of convergence failed:"
        f"{''.join(lines)}\nThe result does not count as converged. "
    )
    if all(each.name in moved for each in findings):
        text += (
            "The optimiser has not finished: run on, or give it another learning rate, or a "
            "smaller tol."
        )
    elif not any(
        each.name in moved or each.is_told or each.what.endswith(_KNOWN_CAUSES)
        for each in findings
    ):
        text += (
            "The model may not be the same function at every call, or a covariance may be nearly "
            "singular for its dtype (use float64). Otherwise EM has misread the model: please "
            "report it."
        )
    return f"{text} run(..., check=False) leaves the check out"


def _other_densities(state: TensorState, every: list[int]) -> list[Finding]:
    """Families whose density is not that of the distribution that they stand for.

    The model's own objective cannot show it, as :class:`.RegimeHMM` uses the family's density too.
    """
    found = []
    for name, each in state.expected.items():
        site = each.data.site
        if site.family is None or not each.data.value.numel():
            continue
        hmm, value = site.hmm, each.data.value
        if hmm.observation_dist.batch_shape[-2:-1] in ((), (1,)):
            most = max(_FEW_STEPS, _MOST_STEPS // max(1, value.shape[: -hmm.event_dim].numel()))
            value = value.narrow(-hmm.event_dim, 0, min(most, value.shape[-hmm.event_dim]))
        own = observation.own_log_prob(hmm.observation_dist, value, True).detach()
        of_family = observation.log_prob(hmm.observation_dist, value, True).detach()
        same = (own == of_family) | (own.isnan() & of_family.isnan())
        bound = torch.finfo(own.dtype).eps ** 0.25 * (1 + own.abs())
        bound = bound + observation.own_rounding(hmm.observation_dist, value)
        wrong = ~(same | ((own - of_family).abs() <= bound))
        if wrong.any():
            apart = float((own - of_family)[wrong].abs().max())
            what = (
                f"log_prob of the family {type(site.family).__name__} is not that of "
                f"{type(site.base).__name__} at site {name!r}, by up to {apart:.3g} {_WRONG_FAMILY}"
            )
            found.append(Finding("", what, every))
    return found


def _same_states(problem: Problem, state: TensorState) -> list[Finding]:
    """States with identical parameters, restart by restart.

    States that start alike stay alike: a saddle point of the likelihood, where the gradient is 0.
    """
    found = []
    for name, each in state.expected.items():
        chain = each.data.site.chain
        if not _candidates(chain.of_regimes(_few_densities(each))):
            continue
        terms = [part.detach() for part in chain_logits(each.arguments)]
        terms.append(observation_logits(each.data, each.arguments).detach())
        labels = problem.groups.sequences[name].flatten()
        alike: dict[int, set[int]] = {}  # by restart
        for i, j in _candidates(chain.of_regimes(terms[-1])):
            same = _may_be_exchanged(terms, i, j, chain.exchanged(i, j))
            apart = ~same.expand(each.batch_shape).flatten()
            for restart in set(labels.tolist()) - set(labels[apart].tolist()):
                if np.isfinite(state.losses[restart]):
                    alike.setdefault(restart, set()).update((i, j))
        by_states: dict[tuple[int, ...], list[int]] = {}
        for restart, states in sorted(alike.items()):
            by_states.setdefault(tuple(sorted(states)), []).append(restart)
        for states_alike, restarts in by_states.items():
            what = f"states {list(states_alike)} of site {name!r} {_SAME_STATES}"
            if problem.groups.num_restarts > 1:
                what = f"in restarts {restarts}, {what}"
            found.append(Finding("", what, restarts))
    return found


def _few_densities(expected: Expected) -> Tensor:
    """The log densities at the steps that :func:`_candidates` looks at, or at all."""
    data = expected.data
    site, hmm = data.site, data.site.hmm
    is_masked = site.observation_mask is not None or hmm.allowed_states is not None
    if site.family is not None and not (site.varies or is_masked or data.missing is not None):
        time = data.value.dim() - hmm.event_dim
        data = data._replace(value=data.value.index_select(time, _few(data.value, time)))
    return observation_logits(data, expected.arguments).detach()


def _few(value: Tensor, time: int) -> Tensor:
    """A few steps from the first to the last."""
    num_steps = value.shape[time]
    few = torch.linspace(0, num_steps - 1, min(num_steps, _FEW_STEPS), device=value.device)
    return few.long()


def _candidates(observation: Tensor) -> list[tuple[int, int]]:
    """Pairs of states whose densities are the same at a few steps, in some sequence."""
    few = _few(observation, observation.dim() - 2)
    states = observation.index_select(-2, few).movedim(-1, 0).contiguous()
    found = []
    for i in range(len(states) - 1):
        alike = _same(states[i], states[i + 1 :]).all(-1).reshape(len(states) - i - 1, -1).any(-1)
        found += [(i, i + 1 + j) for j in alike.nonzero().flatten().tolist()]
    return found


def _may_be_exchanged(terms: list[Tensor], i: int, j: int, columns: list[int]) -> Tensor:
    """Whether swapping two states leaves all logits of a sequence unchanged up to rounding.

    :param columns: the order of the densities after that.
    """
    initial, transition, observation = terms
    order = list(range(initial.shape[-1]))
    order[i], order[j] = j, i
    moved = [place for place, column in enumerate(columns) if place != column]
    others = [columns[place] for place in moved]
    return (
        _same(observation[..., moved], observation[..., others]).flatten(-2).all(-1)
        & _same(initial, initial[..., order]).all(-1)
        & _same(transition, transition[..., order, :][..., order]).flatten(-3).all(-1)
    )


def _same(one: Tensor, other: Tensor) -> Tensor:
    """Which entries are equal up to rounding."""
    return torch.isclose(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)
