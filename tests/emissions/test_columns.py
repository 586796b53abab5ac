"""EM of ``Columns``: each part has the updates of its own family, on its own columns."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import biject_to
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, emissions
from pyro_regimes.distributions import Columns, observation
from tests import seeds

K, N, T = 2, 3, 90
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed), dtype=torch.float64)


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def hmm(emission: dist.Distribution, **settings: Any) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=tensor(0.6, 0.4), transition_probs=TRANSITION,
        observation_dist=emission, **settings,
    )  # fmt: skip


Params = dict[str, Tensor]


def columns(given: Params) -> Columns:
    """Seven families in eight columns, out of order."""
    return Columns(
        [
            (dist.StudentT(given["df"], given["t_loc"], given["t_scale"]).to_event(1), [3, 0]),
            (dist.Gamma(given["shape"], given["rate"]), 1),
            (dist.VonMises(given["direction"], given["kappa"]), 2),
            (dist.Poisson(given["mean"]), 4),
            (dist.Bernoulli(given["up"]), 5),
            (dist.LogNormal(given["log_loc"], given["log_scale"]), 6),
            (dist.Normal(given["loc"], given["scale"]), 7),
        ]
    )


TRUTH: Params = {
    "df": tensor(6.0, 9.0).reshape(K, 1),
    "t_loc": tensor([0.5, 0.2], [-1.0, 0.4]),
    "t_scale": tensor([0.5, 0.4], [1.5, 0.9]),
    "shape": tensor(2.0, 5.0),
    "rate": tensor(2.0, 1.0),
    "direction": tensor(0.1, 2.0),
    "kappa": tensor(4.0, 1.0),
    "mean": tensor(2.0, 7.0),
    "up": tensor(0.7, 0.3),
    "log_loc": tensor(0.0, 1.0),
    "log_scale": tensor(0.4, 0.8),
    "loc": tensor(0.0, 1.0),
    "scale": tensor(1.0, 2.0),
}
CONSTRAINTS: dict[str, Any] = dict.fromkeys(TRUTH, constraints.positive) | {
    "t_loc": constraints.real,
    "direction": constraints.real,
    "log_loc": constraints.real,
    "loc": constraints.real,
    "up": constraints.unit_interval,
}


def simulate(num_sequences: int = N, num_steps: int = T, seed: int = 1) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seeds.seed(seed))
        drawn = columns(TRUTH).sample((num_sequences, num_steps))
    states = torch.arange(num_steps) // 15 % K
    return drawn[:, torch.arange(num_steps), states]


def start(*lead: int, seed: int = 3) -> Params:
    """Values near the truth, of each state."""
    found = {}
    for index, (name, value) in enumerate(TRUTH.items()):
        transform = biject_to(CONSTRAINTS[name])
        free = transform.inv(value)
        noise = draw(*lead, *value.shape, seed=100 * seed + index)
        found[name] = transform(free + 0.3 * noise)
    return found


def holes(value: Tensor, share: float = 0.3, seed: int = 9) -> Tensor:
    gone = torch.rand(value.shape, generator=seeds.generator(seed)) < share
    gone[..., 2, :] = True
    return value.masked_fill(gone, torch.nan)


def make_model(given: Params, **settings: Any) -> Any:
    def model(x: Tensor) -> None:
        params = {
            name: pyro.param(name, value.clone(), constraint=CONSTRAINTS[name])
            for name, value in given.items()
        }
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm(columns(params), **settings), obs=x)

    return model


def current() -> Params:
    return {name: pyro.param(name).detach().clone() for name in TRUTH}


def test_density_is_the_distributions_own():
    emission, x = columns(start()), simulate()
    found = observation.log_prob(emission, x)
    assert found.shape == (N, T, K)
    own = observation.own_log_prob(emission, x)
    assert_close(found, own, rtol=1e-6, atol=1e-6)  # torch's VonMises has seven digits


def test_update_is_the_numerical_maximiser():
    """Of each part by itself, as the expected log-likelihood is a sum over the parts."""
    given, x = start(), simulate()
    gamma = hmm(columns(given)).smoothed_probs(x)
    em = EM(make_model(given))
    em.step(x)
    new = current()
    assert {each.name for each in em.plan.assignments} == set(TRUTH)

    def q(params: Params) -> Tensor:
        return (gamma * observation.log_prob(columns(params), x)).sum()

    for names in (
        ["shape", "rate"], ["direction"], ["mean"], ["up"], ["log_loc", "log_scale"],
        ["loc", "scale"],
    ):  # fmt: skip
        base = given | {name: new[name] for name in names}
        best = maximise(lambda params: q(given | params), {name: given[name] for name in names})
        assert float(q(base)) >= best - 1e-7 * abs(best)
    turned = given | {"direction": new["direction"]}  # the concentration, given the direction
    best = maximise(lambda params: q(turned | params), {"kappa": given["kappa"]})
    assert float(q(turned | {"kappa": new["kappa"]})) >= best - 1e-7 * abs(best)
    assert float(q(new)) > float(q(given))


def maximise(objective: Any, given: Params) -> float:
    """The maximum over some parameters, by L-BFGS in unconstrained coordinates."""
    transforms = {name: biject_to(CONSTRAINTS[name]) for name in given}
    first = {name: transforms[name].inv(value).detach() for name, value in given.items()}

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(free, requires_grad=True)
        parts = x.split([each.numel() for each in first.values()])
        params = {
            name: transforms[name](part.reshape(first[name].shape))
            for name, part in zip(first, parts, strict=True)
        }
        found = -objective(params)
        (gradient,) = torch.autograd.grad(found, x)
        return float(found.detach()), gradient.numpy()

    at = torch.cat([each.flatten() for each in first.values()]).numpy()
    options = {"gtol": 1e-8, "ftol": 1e-14, "maxiter": 3000, "maxfun": 5000}
    return -float(minimize(loss, at, jac=True, method="L-BFGS-B", options=options).fun)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_em_ends_at_an_optimum_of_the_model(share: float):
    x = simulate()
    settings = {"missing": "marginalise"} if share else {}
    x = holes(x, share) if share else x
    em = EM(make_model(start(), **settings))
    result = em.run(x, num_steps=2000, tol=1e-8)
    assert result.converged and not result.unconfirmed
    history = result.history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))
    best = maximise(lambda params: hmm(columns(params), **settings).log_prob(x).sum(), current())
    assert -result.history[-1] >= best - 1e-5 * abs(best)


def test_missing_entries_are_left_out():
    """Each is a factor of 1, as if its part had fewer columns in that row."""
    given, x = start(), holes(simulate())
    emission = columns(given)
    x[0, 4, [0, 3]] = torch.nan  # all columns of a part
    found = hmm(emission, missing="marginalise").chain(x)[2]
    whole = torch.nan_to_num(x, nan=0.5)
    expected = torch.zeros(N, T, K).double()
    for part, places in zip(emission.parts, emission.columns):
        own = part
        while isinstance(own, torch.distributions.Independent):
            own = own.base_dist
        for index, place in enumerate([places] if isinstance(places, int) else places):
            density = observation.log_prob(own, whole[..., place], True) if not (
                own.batch_shape[1:]
            ) else own.log_prob(whole[..., place, None, None])[..., index]
            expected = expected + torch.where(x[..., place, None].isnan(), 0.0, density)
    assert_close(found, expected, rtol=1e-11, atol=1e-10)


def test_gradients_with_missing_entries():
    x = holes(simulate(1, 6))[0]
    free = {
        name: biject_to(CONSTRAINTS[name]).inv(value).requires_grad_()
        for name, value in start().items()
    }

    def log_prob(*given: Tensor) -> Tensor:
        params = {
            name: biject_to(CONSTRAINTS[name])(each)
            for name, each in zip(free, given, strict=True)
        }
        return hmm(columns(params), missing="marginalise").log_prob(x)

    assert torch.autograd.gradcheck(log_prob, tuple(free.values()))
    value = x.clone().requires_grad_()
    hmm(columns(TRUTH), missing="marginalise").log_prob(value).backward()
    assert value.grad is not None and not value.grad.isnan().any()
    assert bool((value.grad[x.isnan()] == 0).all())


def test_nothing_observed_or_no_complete_row():
    x = torch.full((T, 8), torch.nan).double()
    chain = hmm(columns(TRUTH), missing="marginalise")
    assert_close(chain.log_prob(x), tensor(0.0)[0], rtol=0, atol=1e-12)
    x[::2, :4], x[1::2, 4:] = simulate()[0, ::2, :4], simulate()[0, 1::2, 4:]
    assert chain.log_prob(x).isfinite()


def test_restarts_are_as_if_each_had_run_alone():
    restarts, x = 3, holes(simulate())
    given = start(restarts, 1, 1)

    def model(x: Tensor) -> None:
        params = {
            name: pyro.param(name, value.clone(), constraint=CONSTRAINTS[name])
            for name, value in given.items()
        }
        emission = columns(params)
        with pyro.plate("restarts", restarts, dim=-2), pyro.plate("sequences", N, dim=-1):
            pyro.sample(
                "x", hmm(emission, missing="marginalise"), obs=x.expand((restarts,) + x.shape)
            )

    result = EM(model).run(x, num_steps=15, tol=None)
    assert bool((result.restart_history.diff(dim=0) <= 1e-8).all())
    together = current()
    for index in range(restarts):
        pyro.clear_param_store()
        alone = {name: value[index, 0, 0] for name, value in given.items()}
        EM(make_model(alone, missing="marginalise")).run(x, num_steps=15, tol=None)
        for name, value in together.items():
            assert_close(pyro.param(name).detach(), value[index, 0, 0], rtol=1e-12, atol=0.0)


def test_stochastic_em():
    size = 30
    x = simulate(size, 40)

    def minibatches(x: Tensor) -> None:
        params = {
            name: pyro.param(name, value.clone(), constraint=CONSTRAINTS[name])
            for name, value in start().items()
        }
        with pyro.plate("sequences", size, subsample_size=6) as index:
            pyro.sample("x", hmm(columns(params)), obs=x[index])

    whole = make_model(start())
    first = EM(whole).evaluate_loss(x)
    torch.manual_seed(seeds.seed(1))
    EM(minibatches).run(x, num_steps=60, tol=None)
    history = EM(whole).run(x, num_steps=100, tol=1e-6).history
    assert first - history[0] > 0.9 * (first - history[-1])


def test_plans_are_pickled():
    em = EM(make_model(start()))
    em.step(simulate())
    again = pickle.loads(pickle.dumps(em.plan))
    for one, two in zip(em.plan.assignments, again.assignments, strict=True):
        assert one.argument is two.argument and one.link.name == two.link.name
    assert "x.parts.1.shape" not in str(em.plan) and "x.parts.1.concentration" in str(em.plan)


# ---- parameters that several parts share -------------------------------------------------------


def two_columns(x: Tensor, emission: Any) -> tuple[EM, float]:
    def model(x: Tensor) -> None:
        pyro.sample("x", hmm(emission()), obs=x)

    em = EM(model)
    result = em.run(x, num_steps=3000, tol=1e-10)
    assert result.converged and not result.unconfirmed
    history = result.history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))
    return em, history[-1]


def test_a_location_and_degrees_of_freedom_of_two_parts():
    """As one part of two columns, whose arguments are broadcast."""
    x = simulate()[0, :, [3, 0]]

    def apart() -> Columns:
        loc, df = pyro.param("loc", tensor(0.5, -0.5)), pyro.param(
            "df", tensor(5.0), constraint=constraints.positive
        )
        scales = [
            pyro.param(name, tensor(1.0, 2.0), constraint=constraints.positive)
            for name in ("one", "two")
        ]
        return Columns([(dist.StudentT(df, loc, scale), i) for i, scale in enumerate(scales)])

    em, loss = two_columns(x, apart)
    assert "pooled in 2" in str(em.plan)
    loc = pyro.param("loc").detach().clone()
    pyro.clear_param_store()

    def together() -> dist.Distribution:
        loc, df = pyro.param("loc", tensor(0.5, -0.5)), pyro.param(
            "df", tensor(5.0), constraint=constraints.positive
        )
        scales = pyro.param(
            "scale", tensor([1.0, 1.0], [2.0, 2.0]), constraint=constraints.positive
        )
        return dist.StudentT(df, loc.unsqueeze(-1), scales).to_event(1)

    assert two_columns(x, together)[1] == pytest.approx(loss, rel=1e-9)
    assert_close(pyro.param("loc").detach(), loc, rtol=1e-4, atol=1e-4)


SHARED: dict[str, Any] = {
    "own of each column": lambda shape, rate: [(shape[:, i], rate[:, i]) for i in (0, 1)],
    "one concentration": lambda shape, rate: [(shape[:, 0], rate[:, i]) for i in (0, 1)],
    "one rate": lambda shape, rate: [(shape[:, i], rate[:, 0]) for i in (0, 1)],
    "one of both": lambda shape, rate: [(shape[:, 0], rate[:, 0])] * 2,
}


@pytest.mark.parametrize(
    "kind, sharing",
    [("gamma", sharing) for sharing in SHARED]
    # In turn, as with one of the two in common, these take thousands of steps.
    + [("negative binomial", sharing) for sharing in ("own of each column", "one of both")],
)
def test_arguments_that_are_maximised_together(kind: str, sharing: str):
    """The concentrations and rates of two parts, in one parameter each."""
    column = {"gamma": 1, "negative binomial": 4}[kind]
    x = torch.stack([simulate(seed=seed)[0, :, column] for seed in (1, 2)], -1)

    def emission() -> Columns:
        shape = pyro.param(
            "shape", tensor([2.0, 4.0], [3.0, 2.0]), constraint=constraints.positive
        )
        interval = constraints.positive if kind == "gamma" else constraints.unit_interval
        rate = pyro.param("rate", tensor([0.9, 0.4], [0.3, 0.5]), constraint=interval)
        build = dist.Gamma if kind == "gamma" else dist.NegativeBinomial
        return Columns([(build(*each), i) for i, each in enumerate(SHARED[sharing](shape, rate))])

    two_columns(x, emission)


def test_a_location_in_a_part_and_in_another_site():
    x = simulate()[0, :, [3, 7]]

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", tensor(0.5, -0.5))
        emission = Columns([(dist.Normal(loc, 1.0), 0), (dist.Normal(loc, 2.0), 1)])
        pyro.sample("x", hmm(emission), obs=x)
        pyro.sample("y", hmm(dist.Normal(loc, 3.0)), obs=x[:, 0])

    result = EM(model).run(x, num_steps=500, tol=1e-10)
    assert result.converged and not result.unconfirmed


# ---- time, masks and links ---------------------------------------------------------------------


def test_one_part_varies_in_time():
    x = simulate()[0, :, [7, 4]]
    season = 1 + 0.5 * torch.sin(torch.arange(T).double()).unsqueeze(-1)

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", tensor(0.5, -0.5))
        rate = pyro.param("rate", tensor(2.0, 5.0), constraint=constraints.positive)
        emission = Columns([(dist.Normal(loc, season), 0), (dist.Poisson(rate), 1)])
        pyro.sample("x", hmm(emission), obs=x)

    em = EM(model)
    result = em.run(x, num_steps=500, tol=1e-10)
    assert result.converged and not result.unconfirmed


def test_a_mask_of_rows():
    x, keep = simulate()[0], torch.arange(T) % 7 > 0
    seen = hmm(columns(TRUTH).mask(keep.unsqueeze(-1)))
    gone = x.masked_fill(~keep.unsqueeze(-1), torch.nan)
    expected = hmm(columns(TRUTH), missing="marginalise").log_prob(gone)
    assert_close(seen.log_prob(x), expected, rtol=1e-12, atol=1e-12)


def test_columns_of_which_no_part_is_known_or_in_an_event_have_no_family():
    masked = Columns([(dist.Normal(tensor(0.0, 1.0), 1.0).mask(True), 0)])
    assert emissions.find_family(masked, 1) is None
    series = Columns([(dist.Normal(draw(K, 3), 1.0), 0)])
    assert emissions.find_family(series, 2) is None
    x = draw(4, 3, 1)
    assert_close(
        observation.log_prob(series.to_event(1), x),
        series.to_event(1).log_prob(x.unsqueeze(1)),
    )


# ---- parts of which no family knows anything ---------------------------------------------------

UNKNOWN: dict[str, Any] = {
    "numbers": lambda loc: [(dist.Cauchy(loc, 1.0), 0), (dist.Cauchy(loc, 2.0), 2)],
    "rows": lambda loc: [(dist.Cauchy(loc.unsqueeze(-1), tensor(1.0, 2.0)).to_event(1), [0, 2])],
    "a mixture": lambda loc: [
        (
            dist.MixtureSameFamily(
                dist.Categorical(torch.ones(K, 2).double()),
                dist.Laplace(torch.stack([loc, loc + 1], -1), 1.0),
            ),
            0,
        ),
        (dist.Cauchy(loc, 2.0), 2),
    ],
    "a mask": lambda loc: [(dist.Normal(loc, 1.0).mask(True), 0), (dist.Normal(loc, 2.0), 2)],
}


@pytest.mark.parametrize("kind", UNKNOWN)
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_an_unknown_part_leaves_the_closed_forms_of_the_others(kind: str, share: float):
    x = simulate()[0, :, [7, 4, 3]]
    x = holes(x, share) if share else x

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", tensor(0.5, -0.5))
        rate = pyro.param("rate", tensor(2.0, 5.0), constraint=constraints.positive)
        emission = Columns([(dist.Poisson(rate), 1), *UNKNOWN[kind](loc)])
        pyro.sample("x", hmm(emission, missing="marginalise"), obs=x)

    with pytest.raises(ValueError, match="loc: (an argument without a closed form|used in arg)"):
        EM(model).step(x)
    em = EM(model, optim=pyro.optim.Adam({"lr": 0.1}))
    result = em.run(x, num_steps=120, tol=1e-7, check=False)
    assert [each.name for each in em.plan.assignments] == ["rate"]
    assert list(em.plan.gradient) == ["loc"]

    def objective(given: Params) -> Tensor:
        emission = Columns([(dist.Poisson(given["rate"]), 1), *UNKNOWN[kind](given["loc"])])
        return hmm(emission, missing="marginalise").log_prob(x)

    at_end = {name: pyro.param(name).detach().clone() for name in ("loc", "rate")}
    assert -result.history[-1] == pytest.approx(float(objective(at_end)), rel=1e-9)
    assert result.history[-1] < result.history[0]


def test_known_parts_of_an_unknown_one_keep_their_density():
    emission = Columns(
        [
            (dist.Cauchy(tensor(0.0, 1.0), 1.0), 0),
            (dist.Bernoulli(tensor(0.0, 1.0)), 1),  # exact, where torch clamps
            (dist.Poisson(tensor(1.0, 2.0)).mask(True), 2),
        ]
    )
    x = tensor([0.5, 1.0, 0.0])
    found = observation.log_prob(emission, x)[0]
    assert found[0] == -torch.inf and found[1].isfinite()


# ---- of the chain ------------------------------------------------------------------------------


def test_forecasts_and_samples_of_the_chain():
    torch.manual_seed(seeds.seed(1))
    chain = hmm(columns(TRUTH), duration=T)
    x = chain.sample()
    assert x.shape == (T, 8)
    forecast = chain.forecast(x, 2)
    assert forecast.mean.shape == (2, 8) and forecast.mean[:, 4].isfinite().all()
    assert forecast.log_prob(x[:2]).isfinite().all()
