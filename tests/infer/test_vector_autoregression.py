"""Markov-switching vector autoregressions: lagged rows as covariates, against numpy and L-BFGS."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to, transform_to
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.infer import standard_errors
from tests import seeds
from tests.infer.test_affine import gamma, least_squares
from tests.test_docs import assert_same_output

K, D, P, T = 3, 2, 2, 240
ROWS = torch.full((K, K), 0.03, dtype=torch.float64) + 0.91 * torch.eye(K, dtype=torch.float64)
INITIAL = torch.full((K,), 1 / K, dtype=torch.float64)
INTERCEPTS = torch.tensor([[-3.0, 0.0], [0.0, 1.0], [3.0, -1.0]], dtype=torch.float64)
LAGS = torch.tensor(
    [
        [[[0.3, 0.1], [0.0, 0.2]], [[-0.2, 0.0], [0.1, 0.1]]],
        [[[0.2, 0.0], [0.1, 0.4]], [[0.0, 0.1], [0.0, -0.1]]],
        [[[-0.1, 0.2], [0.0, 0.1]], [[0.2, 0.0], [0.0, 0.2]]],
    ],
    dtype=torch.float64,
)  # (K, p, D, D)
SPREADS = torch.tensor(
    [[[0.5, 0.1], [0.1, 0.4]], [[1.0, -0.3], [-0.3, 0.8]], [[0.6, 0.0], [0.0, 1.2]]],
    dtype=torch.float64,
)
Params = dict[str, Tensor]


class Form(NamedTuple):
    """Which parts switch."""

    start: Params  #: coefficients
    locations: Callable[[Params, Tensor], Tensor]  #: of lagged rows (T, p, D), (T, K, D)
    groups: tuple[int, ...] = (0, 1, 2)  #: the covariance of each regime


def _by(lags: Tensor, coefficients: Tensor) -> Tensor:
    """The sum over lags, ``(T, K, D)``, of coefficients ``(K or 1, p, D, D)``."""
    return torch.einsum("kjde,tje->tkd", coefficients, lags)


def _some_lags(params: Params, lags: Tensor) -> Tensor:
    first = _by(lags[:, :1], params["first"].unsqueeze(1))
    return params["c"] + first + _by(lags[:, 1:], params["second"][None, None])


FORMS = {
    "all": Form(
        {"c": INTERCEPTS, "lags": LAGS},
        lambda params, lags: params["c"] + _by(lags, params["lags"]),
    ),
    "intercepts": Form(
        {"c": INTERCEPTS, "lags": LAGS[0]},
        lambda params, lags: params["c"] + _by(lags, params["lags"].unsqueeze(0)),
        (0, 0, 0),
    ),
    "spreads": Form(
        {"c": INTERCEPTS[1], "lags": LAGS[1]},
        lambda params, lags: (params["c"] + _by(lags, params["lags"].unsqueeze(0))).expand(
            -1, K, -1
        ),
    ),
    "groups": Form(
        {"c": INTERCEPTS, "lags": LAGS},
        lambda params, lags: params["c"] + _by(lags, params["lags"]),
        (0, 1, 1),
    ),
    "some lags": Form(
        {"c": INTERCEPTS, "first": LAGS[:, 0], "second": LAGS[0, 1]}, _some_lags, (0, 1, 0)
    ),
    "own lags": Form(
        {"c": INTERCEPTS, "lags": LAGS.diagonal(dim1=-2, dim2=-1)},
        lambda params, lags: params["c"] + torch.einsum("kjd,tjd->tkd", params["lags"], lags),
    ),
}


def series() -> Tensor:
    """Rows of the form in which all parts switch, ``(P + T, D)``."""
    rng = seeds.rng(31)
    x, state, factors = np.zeros((P + T, D)), 0, np.linalg.cholesky(SPREADS.numpy())
    for t in range(P, P + T):
        state = rng.choice(K, p=ROWS[state].numpy())
        past = np.einsum("jde,je->d", LAGS[state].numpy(), x[t - P : t][::-1])
        x[t] = INTERCEPTS[state].numpy() + past + factors[state] @ rng.standard_normal(D)
    return torch.from_numpy(x)


def lagged(x: Tensor) -> Tensor:
    """The rows before each one, the last first, ``(T, p, D)``."""
    return torch.stack([x[P - 1 - lag : len(x) - 1 - lag] for lag in range(P)], 1)


def hmm_of(
    form: Form, params: Params, covariances: Tensor, rows: Tensor, lags: Tensor
) -> RegimeHMM:
    emission = dist.MultivariateNormal(
        form.locations(params, lags), covariances[list(form.groups)]
    )
    return RegimeHMM(initial_probs=INITIAL, transition_probs=rows, observation_dist=emission)


def model_of(form: Form) -> Callable[[Tensor, Tensor], None]:
    def model(x: Tensor, lags: Tensor) -> None:
        params = {name: pyro.param(name, start.clone()) for name, start in form.start.items()}
        start = SPREADS[: max(form.groups) + 1].clone()
        covariances = pyro.param("spread", start, constraint=constraints.positive_definite)
        rows = pyro.param("rows", ROWS.clone(), constraint=constraints.simplex)
        pyro.sample("x", hmm_of(form, params, covariances, rows, lags), obs=x)

    return model


def data() -> tuple[Tensor, Tensor]:
    x = series()
    return x[P:], lagged(x)


def design(form: Form, lags: Tensor) -> np.ndarray:
    """The derivative of locations in all coefficients, ``(T, K, D, C)``, by unit vectors."""
    columns = []
    for name, start in form.start.items():
        for unit in torch.eye(start.numel(), dtype=torch.float64):
            params = {other: torch.zeros_like(each) for other, each in form.start.items()}
            params[name] = unit.reshape(start.shape)
            columns.append(form.locations(params, lags).numpy())
    return np.stack(columns, -1)


@pytest.mark.parametrize("name", FORMS)
def test_a_step_is_generalised_least_squares(name):
    """Coefficients given the covariances, then these about the new locations."""
    form, (x, lags) = FORMS[name], data()
    spreads = SPREADS[: max(form.groups) + 1]
    weights = gamma(hmm_of(form, form.start, spreads, ROWS, lags), x)
    precisions = np.linalg.inv(spreads[list(form.groups)].numpy())
    columns = design(form, lags)
    expected = least_squares(columns, x.numpy(), weights, precisions)
    residuals = x.numpy()[:, None] - columns @ expected
    each = np.einsum("tk,tkd,tke->kde", weights, residuals, residuals)
    pyro.clear_param_store()
    em = EM(model_of(form))
    em.step(x, lags)
    assert not em.plan.gradient
    found = [pyro.param(name).detach().numpy().ravel() for name in form.start]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-8, atol=1e-8)
    for group, covariance in enumerate(pyro.param("spread").detach().numpy()):
        own = [k for k, other in enumerate(form.groups) if other == group]
        wanted = each[own].sum(0) / weights[:, own].sum()
        np.testing.assert_allclose(covariance, wanted, rtol=1e-8, atol=1e-8)


def unpacked(form: Form, vector: Tensor) -> tuple[Params, Tensor, Tensor]:
    """Coefficients, covariances and transitions from free numbers."""
    sizes = [each.numel() for each in form.start.values()]
    count = (max(form.groups) + 1) * D * (D + 1) // 2
    *parts, spread, rows = vector.split([*sizes, count, K * (K - 1)])
    params = {
        name: part.reshape(start.shape) for (name, start), part in zip(form.start.items(), parts)
    }
    entries = spread.reshape(-1, D * (D + 1) // 2)
    lower = torch.zeros(len(entries), D, D, dtype=torch.float64)
    lower[:, *torch.tril_indices(D, D)] = entries
    covariances = transform_to(constraints.positive_definite)(lower)
    return params, covariances, biject_to(constraints.simplex)(rows.reshape(K, K - 1))


def packed(form: Form, params: Params, covariances: Tensor, rows: Tensor) -> Tensor:
    lower = transform_to(constraints.positive_definite).inv(covariances)
    parts = [params[name].flatten() for name in form.start]
    parts.append(lower[:, *torch.tril_indices(D, D)].flatten())
    parts.append(biject_to(constraints.simplex).inv(rows).flatten())
    return torch.cat(parts).detach()


def fitted(form: Form, x: Tensor, lags: Tensor) -> tuple[float, Tensor]:
    """The loss of EM, and its parameters as free numbers."""
    pyro.clear_param_store()
    result = EM(model_of(form)).run(x, lags, num_steps=5000, tol=1e-11)
    assert result.converged
    params = {name: pyro.param(name) for name in form.start}
    return result.history[-1], packed(form, params, pyro.param("spread"), pyro.param("rows"))


@pytest.mark.parametrize("name", ["all", "some lags"])
def test_the_optimum_and_its_standard_errors(name):
    """Those of L-BFGS from the same start, and of the inverse of autograd's second derivative."""
    form, (x, lags) = FORMS[name], data()
    loss, optimum = fitted(form, x, lags)

    def objective(vector: Tensor) -> Tensor:
        return -hmm_of(form, *unpacked(form, vector), lags).log_prob(x)

    start = packed(form, form.start, SPREADS[: max(form.groups) + 1], ROWS).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [start], max_iter=500, tolerance_grad=1e-9, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = objective(start)
        value.backward()
        return value

    optimiser.step(closure)
    assert_close(loss, float(objective(start.detach())), rtol=1e-8, atol=0.0)
    size = sum(each.numel() for each in form.start.values())
    assert_close(optimum[:size], start.detach()[:size], rtol=1e-4, atol=1e-5)
    hessian = torch.autograd.functional.hessian(objective, optimum)
    wanted = hessian.inverse().diagonal().sqrt()[:size]
    errors = standard_errors(model_of(form), None, x, lags)
    found = torch.cat([errors.standard_errors[name].flatten() for name in form.start])
    assert_close(found, wanted, rtol=1e-5, atol=1e-8)


