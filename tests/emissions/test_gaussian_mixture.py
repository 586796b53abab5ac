"""Mixtures of Gaussians as observations: the component is one more hidden variable."""

import math
import pickle
from typing import Any, Callable, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hmmlearn.hmm import GMMHMM
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor
from torch.distributions import transform_to
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, emissions
from tests import seeds

K, M, D, N, T = 2, 3, 2, 3, 80
Shapes = dict[str, tuple[int, ...]]
INITIAL = torch.tensor([0.6, 0.4]).double()
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()


class Family(NamedTuple):
    """How to build a mixture, and the ways to share its arguments."""

    component: Callable[[Tensor, Tensor], dist.Distribution]
    spread: constraints.Constraint
    sharings: dict[str, Shapes]

    def constraint(self, name: str) -> constraints.Constraint:
        """Of one argument."""
        known = {"weights": constraints.simplex, "loc": constraints.real, "spread": self.spread}
        return known[name]


def series(loc: Tensor, scale: Tensor) -> dist.Distribution:
    shape = torch.broadcast_shapes(loc.shape, scale.shape, (K, M, D))
    return dist.Normal(loc, scale).expand(shape).to_event(1)


def vectors(**kind: Any) -> Callable[[Tensor, Tensor], dist.Distribution]:
    def build(loc: Tensor, spread: Tensor) -> dist.Distribution:
        whole = loc.expand(torch.broadcast_shapes(loc.shape, (K, M, D)))
        return dist.MultivariateNormal(whole, **{kind["name"]: spread})

    return build


def matrices(name: str, constraint: constraints.Constraint) -> Family:
    return Family(
        vectors(name=name),
        constraint,
        {
            "own": {"weights": (K, M), "loc": (K, M, D), "spread": (K, M, D, D)},
            "of each state": {"weights": (K, M), "loc": (K, M, D), "spread": (K, 1, D, D)},
            "one for all": {"weights": (M,), "loc": (K, M, D), "spread": (D, D)},
            "one location": {"weights": (K, M), "loc": (K, 1, D), "spread": (K, M, D, D)},
            "of each sequence": {
                "weights": (N, 1, K, M), "loc": (N, 1, K, M, D), "spread": (N, 1, 1, 1, D, D)
            },
            "weights of each time": {
                "weights": (T, K, M), "loc": (K, M, D), "spread": (K, M, D, D)
            },
        },
    )


FAMILIES = {
    "Normal": Family(
        series,
        constraints.positive,
        {
            "own": {"weights": (K, M), "loc": (K, M, D), "spread": (K, M, D)},
            "spherical": {"weights": (K, M), "loc": (K, M, D), "spread": (K, M, 1)},
            "components of all states": {"weights": (K, M), "loc": (M, D), "spread": (M, D)},
            "one scale": {"weights": (M,), "loc": (K, M, D), "spread": ()},
            "one location": {"weights": (K, M), "loc": (K, 1, D), "spread": (K, M, D)},
            "of each sequence": {
                "weights": (N, 1, K, M), "loc": (N, 1, K, M, D), "spread": (K, M, D)
            },
            "locations of each time": {
                "weights": (K, M), "loc": (T, K, 1, D), "spread": (K, M, D)
            },
        },
    ),
    "MultivariateNormal by covariance": matrices(
        "covariance_matrix", constraints.positive_definite
    ),
    "MultivariateNormal by factor": matrices("scale_tril", constraints.lower_cholesky),
    "MultivariateNormal by precision": matrices(
        "precision_matrix", constraints.positive_definite
    ),
}
CASES = [
    pytest.param(family, shapes, id=f"{name}, {sharing}")
    for name, family in FAMILIES.items()
    for sharing, shapes in family.sharings.items()
    if sharing == "own" or not name.endswith(("factor", "precision"))
]
OWN = [
    pytest.param(family, family.sharings["own"], id=name)
    for name, family in list(FAMILIES.items())[:2]
]


def draw(*shape: int, seed: int) -> Tensor:
    # Fixed: the starts are random, and with some seeds a state or a component collapses.
    return torch.randn(shape, generator=seeds.fixed(seed), dtype=torch.float64)


