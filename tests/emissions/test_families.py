"""One battery for every family: its updates are what a numerical optimiser finds.

A family joins with one entry in ``FAMILIES``.
"""

from typing import Callable, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import transform_to, transforms
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, emissions
from pyro_regimes.distributions import MeanGamma, observation
from pyro_regimes.emissions.columns import ColumnsFamily
from pyro_regimes.emissions.transformed import TransformedFamily
from pyro_regimes.emissions.zero_inflated import ZeroInflatedFamily
from tests import seeds
from tests.emissions import battery

K, D, N, T = 2, 3, 3, 40
Shapes = dict[str, tuple[int, ...]]


class Family(NamedTuple):
    """How to build a family, and the ways to share its arguments."""

    build: Callable[..., dist.Distribution]
    constraints: dict[str, constraints.Constraint]
    sharings: dict[str, Shapes]
    value: Callable[[Tensor], Tensor]  #: standard normal draws ``(N, T, D)`` to data
    #: a covariance ``(D, D)`` to the argument of that name, from which a numerical optimiser
    #: starts; None: it starts from the current values
    spread: Callable[[Tensor], Tensor] | None = None
    is_smooth: bool = True  #: whether Q has a derivative everywhere
    is_accurate: bool = True  #: whether torch's own density has all digits


def matrices(kind: str, constraint: constraints.Constraint) -> Family:
    return Family(
        lambda loc, spread: dist.MultivariateNormal(loc, **{kind: spread}),
        {"loc": constraints.real, "spread": constraint},
        {
            "own": {"loc": (K, D), "spread": (K, D, D)},
            "tied": {"loc": (K, D), "spread": (D, D)},
            "of each sequence": {"loc": (N, 1, K, D), "spread": (N, 1, K, D, D)},
            "one location": {"loc": (D,), "spread": (K, D, D)},
            "one location of each sequence": {"loc": (N, 1, 1, D), "spread": (K, D, D)},
            "of each time": {"loc": (T, K, D), "spread": (D, D)},
            "locations of each time, one for all states": {"loc": (T, 1, D), "spread": (K, D, D)},
        },
        lambda draws: draws @ MIX + draws[..., :1].sign(),
        lambda covariance: getattr(dist.MultivariateNormal(torch.zeros(D), covariance), kind),
    )


def elementwise(
    kind: Callable[..., dist.Distribution],
    constraints: dict[str, constraints.Constraint],
    value: Callable[[Tensor], Tensor],
) -> Family:
    """A family of independent series."""
    first, *others = constraints

    def build(**given: Tensor) -> dist.Distribution:
        shape = torch.broadcast_shapes(*(each.shape for each in given.values()), (K, D))
        return kind(**given).expand(shape).to_event(1)

    def shapes(first_shape: tuple[int, ...], other: tuple[int, ...]) -> Shapes:
        return {first: first_shape} | dict.fromkeys(others, other)

    sharings = {
        "own": shapes((K, D), (K, D)),
        "of each state": shapes((K, 1), (K, 1)),
        "of each sequence": shapes((N, 1, K, D), (N, 1, K, D)),
        "of each time": shapes((T, K, D), (D,)),
    }
    if others:
        sharings |= {
            "the first shared": shapes((D,), (K, 1)),
            "the others shared": shapes((K, D), (D,)),
            "the others one for all": shapes((N, 1, K, D), ()),
        }
    return Family(build, constraints, sharings, value)


MIX = torch.tensor([[1.0, 0.4, 0.0], [0.0, 0.8, -0.3], [0.0, 0.0, 1.2]], dtype=torch.float64)

