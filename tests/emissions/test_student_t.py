"""Student-t observations: latent scales, PX-EM for the spread and ECME for the degrees of freedom.

Here a step is no maximiser of Q at fixed probabilities of the states, as the battery of
``test_families.py`` has it, but of the objectives that are written down below.
"""

import math
import warnings
from typing import Any, Callable, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.distributions import transform_to
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, emissions
from pyro_regimes.emissions import degrees_of_freedom, latent_scale
from pyro_regimes.emissions.special import log_gamma_ratio
from tests import seeds

K, D, N, T = 2, 3, 3, 60
Shapes = dict[str, tuple[int, ...]]
INITIAL = torch.tensor([0.6, 0.4]).double()
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()


class Family(NamedTuple):
    """How to build a family, and the ways to share its arguments."""

    build: Callable[..., dist.Distribution]
    spread: constraints.Constraint
    sharings: dict[str, Shapes]
    size: int  #: the number of dims that share one latent scale
    #: ``(value, loc, spread) -> (d, log det)``, of each state
    distance: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

    def constraint(self, name: str) -> constraints.Constraint:
        """Of one argument."""
        known = {"df": constraints.positive, "loc": constraints.real, "spread": self.spread}
        return known[name]


def series(df: Tensor, loc: Tensor, spread: Tensor) -> dist.Distribution:
    shape = torch.broadcast_shapes(df.shape, loc.shape, spread.shape, (K, D))
    return dist.StudentT(df, loc, spread).expand(shape).to_event(1)


def by_series(value: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return ((value.unsqueeze(-2) - loc) / scale) ** 2, 2 * scale.log()


def of_vectors(value: Tensor, loc: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    deviation = (value.unsqueeze(-2) - loc).unsqueeze(-1)
    white = torch.linalg.solve_triangular(factor, deviation, upper=False)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return white.square().sum((-2, -1)), log_det


FAMILIES = {
    "StudentT": Family(
        series,
        constraints.positive,
        {
            "own": {"df": (K, D), "loc": (K, D), "spread": (K, D)},
            "df of each state": {"df": (K, 1), "loc": (K, D), "spread": (K, D)},
            "df of all": {"df": (), "loc": (K, D), "spread": (K, D)},
            "spherical": {"df": (K, 1), "loc": (K, D), "spread": (K, 1)},
            "one scale": {"df": (K, 1), "loc": (K, D), "spread": ()},
            "one location": {"df": (K, 1), "loc": (D,), "spread": (K, D)},
            "of each sequence": {"df": (N, 1, K, 1), "loc": (N, 1, K, D), "spread": (N, 1, K, D)},
            "locations of each time": {"df": (), "loc": (T, K, 1), "spread": (K, D)},
        },
        1,
        by_series,
    ),
    "MultivariateStudentT": Family(
        lambda df, loc, spread: dist.MultivariateStudentT(
            df, loc.expand(torch.broadcast_shapes(loc.shape, (K, D))), spread
        ),
        constraints.lower_cholesky,
        {
            "own": {"df": (K,), "loc": (K, D), "spread": (K, D, D)},
            "df of all": {"df": (), "loc": (K, D), "spread": (K, D, D)},
            "tied": {"df": (K,), "loc": (K, D), "spread": (D, D)},
            "one location": {"df": (K,), "loc": (D,), "spread": (K, D, D)},
            "of each sequence": {"df": (N, 1, K), "loc": (N, 1, K, D), "spread": (N, 1, K, D, D)},
            "locations of each time": {"df": (), "loc": (T, K, D), "spread": (D, D)},
        },
        D,
        of_vectors,
    ),
}
CASES = [
    pytest.param(family, shapes, id=f"{name}, {sharing}")
    for name, family in FAMILIES.items()
    for sharing, shapes in family.sharings.items()
]
OWN = [pytest.param(family, family.sharings["own"], id=name) for name, family in FAMILIES.items()]


def draw(*shape: int, seed: int) -> Tensor:
    # Fixed: the starts are random, and with some seeds a state or a component collapses.
    return torch.randn(shape, generator=seeds.fixed(seed), dtype=torch.float64)


def heavy(*shape: int, seed: int, df: float = 3.0) -> Tensor:
    """Two regimes in turn, of Student-t observations with one latent scale for each row."""
    normal = draw(*shape, seed=seed)
    chi = draw(*shape[:-1], 1, int(df), seed=seed + 1).square().sum(-1) / df
    steps = torch.arange(shape[-2]) // 10 % 2
    regime = torch.stack([steps, steps, steps], -1)[..., : shape[-1]]
    return normal / chi.sqrt() * (0.5 + regime) + 1.5 * regime


def start(family: Family, shapes: Shapes) -> dict[str, Tensor]:
    values = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        value = transform_to(family.constraint(name))(0.4 * draw(*shape, seed=seed))
        values[name] = 4 * value if name == "df" else value
    return values


def hmm(family: Family, values: dict[str, Tensor]) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=family.build(**values)
    )


def make_model(family: Family, old: dict[str, Tensor], fixed: tuple[str, ...] = ()) -> Any:
    def model(x: Tensor) -> None:
        values = {
            name: value
            if name in fixed
            else pyro.param(name, value, constraint=family.constraint(name))
            for name, value in old.items()
        }
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm(family, values), obs=x)

    return model