def data(*shape: int, seed: int) -> Tensor:
    """Two regimes in turn, of three clusters each."""
    regime = (torch.arange(shape[-2]) // 10 % 2).double().unsqueeze(-1)
    cluster = draw(*shape[:-1], 1, seed=seed + 100)
    cluster = (cluster > 0.5).double() - (cluster < -0.5).double()
    return 0.4 * draw(*shape, seed=seed) + 3 * regime + 1.5 * cluster


CENTERS = torch.tensor([0.0, 3.0]).double().reshape(K, 1, 1)
CENTERS = CENTERS + torch.tensor([-1.5, 0.0, 1.5]).double().reshape(1, M, 1)


def center(shape: tuple[int, ...]) -> Tensor:
    """The clusters, averaged over what shares a location."""
    found = CENTERS
    if M not in shape:
        found = found.mean(1, keepdim=True)
    if K not in shape[:-1]:
        found = found.mean(0)
    return found


def start(family: Family, shapes: Shapes) -> dict[str, Tensor]:
    """Near the clusters, so that each has data."""
    values = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        noise = 0.4 * draw(*shape, seed=seed)
        if name == "weights":
            values[name] = noise.softmax(-1)
        elif name == "loc":
            values[name] = noise + center(shape)
        else:
            values[name] = transform_to(family.constraint(name))(noise)
    return values


def mixture(family: Family, values: dict[str, Tensor]) -> dist.MixtureSameFamily:
    parts = family.component(values["loc"], values["spread"])
    return dist.MixtureSameFamily(dist.Categorical(values["weights"]), parts)


def hmm(family: Family, values: dict[str, Tensor]) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=mixture(family, values)
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
    """Q of states and components."""

    def __init__(self, family: Family, old: dict[str, Tensor], x: Tensor) -> None:
        self.family, self.x = family, x
        self.gamma = hmm(family, old).posterior(x).smoothed_probs.detach().unsqueeze(-1)
        self.take_components(old)

    def take_components(self, old: dict[str, Tensor]) -> None:
        """The probabilities of the components given the states."""
        self.responsibility = self.gamma * self._joint(old).softmax(-1).detach()

    def _joint(self, values: dict[str, Tensor]) -> Tensor:
        parts = self.family.component(values["loc"], values["spread"])
        return parts.log_prob(self.x[..., None, None, :]) + values["weights"].log()

    def slope(self, values: dict[str, Tensor], name: str) -> Tensor:
        """Derivatives in one argument, unconstrained."""
        transform = transform_to(self.family.constraint(name))
        free = transform.inv(values[name]).detach().requires_grad_()
        q = (self.responsibility * self._joint(values | {name: transform(free)})).sum()
        (found,) = torch.autograd.grad(q, free)
        return found.abs()


@pytest.mark.parametrize("family, shapes", CASES)
def test_a_step_maximises_q(family: Family, shapes: Shapes) -> None:
    """Each argument given those before it; Q is concave in each of them."""
    x = data(N, T, D, seed=5)
    old = start(family, shapes)
    objective = Objective(family, old, x)
    model = make_model(family, old)
    em = EM(model)
    em.step(x)
    assert {each.name for each in em.plan.assignments} == set(shapes)
    now = old
    for name in shapes:
        if T in (shapes["weights"][0], shapes["loc"][0]):
            # The model varies in time: statistics are taken at what was set before.
            objective.take_components(now)
        now = now | {name: pyro.param(name).detach()}
        assert objective.slope(now, name).max() < 1e-8 * x.numel()

    history = EM(model, min_eigenvalue=1e-3).run(x, num_steps=20, tol=None).history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))
    likelihood = poutine.trace(model).get_trace(x).log_prob_sum().item()
    assert likelihood == pytest.approx(-history[-1], rel=1e-10)


@pytest.mark.parametrize("family, shapes", OWN)
@pytest.mark.parametrize("seed", [1, 2])
def test_no_fall_from_random_starts_and_the_end_is_a_maximum(
    family: Family, shapes: Shapes, seed: int
) -> None:
    x = data(N, 2 * T, D, seed=10 + seed)
    old = start(family, shapes)
    old["loc"] = old["loc"] + draw(*shapes["loc"], seed=seed)
    result = EM(make_model(family, old), min_eigenvalue=1e-2).run(x, num_steps=3000, tol=1e-8)
    history = result.history
    assert result.converged and not result.unconfirmed
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))


