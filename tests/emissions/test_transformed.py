"""Distributions behind a fixed transform have the updates of the distribution inside."""

from __future__ import annotations

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints, transforms
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, emissions
from pyro_regimes.distributions import observation
from pyro_regimes.emissions.transformed import TransformedFamily
from tests import seeds

K, N, T = 2, 3, 80
INITIAL = torch.tensor([0.6, 0.4]).double()
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
TWO = torch.tensor(2.0).double()
LOC = torch.tensor([-1.0, 1.0]).double()


def hmm(observation_dist: dist.Distribution) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=observation_dist
    )


def draws(*shape: int) -> Tensor:
    steps = torch.arange(T).reshape((T,) + (1,) * (len(shape) - 2)) // 10 % 2
    noise = torch.randn(shape, generator=seeds.generator(7), dtype=torch.float64)
    return noise + 2.0 * steps - 1.0


def family_of(built: dist.Distribution) -> emissions.Family | None:
    return emissions.find_family(emissions.unwrap(built).base, len(built.event_shape))


COMPOSED = transforms.ComposeTransform(
    [transforms.ExpTransform(), transforms.AffineTransform(1.0, 2.0)]
)
TRANSFORMS = {
    "exp": [transforms.ExpTransform()],
    "affine": [transforms.AffineTransform(2.0, -0.3)],
    "affine of tensors": [transforms.AffineTransform(TWO, -0.3 * TWO)],
    "sigmoid": [transforms.SigmoidTransform()],
    "tanh": [transforms.TanhTransform()],
    "softplus": [transforms.SoftplusTransform()],
    "exp, power": [transforms.ExpTransform(), transforms.PowerTransform(-TWO)],
    "an inverse": [transforms.ExpTransform(), transforms.SoftplusTransform().inv],
    "composed": [COMPOSED],
    "the inverse of what is composed": [transforms.ExpTransform(), COMPOSED.inv],
    "cached": [transforms.ExpTransform(cache_size=1)],
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("event", [(), (3,)], ids=["numbers", "rows"])
def test_density_is_that_of_the_distribution(name: str, event: tuple[int, ...]) -> None:
    loc = LOC.reshape((K,) + (1,) * len(event)).expand((K,) + event)
    if name == "the inverse of what is composed":
        base = dist.Normal(loc + 20.0, 0.7)  # whose exponential exceeds 1
    else:
        base = dist.Normal(loc, 0.7)
    built = dist.TransformedDistribution(base, TRANSFORMS[name]).to_event(len(event))
    torch.manual_seed(seeds.seed(1))
    x = built.sample((5, 6))[:, :, 0]
    assert isinstance(family_of(built), TransformedFamily)
    found = observation.log_prob(built, x)
    assert_close(found, built.log_prob(x.unsqueeze(-1 - len(event))), rtol=1e-9, atol=1e-9)


def test_transforms_inside_transforms_and_event_dims() -> None:
    inner = dist.TransformedDistribution(
        dist.Normal(LOC[:, None].expand(K, 3), 1.0), [transforms.ExpTransform()]
    ).to_event(1)
    shift = torch.tensor([1.0, 2.0, 3.0]).double()
    built = dist.TransformedDistribution(
        inner, [transforms.AffineTransform(shift, 2.0 * shift, event_dim=1)]
    )
    family = family_of(built)
    assert isinstance(family, TransformedFamily)
    torch.manual_seed(seeds.seed(1))
    x = built.sample((5, 6))[:, :, 0]
    assert_close(
        observation.log_prob(built, x), built.log_prob(x.unsqueeze(-2)), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "exp", "softplus"])
def test_the_bounds_of_an_image_of_the_real_numbers_have_probability_zero(name: str) -> None:
    built = dist.TransformedDistribution(dist.Normal(LOC, 1.0), TRANSFORMS[name])
    support = built.support
    bounds = [getattr(support, each, None) for each in ("lower_bound", "upper_bound")]
    x = torch.tensor([each for each in bounds if each is not None]).double().requires_grad_()
    found = observation.log_prob(built, x, is_checked=True)
    assert (found == -torch.inf).all()
    (slope,) = torch.autograd.grad(found.exp().sum(), x)
    assert slope.isfinite().all()


def test_what_has_no_family() -> None:
    normal = dist.Normal(LOC[:, None].expand(K, 3), 1.0)

    class Unknown(transforms.Transform):
        domain = codomain = constraints.real
        bijective = True

        def __init__(self, function: object) -> None:
            super().__init__()
            self.function = function

    for each in (
        transforms.AbsTransform(),  # not one to one
        transforms.AffineTransform(torch.ones(K, 1).double(), 1.0),  # another one in each state
        transforms.StickBreakingTransform(),  # joins the entries of an observation
        transforms.Planar(3),  # learns
        Unknown(torch.sin),  # holds who knows what
    ):
        built = dist.TransformedDistribution(normal, [each])
        if not built.event_shape:
            built = built.to_event(1)
        assert family_of(built) is None
    unknown = dist.TransformedDistribution(dist.Cauchy(LOC, 1.0), [transforms.ExpTransform()])
    assert family_of(unknown) is None


