"""EM for other families than the Gaussian, as the users of each library run it.

The chains of the counts and categories go from left to right: each state is left for the next one
only, and the last one is never left. So the initial and the transition probabilities have zeros,
which no library changes. pomegranate's M-step of a Student-t is that of a Gaussian, so it differs.
The Student-t has a loop of numpy beside it, as users write one; its degrees of freedom are known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from benchmarks.measure import torch_threads
from benchmarks.peer_em import Fit, Ours, Stopped, default_dtype
from benchmarks.peer_workloads import Array, sticky
from pyro_regimes import EM, RegimeHMM

STAY = 0.98  # probability of the same state at the next step
NUM_SYMBOLS = 18
DF = 4.0

Arguments = dict[str, Array]


class FamilyWorkload(NamedTuple):
    """Sizes: N sequences of T steps with D series and K states."""

    name: str  #: that of the family
    num_steps: int
    num_series: int
    num_states: int
    num_sequences: int
    is_left_to_right: bool
    num_starts: int = 1

    def __str__(self) -> str:
        sizes = f"T={self.num_steps} D={self.num_series} K={self.num_states}"
        sizes += f" N={self.num_sequences}" if self.num_sequences > 1 else ""
        return sizes + (", left to right" if self.is_left_to_right else "")


FAMILY_WORKLOADS = (
    FamilyWorkload("poisson", 250, 27, 10, 10, True),
    FamilyWorkload("categorical", 250, 1, 10, 10, True),
    FamilyWorkload("bernoulli", 250, 27, 5, 10, True),
    FamilyWorkload("gamma", 2500, 3, 3, 1, False),
    FamilyWorkload("student_t", 2500, 5, 3, 1, False),
)


class FamilyProblem(NamedTuple):
    """What is handed to every library."""

    workload: FamilyWorkload
    data: Array  #: ``(N, T, D)``
    start: Arguments  #: by the name of the parameter, the chain's first


class Spec(NamedTuple):
    """A family of observations."""

    #: arguments of the states, ``(K, D)`` or ``(K, symbols)``
    draw: Callable[[np.random.RandomState, tuple[int, int]], Arguments]
    sample: Callable[..., Array]  #: ``(rng, **arguments of each observation) -> (T, D)``
    distribution: Callable[..., Any]  #: of Pyro
    constraints: dict[str, constraints.Constraint]
    perturb: Callable[[Array, np.random.RandomState], Array]  #: arguments to those of a start


def _scaled(value: Array, rng: np.random.RandomState) -> Array:
    return value * np.exp(0.2 * rng.standard_normal(value.shape))


def _mixed(probs: Array, rng: np.random.RandomState) -> Array:
    """Rows of probabilities, or probabilities, nearer to the middle."""
    middle = 1 / probs.shape[-1] if np.allclose(probs.sum(-1), 1) else 0.5
    return 0.6 * probs + 0.4 * middle


def _draw_symbols(rng: np.random.RandomState, probs: Array) -> Array:
    uniform = rng.random_sample((len(probs), 1))
    return (uniform > probs.cumsum(-1)).sum(-1, keepdims=True).astype(np.float64)


def _draw_student(rng: np.random.RandomState, shape: tuple[int, int]) -> Arguments:
    return {"loc": rng.standard_normal(shape), "scale": rng.uniform(0.5, 1.5, shape)}


SPECS = {
    "poisson": Spec(
        lambda rng, shape: {
            "rate": rng.gamma(2.0, 1.0, shape[1]) * np.exp(0.15 * rng.standard_normal(shape))
        },
        lambda rng, rate: rng.poisson(rate).astype(np.float64),
        lambda rate: dist.Poisson(rate).to_event(1),
        {"rate": constraints.positive},
        _scaled,
    ),
    "categorical": Spec(
        lambda rng, shape: {"probs": rng.dirichlet(np.full(NUM_SYMBOLS, 0.7), shape[0])},
        _draw_symbols,
        dist.Categorical,
        {"probs": constraints.simplex},
        _mixed,
    ),
    "bernoulli": Spec(
        lambda rng, shape: {"probs": rng.uniform(0.3, 0.7, shape)},
        lambda rng, probs: (rng.random_sample(probs.shape) < probs).astype(np.float64),
        lambda probs: dist.Bernoulli(probs).to_event(1),
        {"probs": constraints.unit_interval},
        _mixed,
    ),
    "gamma": Spec(
        lambda rng, shape: {
            "concentration": rng.uniform(1.0, 4.0, shape),
            "rate": rng.uniform(0.5, 3.0, shape),
        },
        lambda rng, concentration, rate: rng.gamma(concentration, 1 / rate),
        lambda concentration, rate: dist.Gamma(concentration, rate).to_event(1),
        {"concentration": constraints.positive, "rate": constraints.positive},
        _scaled,
    ),
    "student_t": Spec(
        _draw_student,
        lambda rng, loc, scale: loc + scale * rng.standard_t(DF, loc.shape),
        lambda loc, scale: dist.StudentT(loc.new_tensor(DF), loc, scale).to_event(1),
        {"loc": constraints.real, "scale": constraints.positive},
        lambda value, rng: value + 0.2 * rng.random_sample(value.shape),
    ),
}


def make_family_problem(workload: FamilyWorkload, seed: int = 0) -> FamilyProblem:
    """Data of the family, and a start near the truth."""
    rng, spec = np.random.RandomState(seed), SPECS[workload.name]
    num_states = workload.num_states
    truth = spec.draw(rng, (num_states, workload.num_series))
    chain = _chain(workload, STAY)
    paths = [_draw_states(chain, workload, rng) for _ in range(workload.num_sequences)]
    data = np.stack(
        [
            spec.sample(rng, **{name: value[states] for name, value in truth.items()})
            for states in paths
        ]
    )
    arguments = {name: spec.perturb(value, rng) for name, value in truth.items()}
    return FamilyProblem(workload, data, {**_chain(workload, 0.9), **arguments})


def from_random_start(problem: FamilyProblem, seed: int) -> FamilyProblem:
    """The problem from a start that knows nothing of the states.

    Counts start at the mean of each series times a uniform number from 0.7 to 1.3, symbols at a
    draw from the uniform distribution of probabilities, and the chain as near the truth.
    """
    rng, start = np.random.RandomState(seed), dict(problem.start)
    if problem.workload.name == "poisson":
        mean = problem.data.reshape(-1, problem.workload.num_series).mean(0)
        start["rate"] = mean * rng.uniform(0.7, 1.3, start["rate"].shape)
    else:
        num_states, num_symbols = start["probs"].shape
        start["probs"] = rng.dirichlet(np.ones(num_symbols), num_states)
    return problem._replace(start=start)


def _chain(workload: FamilyWorkload, stay: float) -> Arguments:
    num_states = workload.num_states
    if not workload.is_left_to_right:
        return {
            "initial": np.full(num_states, 1 / num_states),
            "transition": sticky(num_states, stay),
        }
    transition = stay * np.eye(num_states) + (1 - stay) * np.eye(num_states, k=1)
    transition[-1, -1] = 1.0
    return {"initial": np.eye(num_states)[0], "transition": transition}


def _draw_states(chain: Arguments, workload: FamilyWorkload, rng: np.random.RandomState) -> Any:
    state, states = rng.choice(workload.num_states, p=chain["initial"]), []
    for _ in range(workload.num_steps):
        states.append(state)
        state = rng.choice(workload.num_states, p=chain["transition"][state])
    return np.array(states)


def _tuple(*values: Array) -> tuple[Array, ...]:
    return values


class OurFamily(Ours):
    """``EM(model).run`` over a Pyro model."""

    pack = staticmethod(_tuple)

    def __init__(self, problem: FamilyProblem, dtype: str) -> None:
        tensor = partial(torch.tensor, dtype=getattr(torch, dtype))
        data = problem.data if problem.workload.num_sequences > 1 else problem.data[0]
        self.data = tensor(data)
        self.spec = SPECS[problem.workload.name]
        if self.spec.distribution is dist.Categorical:
            self.data = self.data.squeeze(-1).long()
        self.start = {name: tensor(value) for name, value in problem.start.items()}
        self.num_starts = 1
        self.num_sequences = problem.workload.num_sequences

    def converge(self, **settings: Any) -> Stopped:
        """A fit that stops by itself, by default with our own settings."""
        with pyro.get_param_store().scope():
            result = EM(self.model).run(self.data, **settings)
            return Stopped(result.num_steps, lambda: -result.history[-1])

    def model(self, data: Tensor) -> None:
        """The model as a user of Pyro writes it."""
        kinds = {"initial": constraints.simplex, "transition": constraints.simplex}
        kinds |= self.spec.constraints
        values = {
            name: pyro.param(name, self.start[name].clone, constraint)
            for name, constraint in kinds.items()
        }
        initial, transition = values.pop("initial"), values.pop("transition")
        hmm = RegimeHMM(
            initial_probs=initial,
            transition_probs=transition,
            observation_dist=self.spec.distribution(**values),
        )
        if self.num_sequences == 1:
            pyro.sample("x", hmm, obs=data)
        else:
            with pyro.plate("batch", self.num_sequences):
                pyro.sample("x", hmm, obs=data)


class HmmlearnFamily:
    """``PoissonHMM`` or ``CategoricalHMM``. It knows float64 only."""

    def __init__(self, problem: FamilyProblem, dtype: str, *, implementation: str) -> None:
        from hmmlearn import hmm

        assert dtype == "float64"
        workload = problem.workload
        self.data = problem.data.reshape(-1, workload.num_series)
        self.lengths = [workload.num_steps] * workload.num_sequences
        self.start = problem.start
        if workload.name == "poisson":
            kind, self.name = hmm.PoissonHMM, "lambdas_"
        else:
            kind, self.name = hmm.CategoricalHMM, "emissionprob_"
            self.data = self.data.astype(np.int64)
        self.make = partial(
            kind, workload.num_states, implementation=implementation, init_params=""
        )

    def fit(self, num_steps: int) -> Fit:
        """See :class:`.Library`."""
        hmm = self._run(n_iter=num_steps, tol=-np.inf)
        parameters = (hmm.startprob_, hmm.transmat_, getattr(hmm, self.name))
        return Fit(parameters, np.array(hmm.monitor_.history))

    def converge(self, num_steps: int | None = None, tol: float | None = None) -> Stopped:
        """A fit that stops by itself, by default with the library's own settings."""
        given = {"n_iter": num_steps, "tol": tol}
        hmm = self._run(**{name: value for name, value in given.items() if value is not None})
        return Stopped(hmm.monitor_.iter, lambda: float(hmm.score(self.data, self.lengths)))

    def _run(self, **settings: Any) -> Any:
        hmm = self.make(**settings)
        hmm.startprob_, hmm.transmat_, emission = self.start.values()
        setattr(hmm, self.name, emission)
        if self.name == "emissionprob_":
            hmm.n_features = emission.shape[-1]
        return hmm.fit(self.data, self.lengths)


