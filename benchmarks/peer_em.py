"""EM as the users of each library run it, from the same start and without priors.

Each class takes a problem and a dtype, and prepares everything that is not timed. Its one method,
``fit(num_steps)``, runs this number of EM iterations from the start. A library is imported when its
class is created, so that a missing library affects its own column only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO
from torch import Tensor

from benchmarks.measure import torch_threads
from benchmarks.peer_workloads import Array, Parameters, Problem
from pyro_regimes import EM, RegimeHMM

MOST_STEPS, TOL = 100, 1e-4  # of a fit that stops by itself


class Fit(NamedTuple):
    """Where EM arrived, and by what way."""

    parameters: tuple[Array, ...]  #: after the last step
    log_likelihoods: Array  #: before each step, summed over sequences and starts


class Stopped(NamedTuple):
    """How a fit ended that stops by itself."""

    num_steps: int  #: the number of iterations, summed over starts
    score: Callable[[], float]  #: the log-likelihood at its end, summed over sequences and starts


class Library(Protocol):
    """What a class of this file is."""

    def fit(self, num_steps: int) -> Fit:
        """So many EM iterations from the start."""


class Ours:
    """``EM(model).run`` over a Pyro model; restarts are a leading dim of its parameters."""

    pack: Callable[..., tuple[Array, ...]] = Parameters  #: what holds the parameters of a fit

    def __init__(self, problem: Problem, dtype: str) -> None:
        workload, start = problem.workload, problem.start
        tensor = partial(torch.tensor, dtype=getattr(torch, dtype))
        data = problem.data if workload.num_sequences > 1 else problem.data[0]
        self.data = tensor(data)
        self.start = {name: tensor(value) for name, value in start._asdict().items()}
        self.num_starts = workload.num_starts
        if self.num_starts > 1:  # (R, K, ...) to (R, 1, K, ...): dimension -2 is always time
            for name in ("transition", "loc", "covariance"):
                self.start[name] = self.start[name].unsqueeze(1)

    def model(self, data: Tensor) -> None:
        """The model as a user of Pyro writes it."""
        initial = pyro.param("initial", self.start["initial"].clone, constraints.simplex)
        transition = pyro.param("transition", self.start["transition"].clone, constraints.simplex)
        loc = pyro.param("loc", self.start["loc"].clone)
        covariance = pyro.param(
            "covariance", self.start["covariance"].clone, constraints.positive_definite
        )
        observation_dist = dist.MultivariateNormal(loc, covariance_matrix=covariance)
        hmm = RegimeHMM(
            initial_probs=initial, transition_probs=transition, observation_dist=observation_dist
        )
        size = len(data) if data.dim() == 3 else self.num_starts
        with pyro.plate("batch", size) if size > 1 else nullcontext():
            pyro.sample("x", hmm, obs=data)

    def fit(self, num_steps: int) -> Fit:
        """See :class:`Library`; another parameter store each time, and another plan.

        :raises RuntimeError: if EM stopped early, as its time would say nothing then.
        """
        with pyro.get_param_store().scope():
            result = EM(self.model).run(self.data, num_steps=num_steps, tol=None)
            if result.num_steps != num_steps:
                raise RuntimeError(f"EM stopped after {result.num_steps}: {result.stop_reason}")
            store = pyro.get_param_store()
            values = [store[name].detach().double() for name in self.start]
        if self.num_starts > 1:
            values[1:] = [value.squeeze(1) for value in values[1:]]
        parameters = self.pack(*(value.numpy() for value in values))
        return Fit(parameters, -np.array(result.history[:num_steps]))

    def converge(self) -> Stopped:
        """A fit that stops by itself."""
        with pyro.get_param_store().scope():
            result = EM(self.model).run(self.data, num_steps=MOST_STEPS, tol=TOL)
            return Stopped(result.num_steps, lambda: -result.history[-1])

    def gradient(self) -> None:
        """One gradient of the same model, as SVI takes it."""
        with pyro.get_param_store().scope():
            Trace_ELBO().loss_and_grads(self.model, lambda data: None, self.data)


class Hmmlearn:
    """``GaussianHMM.fit`` without priors; several starts by a loop. It knows float64 only."""

    def __init__(self, problem: Problem, dtype: str, *, implementation: str) -> None:
        from hmmlearn.hmm import GaussianHMM

        assert dtype == "float64"
        workload = problem.workload
        self.data = problem.data.reshape(-1, workload.num_series)
        self.lengths = [workload.num_steps] * workload.num_sequences
        self.start, self.num_starts = problem.start, workload.num_starts
        self.make = partial(
            GaussianHMM,
            workload.num_states,
            covariance_type="full",
            implementation=implementation,
            covars_prior=0,
            covars_weight=workload.num_series,
            means_weight=0,
            min_covar=0,
            init_params="",
        )

    def fit(self, num_steps: int) -> Fit:
        """See :class:`Library`."""
        if self.num_starts == 1:
            return self._fit(self.start, num_steps)
        return _stack([self._fit(self.start.select(i), num_steps) for i in range(self.num_starts)])

    def converge(self) -> Stopped:
        """Fits that stop by themselves."""
        starts = [self.start]
        if self.num_starts > 1:
            starts = [self.start.select(index) for index in range(self.num_starts)]
        fitted = [self._run(start, MOST_STEPS, TOL) for start in starts]

        def score() -> float:
            return float(sum(hmm.score(self.data, self.lengths) for hmm in fitted))

        return Stopped(sum(hmm.monitor_.iter for hmm in fitted), score)

    def _run(self, start: Parameters, num_steps: int, tol: float = -np.inf) -> Any:
        hmm = self.make(n_iter=num_steps, tol=tol)
        hmm.startprob_, hmm.transmat_, hmm.means_, hmm.covars_ = start
        return hmm.fit(self.data, self.lengths)

    def _fit(self, start: Parameters, num_steps: int) -> Fit:
        hmm = self._run(start, num_steps)
        parameters = Parameters(hmm.startprob_, hmm.transmat_, hmm.means_, hmm.covars_)
        return Fit(parameters, np.array(hmm.monitor_.history))


class Dynamax:
    """``GaussianHMM.e_step`` and ``m_step`` in one jitted function, as ``fit_em`` has them.

    Sequences by vmap, as in ``fit_em``; starts by vmap of the whole step. The priors of the means
    and scatters are zero. Two cannot be left out: the mode of a Dirichlet exists for
    concentrations above 1 only, so they lie 4 units in the last place above; and the least degrees
    of freedom, D, shrink a covariance of weight w by w / (w + 2 D + 2), which is undone here.
    """

    def __init__(self, problem: Problem, dtype: str) -> None:
        import jax
        from dynamax.hidden_markov_model import GaussianHMM

        self.jax, self.dtype = jax, np.dtype(dtype)
        workload, starts = problem.workload, problem.workload.num_starts
        with self._precision():
            concentration = 1 + 4 * float(np.finfo(self.dtype).eps)
            self.hmm = GaussianHMM(
                workload.num_states,
                workload.num_series,
                initial_probs_concentration=concentration,
                transition_matrix_concentration=concentration,
                emission_prior_concentration=0.0,
                emission_prior_scale=0.0,
                emission_prior_extra_df=0.0,
            )
            self.data = self._array(problem.data)
            start = Parameters(*map(self._array, problem.start))
            first = start if starts == 1 else start.select(0)
            _, self.props = self._initialize(*first)
            step = self._step
            if starts == 1:
                self.start = self._initialize(*start)[0]
            else:
                step = jax.vmap(step, in_axes=(0, None))
                self.start = jax.vmap(lambda *value: self._initialize(*value)[0])(*start)
            self.step = jax.jit(step)
            begin = time.perf_counter()
            jax.block_until_ready(self.step(self.start, self.data))
            self.first_call = time.perf_counter() - begin  #: seconds; compilation is in it

    def fit(self, num_steps: int) -> Fit:
        """See :class:`Library`.

        :raises TypeError: if jax changed the dtype.
        """
        with self._precision():
            params, log_likelihoods = self.start, []
            for _ in range(num_steps):
                params, log_likelihood = self.step(params, self.data)
                log_likelihoods.append(log_likelihood)
            self.jax.block_until_ready(params)
        for leaf in (*self.jax.tree_util.tree_leaves(params), *log_likelihoods):
            if leaf.dtype != self.dtype:
                raise TypeError(f"expected {self.dtype} of dynamax, got {leaf.dtype}")
        values = (params.initial.probs, params.transitions.transition_matrix, *params.emissions)
        parameters = Parameters(*(np.asarray(value, dtype=np.float64) for value in values))
        totals = [np.asarray(value, dtype=np.float64).sum() for value in log_likelihoods]
        return Fit(parameters, np.array(totals))

    def _precision(self) -> Any:
        """Each library here wants its own default, so jax's is set around its calls only."""
        return self.jax.enable_x64(self.dtype == np.float64)

    def _array(self, value: Array) -> Any:
        return self.jax.numpy.asarray(value, dtype=self.dtype)

    def _initialize(self, initial: Any, transition: Any, loc: Any, covariance: Any) -> Any:
        return self.hmm.initialize(
            initial_probs=initial,
            transition_matrix=transition,
            emission_means=loc,
            emission_covariances=covariance,
        )

    def _step(self, params: Any, data: Any) -> tuple[Any, Any]:
        """One EM iteration: the new parameters, and the log-likelihood of the old."""
        e_step = self.jax.vmap(partial(self.hmm.e_step, params))
        statistics, log_likelihoods = e_step(data, None)
        new, _ = self.hmm.m_step(params, self.props, statistics, (None, None, None))
        weight = statistics[2]["sum_w"].sum(0)
        degrees = 2 * self.data.shape[-1] + 2
        unshrunk = new.emissions.covs * (1 + degrees / weight)[:, None, None]
        emissions = new.emissions._replace(covs=unshrunk)
        return new._replace(emissions=emissions), log_likelihoods.sum()


