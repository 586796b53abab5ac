"""The measures of :mod:`.guard`: how far EM is from the model's own gradient, in nats."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_regimes.emissions.base import Pooled, blocks
from pyro_regimes.infer.em.e_step import read_site
from pyro_regimes.infer.em.gradient import log_terms, other_densities
from pyro_regimes.infer.em.loop import Loop
from pyro_regimes.infer.em.m_step import floor_of, is_sound
from pyro_regimes.infer.em.newton import equations
from pyro_regimes.infer.em.pooling import Collected, pool
from pyro_regimes.infer.em.problem import Array, Params, Problem, TensorState
from pyro_regimes.infer.em.recognise.affine import solve
from pyro_regimes.infer.em.recognise.plan import Assignment
from pyro_regimes.infer.em.session import Call, Session
from pyro_regimes.infer.handing import HandOut
from pyro_regimes.infer.tracing import trace_model


class Measure(NamedTuple):
    """The mismatch of a parameter's gradients, and the expected gain of a step, in nats."""

    name: str
    mismatch: Array  #: ``(R,)``, by restart
    gain: Array  #: ``(R,)``


class Perturbed(NamedTuple):
    """A parameter as a function of coordinates that are 0 at its present value."""

    by: Tensor  #: the coordinates
    value: Tensor


class Objective(NamedTuple):
    """The model's own log joint density."""

    total: float
    of_sites: dict[str, Tensor]  #: of each sequence, by observed site

    @classmethod
    def of(cls, total: Tensor, trace: Any) -> Objective:
        """:param trace: with the log-probabilities of its sites."""
        sites = {
            name: node["log_prob"].detach()
            for name, node in trace.nodes.items()
            if node["type"] == "sample" and node["is_observed"] and "log_prob" in node
        }
        return cls(float(total.detach()), sites)

    def losses(self, problem: Problem) -> Array | None:
        """The loss of each restart; None if they are not sums of their own sequences alone."""
        plan, groups = problem.plan, problem.groups
        if plan.is_joint or problem.latents or set(self.of_sites) != set(groups.sequences):
            return None
        of_sites = {
            name: each if each.numel() else each.new_zeros(groups.sequences[name].shape)
            for name, each in self.of_sites.items()  # one without sequences has a stand-in
        }
        if any(each.shape != groups.sequences[name].shape for name, each in of_sites.items()):
            return None
        total = groups.total(of_sites)
        if problem.ranks is not None:
            (total,) = problem.ranks.add([total])
        losses: Array = -total.cpu().numpy()
        return losses


def perturbed(problem: Problem, params: Params) -> dict[str, Perturbed]:
    """Every parameter with a closed form, expanded about its present value."""
    found = {}
    with torch.enable_grad():
        for each in problem.plan.assignments:
            old = params[each.name].detach()
            cells = each.link.forward(blocks(old, each.event_dim)).detach()
            by = torch.zeros_like(cells, requires_grad=True)
            new = each.link.inverse(each.argument.natural.perturb(cells, by))
            found[each.name] = Perturbed(by, new.to(old.dtype).reshape(old.shape))
        for name in problem.plan.affine.names:
            value = params[name].detach().clone().requires_grad_()
            found[name] = Perturbed(value, value)
    return found


def differentiate(
    session: Session, call: Call, natural: dict[str, Perturbed]
) -> tuple[Objective, dict[str, Tensor]]:
    """The model's own objective, and its gradient by parameter.

    Gradients are with respect to the coordinates of :func:`perturbed` where a parameter has them,
    and to the store's unconstrained tensor otherwise. If the model also reads a parameter with
    coordinates directly, not through ``pyro.param``, that part of its gradient is stored under
    ``"name "``, with a trailing space.
    """
    values = {name: each.value for name, each in natural.items()}
    handed = HandOut(values, connected=True)
    ranks, sites = session.ranks, [] if session.plan is None else session.plan.sites

    def counts(name: str, site: Any) -> bool:
        return ranks is None or ranks.is_first or name in sites

    with session.alone():
        trace, _ = trace_model(call.model, call.guide, call.args, call.kwargs, handed)
        with handed.substitution():
            trace.compute_log_prob()
            objective = trace.log_prob_sum(counts)
        leaves = dict(pyro.get_param_store().named_parameters())
    found_at = Objective.of(objective, trace)
    if ranks is not None:
        total = torch.as_tensor(objective).detach().double().cpu()
        found_at = found_at._replace(total=float(ranks.add([total])[0]))
    if not objective.requires_grad and ranks is None:
        return found_at, {}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    named = {name: each.by for name, each in natural.items()}
    named |= {name + (" " if name in natural else ""): leaf for name, leaf in leaves.items()}
    found: tuple[Tensor | None, ...] = (None,) * len(named)
    if objective.requires_grad:
        found = torch.autograd.grad(objective, list(named.values()), allow_unused=True)
    if ranks is not None:
        given = zip(named.values(), found, strict=True)
        full = [torch.zeros_like(leaf) if each is None else each for leaf, each in given]
        found = tuple(ranks.add(full))
    gradients = {
        name: gradient
        for name, gradient in zip(named, found, strict=True)
        if gradient is not None
    }
    return found_at, gradients