class Objective:
    """The expected log density of data and latent scales, which EM's step maximises."""

    def __init__(self, family: Family, old: dict[str, Tensor], x: Tensor) -> None:
        self.family, self.x = family, x
        self.gamma = hmm(family, old).posterior(x).smoothed_probs.detach()
        self.df, self.size = old["df"], family.size
        self.take_latent_scales(old["loc"], old["spread"])
        if self.latent.dim() > self.gamma.dim():
            self.gamma = self.gamma.unsqueeze(-1)

    def take_latent_scales(self, loc: Tensor, spread: Tensor) -> None:
        """Their expectations."""
        square, _ = self.family.distance(self.x, loc, spread)
        self.latent = ((self.df + self.size) / (self.df + square)).detach()

    def spread(self, loc: Tensor, spread: Tensor, log_mean: Tensor) -> Tensor:
        """Q of location and spread, where the latent scales have a mean of their own (PX-EM)."""
        square, log_det = self.family.distance(self.x, loc, spread)
        mean, size = log_mean.exp(), self.family.size
        each = -0.5 * (log_det + size * log_mean) - 0.5 * self.latent * square / mean
        of_scale = -0.5 * self.df * (log_mean + self.latent / mean)
        return (self.gamma * (each + of_scale)).sum()

    def freedom(self, df: Tensor, loc: Tensor, spread: Tensor) -> Tensor:
        """The likelihood given the states, which ECME maximises over the degrees of freedom."""
        square, log_det = self.family.distance(self.x, loc, spread)
        size = self.family.size
        each = (0.5 * (df + size)).lgamma() - (0.5 * df).lgamma() - 0.5 * size * df.log()
        each = each - 0.5 * (df + size) * (square / df).log1p() - 0.5 * log_det
        return (self.gamma * each).sum()


def slope(function: Callable[..., Tensor], *values: Tensor) -> list[Tensor]:
    leaves = [value.detach().clone().requires_grad_() for value in values]
    return list(torch.autograd.grad(function(*leaves), leaves))


@pytest.mark.parametrize("family, shapes", CASES)
def test_a_step_maximises_what_it_says(family: Family, shapes: Shapes) -> None:
    x = heavy(N, T, D, seed=5)
    old = start(family, shapes)
    objective = Objective(family, old, x)
    model = make_model(family, old)
    em = EM(model)
    em.step(x)
    assert {each.name for each in em.plan.assignments} == set(shapes)
    new = {name: pyro.param(name).detach() for name in shapes}
    small = 1e-9 * x.numel()

    # The location at the old spread, with latent scales of mean 1.
    zero = torch.zeros_like(slope_of_mean(family, shapes))
    (of_loc,) = slope(lambda loc: objective.spread(loc, old["spread"], zero), new["loc"])
    assert of_loc.abs().max() < small

    # The spread and the mean of the latent scales at the new location, together. If the model
    # varies in time, the moments are taken about the new locations, and so are the latent scales.
    if shapes["loc"][:1] == (T,):
        objective.take_latent_scales(new["loc"], old["spread"])

    def of_both(raw: Tensor, log_mean: Tensor) -> Tensor:
        return objective.spread(new["loc"], transform_to(family.spread)(raw), log_mean)

    raw = transform_to(family.spread).inv(new["spread"])
    log_mean = zero
    for _ in range(30):  # Newton's method; the objective is concave in the logarithm
        leaf = log_mean.clone().requires_grad_()
        (first,) = torch.autograd.grad(of_both(raw, leaf), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), leaf)
        log_mean = (log_mean - first / second).detach()
    for part in slope(of_both, raw, log_mean):
        assert part.abs().max() < small

    # The degrees of freedom at both, within a factor of two.
    (of_df,) = slope(lambda df: objective.freedom(df, new["loc"], new["spread"]), new["df"])
    ratio = new["df"] / old["df"]
    assert ratio.max() <= 2 + 1e-12 and ratio.min() >= 0.5 - 1e-12
    inner = (ratio < 2 - 1e-9) & (ratio > 0.5 + 1e-9)
    # Its statistics are the first terms of a series in z.
    z = (0.25 * ratio.log()).tanh().abs()
    rest = x.numel() * (new["df"] + family.size) * z**latent_scale.TERMS
    assert ((new["df"] * of_df).abs() <= small + rest)[inner].all()
    assert (of_df[ratio >= 2 - 1e-9] > 0).all() and (of_df[ratio <= 0.5 + 1e-9] < 0).all()

    history = EM(model).run(x, num_steps=20, tol=None).history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))
    likelihood = poutine.trace(model).get_trace(x).log_prob_sum().item()
    assert likelihood == pytest.approx(-history[-1], rel=1e-10)


