"""Step by step from one start, EM is hmmlearn's."""

import numpy as np
import pytest
import torch
from hmmlearn.hmm import GaussianHMM

from pyro_regimes import EM
from pyro_regimes.datasets import load_sector_returns
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
