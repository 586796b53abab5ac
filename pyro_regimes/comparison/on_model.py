"""EM against SVI, VI and NUTS on one model: the same function, the same start, the same data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from numbers import Integral
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_regimes.comparison import methods as methods_
from pyro_regimes.comparison.runs import Interval, MethodRun, Model, Progress, Task
from pyro_regimes.infer.isolation import isolated

__all__ = ["ALL_METHODS", "Comparison", "MethodRun", "Progress", "compare"]

#: Of the likelihood, without priors.
LIKELIHOOD_METHODS = ("EM", "Adam", "ClippedAdam")
#: Of the model with priors.
PRIOR_METHODS = ("EM, MAP", "AutoDelta", "AutoNormal", "AutoMultivariateNormal", "AutoLowRank")
ALL_METHODS = (*LIKELIHOOD_METHODS, *PRIOR_METHODS, "NUTS")


class Comparison(NamedTuple):
    """The runs of all methods, in the order in which they ran."""

    runs: list[MethodRun]

    def of(self, objective: str) -> list[MethodRun]:
        """The runs that climb one objective: "likelihood", "joint" or "ELBO"; or "draws"."""
        return [run for run in self.runs if run.objective == objective]

    def best(self, objective: str = "likelihood") -> float:
        """The highest final value of one objective."""
        return max((run.values[-1] for run in self.of(objective)), default=-math.inf)

    def seconds_to_best(self, run: MethodRun, within: float = 0.1) -> float | None:
        """When a run first came so close to the best of all that climb its objective.

        None where it never did, and for VI and NUTS, whose objective is not the likelihood.
        """
        if run.objective not in ("likelihood", "joint"):
            return None
        return run.seconds_to(self.best(run.objective) - within)

    def speed_up(self, objective: str = "likelihood", within: float = 0.1) -> float | None:
        """How many times sooner EM came so close to the best than the best of the others.

        None where EM, or none of the others, did.
        """
        times = {
            run.method: self.seconds_to_best(run, within) for run in self.of(objective)
        }
        ours = [time for name, time in times.items() if name.startswith("EM")]
        others = [time for name, time in times.items() if not name.startswith("EM") and time]
        if not ours or ours[0] is None or not others:
            return None
        return min(others) / max(ours[0], 1e-9)


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
) -> Comparison:
    r"""Fit one model by EM, SVI, variational inference and NUTS, all from one start.

    On the likelihood alone: EM, and SVI with an empty guide by Adam and ClippedAdam, at each
    learning rate. On ``prior_model``, the same likelihood with its parameters sampled from priors:
    EM and SVI (``AutoDelta``) to the maximum of the log joint; SVI with ``AutoNormal``,
    ``AutoMultivariateNormal`` and ``AutoLowRankMultivariateNormal``; and NUTS. Variational guides
    and AutoDelta take the middle one of the learning rates. Whatever must be compiled is compiled
    before the clock starts. The caller's parameter store and random state stay as they are.

    :param model: a Pyro model of ``pyro.param`` and observed RegimeHMM, called with the data; or
        one with latent sites, which then is the ``prior_model`` too.
    :param data: what is fitted, with time at dimension -2: ``(..., T, D)``.
    :param held_out: what follows it in time, ``(..., T', D)``: its log-likelihood is that given
        the data.
    :param methods: some of :data:`ALL_METHODS`; None for all but NUTS.
    :param init_values: values of the sites of ``prior_model``, where all its methods start.
    :param em_steps: the most steps of EM, which stops earlier by ``tol``.
    :param svi_steps: steps of each SVI.
    :param nuts_steps: draws of NUTS, after as many for warming up.
    :param num_draws: of the posterior, over which held-out likelihoods are averaged.
    :param seed: of the variational draws and NUTS.
    :param progress: called with the method, the number of a step, and how many there may be.
    :raises ValueError: if a method is not known, a number of steps or a learning rate is not
        positive, or SVI diverges at every learning rate.
    """
    named = {
        "em_steps": em_steps,
        "svi_steps": svi_steps,
        "nuts_steps": nuts_steps,
        "num_draws": num_draws,
    }
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"expected {name} to be an integer of at least 1, got {value!r}")
    rates = sorted(learning_rates) if isinstance(learning_rates, Iterable) else []
    numbers = all(isinstance(rate, (int, float, np.number)) for rate in rates)
    if not rates or not numbers or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"expected learning_rates to be positive, got {learning_rates!r}")
    has_priors = _is_latent(model, data)
    if has_priors and prior_model is None:
        prior_model = model
    wanted = _choose(methods, not has_priors, prior_model is not None)

    task = Task(data, held_out, tol, num_draws, init_values or {}, progress)
    runs: list[MethodRun] = []
    with _own_pyro():
        for name in wanted:
            torch.manual_seed(seed)
            if name == "EM":
                runs += _run(methods_.run_em, model, task, em_steps)
            elif name in ("Adam", "ClippedAdam"):
                runs += _sweep(name, model, task, svi_steps, rates)
            elif name == "EM, MAP":
                runs += _run(methods_.run_em_map, prior_model, task, em_steps)
            elif name == "NUTS":
                runs += _run(methods_.run_nuts, prior_model, task, nuts_steps)
            else:
                rate = rates[len(rates) // 2]
                runs += _run(methods_.run_guide, name, prior_model, task, svi_steps, rate)
    return Comparison(_measure(runs))


@contextmanager
def _own_pyro() -> Iterator[None]:
    """An empty store, no handlers and a random state of its own; gradients, as SVI needs them."""
    with ExitStack() as modes:
        modes.enter_context(isolated(ParamStoreDict()))
        modes.enter_context(torch.random.fork_rng())
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        yield


def _is_latent(model: Model, data: Tensor) -> bool:
    """Whether a model has latent sites; its parameters are not made."""
    with _own_pyro():
        nodes = poutine.trace(model).get_trace(data).nodes.values()
        return any(
            node["type"] == "sample" and not node["is_observed"] and not site_is_subsample(node)
            for node in nodes
        )


def _choose(methods: Sequence[str] | None, has_likelihood: bool, has_priors: bool) -> list[str]:
    if methods is None:
        likelihood = LIKELIHOOD_METHODS if has_likelihood else ()
        return [*likelihood, *(PRIOR_METHODS if has_priors else ())]
    unknown = [name for name in methods if name not in ALL_METHODS]
    if unknown or not methods:
        raise ValueError(f"expected methods from {list(ALL_METHODS)}, got {list(methods)}")
    needy = [name for name in methods if name not in LIKELIHOOD_METHODS]
    if needy and not has_priors:
        raise ValueError(f"expected a prior_model for the methods {needy}, got None")
    if len(needy) < len(methods) and not has_likelihood:
        plain = [name for name in methods if name not in needy]
        raise ValueError(f"expected a model without latent sites for {plain}, got one with some")
    return list(methods)


def _run(function: Callable[..., MethodRun], *args: Any) -> list[MethodRun]:
    with pyro.get_param_store().scope():
        return [function(*args)]


def _sweep(
    name: str, model: Model, task: Task, num_steps: int, rates: list[float]
) -> list[MethodRun]:
    """One optimiser at every learning rate at which it stays finite."""
    found, failure = [], ""
    for rate in rates:
        try:
            found += _run(methods_.run_svi, name, model, task, num_steps, rate)
        except ValueError as error:
            failure = str(error).splitlines()[0]
    if not found:
        raise ValueError(
            f"expected a learning rate at which SVI stays finite, got {rates}: {failure}"
        )
    return found


def _measure(runs: list[MethodRun]) -> list[MethodRun]:
    """Add how far each is from EM's solution, and from the posterior that NUTS found."""
    points = {run.objective: run.point for run in runs if run.method.startswith("EM")}
    exact = next((run.posterior for run in runs if run.method == "NUTS"), None)
    measured = []
    for run in runs:
        reference = points.get("joint" if run.objective in ("ELBO", "draws") else run.objective)
        if reference is not None and not run.method.startswith("EM"):
            run = run._replace(distance_to_em=_distance(run.point, reference))
        if exact is not None and run.posterior is not None and run.method != "NUTS":
            run = run._replace(posterior_errors=_posterior_errors(run.posterior, exact))
        measured.append(run)
    return measured


def _distance(point: dict[str, Tensor], reference: dict[str, Tensor]) -> float | None:
    """Of all parameters together, relative to their size."""
    if set(point) != set(reference):
        return None
    moved = sum(float((point[name] - reference[name]).square().sum()) for name in point)
    size = sum(float(value.square().sum()) for value in reference.values())
    return math.sqrt(moved / size)


def _posterior_errors(
    found: dict[str, Interval], exact: dict[str, Interval]
) -> tuple[float, float]:
    """Of the means, in standard deviations; of these, as a share: root mean squares."""
    means, spreads = [], []
    for name, interval in exact.items():
        deviation = interval.deviation.clamp(min=torch.finfo(interval.deviation.dtype).tiny)
        means.append(((found[name].mean - interval.mean) / deviation).flatten())
        spreads.append((found[name].deviation / deviation - 1).flatten())
    return (
        float(torch.cat(means).square().mean().sqrt()),
        float(torch.cat(spreads).square().mean().sqrt()),
    )