def slope_of_mean(family: Family, shapes: Shapes) -> Tensor:
    """A number for each cell of the spread, which broadcasts as the spread does."""
    block = {constraints.positive: 0}.get(family.spread, 2)
    shape = shapes["spread"]
    return torch.zeros(shape[: len(shape) - block], dtype=torch.float64)


@pytest.mark.parametrize("family, shapes", OWN)
def test_df_is_where_a_numerical_optimiser_finds_it(family: Family, shapes: Shapes) -> None:
    """Of one cell, by Brent's method, at the step's own location and spread."""
    x = heavy(N, T, D, seed=5)
    old = start(family, shapes)
    objective = Objective(family, old, x)
    EM(make_model(family, old)).step(x)
    loc, spread, df = (pyro.param(name).detach() for name in ("loc", "spread", "df"))
    for index in np.ndindex(*df.shape):

        def loss(log_df: float, index: Any = index) -> float:
            moved = df.clone()
            moved[index] = math.exp(log_df)
            return -float(objective.freedom(moved, loc, spread))

        center = math.log(old["df"][index])
        bounds = (center - math.log(2), center + math.log(2))
        found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9})
        assert loss(math.log(df[index])) <= found.fun + 1e-9 * abs(found.fun)


@pytest.mark.parametrize("size", [1, 7])
def test_df_of_many_cells_at_once(size: int) -> None:
    """Tails of all kinds, from all kinds of starts; each is where Brent's method finds it."""
    rng = np.random.default_rng(3)
    heavy, near = np.meshgrid([0.2, 1.0, 3.0, 9.0, 40.0, 1e6], [0.15, 0.9, 3.1, 9.0, 60.0, 9e3])
    heavy, near = torch.as_tensor(heavy.ravel()), torch.as_tensor(near.ravel())
    chi = torch.as_tensor(rng.chisquare(heavy.numpy(), size=(500, len(heavy)))) / heavy
    square = torch.as_tensor(rng.chisquare(size, size=(500, len(heavy)))) / chi
    weight = torch.as_tensor(rng.random((500, len(heavy))))

    def total(part: Tensor) -> Tensor:
        return part.sum(0)

    stats = latent_scale.start(total(weight))
    if size == 1:
        stats = latent_scale.with_freedom(stats, square, weight, near, total)
    else:
        stats = latent_scale.with_freedom_of_vectors(
            stats, square, weight, near, total, size, size
        )
    argument = emissions.student_t.DF
    found = argument.maximise(degrees_of_freedom.pool_freedom(stats), near, 0.0)
    score = argument.natural.score(degrees_of_freedom.pool_freedom(stats), near)
    assert ((found >= near) == (score >= 0)).all()

    def loss(log_df: float, cell: int) -> float:
        df = torch.tensor(log_df, dtype=torch.float64).exp()
        density = latent_scale.log_density(square[:, cell], df, size)
        return -float((weight[:, cell] * density).sum())

    for cell, log_near in enumerate(near.log().tolist()):
        low = max(log_near - math.log(2), math.log(degrees_of_freedom.LEAST))
        high = min(log_near + math.log(2), math.log(degrees_of_freedom.MOST))
        best = minimize_scalar(
            loss, args=(cell,), bounds=(low, high), method="bounded", options={"xatol": 1e-9}
        )
        mine = loss(math.log(found[cell]), cell)
        assert low - 1e-12 <= math.log(found[cell]) <= high + 1e-12
        assert mine <= min(best.fun, loss(low, cell), loss(high, cell)) + 1e-9 * abs(best.fun)


@pytest.mark.parametrize("family, shapes", OWN)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_fall_from_random_starts_and_the_end_is_a_maximum(
    family: Family, shapes: Shapes, seed: int
) -> None:
    x = heavy(N, T, D, seed=10 + seed)
    old = start(family, shapes)
    old["loc"] = old["loc"] + draw(*shapes["loc"], seed=seed)
    result = EM(make_model(family, old)).run(x, num_steps=2000, tol=1e-8)
    history = result.history
    assert result.converged and not result.unconfirmed
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))
    values = {name: pyro.param(name) for name in shapes}
    objective = hmm(family, values).log_prob(x).sum()
    leaves = [pyro.param(name).unconstrained() for name in shapes]
    for found, name in zip(torch.autograd.grad(objective, leaves), shapes, strict=True):
        at_bound = values["df"] >= degrees_of_freedom.MOST * (1 - 1e-9) if name == "df" else None
        assert (found if at_bound is None else found[~at_bound]).abs().max() < 0.02