@pytest.mark.parametrize("kind", ["diag", "full", "spherical", "tied"])
def test_against_hmmlearn(kind: str) -> None:
    """Step by step from one start, as far as hmmlearn maximises.

    Its scatter is about the old means, which is larger than the maximiser by the square of their
    step. So one step is compared, and the end, where the means do not move.
    """
    x = data(1, 300, D, seed=1)[0].numpy()
    states, mix, size = K, M, D
    loc = (CENTERS + 0.3 * draw(K, M, D, seed=2)).numpy()
    spread = {
        "diag": np.full((states, mix, size), 0.3),
        "spherical": np.full((states, mix), 0.3),
        "full": np.tile(0.3 * np.eye(size), (states, mix, 1, 1)),
        "tied": np.tile(0.3 * np.eye(size), (states, 1, 1)),
    }[kind]
    weights = np.array([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2]])
    initial, rows = np.array([0.5, 0.5]), np.array([[0.95, 0.05], [0.1, 0.9]])

    def theirs(num_steps: int) -> GMMHMM:
        found = GMMHMM(
            states, mix, covariance_type=kind, init_params="", n_iter=num_steps, tol=-np.inf,
            min_covar=0,
            # Its default is no flat prior here, unless there are as many components as series.
            covars_prior=-(size + 2) / 2 if kind == "spherical" else None,
        )
        found.startprob_, found.transmat_ = initial, rows
        found.weights_, found.means_, found.covars_ = weights, loc, spread
        return found.fit(x)

    def model(x: Tensor) -> None:
        def param(name: str, value: np.ndarray, constraint: constraints.Constraint) -> Tensor:
            return pyro.param(name, torch.as_tensor(value), constraint=constraint)

        means = param("loc", loc, constraints.real)
        if kind in ("diag", "spherical"):
            variance = param("spread", spread, constraints.positive)
            scale = (variance if kind == "diag" else variance.unsqueeze(-1)).sqrt()
            parts = dist.Normal(means, scale.expand(states, mix, size)).to_event(1)
        else:
            matrix = param("spread", spread, constraints.positive_definite)
            matrix = matrix if kind == "full" else matrix.unsqueeze(1)
            parts = dist.MultivariateNormal(means, matrix)
        shares = dist.Categorical(param("weights", weights, constraints.simplex))
        each = RegimeHMM(
            initial_probs=param("initial", initial, constraints.simplex),
            transition_probs=param("rows", rows, constraints.simplex),
            observation_dist=dist.MixtureSameFamily(shares, parts),
        )
        pyro.sample("x", each, obs=x)

    def ours(name: str) -> np.ndarray:
        return pyro.param(name).detach().numpy()

    first = EM(model).run(torch.tensor(x), num_steps=1, tol=None).history
    expected = theirs(1)
    assert -first[0] == pytest.approx(expected.monitor_.history[0], rel=1e-10)
    for name, value in [
        ("rows", expected.transmat_), ("weights", expected.weights_), ("loc", expected.means_)
    ]:
        np.testing.assert_allclose(ours(name), value, rtol=1e-8, atol=1e-10)
    step = expected.means_ - loc
    moved = {
        "diag": step**2,
        "spherical": (step**2).mean(-1),
        "full": step[..., None] * step[..., None, :],
    }
    moved["tied"] = np.einsum("km,kmi,kmj->kij", expected.weights_, step, step)
    np.testing.assert_allclose(ours("spread") + moved[kind], expected.covars_, rtol=1e-7)

    history = EM(model).run(torch.tensor(x), num_steps=1000, tol=1e-9).history
    expected = theirs(200)
    assert -history[-1] == pytest.approx(expected.score(x), rel=1e-8)
    np.testing.assert_allclose(ours("loc"), expected.means_, rtol=1e-3, atol=1e-3)


# ---- the density -------------------------------------------------------------------------------


