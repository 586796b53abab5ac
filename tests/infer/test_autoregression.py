"""EM for Hamilton's autoregression: against L-BFGS, least squares, enumeration, published fits."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any, Callable

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import constraints
from scipy.optimize import minimize
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, Chunks, infer_regimes
from pyro_regimes.distributions import SwitchingAutoregression
from pyro_regimes.infer import standard_errors
from pyro_regimes.infer.em.engines import fused_autoregression
from tests import seeds
from tests.distributions.test_switching_autoregression import growth
from tests.infer.fused import both_engines

Model = Callable[..., Any]

#: The number of regimes and of lags; whether coefficients, and scales, are those of each regime.
CASES = [(2, 1, False, False), (2, 4, False, False), (3, 2, True, False), (2, 2, True, True)]


@pytest.fixture(autouse=True)
def own_store():
    with pyro.get_param_store().scope():
        yield


def simulated(num_states: int, order: int, num_steps: int = 250, seed: int = 0) -> Tensor:
    """A series of regimes that are well apart."""
    model = SwitchingAutoregression(
        history=torch.zeros(order).double(),
        transition_probs=torch.eye(num_states).double() * 0.85 + 0.15 / num_states,
        loc=3.0 * torch.arange(num_states).double(),
        coefficients=torch.full((order,), 0.4 / order).double(),
        scale=torch.linspace(0.7, 1.0, num_states).double(),
        duration=num_steps,
    )
    torch.manual_seed(seeds.seed(100 * num_states + 10 * order + seed))
    return model.sample()


def starts(
    x: Tensor, num_states: int, order: int, phi: bool, sigma: bool, *batch: int
) -> dict[str, Tensor]:
    """Starting values near those of :func:`simulated`; those of a batch differ."""
    draw = seeds.generator(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*batch, *shape, generator=draw, dtype=torch.float64)

    diagonal = 2 * torch.eye(num_states, dtype=torch.float64)
    return {
        "A": (normal(num_states, num_states) + diagonal).softmax(-1),
        "loc": 3.0 * torch.arange(num_states) + 0.5 * normal(num_states),
        "phi": 0.1 * normal(num_states if phi else 1, order),
        "sigma": (0.1 * normal(num_states if sigma else 1)).exp(),
    }


def autoregression(start: dict[str, Tensor]) -> Model:
    kinds = {"A": constraints.simplex, "sigma": constraints.positive, "pi": constraints.simplex}

    def model(history: Tensor, x: Tensor) -> None:
        given = {
            name: pyro.param(name, value.clone(), constraint=kinds.get(name, constraints.real))
            for name, value in start.items()
        }
        chain = SwitchingAutoregression(
            history,
            given["A"].unsqueeze(-3),
            given["loc"],
            given["phi"],
            given["sigma"],
            initial_probs=given.get("pi"),
        )
        with pyro.plate_stack("starts", start["loc"].shape[:-1]):
            pyro.sample("x", chain, obs=x)

    return model


def fit(start: dict[str, Tensor], x: Tensor, **settings: Any) -> tuple[EM, Any]:
    em, order = EM(autoregression(start)), start["phi"].shape[-1]
    settings = {"num_steps": 5_000, "tol": 1e-10} | settings
    return em, em.run(x[:order], x[order:], **settings)


def found() -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def best_by_gradient(start: dict[str, Tensor], x: Tensor) -> float:
    """The maximum of the log-likelihood by L-BFGS, in free coordinates."""
    order = start["phi"].shape[-1]
    to_free = {"A": torch.log, "sigma": torch.log}
    free = [to_free.get(name, torch.clone)(value) for name, value in start.items()]
    sizes = [each.numel() for each in free]

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        u = torch.tensor(point, requires_grad=True)
        parts = [part.reshape(each.shape) for part, each in zip(u.split(sizes), free, strict=True)]
        given = SwitchingAutoregression(
            x[:order], parts[0].softmax(-1), *parts[1:3], parts[3].exp(), validate_args=False
        )
        value = -given.log_prob(x[order:])
        (gradient,) = torch.autograd.grad(value, u)
        return value.item(), gradient.numpy()

    point = torch.cat([each.flatten() for each in free]).numpy()
    options = {"maxiter": 5_000, "maxfun": 10_000, "ftol": 1e-15, "gtol": 1e-8}
    return -minimize(loss, point, jac=True, method="L-BFGS-B", options=options).fun


@pytest.mark.parametrize("num_states, order, phi, sigma", CASES)
def test_the_optimum_is_that_of_lbfgs_and_every_step_rises(num_states, order, phi, sigma):
    x = simulated(num_states, order)
    start = starts(x, num_states, order, phi, sigma)
    em, result = fit(start, x)
    assert result.converged
    assert set(em.plan.names) == set(start) and not em.plan.gradient
    assert np.diff(result.history).max() <= 1e-9
    assert_close(-result.history[-1], best_by_gradient(start, x), rtol=1e-8, atol=0)


def rows_of(x: Tensor, order: int) -> Tensor:
    """Each row after the history with those before it, the latest first."""
    return x.unfold(0, order + 1, 1).flip(-1)


def responsibilities(start: dict[str, Tensor], x: Tensor) -> tuple[list[tuple[int, ...]], Tensor]:
    """Tuples of regimes, the latest first, and their probabilities at each row, ``(T, S)``.

    By the forward and the backward recursion of a chain of all tuples, in NumPy's loops.
    """
    order, num_states = start["phi"].shape[-1], start["loc"].shape[-1]
    a, mu = start["A"].numpy(), start["loc"].numpy()
    phi = start["phi"].expand(num_states, -1).numpy()
    sigma = start["sigma"].expand(num_states).numpy()
    values, vectors = np.linalg.eig(a.T)
    pi = np.real(vectors[:, np.argmin(abs(values - 1))])
    pi = pi / pi.sum()
    tuples = list(itertools.product(range(num_states), repeat=order + 1))  # the latest first
    data = rows_of(x, order).numpy()
    density, initial = np.empty((len(data), len(tuples))), np.empty(len(tuples))
    for s, u in enumerate(tuples):
        residual = data[:, 0] - mu[u[0]]
        for j in range(order):
            residual = residual - phi[u[0], j] * (data[:, j + 1] - mu[u[j + 1]])
        density[:, s] = np.exp(-0.5 * (residual / sigma[u[0]]) ** 2) / sigma[u[0]]
        initial[s] = pi[u[-1]] * np.prod([a[u[j + 1], u[j]] for j in range(order)])
    matrix = np.array(
        [[a[u[0], v[0]] if u[:-1] == v[1:] else 0.0 for v in tuples] for u in tuples]
    )
    alpha, beta = [initial * density[0]], [np.ones(len(tuples))]
    for row in density[1:]:
        now = (alpha[-1] / alpha[-1].sum()) @ matrix * row
        alpha.append(now)
    for row in density[:0:-1]:
        now = matrix @ (row * beta[-1])
        beta.append(now / now.sum())
    gamma = np.stack(alpha) * np.stack(beta[::-1])
    return tuples, torch.from_numpy(gamma / gamma.sum(1, keepdims=True))


@pytest.mark.parametrize("num_states, order, phi, sigma", CASES)
def test_every_step_is_the_weighted_least_squares_of_expanded_rows(
    num_states, order, phi, sigma
):
    x = simulated(num_states, order, 60)
    start = starts(x, num_states, order, phi, sigma)
    tuples, gamma = responsibilities(start, x)
    fit(start, x, num_steps=1, tol=None)
    after = {name: value.numpy() for name, value in found().items()}
    data, now = rows_of(x, order).numpy(), {name: value.numpy() for name, value in start.items()}
    coefficients = np.broadcast_to(now["phi"], (num_states, order))
    old_scale = np.broadcast_to(now["sigma"], (num_states,))

    design, target, weight = [], [], []
    for s, u in enumerate(tuples):
        for t, row in enumerate(data):
            factors = np.zeros(num_states)
            factors[u[0]] += 1
            for j in range(order):
                factors[u[j + 1]] -= coefficients[u[0], j]
            design.append(factors)
            target.append(row[0] - coefficients[u[0]] @ row[1:])
            weight.append(math.sqrt(gamma[t, s]) / old_scale[u[0]])
    weight, mean = np.array(weight), None
    mean = np.linalg.lstsq(
        np.array(design) * weight[:, None], np.array(target) * weight, rcond=None
    )[0]
    assert_close(after["loc"], mean, rtol=1e-8, atol=1e-10)

    latest = np.repeat([u[0] for u in tuples], len(data))
    deviations = np.concatenate([data - mean[list(u)] for u in tuples])
    groups = [[k] for k in range(num_states)] if phi else [range(num_states)]
    new = np.empty((num_states, order))
    for group in groups:
        some = np.isin(latest, list(group))
        left, right = deviations[some, 1:] * weight[some, None], deviations[some, 0] * weight[some]
        new[list(group)] = np.linalg.lstsq(left, right, rcond=None)[0]
    assert_close(np.broadcast_to(after["phi"], new.shape).copy(), new, rtol=1e-8, atol=1e-10)

    residual = deviations[:, 0] - (deviations[:, 1:] * new[latest]).sum(1)
    shares = gamma.mT.flatten().numpy()
    groups = [[k] for k in range(num_states)] if sigma else [range(num_states)]
    for group, scale in zip(groups, after["sigma"], strict=True):
        some = np.isin(latest, list(group))
        variance = (shares * residual**2)[some].sum() / shares[some].sum()
        assert_close(scale, np.sqrt(variance), rtol=1e-8, atol=0)


def test_the_transitions_of_a_step_maximise_the_expected_log_probability():
    """With the p steps inside the first tuple, and the stationary law of its oldest regime."""
    x = simulated(2, 2, 40)
    start = starts(x, 2, 2, False, False)
    tuples, gamma = responsibilities(start, x)
    counts, first = np.zeros((2, 2)), np.zeros(2)
    for s, u in enumerate(tuples):
        counts[u[1], u[0]] += float(gamma[:, s].sum())
        counts[u[2], u[1]] += float(gamma[0, s])
        first[u[2]] += float(gamma[0, s])

    def q(u: np.ndarray) -> float:
        stay, back = 1 / (1 + np.exp(-u))
        a = np.array([[stay, 1 - stay], [back, 1 - back]])
        pi = np.array([back, 1 - stay]) / (1 - stay + back)
        return -(counts * np.log(a)).sum() - (first * np.log(pi)).sum()

    best = minimize(q, np.zeros(2), method="BFGS", options={"gtol": 1e-9})
    fit(start, x, num_steps=1, tol=None)
    a = found()["A"].numpy()
    at = np.log(a[:, 0] / a[:, 1])
    assert q(at) <= best.fun + 1e-10
    assert_close(at, best.x, rtol=1e-5, atol=1e-6)


def test_given_initial_probabilities_are_the_law_of_the_oldest_regime():
    x = simulated(2, 2, 80)
    start = starts(x, 2, 2, False, False) | {"pi": torch.tensor([0.3, 0.7]).double()}
    em, result = fit(start, x)
    assert result.converged and "pi" in em.plan.names
    assert np.diff(result.history).max() <= 1e-9
    assert float(found()["pi"].max()) > 0.99  # one series says of one regime where it began


def many_starts(x: Tensor, num_starts: int, seed: int) -> dict[str, Tensor]:
    """Random means about the data's, for an autoregression of order 4 with common coefficients."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(num_starts, *shape, generator=draw, dtype=torch.float64)

    return {
        "A": (normal(2, 2) + 2 * torch.eye(2)).softmax(-1),
        "loc": x.mean() + x.std() * normal(2),
        "phi": torch.zeros(num_starts, 1, 4).double(),
        "sigma": x.std().expand(num_starts, 1).clone(),
    }