def test_one_state_is_the_maximum_that_scipy_finds() -> None:
    x = heavy(1, 300, 1, seed=3).squeeze(-1) * 0.01

    def model(x: Tensor) -> None:
        df = pyro.param("df", torch.tensor([30.0]).double(), constraint=constraints.positive)
        loc = pyro.param("loc", torch.tensor([0.1]).double())
        scale = pyro.param("scale", torch.ones(1).double(), constraint=constraints.positive)
        one = torch.ones(1).double()
        each = RegimeHMM(
            initial_probs=one, transition_probs=one.reshape(1, 1),
            observation_dist=dist.StudentT(df, loc, scale),
        )
        with pyro.plate("sequences", 1):
            pyro.sample("x", each, obs=x)

    result = EM(model).run(x, num_steps=500, tol=1e-9)
    values = x.flatten().numpy()
    best = scipy.stats.t.logpdf(values, *scipy.stats.t.fit(values)).sum()
    assert -result.history[-1] >= best - 1e-6
    ours = [float(pyro.param(name).detach()) for name in ("df", "loc", "scale")]
    df, *_ = scipy.stats.t.fit(values, ours[0], loc=ours[1], scale=ours[2])  # from there
    assert ours[0] == pytest.approx(df, rel=1e-3)
    assert len(result.history) < 60


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family, shapes", OWN)
def test_gaussian_data_take_df_to_its_bound(
    family: Family, shapes: Shapes, dtype: torch.dtype
) -> None:
    """Counted as converged, without a word."""
    x = draw(N, 200, D, seed=4).clamp(-1.5, 1.5)  # lighter tails than a Gaussian's
    x = x + 6.0 * (torch.arange(200) // 10 % 2).unsqueeze(-1)
    old = start(family, shapes) | {"df": torch.full(shapes["df"], 8.0).double()}
    old["loc"] = torch.tensor([0.0, 6.0]).double().unsqueeze(-1).expand(shapes["loc"]).clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = {name: value.to(dtype) for name, value in old.items()}
        tol = 1e-10 if dtype == torch.float64 else 1e-4
        result = EM(make_model(family, given)).run(x.to(dtype), num_steps=500, tol=tol)
    assert result.converged and not result.unconfirmed
    bound = torch.full(shapes["df"], degrees_of_freedom.MOST)
    assert_close(pyro.param("df").detach(), bound.to(dtype))


@pytest.mark.parametrize("family, shapes", OWN)
@pytest.mark.parametrize("fixed", ["df", "loc", "spread"])
def test_one_argument_is_known(family: Family, shapes: Shapes, fixed: str) -> None:
    x = heavy(N, T, D, seed=7)
    old = start(family, shapes)
    em = EM(make_model(family, old, (fixed,)))
    result = em.run(x, num_steps=2000, tol=1e-8)
    assert {each.name for each in em.plan.assignments} == set(shapes) - {fixed}
    assert result.converged and not result.unconfirmed
    history = result.history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))


def test_values_far_outside_the_bounds_of_df_are_left_or_approached() -> None:
    """A start beyond a bound is no error: it may move inwards, and never lowers the likelihood."""
    family = FAMILIES["StudentT"]
    old = start(family, family.sharings["own"])
    for df in (0.01, 1e7):
        pyro.clear_param_store()
        given = old | {"df": torch.full((K, D), df).double()}
        history = EM(make_model(family, given)).run(
            heavy(N, T, D, seed=7), num_steps=40, tol=None, check=False
        ).history
        assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))
        found = pyro.param("df").detach()
        assert (found <= degrees_of_freedom.MOST).all()
        assert (found >= degrees_of_freedom.LEAST).all()


@pytest.mark.parametrize("family, shapes", OWN)
def test_a_state_without_data_keeps_its_parameters(family: Family, shapes: Shapes) -> None:
    x = heavy(N, T, D, seed=7)
    old = start(family, shapes)

    def model(x: Tensor) -> None:
        values = {
            name: pyro.param(name, value, constraint=family.constraint(name))
            for name, value in old.items()
        }
        each = RegimeHMM(
            initial_probs=torch.tensor([1.0, 0.0]).double(),
            transition_probs=torch.tensor([[1.0, 0.0], [0.5, 0.5]]).double(),
            observation_dist=family.build(**values),
        )
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", each, obs=x)

    EM(model).run(x, num_steps=5, tol=None)
    for name in shapes:
        assert_close(pyro.param(name).detach()[1], old[name][1], rtol=1e-12, atol=0.0)
        assert (pyro.param(name).detach()[0] != old[name][0]).any()


def test_no_weight_gives_nan() -> None:
    for family in FAMILIES.values():
        values = start(family, family.sharings["own"])
        base = emissions.unwrap(family.build(**values)).base
        found = emissions.find_family(base)
        observed = emissions.Observed(
            draw(T, 1, D, seed=1), torch.zeros(T, K, dtype=torch.float64), False
        )
        given = found.read(base)
        for argument in found.arguments:
            stats = found.statistics(observed, given, frozenset({argument.name}))
            pooled = argument.reduce(stats, given, False)
            result = argument.maximise(pooled, given[argument.name], 0.0)
            assert result.isnan().all()
            assert result.shape[-1 - argument.event_dim - argument.elementwise] == K
            score = argument.natural.score(
                argument.reduce(stats, given, True), given[argument.name]
            )
            assert (score == 0).all()