class Pomegranate:
    """``DenseHMM.summarize`` and ``from_summaries``, as its ``fit`` has them; starts by a loop.

    Its chains end: each state has a probability of being the last. Those stay 1 here, and their
    counts are taken out before each M-step, which makes it the model of the others. It computes in
    torch's default dtype, whatever its arguments have.
    """

    def __init__(self, problem: Problem, dtype: str) -> None:
        with torch_threads(torch.get_num_threads()):  # which its import changes
            from pomegranate.distributions import Normal
            from pomegranate.hmm import DenseHMM

        self.normal, self.dense_hmm = Normal, DenseHMM
        self.dtype = getattr(torch, dtype)
        self.data = torch.tensor(problem.data, dtype=self.dtype)
        self.start, self.num_starts = problem.start, problem.workload.num_starts

    def fit(self, num_steps: int) -> Fit:
        """See :class:`Library`."""
        with default_dtype(self.dtype):
            if self.num_starts == 1:
                return self._fit(self.start, num_steps)
            return _stack(
                [self._fit(self.start.select(i), num_steps) for i in range(self.num_starts)]
            )

    def _fit(self, start: Parameters, num_steps: int) -> Fit:
        initial, transition, loc, covariance = (torch.tensor(x, dtype=self.dtype) for x in start)
        states = [self.normal(*each) for each in zip(loc, covariance, strict=True)]
        ends = torch.ones_like(initial)
        hmm = self.dense_hmm(states, edges=transition, starts=initial, ends=ends)
        hmm.ends.frozen = True
        log_likelihoods = []
        for _ in range(num_steps):
            log_likelihoods.append(hmm.summarize(self.data).double().sum().item())
            hmm._xw_ends_sum.zero_()
            hmm.from_summaries()
        values = (
            hmm.starts.exp(),
            hmm.edges.exp(),
            torch.stack([state.means for state in states]),
            torch.stack([state.covs for state in states]),
        )
        parameters = Parameters(*(value.double().numpy() for value in values))
        return Fit(parameters, np.array(log_likelihoods))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Another default dtype of torch, for a while."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def _stack(fits: list[Fit]) -> Fit:
    """The fits of several starts as one."""
    parameters = Parameters(*map(np.stack, zip(*(fit.parameters for fit in fits), strict=True)))
    return Fit(parameters, np.sum([fit.log_likelihoods for fit in fits], axis=0))