#: The estimates of EViews, and standard errors of statsmodels 0.15 (inverse of the Hessian).
HAMILTON = {
    "stay": (0.754673, 0.09651889),
    "back": (0.095915, 0.03773618),
    "low": (-0.358811, 0.26453979),
    "high": (1.163516, 0.07451872),
    "variance": (0.5913684624037406, 0.10264618),
    "phi1": (0.013486, 0.11999417),
    "phi2": (-0.057521, 0.13766308),
    "phi3": (-0.246983, 0.10691027),
    "phi4": (-0.212923, 0.1105311),
}

#: The probabilities of recession in the quarters from 1952Q2, by statsmodels 0.15.
RECESSION = [
    (0.03190318, 0.00892901, 0.00144059, 0.04146542, 0.45934918),
    (0.9272165, 0.98900077, 0.99377248, 0.82785705, 0.10142601),
]


@pytest.mark.parametrize("acceleration", [None, "squarem"])
def test_hamiltons_fit_from_five_random_starts(acceleration):
    x = growth()
    em, result = fit(many_starts(x, 5, 2), x, tol=1e-12, acceleration=acceleration)
    assert result.converged and np.diff(result.restart_history, axis=0).max() <= 1e-9
    best = int(result.restart_history[-1].argmin())
    assert_close(-result.restart_history[-1, best].item(), -181.26339, rtol=0, atol=5e-6)
    every = {name: value[best] for name, value in found().items()}
    low, high = every["loc"].argsort().tolist()
    values = [
        every["A"][low, low],
        every["A"][high, low],
        every["loc"][low],
        every["loc"][high],
        every["sigma"][0] ** 2,
        *every["phi"][0],
    ]
    for value, (name, (published, _)) in zip(values, HAMILTON.items(), strict=True):
        assert abs(value.item() - published) < 5e-6, name
    model = autoregression(many_starts(x, 5, 2))
    smoothed = infer_regimes(model, None, x[:4], x[4:])["x"][best, :10, low]
    assert_close(smoothed, torch.tensor(RECESSION).double().flatten(), rtol=0, atol=1e-5)