@pytest.mark.parametrize("family, shapes", OWN)
def test_restarts_do_not_depend_on_their_neighbours(family: Family, shapes: Shapes) -> None:
    x = heavy(1, T, D, seed=7)
    starts = []
    for seed in range(3):
        old = start(family, shapes)
        starts.append(old | {"loc": old["loc"] + draw(*shapes["loc"], seed=seed)})

    def run(chosen: list[int]) -> dict[str, Tensor]:
        pyro.clear_param_store()
        values = {
            name: torch.stack([starts[r][name] for r in chosen]).unsqueeze(1) for name in shapes
        }
        EM(make_model(family, values)).run(x.expand(len(chosen), T, D), num_steps=60, tol=1e-6)
        return {name: pyro.param(name).detach() for name in shapes}

    together = run([0, 1, 2])
    for r in range(3):
        alone = run([r])
        for name in shapes:
            assert torch.equal(alone[name][0], together[name][r])


@pytest.mark.parametrize("family, shapes", OWN)
def test_float32(family: Family, shapes: Shapes) -> None:
    x = heavy(N, T, D, seed=7)
    old = start(family, shapes)
    EM(make_model(family, old)).run(x, num_steps=30, tol=None)
    double = {name: pyro.param(name).detach() for name in shapes}
    pyro.clear_param_store()
    single = {name: value.float() for name, value in old.items()}
    EM(make_model(family, single)).run(x.float(), num_steps=30, tol=None)
    for name in shapes:
        found = pyro.param(name).detach()
        assert found.dtype == torch.float32
        assert_close(found.double(), double[name], rtol=5e-3, atol=1e-3)