def measure(
    session: Session,
    call: Call,
    loop: Loop,
    state: TensorState,
    gradients: dict[str, Tensor],
) -> list[Measure]:
    """The measures of all parameters."""
    problem, ascent, number = loop.problem, loop.ascent, len(state.losses)
    collected = Collected(
        problem.plan, {**state.expected, **problem.priors}, state.params, problem.ranks
    )
    measured = []
    for each in problem.plan.assignments:
        pooled = pool(each, collected, problem.pseudo, weighted=True)
        value = state.params[each.name]
        cells = each.link.forward(blocks(value.to(pooled[0].dtype), each.event_dim))
        own = gradients.get(each.name, torch.zeros_like(cells)).to(cells)
        labels = problem.groups.cells[each.name]
        mismatch, gain = (
            torch.zeros(number, dtype=torch.float64, device=labels.device)
            .index_add(0, labels, part.double())
            .cpu()
            .numpy()
            for part in _measure_cells(
                each,
                own,
                pooled,
                cells,
                floor_of(each, collected, problem.min_eigenvalue),
                value.dtype,
            )
        )
        mismatch[ascent.held[each.name]] = 0.0
        gain[ascent.hopeless] = 0.0
        measured.append(Measure(each.name, mismatch, gain))

    def alone(name: str, mismatch: float, gain: float) -> None:
        """Record a measure that applies to all restarts together."""
        measured.append(Measure(name, np.full(number, mismatch), np.full(number, gain)))

    affine = problem.plan.affine
    if affine.names and not ascent.hopeless.any():
        apart, promised = _measure_affine(loop, state, collected, gradients)
        is_held = any(ascent.held[name].any() for name in affine.names)
        alone(" and ".join(affine.names), 0.0 if is_held else apart, promised)
    for name in problem.plan.names:
        past = gradients.get(name + " ")  # read directly, not through pyro.param
        if past is not None and bool((past != 0).any()):
            alone(name, np.inf, np.inf)
    for name in problem.plan.unused:
        if name in gradients and bool((gradients[name] != 0).any()):
            alone(name, np.inf, np.inf)
    moved = [name for name in problem.plan.gradient if name in gradients]
    if moved and problem.ranks is None:  # the curvature of Q is that of the data of all ranks
        for found in _measure_moved(session, call, state, moved, gradients, problem.plan.chains):
            alone(*found)
    return measured


def _measure_affine(
    loop: Loop, state: TensorState, collected: Collected, gradients: dict[str, Tensor]
) -> tuple[float, float]:
    """The measures of the parameters in which something is affine together, by Newton's step."""
    affine = loop.problem.plan.affine
    normal, score = equations(affine, collected, state.params, loop.problem.pseudo)
    at = affine.flat(state.params)
    parts = [
        gradients.get(name, torch.zeros_like(state.params[name])).flatten()
        for name in affine.names
    ]
    own = torch.cat(parts).to(score)

    def nats(gradient: Tensor) -> float:
        step = solve(normal, normal @ at + gradient, at) - at
        return 0.5 * float(gradient @ step)

    return nats(own - score), nats(own)


def _measure_cells(
    each: Assignment,
    own: Tensor,
    pooled: Pooled,
    cells: Tensor,
    floor: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Mismatch and expected gain for each cell of a parameter, ``(cells,)``.

    :param cells: in the dtype of the statistics.
    :param dtype: dtype of the parameter, in which the M-step checks whether a maximum is valid.
    """
    natural = each.argument.natural
    own = own.reshape(cells.shape)
    score = natural.score(pooled, cells)
    best = each.argument.maximise(pooled, cells, floor).reshape(len(cells), -1)
    bound = best.isnan().any(-1)
    bound |= ~is_sound(each, each.link.inverse(best.reshape(cells.shape)).to(dtype))
    mismatch = natural.gain(own - score, pooled, cells, 0.0)
    promise = natural.gain(own, pooled, cells, floor)
    return tuple(
        part.reshape(len(cells), -1).sum(-1).masked_fill(bound, 0.0) for part in (mismatch, promise)
    )  # type: ignore[return-value]


def _measure_moved(
    session: Session,
    call: Call,
    state: TensorState,
    names: list[str],
    gradients: dict[str, Tensor],
    chains: tuple[str, ...],
) -> list[tuple[str, float, float]]:
    """The measures of parameters that an optimiser moves, from Q's curvature along the gradient."""
    with torch.enable_grad():
        with session.alone():
            leaves = dict(pyro.get_param_store().named_parameters())
            run = session.run(call, connected=True, chains=chains)
        expected = {
            name: each._replace(data=read_site(run.sites[name]))
            for name, each in state.expected.items()
        }
        terms = log_terms(expected, other_densities(run))
        q = torch.stack([(term * weight).sum().double() for term, weight in terms]).sum()
        wanted = [leaves[name] for name in names]
        first = torch.autograd.grad(q, wanted, create_graph=True, materialize_grads=True)
    measured = []
    for name, leaf, score in zip(names, wanted, first, strict=True):
        own = gradients[name]

        def nats(direction: Tensor, score: Tensor = score, leaf: Tensor = leaf) -> float:
            if not bool((direction != 0).any()):
                return 0.0
            if not score.requires_grad or bool(direction.isnan().any()):
                return float("inf")
            (curved,) = torch.autograd.grad(
                score, leaf, direction, retain_graph=True, materialize_grads=True
            )
            size, curvature = float((direction**2).sum()), -float((direction * curved).sum())
            # Where Q is not concave: the gain of a step of a hundredth of the parameter.
            least = 0.01 * size**0.5 * (1 + float(leaf.detach().norm()))
            return 0.5 * size**2 / curvature if curvature > 0 else least

        measured.append((name, nats(own - score.detach()), nats(own)))
    return measured