class PomegranateFamily:
    """``DenseHMM.summarize`` and ``from_summaries``; see :class:`.peer_em.Pomegranate`."""

    def __init__(self, problem: FamilyProblem, dtype: str) -> None:
        with torch_threads(torch.get_num_threads()):  # which its import changes
            from pomegranate import distributions
            from pomegranate.hmm import DenseHMM

        self.dense_hmm, self.dtype = DenseHMM, getattr(torch, dtype)
        self.data = torch.tensor(problem.data, dtype=self.dtype)
        self.start = {
            name: torch.tensor(value, dtype=self.dtype) for name, value in problem.start.items()
        }
        self.make: Callable[..., Any]
        self.names: tuple[str, ...]
        if problem.workload.name == "poisson":
            self.make, self.names = distributions.Poisson, ("lambdas",)
        elif problem.workload.name == "bernoulli":
            self.make, self.names = distributions.Bernoulli, ("probs",)
        elif problem.workload.name == "gamma":
            self.make = partial(distributions.Gamma, tol=1e-13, max_iter=100)
            self.names = ("shapes", "rates")
        elif problem.workload.name == "categorical":
            self.data = self.data.long()
            self.start["probs"] = self.start["probs"].unsqueeze(1)
            self.make, self.names = distributions.Categorical, ("probs",)
        else:
            self.start["scale"] = self.start["scale"].square()
            self.make = partial(distributions.StudentT, int(DF), covariance_type="diag")
            self.names = ("means", "covs")

    def fit(self, num_steps: int) -> Fit:
        """See :class:`.Library`."""
        with default_dtype(self.dtype):
            return self._fit(num_steps)

    def _fit(self, num_steps: int) -> Fit:
        initial, transition, *arguments = (value.clone() for value in self.start.values())
        states = [self.make(*each) for each in zip(*arguments, strict=True)]
        ends = torch.ones_like(initial)
        hmm = self.dense_hmm(states, edges=transition, starts=initial, ends=ends)
        hmm.ends.frozen = True
        log_likelihoods = []
        for _ in range(num_steps):
            log_likelihoods.append(hmm.summarize(self.data).double().sum().item())
            hmm._xw_ends_sum.zero_()
            hmm.from_summaries()
        values = [torch.stack([getattr(each, name) for each in states]) for name in self.names]
        if self.names == ("means", "covs"):
            values[1] = values[1].sqrt()
        values = [hmm.starts.exp(), hmm.edges.exp(), *values]
        shapes = [value.shape for value in self.start.values()]
        shapes[2:] = [shape[:1] + shape[-1:] for shape in shapes[2:]]
        return Fit(
            tuple(
                value.double().numpy().reshape(shape)
                for value, shape in zip(values, shapes, strict=True)
            ),
            np.array(log_likelihoods),
        )