FAMILIES = {
    "Normal": Family(
        lambda loc, spread: dist.Normal(loc, spread).expand(
            torch.broadcast_shapes(loc.shape, spread.shape, (K, D))
        ).to_event(1),
        {"loc": constraints.real, "spread": constraints.positive},
        {
            "diagonal": {"loc": (K, D), "spread": (K, D)},
            "spherical": {"loc": (K, D), "spread": (K, 1)},
            "tied": {"loc": (K, D), "spread": (D,)},
            "one for all": {"loc": (K, D), "spread": ()},
            "of each sequence": {"loc": (N, 1, K, D), "spread": (N, 1, K, D)},
            "scale of each sequence": {"loc": (K, D), "spread": (N, 1, K, D)},
            "one location": {"loc": (D,), "spread": (K, 1)},
            "one location for all": {"loc": (), "spread": (K, D)},
            "of each time": {"loc": (T, K, D), "spread": (D,)},
        },
        lambda draws: draws + draws[..., :1].sign(),
        lambda covariance: covariance.diagonal().mean().sqrt(),
    ),
    "LogNormal": Family(
        lambda loc, spread: dist.LogNormal(loc, spread).expand(
            torch.broadcast_shapes(loc.shape, spread.shape, (K, D))
        ).to_event(1),
        {"loc": constraints.real, "spread": constraints.positive},
        {
            "diagonal": {"loc": (K, D), "spread": (K, D)},
            "tied": {"loc": (K, D), "spread": (D,)},
            "of each sequence": {"loc": (N, 1, K, D), "spread": (N, 1, K, D)},
            "one location": {"loc": (D,), "spread": (K, 1)},
            "of each time": {"loc": (T, K, D), "spread": (D,)},
        },
        lambda draws: (draws + draws[..., :1].sign()).exp(),
    ),
    "Gamma": elementwise(
        dist.Gamma,
        {"rate": constraints.positive, "concentration": constraints.positive},
        lambda draws: (0.5 * draws + draws[..., :1].sign()).exp(),
    ),
    "MeanGamma": elementwise(
        MeanGamma,
        {"mean": constraints.positive, "concentration": constraints.positive},
        lambda draws: (0.5 * draws + draws[..., :1].sign()).exp(),
    ),
    "HalfNormal": elementwise(
        dist.HalfNormal,
        {"scale": constraints.positive},
        lambda draws: draws.abs() * (1 + draws[..., :1].sign() / 2),
    ),
    "Weibull": elementwise(
        dist.Weibull,
        {"scale": constraints.positive, "concentration": constraints.positive},
        lambda draws: (0.5 * draws + draws[..., :1].sign()).exp(),
    ),
    "InverseGamma": elementwise(
        dist.InverseGamma,
        {"rate": constraints.positive, "concentration": constraints.positive},
        lambda draws: (0.5 * draws + draws[..., :1].sign()).exp(),
    ),
    "Beta": elementwise(
        dist.Beta,
        {"concentration1": constraints.positive, "concentration0": constraints.positive},
        lambda draws: (draws + draws[..., :1].sign()).sigmoid(),
    ),
    "Dirichlet": Family(
        lambda concentration: dist.Dirichlet(concentration),
        {"concentration": constraints.positive},
        {
            "own": {"concentration": (K, D)},
            "tied": {"concentration": (D,)},
            "of each sequence": {"concentration": (N, 1, K, D)},
        },
        lambda draws: (draws + draws[..., :1].sign()).softmax(-1),
    ),
    "Laplace": Family(
        lambda loc, spread: dist.Laplace(loc, spread).expand(
            torch.broadcast_shapes(loc.shape, spread.shape, (K, D))
        ).to_event(1),
        {"loc": constraints.real, "spread": constraints.positive},
        {
            "own": {"loc": (K, D), "spread": (K, D)},
            "one scale": {"loc": (K, D), "spread": (D,)},
            "of each sequence": {"loc": (N, 1, K, D), "spread": (N, 1, K, D)},
            "one location": {"loc": (D,), "spread": (K, 1)},
            "of each time": {"loc": (T, K, D), "spread": (D,)},
        },
        lambda draws: draws + draws[..., :1].sign(),
        is_smooth=False,
    ),
    "VonMises": Family(
        lambda loc, spread: dist.VonMises(loc, spread).expand(
            torch.broadcast_shapes(loc.shape, spread.shape, (K, D))
        ).to_event(1),
        {"loc": constraints.real, "spread": constraints.positive},
        {
            "own": {"loc": (K, D), "spread": (K, D)},
            "one concentration": {"loc": (K, D), "spread": (D,)},
            "of each sequence": {"loc": (N, 1, K, D), "spread": (N, 1, K, D)},
            "one location": {"loc": (D,), "spread": (K, 1)},
            "of each time": {"loc": (T, K, D), "spread": (D,)},
        },
        lambda draws: 0.6 * draws + draws[..., :1].sign(),
        is_accurate=False,
    ),
    "a transformed MultivariateNormal": Family(
        lambda loc, spread: dist.TransformedDistribution(
            dist.MultivariateNormal(loc, spread),
            [transforms.SigmoidTransform(), transforms.AffineTransform(1.0, torch.tensor(-3.0))],
        ),
        {"loc": constraints.real, "spread": constraints.positive_definite},
        {
            "own": {"loc": (K, D), "spread": (K, D, D)},
            "one location": {"loc": (D,), "spread": (K, D, D)},
        },
        lambda draws: 1 - 3 * (draws @ MIX + draws[..., :1].sign()).sigmoid(),
    ),
    "MultivariateNormal by covariance": matrices(
        "covariance_matrix", constraints.positive_definite
    ),
    "MultivariateNormal by factor": matrices("scale_tril", constraints.lower_cholesky),
    "MultivariateNormal by precision": matrices(
        "precision_matrix", constraints.positive_definite
    ),
}
#: Families whose E-step has more than the states, so that a step does not maximise this Q.
LATENT = {
    # tests/emissions/test_student_t.py
    emissions.student_t.STUDENT_T,
    emissions.multivariate_student_t.MULTIVARIATE_STUDENT_T,
    # tests/emissions/test_gaussian_mixture.py
    emissions.gaussian_mixture.MIXTURE_OF_NORMALS,
    emissions.gaussian_mixture.MIXTURE_OF_MULTIVARIATE_NORMALS,
    # tests/emissions/test_low_rank_normal.py
    emissions.low_rank_normal.LOW_RANK_NORMAL,
}

