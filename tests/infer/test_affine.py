"""Locations that are affine in parameters, against weighted least squares by another route."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from pyro_regimes import EM, RegimeHMM
from tests.infer.models import (
    COVARIANCES,
    INITIAL,
    LOC,
    LOCS,
    SCALE,
    TRANSITION,
    X,
    Y,
    observe,
    real,
)

FACTORS = torch.stack([torch.ones(64), torch.linspace(-1, 2, 64)], -1).double()


def gamma(hmm: RegimeHMM, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return hmm.posterior(x).smoothed_probs.numpy()


def least_squares(
    design: np.ndarray, target: np.ndarray, weights: np.ndarray, precisions: np.ndarray
) -> np.ndarray:
    """By QR of the stacked, whitened rows.

    :param design: ``(T, K, D, P)``; target: ``(T, D)``; weights: ``(T, K)``; precisions:
        ``(K, D, D)``.
    """
    roots = np.linalg.cholesky(precisions)  # precision = L L^T, so rows are L^T (x - J theta)
    rows, right = [], []
    for k in range(weights.shape[1]):
        whiten = np.sqrt(weights[:, k])[:, None, None] * roots[k].T
        rows.append((whiten @ design[:, k]).reshape(-1, design.shape[-1]))
        right.append((whiten @ target[..., None]).ravel())
    return np.linalg.lstsq(np.concatenate(rows), np.concatenate(right), rcond=None)[0]


def test_factor_loadings() -> None:
    start = torch.stack([LOCS, 0.1 * LOCS], -1)  # (K, D, F)

    def model() -> None:
        loadings = real("loadings", start)
        locs = torch.einsum("tf,kdf->tkd", FACTORS, loadings)
        observe(observation_dist=dist.MultivariateNormal(locs, COVARIANCES), obs=Y)

    locs = torch.einsum("tf,kdf->tkd", FACTORS, start)
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.MultivariateNormal(locs, COVARIANCES),
    )
    design = np.zeros((64, 2, 3, 2, 3, 2))
    for k in range(2):
        for d in range(3):
            design[:, k, d, k, d, :] = FACTORS.numpy()
    expected = least_squares(
        design.reshape(64, 2, 3, 12), Y.numpy(), gamma(hmm, Y), np.linalg.inv(COVARIANCES.numpy())
    )
    EM(model).step()
    found = pyro.param("loadings").detach().numpy().ravel()
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_base_and_difference(shift) -> None:
    """Solved together, not in turn; of data far from zero too."""

    def model() -> None:
        base, difference = real("base", LOC[:1] + shift), real("difference", torch.tensor([0.4]))
        observe(loc=torch.cat([base, base + difference]), obs=X + shift)

    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.Normal(torch.stack([LOC[0], LOC[0] + 0.4]) + shift, SCALE),
    )
    design = np.zeros((64, 2, 1, 2))
    design[:, :, 0, 0] = 1.0
    design[:, 1, 0, 1] = 1.0
    expected = least_squares(
        design,
        (X + shift).numpy()[:, None],
        gamma(hmm, X + shift),
        (SCALE**-2).numpy()[:, None, None],
    )
    EM(model).step()
    found = [float(pyro.param(name).detach()) for name in ("base", "difference")]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_direction_that_changes_nothing_stays() -> None:
    """A sum of two parameters: their difference is not known, and stays as it was."""

    def model() -> None:
        observe(loc=real("a", LOC) + real("b", torch.tensor([0.3, -0.2])))

    em = EM(model)
    em.run(num_steps=10, tol=None)
    a, b = (pyro.param(name).detach() for name in "ab")
    torch.testing.assert_close(a - b, LOC - torch.tensor([0.3, -0.2]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(1,), ()])
def test_normal_prior_on_one_of_two(shape) -> None:
    """A ridge: another row of the least squares."""

    def model() -> None:
        mean = LOC.new_full(shape, 1.0)
        difference = pyro.sample("difference", dist.Normal(mean, 0.1).to_event(len(shape)))
        base = real("base", LOC[:1])
        observe(loc=torch.cat([base, base + difference]))

    start = {"difference": LOC.new_full(shape, 0.4)}
    guide = AutoDelta(model, init_loc_fn=init_to_value(values=start))
    em = EM(model, guide)
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.Normal(torch.stack([LOC[0], LOC[0] + 0.4]), SCALE),
    )
    weights = gamma(hmm, X)
    design = np.zeros((64, 2, 2))
    design[:, :, 0], design[:, 1, 1] = 1.0, 1.0
    root = np.sqrt(weights) / SCALE.numpy()
    rows = np.concatenate([(root[..., None] * design).reshape(-1, 2), [[0.0, 1 / 0.1]]])
    right = np.concatenate([(root * X.numpy()[:, None]).ravel(), [1.0 / 0.1]])
    expected = np.linalg.lstsq(rows, right, rcond=None)[0]
    em.step()
    found = [float(pyro.param("base").detach()), float(guide.median()["difference"])]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_a_constraint_that_the_maximum_violates() -> None:
    """Ordered by positive steps: the first mean is negative, and so has no closed form here."""

    def model() -> None:
        steps = pyro.param(
            "steps", torch.ones(2).double(), constraint=constraints.positive
        )
        observe(loc=steps.cumsum(-1))

    with pytest.raises(ValueError, match="maximum within its constraint"):
        EM(model).step()
    pyro.clear_param_store()
    em = EM(model, optim=pyro.optim.Adam({"lr": 0.05}))
    history = em.run(num_steps=60, tol=None).history
    assert "left its constraint" in em.plan.gradient["steps"]
    assert history[-1] < history[0] - 1
    assert len(history) == 61