def test_standard_errors_of_hamiltons_fit():
    x = growth()
    start = {name: value[0] for name, value in many_starts(x, 1, 0).items()}
    start["loc"] = torch.tensor([-0.4, 1.2]).double()
    fit(start, x, tol=1e-12, acceleration="squarem")
    errors = standard_errors(autoregression(start), None, x[:4], x[4:])

    def quantities(given: dict[str, Tensor]) -> Tensor:
        a, loc = given["A"], given["loc"]
        first = [a[0, 0], a[1, 0], loc[0], loc[1], given["sigma"][0] ** 2]
        return torch.cat([torch.stack(first), given["phi"][0]])

    derived = errors.delta(quantities).standard_errors
    published = torch.tensor([each for _, each in HAMILTON.values()]).double()
    assert_close(derived, published, rtol=1e-4, atol=0)


def test_a_restart_does_not_depend_on_its_neighbours():
    x = growth()
    start = many_starts(x, 4, 3)
    fit(start, x, num_steps=30, tol=None)
    together = found()
    for n in range(4):
        pyro.clear_param_store()
        fit({name: value[n : n + 1] for name, value in start.items()}, x, num_steps=30, tol=None)
        for name, value in found().items():
            assert torch.equal(value[0], together[name][n]), name


def test_several_series_share_their_parameters():
    x = torch.stack([simulated(2, 2, 120, seed) for seed in range(3)])
    start = starts(x, 2, 2, False, True)

    def model(history: Tensor, x: Tensor) -> None:
        phi = pyro.param("phi", start["phi"].clone())
        a = pyro.param("A", start["A"].clone(), constraint=constraints.simplex)
        loc = pyro.param("loc", start["loc"].clone())
        sigma = pyro.param("sigma", start["sigma"].clone(), constraint=constraints.positive)
        with pyro.plate("series", 3):
            pyro.sample("x", SwitchingAutoregression(history, a, loc, phi, sigma), obs=x)

    result = EM(model).run(x[:, :2], x[:, 2:], num_steps=500, tol=1e-8)
    assert result.converged and np.diff(result.history).max() <= 1e-9
    given = found()
    total = sum(
        SwitchingAutoregression(
            each[:2], given["A"], given["loc"], given["phi"], given["sigma"]
        ).log_prob(each[2:])
        for each in x
    )
    assert_close(-result.history[-1], total.item(), rtol=1e-10, atol=0)