class NumpyStudentT:
    """EM of a Student-t chain as a loop of numpy: the scaled recursion, and PX-EM's M-step."""

    def __init__(self, problem: FamilyProblem, dtype: str) -> None:
        self.data = problem.data.astype(dtype)
        self.start = {name: value.astype(dtype) for name, value in problem.start.items()}

    def fit(self, num_steps: int) -> Fit:
        """See :class:`.Library`."""
        parameters, log_likelihoods = tuple(self.start.values()), []
        for _ in range(num_steps):
            log_likelihood, parameters = self._step(*parameters)
            log_likelihoods.append(log_likelihood)
        return Fit(parameters, np.array(log_likelihoods))

    def _step(
        self, initial: Array, transition: Array, loc: Array, scale: Array
    ) -> tuple[float, tuple[Array, ...]]:
        deviation = self.data[:, :, np.newaxis] - loc  # (N, T, K, D)
        square = (deviation / scale) ** 2
        density = _log_t_constant() - 0.5 * (DF + 1) * np.log1p(square / DF) - np.log(scale)
        log_likelihood, gamma, moves = _forward_backward(initial, transition, density.sum(-1))
        latent = gamma[..., np.newaxis] * (DF + 1) / (DF + square)
        total = latent.sum((0, 1))
        new_loc = (latent * self.data[:, :, np.newaxis]).sum((0, 1)) / total
        scatter = (latent * (self.data[:, :, np.newaxis] - new_loc) ** 2).sum((0, 1))
        starts = gamma[:, 0].sum(0)
        return log_likelihood, (
            starts / starts.sum(),
            moves / moves.sum(-1, keepdims=True),
            new_loc,
            np.sqrt(scatter / total),
        )