class Arcsinh(transforms.Transform):
    """A transform of the user's own."""

    domain = codomain = constraints.real
    bijective = True

    def __init__(self, unit: Tensor | float) -> None:
        super().__init__()
        self.unit = unit

    def _call(self, x: Tensor) -> Tensor:
        return self.unit * (x / self.unit).sinh()

    def _inverse(self, y: Tensor) -> Tensor:
        return self.unit * (y / self.unit).asinh()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return (x / self.unit).cosh().log()


def test_em_is_that_of_the_inverse() -> None:
    z, shift = draws(N, T, 2), torch.tensor([0.5, -1.0]).double()

    def model(x: Tensor, behind: bool) -> None:
        loc = pyro.param("loc", LOC[:, None].expand(K, 2).clone())
        scale = pyro.param("scale", torch.ones(K, 2).double(), constraint=constraints.positive)
        each: dist.Distribution = dist.Normal(loc, scale)
        if behind:
            each = dist.TransformedDistribution(
                each, [Arcsinh(2.0), transforms.AffineTransform(shift, 3.0)]
            )
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(each.to_event(1)), obs=x)

    results = {}
    for behind in (False, True):
        pyro.clear_param_store()
        x = Arcsinh(2.0)(z) * 3.0 + shift if behind else z
        em = EM(model)
        result = em.run(x, behind, num_steps=500, tol=1e-9)
        assert result.converged and not result.unconfirmed
        results[behind] = [pyro.param(name).detach().clone() for name in ("loc", "scale")]
    assert_close(results[True], results[False], rtol=1e-6, atol=1e-6)
    assert pickle.loads(pickle.dumps(em.plan)).names == ["loc", "scale"]


def with_shift(x: Tensor, shift: Tensor | float) -> None:
    loc = pyro.param("loc", LOC.clone())
    each = dist.TransformedDistribution(
        dist.Normal(loc, 1.0), [transforms.ExpTransform(), transforms.AffineTransform(shift, 1.0)]
    )
    with pyro.plate("sequences", N):
        pyro.sample("x", hmm(each), obs=x)


def test_a_parameter_in_a_transform_is_no_closed_form() -> None:
    x = draws(N, T).exp() + 3.0

    def model(x: Tensor) -> None:
        with_shift(x, pyro.param("shift", torch.tensor(2.5).double()))

    with pytest.raises(ValueError, match="shift: an argument without a closed form, transforms.1"):
        EM(model).run(x)
    em = EM(model, optim=pyro.optim.Adam({"lr": 0.01}))
    history = em.run(x, num_steps=60, tol=None).history
    assert list(em.plan.gradient) == ["shift"] and em.plan.names == ["loc"]
    assert history[-1] < history[0] and pyro.param("shift") != 2.5


@pytest.mark.parametrize("hide", [torch.Tensor.item, torch.Tensor.detach])
def test_a_parameter_hidden_in_a_transform_is_found(hide) -> None:  # type: ignore[no-untyped-def]
    x = draws(N, T).exp() + 3.0

    def model(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(2.5).double())
        with_shift(x, hide(shift))

    with pytest.raises(ValueError, match="x.transforms.1.loc: changes with the parameters, but"):
        EM(model).run(x)


def test_a_transform_that_varies_in_time() -> None:
    """As a seasonal factor does."""
    z, season = draws(N, T), torch.arange(T).double().sin().unsqueeze(-1).exp()

    def model(x: Tensor, factor: Tensor | float) -> None:
        loc = pyro.param("loc", LOC.clone())
        scale = pyro.param("scale", torch.ones(K).double(), constraint=constraints.positive)
        each = dist.TransformedDistribution(
            dist.Normal(loc, scale), [transforms.AffineTransform(0.0, factor)]
        )
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm(each), obs=x)

    found = []
    for factor in (1.0, season):
        pyro.clear_param_store()
        x = z if isinstance(factor, float) else z * season[:, 0]
        EM(model).run(x, factor, num_steps=20, tol=None)
        found.append([pyro.param(name).detach().clone() for name in ("loc", "scale")])
    assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_a_masked_observation_is_no_nan() -> None:
    """EM puts 0 in its place, whose logarithm is not finite."""
    x, keep = draws(1, T).exp(), torch.ones(T, 1, dtype=torch.bool)
    keep[5] = False

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", LOC.clone())
        scale = pyro.param("scale", torch.ones(K).double(), constraint=constraints.positive)
        each = dist.LogNormal(loc, scale).mask(keep)
        with pyro.plate("sequences", 1):
            pyro.sample("x", hmm(each), obs=x)

    history = EM(model).run(x, num_steps=10, tol=None).history
    assert torch.tensor(history).isfinite().all() and pyro.param("loc").isfinite().all()


def test_one_location_of_a_normal_and_a_lognormal_site() -> None:
    z = draws(1, T)

    def model() -> None:
        loc = pyro.param("loc", LOC.clone())
        pyro.sample("x", hmm(dist.Normal(loc, 1.0)), obs=z[0])
        pyro.sample("y", hmm(dist.LogNormal(loc, 1.0)), obs=z[0].exp())

    result = EM(model).run(num_steps=300, tol=1e-8)
    assert result.converged and not result.unconfirmed