def test_prices_far_from_zero_keep_their_digits() -> None:
    """A level of 1e6 with a spread of 1e-3 gives the fit of the same data about 0."""
    family = FAMILIES["StudentT"]
    shapes = family.sharings["own"]
    x = (heavy(N, T, D, seed=7) * 2**-10).float().double()
    old = start(family, shapes) | {"spread": torch.full(shapes["spread"], 2**-10).double()}
    old["loc"] = old["loc"] * 2**-10
    for level in (0.0, 2.0**20):
        pyro.clear_param_store()
        given = old | {"loc": old["loc"] + level}
        EM(make_model(family, given)).run(x + level, num_steps=30, tol=None)
        found = {name: pyro.param(name).detach() for name in shapes}
        if not level:
            expected = found
    assert_close(found["spread"], expected["spread"], rtol=1e-5, atol=0.0)
    assert_close(found["df"], expected["df"], rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("family, shapes", OWN)
def test_stochastic_em(family: Family, shapes: Shapes) -> None:
    x = heavy(60, T, D, seed=7)
    old = start(family, shapes)
    old["loc"] = torch.tensor([0.0, 1.5]).double().unsqueeze(-1).expand(K, D).clone()
    EM(make_model(family, old)).run(x, num_steps=500, tol=1e-8)
    expected = {name: pyro.param(name).detach() for name in shapes}
    pyro.clear_param_store()

    def minibatches(x: Tensor) -> None:
        values = {
            name: pyro.param(name, value, constraint=family.constraint(name))
            for name, value in old.items()
        }
        with pyro.plate("sequences", 60, subsample_size=12) as index:
            pyro.sample("x", hmm(family, values), obs=x[index])

    torch.manual_seed(seeds.seed(1))
    EM(minibatches).run(x, num_steps=300, tol=None)
    for name in shapes:
        found = pyro.param(name).detach()
        assert_close(found, expected[name], rtol=0.15 if name == "df" else 0.08, atol=0.05)


# ---- the density -------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [0.1, 1.0, 4.5, 300.0, 1e4])
def test_density_is_that_of_scipy(df: float) -> None:
    value = torch.tensor([0.0, 1e-9, -0.7, 3.0, -40.0, 1e6, 1e30], dtype=torch.float64)
    arguments = torch.tensor([df, 0.3, 0.02], dtype=torch.float64).unsqueeze(-1)
    given = dict(zip(("df", "loc", "scale"), arguments, strict=True))
    found = emissions.student_t.STUDENT_T.log_prob(value, given, 0).squeeze(-1)
    expected = scipy.stats.t.logpdf(value.numpy(), df, 0.3, 0.02)
    assert_close(found, torch.as_tensor(expected), rtol=1e-11, atol=1e-11)
    own = dist.StudentT(*(given[name] for name in ("df", "loc", "scale"))).log_prob(value)
    assert_close(found, own, rtol=1e-12, atol=1e-12)
    single = {name: each.float() for name, each in given.items()}
    found = emissions.student_t.STUDENT_T.log_prob(value.float(), single, 0).squeeze(-1)
    assert found.isfinite().all()
    small = value.abs() < 1e3
    assert_close(found[small].double(), own[small], rtol=1e-4, atol=2e-3)


def test_derivatives_of_the_density() -> None:
    value = draw(4, D, seed=1)
    arguments = [2 + draw(K, D, seed=2).exp(), draw(K, D, seed=3), draw(K, D, seed=4).exp()]

    def density(value: Tensor, df: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        given = {"df": df, "loc": loc, "scale": scale}
        return emissions.student_t.STUDENT_T.log_prob(value, given, 1)

    leaves = [each.requires_grad_() for each in (value, *arguments)]
    assert torch.autograd.gradcheck(density, leaves)
    assert torch.autograd.gradgradcheck(density, leaves)


def test_density_varies_in_time_and_broadcasts() -> None:
    x = heavy(N, T, D, seed=1)
    given = dist.StudentT(
        draw(T, K, 1, seed=2).exp(), draw(N, 1, K, D, seed=3), draw(K, D, seed=4).exp()
    ).to_event(1)
    base = emissions.unwrap(given).base
    family = emissions.student_t.STUDENT_T
    found = family.log_prob(x, family.read(base), 1)
    assert_close(found, given.log_prob(x.unsqueeze(-2)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("df", [0.1, 4.5, 1e4])
def test_multivariate_density_is_that_of_scipy(df: float) -> None:
    factor = transform_to(constraints.lower_cholesky)(draw(D, D, seed=1)) * 0.01
    loc = draw(D, seed=2)
    value = torch.cat([draw(20, D, seed=3), loc[None], 1e30 * draw(1, D, seed=4)])
    given = dist.MultivariateStudentT(torch.tensor([df]).double(), loc[None], factor[None])
    family = emissions.find_family(given, 1)
    found = family.log_prob(value, family.read(given), 1).squeeze(-1)
    matrix = (factor @ factor.mT).numpy()
    expected = scipy.stats.multivariate_t.logpdf(value.numpy(), loc.numpy(), matrix, df)
    # scipy inverts the matrix by its eigenvalues.
    assert_close(found, torch.as_tensor(expected), rtol=1e-7, atol=1e-7)
    assert_close(found, given.log_prob(value), rtol=1e-11, atol=1e-11)


def test_derivatives_of_the_multivariate_density() -> None:
    value = draw(4, D, seed=1)
    raw = transform_to(constraints.lower_cholesky)(draw(K, D, D, seed=4))
    arguments = [2 + draw(K, seed=2).exp(), draw(K, D, seed=3), raw]

    def density(value: Tensor, df: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
        given = {"df": df, "loc": loc, "scale_tril": factor.tril()}
        return emissions.multivariate_student_t.MULTIVARIATE_STUDENT_T.log_prob(value, given, 1)

    leaves = [each.detach().requires_grad_() for each in (value, *arguments)]
    assert torch.autograd.gradcheck(density, leaves)
    assert torch.autograd.gradgradcheck(density, leaves)


def test_multivariate_density_varies_in_time_and_broadcasts() -> None:
    x = heavy(N, T, D, seed=1)
    factor = transform_to(constraints.lower_cholesky)(draw(K, D, D, seed=4))
    given = dist.MultivariateStudentT(
        draw(T, K, seed=2).exp(), draw(N, 1, K, D, seed=3), factor
    )
    family = emissions.find_family(given, 1)
    found = family.log_prob(x, family.read(given), 1)
    assert_close(found, given.log_prob(x.unsqueeze(-2)), rtol=1e-11, atol=1e-11)


# ---- what else EM needs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "held, to, back",
    [
        ("log of degrees of freedom", torch.log, torch.exp),
        ("reciprocal of degrees of freedom", torch.reciprocal, torch.reciprocal),
    ],
)
def test_links_of_df(held: str, to: Any, back: Any) -> None:
    family = FAMILIES["StudentT"]
    old = start(family, family.sharings["own"])
    x = heavy(N, T, D, seed=7)
    EM(make_model(family, old)).run(x, num_steps=20, tol=None)
    expected = pyro.param("df").detach()
    pyro.clear_param_store()
    kind = constraints.positive if to is torch.reciprocal else constraints.real

    def model(x: Tensor) -> None:
        values = {
            name: pyro.param(name, value, constraint=family.constraint(name))
            for name, value in old.items()
            if name != "df"
        }
        values["df"] = back(pyro.param("p", to(old["df"]), constraint=kind))
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm(family, values), obs=x)

    em = EM(model)
    em.run(x, num_steps=20, tol=None)
    assert f"as {held}" in str(em.plan)
    assert_close(back(pyro.param("p").detach()), expected, rtol=1e-9, atol=0.0)


def test_a_conjugate_prior_of_the_variance_gives_the_mode() -> None:
    x = heavy(N, T, 1, seed=7).squeeze(-1)
    df = torch.tensor([3.0, 4.0]).double()
    given = {"loc": torch.tensor([0.0, 1.0]).double(), "variance": torch.ones(K).double()}

    def model(x: Tensor) -> None:
        with pyro.plate("states", K):
            loc = pyro.sample("loc", dist.Normal(0.0, torch.tensor(0.5).double()))
            variance = pyro.sample("variance", dist.InverseGamma(20.0, torch.tensor(9.0).double()))
        each = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.StudentT(df, loc, variance.sqrt()),
        )
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", each, obs=x)

    guide = AutoDelta(model, init_loc_fn=init_to_value(values=given))
    result = EM(model, guide).run(x, num_steps=500, tol=1e-9)
    history = result.history
    assert result.converged and not result.unconfirmed
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))


