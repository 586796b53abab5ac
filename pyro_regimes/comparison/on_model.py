"""Comparison of EM, SVI, L-BFGS, VI and NUTS on one Pyro model, from the same start."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Sequence

import numpy as np
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_regimes.comparison.distances import with_distances
from pyro_regimes.comparison.methods import (
    OPTIMISERS,
    run_auto_delta,
    run_em,
    run_em_map,
    run_guide,
    run_lbfgs,
    run_nuts,
    run_squarem,
    run_svi,
)
from pyro_regimes.comparison.runs import Comparison, MethodRun
from pyro_regimes.comparison.side_by_side import can_fork, run_side_by_side
from pyro_regimes.comparison.task import Model, Progress, Task
from pyro_regimes.distributions import RegimeHMM
from pyro_regimes.estimator import validation
from pyro_regimes.infer.regimes import find_hmm
from pyro_regimes.messages import shown

#: Methods that maximise the likelihood, without priors.
LIKELIHOOD_METHODS = ("EM", "EM, SQUAREM", *OPTIMISERS, "L-BFGS")
#: Methods for the model with priors.
PRIOR_METHODS = ("EM, MAP", "AutoDelta", "AutoNormal", "AutoMultivariateNormal", "AutoLowRank")
#: All methods.
ALL_METHODS = (*LIKELIHOOD_METHODS, *PRIOR_METHODS, "NUTS")
#: The methods that run if none are named: all but NUTS, which takes minutes, and ClippedAdam. It
#: clips each entry of a gradient at 10, which a log-likelihood of thousands of observations far
#: exceeds, and is not better than Adam at any learning rate.
DEFAULT_METHODS = tuple(name for name in ALL_METHODS if name not in ("ClippedAdam", "NUTS"))

#: The methods that ``processes=2`` runs side by side, the longest first.
_SIDE_BY_SIDE = ("NUTS", "AutoLowRank", "AutoMultivariateNormal", "AutoNormal", "AutoDelta")


def compare(
    model: Model,
    data: Tensor,
    held_out: Tensor | None = None,
    methods: Sequence[str] | None = None,
    *,
    prior_model: Model | None = None,
    init_values: dict[str, Tensor] | None = None,
    em_steps: int = 200,
    tol: float | None = 1e-4,
    svi_steps: int = 2000,
    learning_rates: Sequence[float] = (0.01, 0.03, 0.1),
    nuts_steps: int = 200,
    num_draws: int = 50,
    seed: int = 0,
    progress: Progress | None = None,
    jit_compile: bool = False,
    processes: int = 1,
) -> Comparison:
    r"""Fit one model by EM, SVI, L-BFGS, variational inference and NUTS, all from one start.

    These maximise the likelihood of ``model``: EM; EM with ``acceleration="squarem"``; SVI with an
    empty guide, by Adam, ClippedAdam and DecayingAdam at each learning rate; and L-BFGS (scipy's)
    in the unconstrained parameters of SVI. The rate of DecayingAdam falls exponentially over the
    run, to a hundredth of the first, and its gradients are not clipped.

    ``prior_model`` has the same likelihood, with its parameters sampled from priors. EM and SVI
    (``AutoDelta``) maximise its log joint. SVI with ``AutoNormal``, ``AutoMultivariateNormal`` and
    ``AutoLowRankMultivariateNormal``, and NUTS, approximate its posterior. Variational guides and
    AutoDelta use the middle learning rate.

    A run of SVI that diverges is kept and marked ``diverged``. Compilation is not timed: EM runs
    twice, so that the second, timed run finds every kernel compiled. The caller's parameter store
    and random state do not change.

    :param model: a Pyro model of ``pyro.param`` and observed RegimeHMM, called with the data; or
        one with latent sites, which then is the ``prior_model`` too.
    :param data: the data to fit, ``(..., T, D)`` or ``(..., T)``.
    :param held_out: the data that follow in time, of the same shape except for T. Their
        log-likelihood is conditional on ``data``.
    :param methods: some of :data:`.ALL_METHODS`; None for :data:`.DEFAULT_METHODS`.
    :param init_values: initial values of the sites of ``prior_model``, for all its methods.
    :param em_steps: maximum number of EM steps.
    :param tol: EM stops if a step raises the objective by less, in nats, and L-BFGS if each of ten
        iterations does. None runs all steps.
    :param svi_steps: number of steps of each SVI, and maximum number of iterations of L-BFGS.
    :param learning_rates: of Adam and ClippedAdam, and first ones of DecayingAdam.
    :param nuts_steps: number of draws of NUTS, and of its warm-up steps.
    :param num_draws: number of posterior draws over which held-out likelihoods are averaged.
    :param seed: seed of the variational draws and of NUTS.
    :param progress: called with the method, the number of a step, the number of steps, and the
        objective before that step (of guides, an estimate of the ELBO; NaN where there is none):
        with step 0 before the method compiles its kernels, then after each step; at the end of EM
        and L-BFGS, with the number of steps that it took as both numbers. EM reports no others.
    :param jit_compile: whether to record the model and the guides once and to repeat only their
        tensor operations (``torch.jit.trace``), in SVI and NUTS. Steps of SVI stay the same to the
        last bit and take about half the time, with one optimiser for all parameters and without
        validation. The sites and parameters must be the same in every run of the model, and its
        control flow must not depend on their values.
    :param processes: 2 runs AutoDelta, the guides and NUTS two at a time, the second in a forked
        process, and marks them ``is_beside``, because their seconds may be longer than alone. Their
        other results are the same. The methods that maximise the likelihood, and EM, run alone.
        Without effect where a process cannot be forked: on other systems than Linux, and with CUDA.
    :raises ValueError: if a method is unknown, a number of steps or a learning rate is not
        positive, or the model fails at its start.
    """
    validation.integer("em_steps", em_steps, 1)
    validation.integer("svi_steps", svi_steps, 1)
    validation.integer("nuts_steps", nuts_steps, 1)
    validation.integer("num_draws", num_draws, 1)
    if isinstance(processes, bool) or processes not in (1, 2):
        raise ValueError(f"expected processes to be 1 or 2, got {processes!r}")
    validation.integer("seed", seed, 0)
    rates = _check_rates(learning_rates)
    middle = rates[len(rates) // 2]
    task = Task(data, held_out, tol, num_draws, init_values or {}, seed, progress, jit_compile)
    has_priors = _is_latent(model, task)
    if held_out is not None:
        task = task._replace(time_dim=_find_time(model, task))
    if has_priors and prior_model is None:
        prior_model = model
    chosen = _choose(methods, not has_priors, prior_model is not None)

    def run(name: str, progress: Progress | None) -> list[MethodRun]:
        own = task._replace(progress=progress)
        if name == "EM":
            return [run_em(model, own, em_steps)]
        if name == "EM, SQUAREM":
            return [run_squarem(model, own, em_steps)]
        if name == "L-BFGS":
            return [run_lbfgs(model, own, svi_steps)]
        if name in OPTIMISERS:
            return [run_svi(name, model, own, svi_steps, rate) for rate in rates]
        assert prior_model is not None
        if name == "EM, MAP":
            return [run_em_map(prior_model, own, em_steps)]
        if name == "AutoDelta":
            return [run_auto_delta(prior_model, own, svi_steps, middle)]
        if name == "NUTS":
            return [run_nuts(prior_model, own, nuts_steps)]
        return [run_guide(name, prior_model, own, svi_steps, middle)]

    shared = [name for name in _SIDE_BY_SIDE if name in chosen]
    if processes == 1 or len(shared) < 2 or not can_fork(data.device):
        shared = []
    found = {name: run(name, progress) for name in chosen if name not in shared}
    if shared:
        found |= run_side_by_side(run, shared, progress)
    runs = [each for name in chosen for each in found[name]]
    return Comparison(with_distances(runs))


def _check_rates(learning_rates: Any) -> list[float]:
    """Check the learning rates and sort them in ascending order."""
    rates = list(learning_rates) if isinstance(learning_rates, Iterable) else []
    numbers = all(isinstance(rate, (int, float, np.number)) for rate in rates)
    largest = sys.float_info.max
    if not rates or not numbers or not all(0 < rate <= largest for rate in rates):
        raise ValueError(
            f"expected learning_rates to be positive, got {shown(learning_rates)}"
        )
    return sorted(rates)


def _is_latent(model: Model, task: Task) -> bool:
    """Whether a model has latent sites. The caller's store does not change."""
    with task.workspace().entered():
        nodes = poutine.trace(model).get_trace(task.data).nodes.values()
        return any(
            node["type"] == "sample" and not node["is_observed"] and not site_is_subsample(node)
            for node in nodes
        )


def _find_time(model: Model, task: Task) -> int:
    """The dim of the data along which ``held_out`` follows.

    :raises ValueError: if the model does not show it, or the shapes differ in another dim.
    """
    data, held_out = task.data, task.held_out
    assert held_out is not None
    with task.workspace().entered():
        nodes = poutine.trace(model).get_trace(data).nodes.values()
        sites: list[tuple[RegimeHMM, Any]] = [
            (hmm, node["value"])
            for node in nodes
            if node["type"] == "sample" and (hmm := find_hmm(node)) is not None
        ]
    found = set()
    for hmm, value in sites:
        num_steps = value.shape[-hmm.event_dim]
        every = [dim for dim in range(-data.dim(), 0) if data.shape[dim] == num_steps]
        found.update([-hmm.event_dim] if value.shape == data.shape else every)
    if len(found) != 1:
        raise ValueError(
            "expected data with one dim that is the time of the observed RegimeHMM, got data of "
            f"shape {tuple(data.shape)} observed as "
            f"{[tuple(value.shape) for _, value in sites]}: held_out needs to know the dim"
        )
    (time,) = found
    before, after = list(data.shape), list(held_out.shape)
    if len(before) != len(after) or any(
        before[dim] != after[dim] for dim in range(-len(before), 0) if dim != time
    ):
        raise ValueError(
            f"expected held_out to have the shape of the data {tuple(before)} except in time, "
            f"dimension {time}, got {tuple(after)}"
        )
    return time


def _choose(methods: Sequence[str] | None, has_likelihood: bool, has_priors: bool) -> list[str]:
    if methods is None:
        fitting = LIKELIHOOD_METHODS * has_likelihood + PRIOR_METHODS * has_priors
        return [name for name in DEFAULT_METHODS if name in fitting]
    unknown = [name for name in methods if name not in ALL_METHODS]
    if unknown or not methods:
        raise ValueError(f"expected methods from {list(ALL_METHODS)}, got {list(methods)}")
    needy = [name for name in methods if name not in LIKELIHOOD_METHODS]
    if needy and not has_priors:
        raise ValueError(f"expected a prior_model for the methods {needy}, got None; pass one")
    if len(needy) < len(methods) and not has_likelihood:
        plain = [name for name in methods if name not in needy]
        raise ValueError(f"expected a model without latent sites for {plain}, got one with some")
    return list(methods)