def test_standard_deviations_of_groups_of_regimes():
    """One series, in which two of three regimes share a standard deviation."""
    x, lags = data()
    x, lags = x[:, 0], lags[..., 0]
    group, scales = [0, 1, 1], torch.tensor([0.7, 1.2], dtype=torch.float64)
    start = {"c": INTERCEPTS[:, 0], "lags": LAGS[..., 0, 0]}

    def emission(c: Tensor, coefficients: Tensor, scale: Tensor) -> dist.Normal:
        return dist.Normal(c + lags @ coefficients.mT, scale[group])

    def model(x: Tensor) -> None:
        params = [pyro.param(name, each.clone()) for name, each in start.items()]
        scale = pyro.param("scale", scales.clone(), constraint=constraints.positive)
        hmm = RegimeHMM(
            initial_probs=INITIAL, transition_probs=ROWS, observation_dist=emission(*params, scale)
        )
        pyro.sample("x", hmm, obs=x)

    observation = emission(*start.values(), scales)
    weights = gamma(
        RegimeHMM(initial_probs=INITIAL, transition_probs=ROWS, observation_dist=observation), x
    )
    columns = np.concatenate([np.ones((T, 1)), lags.numpy()], -1)
    squares = np.zeros(K)
    pyro.clear_param_store()
    EM(model).step(x)
    for k in range(K):
        root = np.sqrt(weights[:, k])
        expected = np.linalg.lstsq(root[:, None] * columns, root * x.numpy(), rcond=None)[0]
        found = torch.cat([pyro.param("c")[k, None], pyro.param("lags")[k]]).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)
        squares[k] = weights[:, k] @ (x.numpy() - columns @ expected) ** 2
    wanted = [squares[0] / weights[:, 0].sum(), squares[1:].sum() / weights[:, 1:].sum()]
    found = pyro.param("scale").detach().numpy()
    np.testing.assert_allclose(found, np.sqrt(wanted), rtol=1e-8, atol=1e-8)


def test_the_example_of_the_docs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "autoregression.md").read_text()
    section = page[page.index("## Vector autoregressions") :]
    (code,), (text,) = (
        re.findall(rf"```{kind}\n(.*?)```", section, flags=re.DOTALL) for kind in ("python", "text")
    )
    pyro.clear_param_store()
    exec(compile(code, "autoregression.md", "exec"), {})
    assert_same_output(capsys.readouterr().out, text)