@pytest.mark.parametrize("held", ["covariance", "precision matrix"])
def test_links_of_a_scale_matrix(held: str) -> None:
    family = FAMILIES["MultivariateStudentT"]
    old = start(family, family.sharings["own"])
    x = heavy(N, T, D, seed=7)
    EM(make_model(family, old)).run(x, num_steps=10, tol=None)
    factor = pyro.param("spread").detach()
    pyro.clear_param_store()

    def to_factor(matrix: Tensor) -> Tensor:
        if held == "covariance":
            return torch.linalg.cholesky(matrix)
        return dist.MultivariateNormal(torch.zeros(D).double(), precision_matrix=matrix).scale_tril

    def model(x: Tensor) -> None:
        first = old["spread"] @ old["spread"].mT
        first = first if held == "covariance" else first.inverse()
        df = pyro.param("df", old["df"], constraint=constraints.positive)
        matrix = pyro.param("p", first, constraint=constraints.positive_definite)
        values = {"df": df, "loc": pyro.param("loc", old["loc"]), "spread": to_factor(matrix)}
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm(family, values), obs=x)

    em = EM(model)
    em.run(x, num_steps=10, tol=None)
    assert f"as {held}" in str(em.plan)
    assert_close(to_factor(pyro.param("p").detach()), factor, rtol=1e-6, atol=1e-8)


def test_a_wishart_prior_of_the_precision_gives_the_mode() -> None:
    x = heavy(N, T, D, seed=7)
    given = {
        "loc": torch.zeros(K, D).double() + torch.tensor([[0.0], [1.5]]).double(),
        "precision": torch.eye(D).double().expand(K, D, D).clone(),
    }

    def model(x: Tensor) -> None:
        df = pyro.param("df", torch.full((K,), 8.0).double(), constraint=constraints.positive)
        with pyro.plate("states", K):
            loc = pyro.sample("loc", dist.Normal(torch.zeros(D).double(), 2.0).to_event(1))
            precision = pyro.sample(
                "precision",
                dist.Wishart(torch.tensor(20.0).double(), torch.eye(D).double() / 20),
            )
        factor = dist.MultivariateNormal(loc, precision_matrix=precision).scale_tril
        each = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.MultivariateStudentT(df, loc, factor),
        )
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", each, obs=x)

    guide = AutoDelta(model, init_loc_fn=init_to_value(values=given))
    result = EM(model, guide).run(x, num_steps=500, tol=1e-9)
    history = result.history
    assert result.converged and not result.unconfirmed
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))


@pytest.mark.parametrize("floor", [1e-4, 0.05, 0.8])
@pytest.mark.parametrize("family, shapes", OWN)
def test_the_end_under_a_floor_is_a_maximum(
    family: Family, shapes: Shapes, floor: float
) -> None:
    """The check of convergence knows which directions a floor blocks, and warns of the others."""
    x = heavy(N, T, D, seed=7)
    x[..., 2] = x[..., 1] * 0.5 + 1e-3 * x[..., 2]  # nearly singular
    result = EM(make_model(family, start(family, shapes)), min_eigenvalue=floor).run(
        x, num_steps=3000, tol=1e-9
    )
    assert result.converged and not result.unconfirmed
    history = result.history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))
    spread = pyro.param("spread").detach()
    variances = spread**2 if family.size == 1 else torch.linalg.eigvalsh(spread @ spread.mT)
    assert variances.min() >= floor * (1 - 1e-9)
    if floor != 0.05 or family.size > 1:  # of single series, whether 0.05 binds is up to the data
        is_bound = variances.min() <= floor * (1 + 1e-6)
        assert is_bound == (floor > 1e-4 or family.size > 1)


