"""Stochastic EM on minibatches: exact moments, the full data's optimum, and its cost."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.emissions.update import Observed
from pyro_regimes.infer.stochastic import default_schedule, read_averages
from tests import seeds

K, D, T = 3, 2, 30
TRUTH = {
    "initial": torch.tensor([0.5, 0.3, 0.2]).double(),
    "transition": torch.tensor([[0.9, 0.06, 0.04], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]]).double(),
    "loc": torch.tensor([[1.5, 0.0], [-1.0, 1.5], [-1.0, -2.0]]).double(),
    "scale_tril": torch.tensor([[1.0, 0.0], [0.4, 0.8]]).double().expand(K, D, D).contiguous(),
}


def build(initial: Tensor, transition: Tensor, loc: Tensor, scale_tril: Tensor) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=initial,
        transition_probs=transition,
        observation_dist=dist.MultivariateNormal(loc, scale_tril=scale_tril),
        duration=T,
    )


def draw(count: int, seed: int) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seeds.seed(seed))
        return build(**TRUTH).sample((count,))


def parameters() -> dict[str, Tensor]:
    """Started away from the truth."""
    simplex, lower = constraints.simplex, constraints.lower_cholesky
    sticky = 0.6 * torch.eye(K).double() + 0.4 / K
    return {
        "initial": pyro.param("initial", torch.ones(K).double() / K, constraint=simplex),
        "transition": pyro.param("transition", sticky, constraint=simplex),
        "loc": pyro.param("loc", 0.5 * TRUTH["loc"]),
        "scale_tril": pyro.param(
            "scale_tril", 1.5 * torch.eye(D).double().expand(K, D, D), constraint=lower
        ),
    }


def model(x: Tensor, batch: int | None = None) -> None:
    hmm = build(**parameters())
    with pyro.plate("sequences", len(x), subsample_size=batch) as index:
        pyro.sample("x", hmm, obs=x if batch is None else x[index])


def held_out(x: Tensor) -> float:
    with torch.no_grad():
        return float(build(**parameters()).log_prob(x).sum())


@pytest.mark.parametrize("event_shape", [(), (2,), (2, 3)])
def test_points_have_the_moments_of_the_data(event_shape) -> None:
    generator = seeds.generator(0)
    value = 100 + torch.randn((4, 20, 1) + event_shape, generator=generator).double()
    weights = torch.rand((4, 20, K), generator=generator).double()
    averages = read_averages(
        Observed(value, weights, False),
        torch.rand(4, K).double(),
        torch.rand(4, 1, K, K).double(),
        None,
    )
    points = averages.as_data(torch.Size(event_shape))
    for observed in (points, Observed(value, weights, False)):
        w = observed.weights.reshape(-1, K)
        v = observed.value.reshape(len(w), -1) - 100
        moments = w.sum(0), w.mT @ v, torch.einsum("tk,td,te->kde", w, v, v)
        if observed is points:
            expected = moments
    for one, other in zip(moments, expected, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_whole_batches_are_ordinary_em() -> None:
    """With every sequence in the batch and a step size of 1 nothing is left of the averages."""
    x = draw(12, seed=1)
    stochastic = EM(lambda x: model(x, 11), step_size=lambda step: 1.0)
    torch.manual_seed(seeds.seed(0))
    index = torch.randperm(12)[:11]
    torch.manual_seed(seeds.seed(0))
    loss = stochastic.step(x)
    found = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()
    ordinary = EM(model)
    assert loss == pytest.approx(ordinary.step(x[index]) * 12 / 11, rel=1e-12)
    for name, value in pyro.get_param_store().items():
        assert_close(found[name], value.detach(), rtol=1e-9, atol=1e-10)


def test_reaches_the_full_data_in_five_passes() -> None:
    x, fresh = draw(2000, seed=2), draw(500, seed=3)
    EM(model).run(x, num_steps=200, tol=1e-5)
    full = held_out(fresh)
    pyro.clear_param_store()
    torch.manual_seed(seeds.seed(0))
    em = EM(lambda x: model(x, 50))
    em.run(x, num_steps=5 * 2000 // 50)
    assert abs(held_out(fresh) - full) < 1e-3 * abs(full)
    assert set(em.plan.names) == set(TRUTH)


def test_with_priors_and_an_optimiser() -> None:
    """MAP, and a parameter without a closed form, in the same steps."""
    x = draw(400, seed=4)[..., 0]

    def mixed(x: Tensor, batch: int | None) -> None:
        with pyro.plate("states", K):
            loc = pyro.sample("loc", dist.Normal(TRUTH["loc"][:, 0], 1.0))
        log_scale = pyro.param("log_scale", torch.zeros(K).double())
        hmm = RegimeHMM(
            initial_probs=TRUTH["initial"],
            transition_probs=TRUTH["transition"],
            observation_dist=dist.Normal(loc, 0.1 + log_scale.exp()),
        )
        with pyro.plate("sequences", len(x), subsample_size=batch) as index:
            pyro.sample("x", hmm, obs=x if batch is None else x[index])

    guide = pyro.infer.autoguide.AutoDelta(
        lambda x, batch: mixed(x, batch),
        init_loc_fn=pyro.infer.autoguide.init_to_value(values={"loc": TRUTH["loc"][:, 0]}),
    )
    adam = pyro.optim.Adam({"lr": 0.01})
    em = EM(mixed, guide, adam)
    torch.manual_seed(seeds.seed(0))
    em.run(x, 40, num_steps=200)
    assert em.plan.names == ["AutoDelta.loc"] and set(em.plan.gradient) == {"log_scale"}
    found = em.evaluate_loss(x, None)
    best = EM(mixed, guide, adam)
    best.run(x, None, num_steps=300)
    assert found - best.evaluate_loss(x, None) < 1e-3 * found


def test_a_value_for_each_sequence_has_no_closed_form() -> None:
    x = draw(6, seed=5)[..., 0]

    def own(x: Tensor, size: int = 2) -> None:
        with pyro.plate("sequences", len(x), subsample_size=size) as index:
            loc = pyro.param("loc", torch.zeros(6, 1, K).double() + TRUTH["loc"][:, 0])
            hmm = RegimeHMM(
                initial_probs=TRUTH["initial"],
                transition_probs=TRUTH["transition"],
                observation_dist=dist.Normal(loc[index], 1.0),
            )
            pyro.sample("x", hmm, obs=x[index])

    with pytest.raises(ValueError, match="for each sequence of a subsampled plate"):
        EM(own).step(x)
    pyro.clear_param_store()
    em = EM(own, optim=pyro.optim.Adam({"lr": 0.05}))
    start = em.evaluate_loss(x, 6)
    for _ in range(100):
        em.step(x)
    assert em.evaluate_loss(x, 6) < start
    assert set(em.plan.gradient) == {"loc"}


def test_making_the_plan_leaves_the_random_numbers() -> None:
    """A step draws what it needs, as an SVI step does, and no more."""
    x = draw(20, seed=6)
    em = EM(lambda x: model(x, 5))
    torch.manual_seed(seeds.seed(3))
    em.step(x)
    after_plan = torch.rand(1)
    torch.manual_seed(seeds.seed(3))
    em.step(x)
    assert torch.equal(torch.rand(1), after_plan)


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_step_sizes_that_are_none(share) -> None:
    em = EM(lambda x: model(x, 5), step_size=lambda step: share)
    with pytest.raises(ValueError, match="step_size to lie above 0 and up to 1"):
        em.step(draw(20, seed=7))


def test_default_schedule() -> None:
    assert default_schedule(1) == 1.0
    assert default_schedule(32) == pytest.approx(32**-0.6)