@pytest.mark.parametrize("family, shapes", CASES)
def test_density_is_that_of_the_distribution(family: Family, shapes: Shapes) -> None:
    x = data(N, T, D, seed=5)
    given = mixture(family, start(family, shapes))
    found = emissions.find_family(given, 1)
    density = found.log_prob(x, found.read(given), 1)
    assert_close(density, given.log_prob(x.unsqueeze(-2)), rtol=1e-11, atol=1e-11)


def test_density_of_numbers() -> None:
    weights, loc = draw(K, M, seed=1).softmax(-1), draw(K, M, seed=2)
    given = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, loc.exp()))
    found = emissions.find_family(given)
    x = draw(N, T, seed=3)
    assert_close(found.log_prob(x, found.read(given), 0), given.log_prob(x.unsqueeze(-1)))


@pytest.mark.parametrize("held", ["probs", "logits"])
def test_derivatives_of_the_density(held: str) -> None:
    x = draw(4, D, seed=1)
    factor = transform_to(constraints.lower_cholesky)(draw(K, M, D, D, seed=4))
    shares = draw(K, M, seed=2)
    shares = shares.softmax(-1) if held == "probs" else shares
    family = emissions.gaussian_mixture.MIXTURE_OF_MULTIVARIATE_NORMALS

    def density(value: Tensor, shares: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
        given = {
            f"mixture_distribution.{held}": shares,
            "component_distribution.loc": loc,
            "component_distribution.scale_tril": factor.tril(),
        }
        return family.log_prob(value, given, 1)

    leaves = [each.detach().requires_grad_() for each in (x, shares, draw(K, M, D, seed=3), factor)]
    assert torch.autograd.gradcheck(density, leaves)
    assert torch.autograd.gradgradcheck(density, leaves)


def test_a_weight_of_zero_stays_zero_and_far_values_have_gradients() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]).double()
    family = FAMILIES["Normal"]
    old = start(family, family.sharings["own"]) | {"weights": weights}
    x = data(N, T, D, seed=5)
    x[0, 0] = 1e3
    leaf = old["loc"].clone().requires_grad_()
    (found,) = torch.autograd.grad(hmm(family, old | {"loc": leaf}).log_prob(x).sum(), leaf)
    assert found.isfinite().all() and (found[0, 1:] == 0).all()
    EM(make_model(family, old), min_eigenvalue=1e-2).run(x, num_steps=5, tol=None, check=False)
    new = pyro.param("weights").detach()
    assert (new[weights == 0] == 0).all()
    assert_close(pyro.param("loc").detach()[0, 1:], old["loc"][0, 1:])  # no data, no step


# ---- what else EM needs ------------------------------------------------------------------------


@pytest.mark.parametrize("family, shapes", OWN)
@pytest.mark.parametrize("fixed", ["weights", "loc", "spread"])
def test_one_argument_is_known(family: Family, shapes: Shapes, fixed: str) -> None:
    x = data(N, T, D, seed=7)
    em = EM(make_model(family, start(family, shapes), (fixed,)), min_eigenvalue=1e-2)
    result = em.run(x, num_steps=3000, tol=1e-5)
    assert {each.name for each in em.plan.assignments} == set(shapes) - {fixed}
    assert result.converged and not result.unconfirmed


def test_logits_hold_the_weights() -> None:
    family = FAMILIES["Normal"]
    old = start(family, family.sharings["own"])
    x = data(N, T, D, seed=7)
    EM(make_model(family, old)).run(x, num_steps=20, tol=None)
    expected = {name: pyro.param(name).detach() for name in old}
    pyro.clear_param_store()

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", old["loc"])
        scale = pyro.param("spread", old["spread"], constraint=constraints.positive)
        logits = pyro.param("logits", old["weights"].log())
        parts = dist.Normal(loc, scale).to_event(1)
        each = RegimeHMM(
            initial_probs=INITIAL, transition_probs=TRANSITION,
            observation_dist=dist.MixtureSameFamily(dist.Categorical(logits=logits), parts),
        )
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", each, obs=x)

    em = EM(model)
    em.run(x, num_steps=20, tol=None)
    assert "as logits" in str(em.plan)
    found = pyro.param("logits").detach().softmax(-1)
    assert_close(found, expected["weights"], rtol=1e-9, atol=0.0)
    assert_close(pyro.param("loc").detach(), expected["loc"], rtol=1e-9, atol=0.0)
    again = pickle.loads(pickle.dumps(em.plan))
    assert [each.argument for each in again.order] == [each.argument for each in em.plan.order]


