"""Filardo's (1994) model of industrial production: transitions driven by a leading indicator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import stationary_probs
from pyro_regimes.distributions import SwitchingAutoregression
from tests import seeds

DATA = np.genfromtxt(Path(__file__).parents[1] / "data" / "filardo.csv", delimiter=",", names=True)
#: The logits of a step to the first regime, from each of both: constants, and slopes in the
#: indicator; means, standard deviation, coefficients. As in statsmodels'
#: test_markov_autoregression.py.
PUBLISHED = [
    *(4.35941747, -1.6493936, 1.7702123, 0.9945672),
    *(0.517298, -0.865888),
    -0.362469,  # the logarithm
    *(0.189474, 0.079344, 0.110944, 0.122251),
]
ORDER = 4


def series() -> tuple[Tensor, Tensor]:
    """The growth, and the indicator of the month before."""
    return torch.tensor(DATA["dlip"][1:]), torch.tensor(DATA["dmdlleading"][:-1])


def transitions(logits: Tensor, z: Tensor) -> Tensor:
    """A of the steps that enter each row, ``(rows, 2, 2)``."""
    constants, slopes = logits
    first = constants + slopes * z.unsqueeze(-1)  # (rows, 2): from each regime
    return torch.stack([first, torch.zeros_like(first)], -1).softmax(-1)


def filardo(point: Tensor) -> tuple[SwitchingAutoregression, Tensor]:
    """The model, and the rows after its history."""
    x, z = series()
    matrices = transitions(point[:4].view(2, 2), z)
    model = SwitchingAutoregression(
        history=x[:ORDER],
        transition_probs=matrices[1:],  # no step of the model enters the first row
        loc=point[4:6],
        coefficients=point[7:],
        scale=point[6].exp(),
        initial_probs=stationary_probs(matrices[0]),
    )
    return model, x[ORDER:]


def test_the_published_fit():
    model, x = filardo(torch.tensor(PUBLISHED).double())
    assert model.event_shape == (514,)
    found = model.posterior(x)
    assert_close(found.log_likelihood.item(), -586.5718, rtol=0, atol=5e-5)
    for name in ("filtered", "smoothed"):
        wanted = torch.tensor(DATA[f"{name}_0"][5:])
        assert_close(getattr(found, f"{name}_probs")[:, 0], wanted, rtol=0, atol=1e-5)
    assert found.expected_transitions.shape == (513, 2, 2)
    joint = found.expected_transitions
    assert_close(joint.sum(-2), found.smoothed_probs[1:], rtol=1e-10, atol=1e-12)
    assert_close(joint.sum(-1), found.smoothed_probs[:-1], rtol=1e-10, atol=1e-12)


def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
    u = torch.tensor(point, requires_grad=True)
    model, x = filardo(u)
    value = -model.log_prob(x)
    (gradient,) = torch.autograd.grad(value, u)
    return value.item(), gradient.numpy()


def test_the_fit_from_random_starts():
    """L-BFGS from means drawn about that of the data, without knowledge of the indicator."""
    x, _ = series()
    draw, best = np.random.default_rng(seeds.seed(3)), None
    for _ in range(6):
        start = np.zeros(11)
        start[:2] = 2.0, -2.0
        start[4:6] = np.sort(float(x.mean()) + float(x.std()) * draw.normal(size=2))[::-1]
        start[6] = np.log(float(x.std()))
        options = {"maxiter": 500, "ftol": 1e-14, "gtol": 1e-7}
        fit = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
        best = fit if best is None or fit.fun < best.fun else best
    assert_close(-best.fun, -586.5718, rtol=0, atol=5e-5)
    assert_close(best.x, np.array(PUBLISHED), rtol=0, atol=2e-4)


def test_the_sum_over_paths_by_autograd_agrees():
    """The gradient of the model is that of its tuples' logits in plain tensor code."""
    from pyro_regimes.kernels import ops

    point = np.array(PUBLISHED) + 0.1
    value, gradient = loss(point)
    with ops.backend("reference"):
        other, wanted = loss(point)
    assert_close(value, other, rtol=1e-11, atol=0)
    assert_close(gradient, wanted, rtol=1e-8, atol=1e-8)


def test_forecasts_need_the_next_transitions():
    model, x = filardo(torch.tensor(PUBLISHED).double())
    with pytest.raises(ValueError, match="expected transition_probs, those of the step to the"):
        model.forecast(x)
    x, z = series()
    matrices = transitions(torch.tensor(PUBLISHED[:4]).double().view(2, 2), z)
    shorter = SwitchingAutoregression(
        x[:ORDER], matrices[1:-1], model.loc, model.coefficients, model.scale,
        initial_probs=model.initial_probs,
    )  # fmt: skip
    ahead = shorter.forecast(x[ORDER:-1], matrices[-1])
    rise = model.log_prob(x[ORDER:]) - shorter.log_prob(x[ORDER:-1])
    assert_close(ahead.log_prob(x[-1]), rise, rtol=1e-9, atol=1e-9)
