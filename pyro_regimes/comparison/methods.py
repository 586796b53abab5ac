"""One run of each method of :mod:`.compare`, timed, from one start."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor

from pyro_regimes.comparison.runs import Interval, MethodRun, Model, Task
from pyro_regimes.infer.em import EM
from pyro_regimes.infer.regimes import draw_sites, find_hmm, point_values

# The plug-in log-likelihood of a variational fit is looked at, off the clock, so many times a run.
_LOOKS = 100
_ELBO_PARTICLES = 20
_INIT_SCALE = 0.01

_GUIDES: dict[str, Callable[..., Any]] = {
    "AutoDelta": AutoDelta,
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoLowRank": AutoLowRankMultivariateNormal,
}


def _sums(model: Model, data: Tensor) -> tuple[float, float]:
    """log p(x), of the RegimeHMM sites alone, and the log joint."""
    with torch.no_grad():
        trace = poutine.trace(model).get_trace(data)
        joint = float(trace.log_prob_sum())
        nodes = [node for node in trace.nodes.values() if node["type"] == "sample"]
        return sum(float(n["log_prob_sum"]) for n in nodes if find_hmm(n) is not None), joint


def _held_out(model: Model, task: Task, log_likelihood: float) -> float | None:
    if task.held_out is None:
        return None
    return _sums(model, torch.cat([task.data, task.held_out], -2))[0] - log_likelihood


def _averaged(
    prior_model: Model, draws: list[dict[str, Tensor]], task: Task
) -> float | None:
    """log of the mean over draws of p(held out | data, draw)."""
    if task.held_out is None:
        return None
    found = []
    for draw in draws:
        at_draw = poutine.condition(prior_model, data=draw)
        found.append(_held_out(at_draw, task, _sums(at_draw, task.data)[0]))
    return float(torch.tensor(found, dtype=torch.float64).logsumexp(0)) - math.log(len(found))


def _store_point() -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def _gradient_norm(model: Model, data: Tensor) -> float:
    """Of the log joint, in all unconstrained parameters."""
    loss: Any = -poutine.trace(model).get_trace(data).log_prob_sum()
    leaves = list(_leaves().values())
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return math.sqrt(sum(float(each.square().sum()) for each in found if each is not None))


def _run_em(method: str, em: EM, task: Task, num_steps: int) -> tuple[list[float], float, int]:
    """The history of the objective, seconds and passes."""
    with _restored():  # compiles
        EM(em.model, em.guide).run(task.data, num_steps=2, tol=None)
    began = time.perf_counter()
    result = em.run(task.data, num_steps=num_steps, tol=task.tol)
    seconds = time.perf_counter() - began
    task.tell(method, result.num_steps, num_steps)
    return [-loss for loss in result.history], seconds, result.num_e_steps


def _even(seconds: float, count: int) -> list[float]:
    """Times of steps that all take as long."""
    return [seconds * step / max(1, count - 1) for step in range(count)]


def run_em(model: Model, task: Task, num_steps: int) -> MethodRun:
    """EM on the likelihood. All its steps take as long: it is timed as one, without a look."""
    poutine.trace(model).get_trace(task.data)  # makes the parameters
    values, seconds, passes = _run_em("EM", EM(model), task, num_steps)
    likelihood, _ = _sums(model, task.data)
    return MethodRun(
        "EM",
        "likelihood",
        likelihood,
        None,
        None,
        _held_out(model, task, likelihood),
        None,
        len(values) - 1,
        passes,
        seconds,
        _even(seconds, len(values)),
        list(range(1, len(values) + 1)),
        values,
        _gradient_norm(model, task.data),
        _store_point(),
        None,
    )


def run_em_map(prior_model: Model, task: Task, num_steps: int) -> MethodRun:
    """EM on the log joint, through AutoDelta."""
    guide = AutoDelta(prior_model, init_loc_fn=task.start())
    guide(task.data)  # its parameters are made at the first call, at the start
    values, seconds, passes = _run_em("EM, MAP", EM(prior_model, guide), task, num_steps)
    return _at_point(
        "EM, MAP", "joint", prior_model, guide, task, values, _even(seconds, len(values)), passes
    )


def _at_point(
    method: str,
    objective: str,
    prior_model: Model,
    guide: Any,
    task: Task,
    values: list[float],
    times: list[float],
    num_passes: int,
) -> MethodRun:
    point = point_values(guide, task.data)
    at_point = poutine.condition(prior_model, data=point)
    likelihood, joint = _sums(at_point, task.data)
    placed = poutine.trace(guide).get_trace(task.data)
    replayed = poutine.replay(prior_model, trace=placed)
    norm = _gradient_norm(replayed, task.data)
    first = 1 if method.startswith("EM") else 0  # EM knows its start after an E-step
    return MethodRun(
        method,
        objective,
        likelihood,
        joint,
        None,
        _held_out(at_point, task, likelihood),
        None,
        len(values) - 1,
        num_passes,
        times[-1],
        times,
        list(range(first, first + len(values))),
        values,
        norm,
        point,
        None,
    )


def _make_optim(name: str, rate: float) -> Any:
    return getattr(pyro.optim, name)({"lr": rate})


def _climb(
    svi: SVI, method: str, task: Task, num_steps: int
) -> tuple[list[float], list[float]]:
    """Times, and the objective at them, of an SVI whose loss is exact."""
    times, values = [], []
    began = time.perf_counter()
    for step in range(num_steps):
        times.append(time.perf_counter() - began)
        values.append(-svi.step(task.data))  # the loss before the step, and so at its beginning
        task.tell(method, step + 1, num_steps)
    times.append(time.perf_counter() - began)
    with torch.no_grad():
        values.append(-svi.evaluate_loss(task.data))
    return times, values


@contextmanager
def _restored() -> Iterator[None]:
    """Put the parameters back in place, as a module may hold the very tensors."""
    start = {name: leaf.detach().clone() for name, leaf in _leaves().items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, leaf in _leaves().items():
                leaf.copy_(start[name])


def _leaves() -> dict[str, Tensor]:
    return dict(pyro.get_param_store().named_parameters())


def _warm_up(model: Model, guide: Any, data: Tensor) -> None:
    """Make the parameters, compile, and leave no trace."""
    with torch.random.fork_rng():
        guide(data)
        poutine.trace(model).get_trace(data)
        with _restored():
            SVI(model, guide, _make_optim("Adam", 1e-3), Trace_ELBO()).step(data)


def run_svi(name: str, model: Model, task: Task, num_steps: int, rate: float) -> MethodRun:
    """SVI on the likelihood: nothing is latent, so the guide is empty and the loss exact."""
    method = f"SVI, {name}({rate:g})"
    _warm_up(model, _no_guide, task.data)
    svi = SVI(model, _no_guide, _make_optim(name, rate), Trace_ELBO())
    times, values = _climb(svi, method, task, num_steps)
    likelihood, _ = _sums(model, task.data)
    return MethodRun(
        method,
        "likelihood",
        likelihood,
        None,
        None,
        _held_out(model, task, likelihood),
        None,
        num_steps,
        num_steps,
        times[-1],
        times,
        list(range(num_steps + 1)),
        values,
        _gradient_norm(model, task.data),
        _store_point(),
        None,
    )


def _no_guide(data: Tensor) -> None:
    """Nothing is latent: the ELBO is the log-likelihood."""


def run_guide(
    name: str, prior_model: Model, task: Task, num_steps: int, rate: float
) -> MethodRun:
    """SVI on the model with priors, with one of Pyro's guides."""
    method = f"SVI, {name}({rate:g})"
    options = {} if name == "AutoDelta" else {"init_scale": _INIT_SCALE}
    start = task.start()
    guide = _GUIDES[name](prior_model, init_loc_fn=start, **options)
    _warm_up(prior_model, guide, task.data)
    svi = SVI(prior_model, guide, _make_optim("Adam", rate), Trace_ELBO())
    if name == "AutoDelta":
        times, values = _climb(svi, method, task, num_steps)
        return _at_point(
            method, "joint", prior_model, guide, task, values, times, num_steps
        )

    def at_medians() -> Model:
        at: Model = poutine.condition(prior_model, data=guide.median(task.data))
        return at

    times, passes, values = [0.0], [0], [_sums(at_medians(), task.data)[0]]
    began, looking = time.perf_counter(), 0.0
    every = max(1, num_steps // _LOOKS)
    for step in range(1, num_steps + 1):
        svi.step(task.data)
        task.tell(method, step, num_steps)
        if step % every == 0 or step == num_steps:
            now = time.perf_counter()
            times.append(now - began - looking)
            passes.append(step)
            values.append(_sums(at_medians(), task.data)[0])
            looking += time.perf_counter() - now
    likelihood, joint = _sums(at_medians(), task.data)
    with torch.no_grad():
        elbo = -Trace_ELBO(num_particles=_ELBO_PARTICLES).loss(prior_model, guide, task.data)
    draws = [draw_sites(guide, task.data) for _ in range(max(task.num_draws, 200))]
    return MethodRun(
        method,
        "ELBO",
        likelihood,
        joint,
        float(elbo),
        _held_out(at_medians(), task, likelihood),
        _averaged(prior_model, draws[: task.num_draws], task),
        num_steps,
        num_steps,
        times[-1],
        times,
        passes,
        values,
        None,
        point_values(guide, task.data),
        _intervals({name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}),
    )


def _intervals(draws: dict[str, Tensor]) -> dict[str, Interval]:
    return {name: Interval(value.mean(0), value.std(0)) for name, value in draws.items()}


def run_nuts(prior_model: Model, task: Task, num_steps: int) -> MethodRun:
    """NUTS on the model with priors, from the same start."""
    method, times, passes = "NUTS", [0.0], [0]
    count = 0

    def counted(data: Tensor) -> Any:
        nonlocal count
        count += 1
        return prior_model(data)

    kernel = NUTS(counted, init_strategy=task.start())
    began = time.perf_counter()

    def after(kernel: Any, samples: Any, stage: str, step: int) -> None:
        times.append(time.perf_counter() - began)
        passes.append(count)
        task.tell(method, min(len(times) - 1, 2 * num_steps), 2 * num_steps)

    mcmc = MCMC(
        kernel,
        num_samples=num_steps,
        warmup_steps=num_steps,
        hook_fn=after,
        disable_progbar=True,
    )
    mcmc.run(task.data)
    seconds = time.perf_counter() - began
    samples = {name: value.detach() for name, value in mcmc.get_samples().items()}
    posterior = _intervals(samples)
    point = {name: interval.mean for name, interval in posterior.items()}
    at_mean = poutine.condition(prior_model, data=point)
    likelihood, joint = _sums(at_mean, task.data)
    every = max(1, num_steps // task.num_draws)
    draws = [
        {name: value[index] for name, value in samples.items()}
        for index in range(0, num_steps, every)
    ]
    return MethodRun(
        method,
        "draws",
        likelihood,
        joint,
        None,
        _held_out(at_mean, task, likelihood),
        _averaged(prior_model, draws, task),
        num_steps,
        count,
        seconds,
        [seconds],
        [count],
        [likelihood],
        None,
        point,
        posterior,
    )