def test_locations_that_are_affine_in_parameters() -> None:
    """Components at fixed distances of the location of their state."""
    apart = torch.tensor([-1.5, 0.0, 1.5]).double().unsqueeze(-1)
    x = data(N, T, D, seed=7)

    def model(x: Tensor) -> None:
        center = pyro.param("center", torch.tensor([[0.0], [2.0]]).double().expand(K, D).clone())
        scale = pyro.param("scale", torch.ones(K, 1, D).double(), constraint=constraints.positive)
        weights = torch.full((K, M), 1 / 3).double()
        parts = dist.Normal(center.unsqueeze(-2) + apart, scale.expand(K, M, D)).to_event(1)
        each = RegimeHMM(
            initial_probs=INITIAL, transition_probs=TRANSITION,
            observation_dist=dist.MixtureSameFamily(dist.Categorical(weights), parts),
        )
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", each, obs=x)

    em = EM(model)
    result = em.run(x, num_steps=500, tol=1e-8)
    assert result.converged and not result.unconfirmed and not em.plan.gradient


@pytest.mark.parametrize("family, shapes", OWN)
def test_restarts_do_not_depend_on_their_neighbours(family: Family, shapes: Shapes) -> None:
    x = data(1, T, D, seed=7)
    starts = []
    for seed in range(3):
        old = start(family, shapes)
        starts.append(old | {"loc": old["loc"] + draw(*shapes["loc"], seed=seed)})

    def run(chosen: list[int]) -> dict[str, Tensor]:
        pyro.clear_param_store()
        values = {
            name: torch.stack([starts[r][name] for r in chosen]).unsqueeze(1) for name in shapes
        }
        em = EM(make_model(family, values), min_eigenvalue=1e-2)
        em.run(x.expand(len(chosen), T, D), num_steps=40, tol=1e-6)
        return {name: pyro.param(name).detach() for name in shapes}

    together = run([0, 1, 2])
    for r in range(3):
        alone = run([r])
        for name in shapes:
            assert torch.equal(alone[name][0], together[name][r])


@pytest.mark.parametrize("family, shapes", OWN)
def test_float32(family: Family, shapes: Shapes) -> None:
    x = data(N, T, D, seed=7)
    old = start(family, shapes)
    EM(make_model(family, old), min_eigenvalue=1e-2).run(x, num_steps=20, tol=None)
    double = {name: pyro.param(name).detach() for name in shapes}
    pyro.clear_param_store()
    single = {name: value.float() for name, value in old.items()}
    EM(make_model(family, single), min_eigenvalue=1e-2).run(x.float(), num_steps=20, tol=None)
    for name in shapes:
        found = pyro.param(name).detach()
        assert found.dtype == torch.float32
        assert_close(found.double(), double[name], rtol=5e-3, atol=2e-3)


@pytest.mark.parametrize("family, shapes", OWN)
def test_prices_far_from_zero_keep_their_digits(family: Family, shapes: Shapes) -> None:
    """Also where some components take their moments about new locations, and others do not."""
    x = (data(N, T, D, seed=7) * 2**-10).float().double()
    old = start(family, shapes)
    old["loc"] = old["loc"] * 2**-10
    old["spread"] = old["spread"] * (2**-10 if family.spread is constraints.positive else 2**-20)
    for level in (0.0, 2.0**20):
        pyro.clear_param_store()
        given = old | {"loc": old["loc"] + level}
        EM(make_model(family, given), min_eigenvalue=1e-8).run(x + level, num_steps=20, tol=None)
        found = {name: pyro.param(name).detach() for name in shapes}
        if not level:
            expected = found
    assert_close(found["spread"], expected["spread"], rtol=1e-3, atol=0.0)
    assert_close(found["weights"], expected["weights"], rtol=1e-3, atol=1e-6)