CASES = [
    pytest.param(family, shapes, id=f"{name}, {sharing}")
    for name, family in FAMILIES.items()
    for sharing, shapes in family.sharings.items()
]


def test_every_family_is_in_the_battery() -> None:
    built = set()
    for family in FAMILIES.values():
        distribution = family.build(**start(family, next(iter(family.sharings.values()))))
        built.add(emissions.find_family(emissions.unwrap(distribution).base))
    for case in battery.CASES.values():
        found = case.build(**case.known, **case.start())
        built.add(emissions.find_family(found, len(found.event_shape)))
    contain = TransformedFamily, ZeroInflatedFamily, ColumnsFamily
    of_others = {each for each in built if isinstance(each, contain)}
    assert of_others and built - of_others == set(emissions.FAMILIES) - LATENT


def draw(*shape: int, seed: int) -> Tensor:
    generator = seeds.generator(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def start(family: Family, shapes: Shapes) -> dict[str, Tensor]:
    values = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        unconstrained = 0.4 * draw(*shape, seed=seed)
        values[name] = transform_to(family.constraints[name])(unconstrained)
    return values


class Expectation:
    """Q of one model at fixed posterior probabilities of the states."""

    def __init__(self, family: Family, values: dict[str, Tensor], data: Tensor) -> None:
        self.family, self.data = family, data
        hmm = RegimeHMM(INITIAL, TRANSITION, self._distribution(values))
        self.gamma = hmm.posterior(data).smoothed_probs.detach()

    def _distribution(self, values: dict[str, Tensor]) -> dist.Distribution:
        built = self.family.build(**values)
        if built.batch_shape[-1:] != (K,):
            built = built.expand(built.batch_shape[:-1] + (K,))
        return built

    def __call__(self, values: dict[str, Tensor]) -> Tensor:
        built = self._distribution(values)
        if self.family.is_accurate:
            logits = built.log_prob(self.data.unsqueeze(-2))
        else:  # that of the family here, which is tested against scipy
            logits = observation.log_prob(built, self.data)
        return (self.gamma * logits).sum()

    def slope(self, values: dict[str, Tensor], name: str) -> Tensor:
        """The largest derivative in one argument, unconstrained."""
        transform = transform_to(self.family.constraints[name])
        free = transform.inv(values[name]).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self(values | {name: transform(free)}), free)
        return gradient.abs().max()

    def assert_concave_maximum(self, values: dict[str, Tensor], name: str) -> None:
        """No other value of an argument, near or far, is better."""
        transform = transform_to(self.family.constraints[name])
        free, best = transform.inv(values[name]), self(values)
        for seed in range(60):
            step = draw(*free.shape, seed=seed) * 10.0 ** (seed % 6 - 5)
            step = step * (draw(*free.shape, seed=100 + seed) > 0.5 * (seed % 3))
            assert self(values | {name: transform(free + step)}) <= best + 1e-10 * best.abs()

    def maximise(self, values: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
        """The numerical maximiser over some arguments, the others as they are.

        Newton's method within a trust region, over unconstrained coordinates, from the moments of
        all data. No step changes a scale more than e-fold: the objective is finite throughout.
        """
        maps = {name: transform_to(self.family.constraints[name]) for name in names}
        start = {name: maps[name].inv(self._start(name, values[name])) for name in names}
        sizes = [value.numel() for value in start.values()]

        def at(free: Tensor) -> dict[str, Tensor]:
            parts = zip(names, free.split(sizes), strict=True)
            return values | {
                name: maps[name](part.reshape(start[name].shape)) for name, part in parts
            }

        def slope(free: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
            x = torch.tensor(free, requires_grad=True)
            loss = -self(at(x)) / self.data.numel()
            assert loss.isfinite()
            return x, loss, torch.autograd.grad(loss, x, create_graph=True)[0]

        def value_and_gradient(free: np.ndarray) -> tuple[float, np.ndarray]:
            _, loss, gradient = slope(free)
            return float(loss.detach()), gradient.detach().numpy()

        def curvature(free: np.ndarray, direction: np.ndarray) -> np.ndarray:
            x, _, gradient = slope(free)
            return torch.autograd.grad(gradient, x, torch.tensor(direction))[0].numpy()

        found = minimize(
            value_and_gradient,
            torch.cat([value.reshape(-1) for value in start.values()]).numpy(),
            jac=True,
            hessp=curvature,
            method="trust-ncg",
            options={"gtol": 1e-7, "initial_trust_radius": 0.5, "max_trust_radius": 1.0},
        )
        assert np.abs(found.jac).max() < 1e-6  # whatever ended it
        return {name: value.detach() for name, value in at(torch.tensor(found.x)).items()}

    def _start(self, name: str, value: Tensor) -> Tensor:
        """An argument that knows one mean and one covariance, those of all data."""
        if self.family.spread is None:
            return value
        rows = self.data.reshape(-1, D)
        if name == "loc":
            moment = rows.mean(0) if value.shape[-1:] == (D,) else rows.mean()
        else:
            moment = self.family.spread(rows.mT.cov())
        return moment.expand(value.shape).contiguous()


INITIAL = torch.zeros(K, dtype=torch.float64)
TRANSITION = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("family, shapes", CASES)
def test_update_is_the_numerical_maximiser(family: Family, shapes: Shapes) -> None:
    data = family.value(draw(N, T, D, seed=9))
    old = start(family, shapes)
    expectation = Expectation(family, old, data)

    def model() -> None:
        values = {
            name: pyro.param(name, value, constraint=family.constraints[name])
            for name, value in old.items()
        }
        hmm = RegimeHMM(INITIAL, TRANSITION, expectation._distribution(values))
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm, obs=data)

    em = EM(model)
    em.step()
    new = {name: pyro.param(name).detach() for name in shapes}
    assert {each.name for each in em.plan.assignments} == set(shapes)
    joint = not _is_shared(shapes) or any(each.joint for each in em.plan.assignments)

    # The first argument given the old others, the second given the new first: each at its maximum.
    between = old
    for name in shapes:
        if "loc" not in shapes and joint:
            continue
        if not family.is_smooth:
            between = between | {name: new[name]}
            expectation.assert_concave_maximum(between, name)
            continue
        best = expectation.maximise(between, (name,))
        between = between | {name: new[name]}
        assert expectation.slope(between, name) < 1e-8 * data.numel()
        _assert_reaches(expectation(between), expectation(best))
    assert expectation(new) > expectation(old) + 1e-3

    if joint and family.is_smooth:  # then it is the maximum over all at once
        best = expectation.maximise(old, tuple(shapes))
        _assert_reaches(expectation(new), expectation(best))
        for name in shapes:
            assert expectation.slope(new, name) < 1e-8 * data.numel()

    # Where the posterior is taken anew the likelihood rises, step by step. (A floor, as one state
    # of one sequence may come to hold too few observations for a covariance.)
    history = EM(model, min_eigenvalue=1e-3).run(num_steps=20, tol=None).history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))
    likelihood = poutine.trace(model).get_trace().log_prob_sum().item()
    assert likelihood == pytest.approx(-history[-1], rel=1e-10)