@pytest.mark.parametrize("df", [1.0, 4.0, 30.0])
def test_information_is_that_of_the_density(df: float) -> None:
    """The predicted gain is the true one of a Newton step with the expected curvature."""
    grid = torch.linspace(-25, 25, 401).double().sinh()  # to far in the tails
    step = torch.linspace(-25, 25, 401).double().cosh() * (50 / 400)
    leaf = torch.tensor(df).double().log().requires_grad_()
    density = dist.StudentT(leaf.exp(), 0.0, 1.0).log_prob(grid)
    scores = torch.stack(
        [torch.autograd.grad(each, leaf, retain_graph=True)[0] for each in density]
    )
    expected = (scores**2 * density.detach().exp() * step).sum()
    found = degrees_of_freedom.information(torch.tensor(df).double(), 1.0)
    assert_close(found, expected, rtol=1e-6, atol=0.0)


def test_predicted_gain_of_each_argument() -> None:
    """Half of score squared over information, against a Newton step of the likelihood itself."""
    family = emissions.student_t.STUDENT_T
    df, loc, scale = (torch.tensor([value]).double() for value in (5.0, 0.3, 0.8))
    given = {"df": df, "loc": loc, "scale": scale}
    generator = np.random.default_rng(0)
    x = torch.as_tensor(scipy.stats.t.rvs(5.4, 0.31, 0.82, size=20_000, random_state=generator))
    observed = emissions.Observed(x.unsqueeze(-1), torch.ones(20_000, 1).double(), False)
    for argument in family.arguments:
        stats = family.statistics(observed, given, frozenset({argument.name}))
        pooled = argument.reduce(stats, given, True)
        now = given[argument.name]
        by = torch.zeros_like(now).requires_grad_()
        value = family.log_prob(
            x, given | {argument.name: argument.natural.perturb(now, by)}, 0
        ).sum()
        (score,) = torch.autograd.grad(value, by, create_graph=True)
        (curvature,) = torch.autograd.grad(score, by)
        pooled = type(pooled)(*(None if part is None else part.flatten(0, -2)
                                if argument.name == "df" and part.dim() > 2
                                else part.flatten() for part in pooled))
        assert_close(
            argument.natural.score(pooled, now), score.detach(), rtol=1e-8, atol=1e-6
        )
        gain = argument.natural.gain(score.detach(), pooled, now, 0.0)
        # Of a location the gain is that of an EM step, which the latent scales make shorter.
        factor = (5.0 + 1) / (5.0 + 3) if argument.name == "loc" else 1.0
        newton = (-0.5 * score**2 / curvature).detach()
        assert_close(gain, newton * factor, rtol=0.08, atol=1e-6)


def test_latent_scales_reach_the_end_in_few_steps() -> None:
    """PX-EM and ECME against EM, whose loop is written out here, for tails as of a Cauchy."""
    x = torch.as_tensor(scipy.stats.cauchy.rvs(size=400, random_state=np.random.default_rng(1)))

    def model(x: Tensor) -> None:
        one = torch.ones(1).double()
        df = pyro.param("df", 30 * one, constraint=constraints.positive)
        loc, scale = pyro.param("loc", 0 * one), pyro.param(
            "scale", 10 * one, constraint=constraints.positive
        )
        pyro.sample(
            "x",
            RegimeHMM(
                initial_probs=one, transition_probs=one.reshape(1, 1),
                observation_dist=dist.StudentT(df, loc, scale),
            ),
            obs=x,
        )

    result = EM(model).run(x, num_steps=500, tol=1e-7)
    best = -result.history[-1]

    values, steps = x.numpy(), 0
    df, loc, scale = 30.0, 0.0, 10.0
    while scipy.stats.t.logpdf(values, df, loc, scale).sum() < best - 1e-4:
        latent = (df + 1) / (df + ((values - loc) / scale) ** 2)
        logs = scipy.special.digamma((df + 1) / 2) - np.log(
            (df + ((values - loc) / scale) ** 2) / 2
        )
        loc = (latent * values).sum() / latent.sum()
        scale = math.sqrt((latent * (values - loc) ** 2).mean())
        mean = (logs - latent).mean()
        df = scipy.optimize.brentq(
            lambda v, mean: -scipy.special.digamma(v / 2) + math.log(v / 2) + 1 + mean,
            1e-3, 1e6, args=(mean,),
        )
        steps += 1
        assert steps < 5000
    ours = next(n for n, loss in enumerate(result.history) if -loss >= best - 1e-4)
    assert ours < steps / 2


@pytest.mark.parametrize("size", [1, 7])
def test_many_degrees_of_freedom_keep_their_digits(size: int) -> None:
    """Two gamma functions of nearly equal size cancel; this is their ratio, by mpmath."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 40
    a = torch.tensor([0.05, 0.5, 3.0, 15.9, 16.1, 5e3, 1e8]).double()
    found = log_gamma_ratio(a, size / 2)
    expected = [
        float(mpmath.loggamma(x + size / 2) - mpmath.loggamma(x) - size / 2 * mpmath.log(x))
        for x in map(mpmath.mpf, a.tolist())
    ]
    assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=4e-15 * size)
