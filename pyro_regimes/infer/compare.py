"""EM against SVI on one model: the same function, the same start, the same data."""

from __future__ import annotations

import time
from typing import Any, Callable, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_value
from pyro.optim.pytorch_optimizers import Adam  # type: ignore[attr-defined]
from torch import Tensor

from pyro_regimes.distributions import RegimeHMM
from pyro_regimes.infer.em import EM
from pyro_regimes.infer.tracing import PYRO_LOCK

Model = Callable[[Tensor], Any]
Progress = Callable[[str, int, int], None]  # method, step, of how many

# The plug-in log-likelihood of a variational fit is looked at, off the clock, so many times a run.
_VARIATIONAL_LOOKS = 100


class MethodRun(NamedTuple):
    """One method's run. Log-likelihoods are in nats, times in seconds from its start."""

    method: str
    log_likelihood: float  #: of the data, at the end; for VI at the posterior medians
    held_out: float  #: of the data that follow, given the data
    num_steps: int
    seconds: float  #: the whole run, without what this comparison looked at besides
    times: list[float]
    log_likelihoods: list[float]  #: at these times

    def seconds_to(self, target: float) -> float | None:
        """The first time at which the log-likelihood was at least ``target``."""
        reached = zip(self.times, self.log_likelihoods, strict=True)
        return next((seconds for seconds, value in reached if value >= target), None)


class Comparison(NamedTuple):
    """The runs of all methods, in the order in which they ran."""

    runs: list[MethodRun]

    @property
    def best(self) -> float:
        """The highest final log-likelihood of any method."""
        return max(run.log_likelihood for run in self.runs)


def compare(
    model: Model,
    data: Tensor,
    held_out: Tensor,
    *,
    prior_model: Model | None = None,
    init_values: dict[str, Tensor] | None = None,
    em_steps: int = 200,
    tol: float | None = 1e-4,
    svi_steps: int = 500,
    learning_rate: float = 0.05,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Fit one model by EM, and by SVI from the same start; then the same with priors.

    The methods are EM; maximum likelihood by ``SVI`` with Adam and an empty guide, on the very
    same model function; and, where ``prior_model`` is given, ``SVI`` with ``AutoNormal`` on it,
    whose log-likelihood is that at the posterior medians. The caller's parameter store and random
    state stay as they are.

    :param model: a Pyro model of ``pyro.param``s and one observed RegimeHMM, called with the data.
    :param data: what is fitted, with time at dimension -2: ``(..., T, D)``.
    :param held_out: what follows it in time, ``(..., T', D)``: its log-likelihood is that given
        the data.
    :param prior_model: the same likelihood with its parameters sampled from priors.
    :param init_values: values of its sites, at which the guide starts.
    :param em_steps: at most so many steps of EM, which stops earlier by ``tol``.
    :param svi_steps: steps of either SVI.
    :param learning_rate: Adam's.
    :param seed: of the variational draws.
    :param progress: called with the method, the number of a step, and how many there may be.
    :raises ValueError: if a number of steps or the learning rate is not positive, or SVI diverges.
    """
    for name, value in {"em_steps": em_steps, "svi_steps": svi_steps}.items():
        if value < 1:
            raise ValueError(f"expected {name} to be at least 1, got {value}")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"expected learning_rate to be positive, got {learning_rate}")

    task = _Task(data, held_out, tol, learning_rate, progress)
    with PYRO_LOCK, torch.random.fork_rng():
        torch.manual_seed(seed)
        with pyro.get_param_store().scope():
            runs = [_run_em(model, task, em_steps)]
        try:
            with pyro.get_param_store().scope():
                runs.append(_run_svi(model, task, svi_steps))
            if prior_model is not None:
                with pyro.get_param_store().scope():
                    runs.append(_run_auto_normal(prior_model, init_values or {}, task, svi_steps))
        except ValueError as error:
            raise ValueError(
                f"expected a learning_rate at which SVI stays finite, got {learning_rate:g}: "
                f"{str(error).splitlines()[0]}"
            ) from error
    return Comparison(runs)


class _Task(NamedTuple):
    """What all methods are given."""

    data: Tensor
    held_out: Tensor
    tol: float | None
    learning_rate: float
    progress: Progress | None

    def tell(self, method: str, step: int, total: int) -> None:
        if self.progress is not None:
            self.progress(method, step, total)


def _log_likelihood(model: Model, data: Tensor) -> float:
    """Of the RegimeHMM sites alone: a prior's density is none of the data's."""
    with torch.no_grad():
        trace = poutine.trace(model).get_trace(data)
        trace.compute_log_prob(lambda name, site: isinstance(site["fn"], RegimeHMM))
        sums = [node["log_prob_sum"] for node in trace.nodes.values() if "log_prob_sum" in node]
        return float(sum(sums))


def _finish(
    method: str, model: Model, task: _Task, times: list[float], values: list[float]
) -> MethodRun:
    final = _log_likelihood(model, task.data)
    both = _log_likelihood(model, torch.cat([task.data, task.held_out], -2))
    return MethodRun(method, final, both - final, len(times) - 1, times[-1], times, values)


def _run_em(model: Model, task: _Task, num_steps: int) -> MethodRun:
    method, times = "EM", [0.0]
    start = time.perf_counter()

    def after(step: int, loss: float) -> None:
        times.append(time.perf_counter() - start)
        task.tell(method, step, num_steps)

    result = EM(model).run(task.data, num_steps=num_steps, tol=task.tol, callback=after)
    return _finish(method, model, task, times, [-loss for loss in result.history])


def _run_svi(model: Model, task: _Task, num_steps: int) -> MethodRun:
    method = f"SVI, Adam({task.learning_rate:g})"
    svi = SVI(model, _no_guide, Adam({"lr": task.learning_rate}), Trace_ELBO())
    times, values = [], []
    start = time.perf_counter()
    for step in range(num_steps):
        times.append(time.perf_counter() - start)
        values.append(-svi.step(task.data))  # the loss before the step, and so at its beginning
        task.tell(method, step + 1, num_steps)
    times.append(time.perf_counter() - start)
    values.append(_log_likelihood(model, task.data))
    return _finish(method, model, task, times, values)


def _no_guide(data: Tensor) -> None:
    """Nothing is latent: the ELBO is the log-likelihood."""


def _run_auto_normal(
    prior_model: Model, init_values: dict[str, Tensor], task: _Task, num_steps: int
) -> MethodRun:
    method = "SVI, AutoNormal"
    guide = AutoNormal(prior_model, init_loc_fn=init_to_value(values=init_values), init_scale=0.01)
    svi = SVI(prior_model, guide, Adam({"lr": task.learning_rate}), Trace_ELBO())

    def at_medians() -> Model:
        return poutine.condition(prior_model, data=guide.median(task.data))

    guide(task.data)  # its parameters are made at the first call
    times, values = [0.0], [_log_likelihood(at_medians(), task.data)]
    start, looking = time.perf_counter(), 0.0
    every = max(1, num_steps // _VARIATIONAL_LOOKS)
    for step in range(1, num_steps + 1):
        svi.step(task.data)
        task.tell(method, step, num_steps)
        if step % every == 0 or step == num_steps:
            now = time.perf_counter()
            times.append(now - start - looking)
            values.append(_log_likelihood(at_medians(), task.data))
            looking += time.perf_counter() - now
    return _finish(method, at_medians(), task, times, values)._replace(num_steps=num_steps)
