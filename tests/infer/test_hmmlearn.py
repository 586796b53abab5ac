"""Step by step from one start, EM is hmmlearn's."""

from typing import Any, Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hmmlearn.hmm import CategoricalHMM, GaussianHMM, PoissonHMM
from pyro.distributions import constraints

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.datasets import load_sector_returns
from tests import seeds
from tests.infer.starts import KINDS, Start, fitted, model_of, start_of

NUM_STEPS = 50


def fit_hmmlearn(start: Start, data: np.ndarray) -> GaussianHMM:
    """hmmlearn without its priors: maximum likelihood."""
    weight = {"full": data.shape[1], "diag": 1, "spherical": 1, "tied": 0}[start.kind]
    hmm = GaussianHMM(
        len(start.loc),
        covariance_type=start.kind,
        covars_prior=0,
        covars_weight=weight,
        means_weight=0,
        min_covar=0,
        init_params="",
        implementation="log",
        n_iter=NUM_STEPS,
        tol=-np.inf,
    )
    hmm.startprob_, hmm.transmat_, hmm.means_ = start.initial, start.transition, start.loc
    hmm.covars_ = start.covariance
    return hmm.fit(data)


@pytest.mark.parametrize("kind", KINDS)
def test_trace_and_parameters(kind: str) -> None:
    data = load_sector_returns().values
    start = start_of(data, kind)
    expected = fit_hmmlearn(start, data)
    result = EM(model_of(start)).run(torch.tensor(data), num_steps=NUM_STEPS, tol=None)
    actual = fitted(kind)

    trace = -np.array(result.history)
    assert len(trace) == NUM_STEPS + 1
    np.testing.assert_allclose(trace[:-1], expected.monitor_.history, rtol=1e-8, atol=0)
    np.testing.assert_allclose(trace[-1], expected.score(data), rtol=1e-8, atol=0)
    covariance = expected._covars_  # its property covars_ expands every kind to matrices
    covariance = covariance[:, 0] if kind == "spherical" else covariance
    np.testing.assert_allclose(actual.covariance, covariance, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(actual.loc, expected.means_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(actual.transition, expected.transmat_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(actual.initial, expected.startprob_, rtol=1e-8, atol=1e-10)
    assert np.diff(trace).min() > 0
    assert trace[-1] - trace[0] > 5  # the start was no fixed point


def fit_both(
    hmm: Any, x: np.ndarray, name: str, start: np.ndarray, observed: Callable[[], Any]
) -> None:
    """Fifty steps of hmmlearn and of EM from one start give the same parameters."""
    transition = np.array([[0.9, 0.1], [0.2, 0.8]])
    initial = np.array([0.6, 0.4])
    hmm.startprob_, hmm.transmat_ = initial, transition
    setattr(hmm, f"{name}_", start)
    hmm.fit(x)

    def model() -> None:
        a = pyro.param("transition", torch.tensor(transition), constraint=constraints.simplex)
        pi = pyro.param("initial", torch.tensor(initial), constraint=constraints.simplex)
        value = torch.tensor(x)
        each = observed()
        hmm = RegimeHMM(initial_probs=pi, transition_probs=a, observation_dist=each)
        pyro.sample("x", hmm, obs=value if each.event_shape else value.squeeze(-1))

    result = EM(model).run(num_steps=NUM_STEPS, tol=None)
    trace = -np.array(result.history)
    np.testing.assert_allclose(trace[:-1], hmm.monitor_.history, rtol=1e-10, atol=0)
    np.testing.assert_allclose(trace[-1], hmm.score(x), rtol=1e-10, atol=0)
    names = {"initial": "startprob_", "transition": "transmat_", "own": f"{name}_"}
    for ours, theirs in names.items():
        found = pyro.param(ours).detach().numpy()
        np.testing.assert_allclose(found, getattr(hmm, theirs), rtol=1e-7, atol=1e-9)
    assert trace[-1] - trace[0] > 5  # the start was no fixed point


SETTINGS: dict[str, Any] = {
    "init_params": "",
    "implementation": "log",
    "n_iter": NUM_STEPS,
    "tol": -np.inf,
}


def test_poisson() -> None:
    rng, state = seeds.rng(0), np.arange(400) // 20 % 2
    x = rng.poisson(np.array([[1.0, 8.0, 3.0], [4.0, 5.0, 2.0]])[state])
    start = np.array([[2.0, 7.0, 3.0], [3.0, 6.0, 2.0]])

    def observed() -> Any:
        rate = pyro.param("own", torch.tensor(start), constraint=constraints.positive)
        return dist.Poisson(rate).to_event(1)

    fit_both(PoissonHMM(2, **SETTINGS), x, "lambdas", start, observed)


def test_categorical() -> None:
    rng, state = seeds.rng(0), np.arange(600) // 20 % 2
    probs = np.array([[0.6, 0.2, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])
    x = (rng.rand(600, 1) > probs.cumsum(-1)[state]).sum(-1, keepdims=True)
    start = np.array([[0.4, 0.3, 0.2, 0.1], [0.2, 0.2, 0.3, 0.3]])

    def observed() -> Any:
        own = pyro.param("own", torch.tensor(start), constraint=constraints.simplex)
        return dist.Categorical(own)

    hmm = CategoricalHMM(2, n_features=4, **SETTINGS)
    fit_both(hmm, x, "emissionprob", start, observed)