def test_no_unit_of_the_data_changes_a_fit():
    """Levels of a million with a spread of a thousandth, and regimes far apart."""
    x = simulated(2, 1, 150)
    start = starts(x, 2, 1, False, True)
    _, result = fit(start, x, num_steps=40, tol=None)
    given = found()
    for level, unit in ((1e6, 1e-3), (0.0, 1e9)):
        pyro.clear_param_store()
        other = start | {"loc": level + unit * start["loc"], "sigma": unit * start["sigma"]}
        _, moved = fit(other, level + unit * x, num_steps=40, tol=None)
        shift = (len(x) - 1) * math.log(unit)
        assert_close(moved.history[-1] - shift, result.history[-1], rtol=1e-6, atol=0)
        assert_close((found()["loc"] - level) / unit, given["loc"], rtol=1e-5, atol=1e-5)
        assert_close(found()["phi"], given["phi"], rtol=1e-4, atol=1e-5)


def test_a_regime_far_away_keeps_its_digits():
    """The second moments about the mean of the data would lose those of a tiny scale."""
    draw = seeds.generator(8)
    regimes = (torch.arange(200) // 50) % 2
    scales = torch.tensor([1e-4, 1.0]).double()[regimes]
    x = 1e5 * regimes + scales * torch.randn(200, generator=draw, dtype=torch.float64)
    start = {
        "A": torch.tensor([[0.9, 0.1], [0.1, 0.9]]).double(),
        "loc": torch.tensor([10.0, 99_990.0]).double(),
        "phi": torch.zeros(1, 1).double(),
        "sigma": torch.tensor([100.0, 100.0]).double(),
    }
    _, result = fit(start, x, tol=1e-8)
    assert result.converged and np.diff(result.history).max() <= 1e-6
    calm = x[regimes == 0].std(correction=0)
    assert_close(found()["sigma"][0], calm, rtol=0.1, atol=0)


def test_a_function_of_the_mean_is_refused_by_name_or_left_to_an_optimiser():
    x = simulated(2, 1, 60)
    start = starts(x, 2, 1, False, False)

    def model(history: Tensor, x: Tensor, function: Callable[[Tensor], Tensor]) -> None:
        a = pyro.param("A", start["A"].clone(), constraint=constraints.simplex)
        loc = function(pyro.param("loc", start["loc"].clone()))
        chain = SwitchingAutoregression(history, a, loc, start["phi"], start["sigma"])
        pyro.sample("x", chain, obs=x)

    given = x[:1], x[1:]
    with pytest.raises(ValueError, match="loc: x.loc is not an affine function of it"):
        EM(model).run(*given, torch.tanh)
    pyro.clear_param_store()
    em = EM(model, optim=pyro.optim.Adam({"lr": 0.01}))
    em.run(*given, torch.tanh, num_steps=5)
    assert list(em.plan.gradient) == ["loc"] and em.plan.names == ["A"]
    pyro.clear_param_store()
    em = EM(model)
    result = em.run(*given, lambda loc: 2 * loc, tol=1e-9, num_steps=500)
    assert em.plan.affine.names == ["loc"] and result.converged


def test_chunks_are_refused_by_name():
    x = simulated(2, 1, 60)
    em = EM(autoregression(starts(x, 2, 1, False, False)))
    swapped = EM(lambda x, history: em.model(history, x))
    with pytest.raises(ValueError, match="RegimeHMM sites alone where data come in chunks.*'x'"):
        swapped.run(Chunks([x[1:30], x[30:]], continues=True), x[:1])


def test_missing_rows_and_regimes_that_are_alike_are_told():
    x = simulated(2, 1, 60)
    start = starts(x, 2, 1, False, False)
    with pytest.raises(ValueError, match="finite"):
        fit(start, torch.cat([x[:30], torch.tensor([math.nan]).double(), x[30:]]))
    pyro.clear_param_store()
    alike = {"A": torch.full((2, 2), 0.5).double(), "loc": torch.zeros(2).double()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, result = fit(start | alike, x)
    assert not result.converged
    assert "states [0, 1] of site 'x' have the same parameters" in str(caught[-1].message)


@pytest.mark.parametrize("initial, acceleration", [(False, None), (True, None), (True, "squarem")])
@pytest.mark.parametrize("num_states, order, phi, sigma", CASES)
def test_the_compiled_engine_makes_the_steps_of_tensors(
    num_states, order, phi, sigma, initial, acceleration
):
    x = simulated(num_states, order, 80)
    start = starts(x, num_states, order, phi, sigma, 3)
    if initial:
        draw = seeds.generator(6)
        start["pi"] = torch.rand(3, num_states, generator=draw, dtype=torch.float64).softmax(-1)
    settings = {"num_steps": 8, "tol": None, "acceleration": acceleration}
    # Newton's method of a stationary start ends where a step gains 1e-15 of Q.
    close = {} if initial else {"history": 2e-8, "values": 1e-5}
    both_engines(lambda: fit(start, x, **settings)[1], module=fused_autoregression, **close)


@pytest.mark.parametrize("kind", ["series", "series of each start", "constants", "floor", "shared"])
def test_the_compiled_engine_serves(kind):
    x = torch.stack([simulated(3, 1, 70, seed) for seed in range(3)])
    many = () if kind in ("series", "constants", "shared") else (2,)
    start = starts(x[0], 3, 1, True, True, *many)

    def model(history: Tensor, x: Tensor) -> None:
        a = pyro.param("A", start["A"].clone(), constraint=constraints.simplex)
        loc, phi, sigma = (start[name].clone() for name in ("loc", "phi", "sigma"))
        loc = pyro.param("loc", loc)
        sigma = pyro.param("sigma", sigma, constraint=constraints.positive)
        if kind != "constants":
            phi = pyro.param("phi", phi)
        if kind == "shared":  # two of three regimes
            sigma, phi = sigma[[0, 1, 0]], phi[[0, 1, 1]]
        if many:
            a, loc, phi, sigma = (each.unsqueeze(1) for each in (a.unsqueeze(1), loc, phi, sigma))
        with pyro.plate_stack("batch", (*many, 3)):
            pyro.sample("x", SwitchingAutoregression(history, a, loc, phi, sigma), obs=x)

    floor = 0.8 if kind == "floor" else 0.0
    if kind == "series of each start":
        x = torch.stack([x, x + 1.0])

    def run() -> Any:
        em = EM(model, min_eigenvalue=floor)
        return em.run(x[..., :1], x[..., 1:], num_steps=10, tol=None)

    both_engines(run, 2e-8, 1e-5, module=fused_autoregression)
    if kind == "floor":
        assert_close(found()["sigma"].min().item() ** 2, 0.8, rtol=1e-9, atol=0)


def test_a_step_that_is_not_ordinary_is_made_with_tensors():
    """A regime that no row is in keeps its coefficients."""
    x = simulated(2, 1, 60)
    start = starts(x, 2, 1, True, True)
    start["loc"][1] = 1e6
    em, result = fit(start, x, num_steps=20, tol=None)
    assert "then tensor operations" in str(em.plan)
    assert np.diff(result.history).max() <= 1e-9
    assert_close(found()["phi"][1], start["phi"][1])