def test_moments_that_are_taken_again_are_of_all_components_of_a_state() -> None:
    """One of them is so far off that its moments lose their digits at the new location."""
    family = FAMILIES["Normal"]
    shapes = family.sharings["own"]
    x = data(N, T, D, seed=7)
    old = start(family, shapes)
    old["loc"][0], old["spread"][0] = 4.0, 4.0
    old["loc"][0, 0], old["spread"][0, 0] = 100.0, 40.0
    objective = Objective(family, old, x)
    EM(make_model(family, old)).step(x)
    new = {name: pyro.param(name).detach() for name in shapes}
    small = 1e-8 * x.numel()
    with_loc = old | {"weights": new["weights"], "loc": new["loc"]}
    assert objective.slope(with_loc, "loc").max() < small
    of_old = objective.slope(new, "spread")
    assert of_old[1].max() < small < of_old[0].max()
    objective.take_components(with_loc)
    of_new = objective.slope(new, "spread")
    assert of_new[0].max() < small < of_new[1].max()


@pytest.mark.parametrize("family, shapes", OWN)
def test_stochastic_em(family: Family, shapes: Shapes) -> None:
    x = data(60, 40, D, seed=7)
    old = start(family, shapes)
    apart = torch.tensor([-1.5, 0.0, 1.5]).double().unsqueeze(-1)
    old["loc"] = (torch.tensor([0.0, 3.0]).double().reshape(K, 1, 1) + apart).expand(K, M, D)
    old["loc"] = old["loc"] + 0.1 * draw(K, M, D, seed=3)
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
    EM(minibatches).run(x, num_steps=150, tol=None)
    for name in shapes:
        assert_close(pyro.param(name).detach(), expected[name], rtol=0.1, atol=0.05)


def test_conjugate_priors_give_the_mode() -> None:
    x = data(N, T, D, seed=7)
    apart = torch.tensor([-1.5, 0.0, 1.5]).double().unsqueeze(-1)
    given = {
        "weights": torch.full((K, M), 1 / 3).double(),
        "loc": (torch.tensor([0.0, 3.0]).double().reshape(K, 1, 1) + apart).expand(K, M, D).clone(),
        "variance": torch.ones(K, M, D).double(),
    }

    def model(x: Tensor) -> None:
        with pyro.plate("states", K, dim=-1):
            weights = pyro.sample("weights", dist.Dirichlet(torch.full((M,), 3.0).double()))
        loc = pyro.sample(
            "loc", dist.Normal(torch.zeros(K, M, D).double(), 3.0).to_event(3)
        )
        variance = pyro.sample(
            "variance", dist.InverseGamma(torch.full((K, M, D), 4.0).double(), 1.0).to_event(3)
        )
        parts = dist.Normal(loc, variance.sqrt()).to_event(1)
        each = RegimeHMM(
            initial_probs=INITIAL, transition_probs=TRANSITION,
            observation_dist=dist.MixtureSameFamily(dist.Categorical(weights), parts),
        )
        with pyro.plate("sequences", len(x), dim=-1):
            pyro.sample("x", each, obs=x)

    guide = AutoDelta(model, init_loc_fn=init_to_value(values=given))
    result = EM(model, guide).run(x, num_steps=1000, tol=1e-9)
    assert result.converged and not result.unconfirmed
    history = result.history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))


def test_what_is_no_mixture_of_whole_gaussian_observations_has_no_family() -> None:
    weights = torch.full((K, M), 1 / 3).double()
    of_numbers = dist.MixtureSameFamily(
        dist.Categorical(weights.unsqueeze(1).expand(K, D, M)),
        dist.Normal(torch.zeros(K, D, M).double(), 1.0),
    )
    assert emissions.find_family(of_numbers, 1) is None  # within to_event(1)
    laplace = dist.Laplace(torch.zeros(K, M).double(), 1.0)
    assert emissions.find_family(dist.MixtureSameFamily(dist.Categorical(weights), laplace)) is None
    nested = dist.MixtureSameFamily(
        dist.Categorical(weights),
        dist.Normal(torch.zeros(K, M, D).double(), 1.0).mask(torch.tensor(True)).to_event(1),
    )
    assert emissions.find_family(nested, 1) is None
    assert math.isfinite(float(nested.log_prob(torch.zeros(D).double()).sum()))