def _log_t_constant() -> float:
    from math import lgamma, log, pi

    return lgamma(0.5 * (DF + 1)) - lgamma(0.5 * DF) - 0.5 * log(DF * pi)


def _forward_backward(
    initial: Array, transition: Array, density: Array
) -> tuple[float, Array, Array]:
    """The log-likelihood, gamma ``(N, T, K)`` and summed xi ``(K, K)``."""
    peak = density.max(-1, keepdims=True)
    emitted = np.exp(density - peak)
    alpha, scales = np.empty_like(emitted), np.empty(emitted.shape[:2])
    state = initial * emitted[:, 0]
    for t in range(emitted.shape[1]):
        if t > 0:
            state = (alpha[:, t - 1] @ transition) * emitted[:, t]
        scales[:, t] = state.sum(-1)
        alpha[:, t] = state / scales[:, t, np.newaxis]
    beta = np.ones_like(emitted)
    for t in range(emitted.shape[1] - 2, -1, -1):
        ahead = emitted[:, t + 1] * beta[:, t + 1] / scales[:, t + 1, np.newaxis]
        beta[:, t] = ahead @ transition.T
    ahead = emitted * beta / scales[..., np.newaxis]
    moves = transition * np.einsum("nti,ntj->ij", alpha[:, :-1], ahead[:, 1:])
    return float(np.log(scales).sum() + peak.sum()), alpha * beta, moves


def family_peers(name: str) -> dict[str, Callable[..., Any]]:
    """The libraries that have a family, in float64."""
    peers: dict[str, Callable[..., Any]] = {}
    if name in ("poisson", "categorical"):
        peers["hmmlearn"] = partial(HmmlearnFamily, implementation="log")  # its default
        peers["hmmlearn scaling"] = partial(HmmlearnFamily, implementation="scaling")
    peers["pomegranate"] = PomegranateFamily
    if name == "student_t":
        peers["numpy"] = NumpyStudentT
    return peers