def _assert_reaches(found: Tensor, best: Tensor) -> None:
    """With a slope of 0, a value that is no lower is the maximum; the optimiser may stop early."""
    assert found >= best - 1e-9 * best.abs()
    assert_close(found, best, rtol=1e-7, atol=0.0)


def _is_shared(shapes: Shapes) -> bool:
    """Whether a location serves blocks of different spread, or there are several other arguments.

    Then a step is the maximum over all of them only if the plan says that they are joint.
    """
    if "loc" not in shapes:
        return len(shapes) > 1
    return len(shapes["loc"]) < 2 or shapes["loc"][-2] != K or shapes["spread"][:1] == (N,)


@pytest.mark.parametrize(
    "family, shapes",
    [
        pytest.param(family, next(iter(family.sharings.values())), id=name)
        for name, family in FAMILIES.items()
    ],
)
def test_no_weight_gives_nan_and_no_update(family: Family, shapes: Shapes) -> None:
    """A family's maximiser says NaN where there is nothing to learn from."""
    values = start(family, shapes)
    built = family.build(**values)
    base, event_dim = emissions.unwrap(built).base, len(built.event_shape)
    found = emissions.find_family(base, event_dim)
    data = family.value(draw(N, T, D, seed=1))[0].unsqueeze(-1 - event_dim)
    observed = emissions.Observed(data, torch.zeros(T, K, dtype=torch.float64), False)
    given = found.read(base)
    stats = found.statistics(observed, given, frozenset(given))
    for argument in found.arguments:
        if argument.name in given and argument.links:
            pooled = argument.reduce(stats, given, False)
            result = argument.maximise(pooled, given[argument.name], 0.0)
            assert result.isnan().all()
            assert result.shape[-1 - argument.event_dim - argument.elementwise] == K


def test_unwrap_joins_masks() -> None:
    first, second = torch.tensor([True, False]), torch.tensor([True, True])
    inner = dist.Normal(torch.zeros(K, D), 1.0).to_event(1).mask(first)
    base, mask = emissions.unwrap(inner.expand([4, K]).mask(second))
    assert isinstance(base, torch.distributions.Normal)
    assert mask.expand(4, K).tolist() == [[True, False]] * 4


def test_unknown_family_has_no_updates() -> None:
    assert emissions.find_family(dist.Cauchy(torch.zeros(K), 1.0)) is None


@pytest.mark.parametrize("kind", ["covariance_matrix", "scale_tril", "precision_matrix"])
def test_the_matrix_that_was_given_is_the_argument(kind: str) -> None:
    """Also after somebody looked at the others, which torch computes and keeps."""
    built = dist.MultivariateNormal(torch.zeros(D), **{kind: 2 * torch.eye(D)})
    for name in ("covariance_matrix", "precision_matrix", "scale_tril"):
        assert getattr(built, name).shape == (D, D)
    assert set(emissions.find_family(built, 1).read(built)) == {"loc", kind}
