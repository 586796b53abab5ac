"""Gaussian sites beside the chain, and priors whose parameters EM sets."""

from __future__ import annotations

from typing import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM
from tests import seeds
from tests.infer.models import LOC, SCALE, XS, loc, observe, positive, real, scale
from tests.infer.test_table import objective
from tests.infer.written import tensor

MEASURED = tensor([[-1.0, 1.2], [-0.8, 0.7], [-0.4, 1.0]])


def loss_of(model: Callable[[], None]) -> float:
    with torch.no_grad():
        return -poutine.trace(model).get_trace().log_prob_sum().item()


# ---- likelihoods -------------------------------------------------------------------------------


def test_a_mean_is_that_of_both_data_sets_by_hand() -> None:
    """A chain that never leaves its first state, and other measurements with another scale."""
    first = tensor(1.0, 0.0)

    def model() -> None:
        held = loc()
        observe(loc=held, scale=SCALE, initial_probs=first, transition_probs=torch.eye(2).double())
        with pyro.plate("measurements", 3):
            pyro.sample("y", dist.Normal(held, 0.5).to_event(1), obs=MEASURED)

    em = EM(model)
    em.step()
    x = poutine.trace(model).get_trace().nodes["x"]["value"]
    weight, total = 64 / SCALE[0] ** 2, x.sum() / SCALE[0] ** 2
    expected = (total + 4 * MEASURED[:, 0].sum()) / (weight + 4 * 3)
    assert_close(pyro.param("loc").detach()[0], expected, rtol=1e-12, atol=0)
    assert_close(pyro.param("loc").detach()[1], MEASURED[:, 1].mean(), rtol=1e-12, atol=0)


def test_weights_and_masks_of_the_other_likelihood() -> None:
    """A weight of 2 is the measurement twice, and a masked one counts for nothing."""

    def weighted() -> None:
        held = loc()
        observe(loc=held, scale=SCALE)
        weights = tensor(2.0, 1.0, 1.0)
        with pyro.plate("measurements", 3), poutine.scale(scale=weights):
            normal = dist.Normal(held, 0.5).to_event(1)
            pyro.sample("y", normal.mask(torch.tensor([True, True, False])), obs=MEASURED)

    def repeated() -> None:
        held = loc()
        observe(loc=held, scale=SCALE)
        with pyro.plate("measurements", 3):
            pyro.sample("y", dist.Normal(held, 0.5).to_event(1), obs=MEASURED[[0, 0, 1]])

    found = []
    for model in (weighted, repeated):
        with pyro.get_param_store().scope():
            em = EM(model)
            history = em.run(num_steps=5, tol=None).history
            assert history[-1] == pytest.approx(loss_of(model), rel=1e-12)
            found.append((history, pyro.param("loc").detach()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    assert_close(found[0][1], found[1][1], rtol=1e-12, atol=0)


def test_a_regression_beside_the_chain() -> None:
    """Both locations are affine in the coefficients."""
    design = torch.linspace(-1, 1, 20).double().unsqueeze(-1) ** tensor(0.0, 1.0)
    noise = torch.randn(20, generator=seeds.generator(4), dtype=torch.float64)

    def model() -> None:
        beta = real("beta", tensor(0.0, 1.0))
        observe(loc=torch.stack([beta[0] - beta[1], beta.sum()]), scale=scale())
        with pyro.plate("rows", 20):
            pyro.sample("y", dist.Normal(design @ beta, 0.5), obs=1.0 + design[:, 1] + 0.5 * noise)

    em = EM(model)
    losses = torch.tensor(em.run(num_steps=30, tol=None).history, dtype=torch.float64)
    assert em.plan.affine.names == ["beta"] and (losses.diff() <= 1e-9 * losses[0]).all()
    assert losses[-1] == pytest.approx(loss_of(model), rel=1e-12)


def test_a_location_that_an_optimiser_moves() -> None:
    def model() -> None:
        raw = real("raw", tensor(0.1, 0.4))
        observe(loc=loc(), scale=scale())
        with pyro.plate("measurements", 3):
            normal = dist.Normal(raw.tanh(), positive("spread", tensor(1.0))).to_event(1)
            pyro.sample("y", normal, obs=MEASURED)

    with pytest.raises(ValueError, match="\n  raw: "):
        EM(model).step()
    em = EM(model, optim=pyro.optim.SGD({"lr": 0.01}))
    history = em.run(num_steps=20, tol=None).history
    assert set(em.plan.gradient) == {"raw"} and {"loc", "scale", "spread"} <= set(em.plan.names)
    assert history[-1] < history[0]
    assert history[-1] == pytest.approx(loss_of(model), rel=1e-12)


def test_minibatches_refuse_a_likelihood_beside_them() -> None:
    def model() -> None:
        held = loc()
        pyro.sample("y", dist.Normal(held, 0.5).to_event(1), obs=MEASURED[0])
        with pyro.plate("sequences", 4, subsample_size=2) as index:
            observe(loc=held, obs=XS[index])

    with pytest.raises(ValueError, match="\n  loc: used in the log density of site y"):
        EM(model).step()


# ---- priors ------------------------------------------------------------------------------------

CENTRE, SPREAD = tensor(0.3), tensor(2.0)


def population(observe_it: Callable[[Tensor], None]) -> tuple[Callable[[], None], AutoDelta]:
    def model() -> None:
        centre = pyro.sample("centre", dist.Normal(tensor(0.0), tensor(3.0)))
        spread = pyro.sample("spread", dist.InverseGamma(tensor(4.0), tensor(3.0)))
        held = pyro.sample("loc", dist.Normal(centre, spread.sqrt()).expand([2]).to_event(1))
        observe_it(held)

    values = {"centre": CENTRE.clone(), "spread": SPREAD.clone(), "loc": LOC.clone()}
    return model, AutoDelta(model, init_loc_fn=init_to_value(values=values))


def test_parameters_of_a_prior_are_those_of_the_new_values() -> None:
    """One step, by hand: the locations first, then their mean, then their variance."""
    model, guide = population(lambda held: observe(loc=held, scale=SCALE))
    em = EM(model, guide)
    em.step()
    point = {name: value.detach() for name, value in guide.median().items()}
    held = point["loc"]
    centre = (held.sum() / SPREAD) / (2 / SPREAD + 1 / 9)
    scatter = (held - centre).square().sum()
    assert_close(point["centre"], centre, rtol=1e-12, atol=0)
    assert_close(point["spread"], (scatter + 6) / (2 + 8 + 2), rtol=1e-12, atol=0)
    assert [each.name for each in em.plan.order][0] == "AutoDelta.loc"


def test_minibatches_with_a_population() -> None:
    def observe_it(held: Tensor) -> None:
        with pyro.plate("sequences", 4, subsample_size=2) as index:
            observe(loc=held, obs=XS[index])

    torch.manual_seed(seeds.seed(0))
    model, guide = population(observe_it)
    em = EM(model, guide)
    em.run(num_steps=10)
    assert em.plan.is_subsampled and not em.plan.gradient
    assert all(bool(value.isfinite().all()) for value in guide.median().values())


def test_a_mean_of_a_prior_that_an_optimiser_moves() -> None:
    def model() -> None:
        raw = real("raw", tensor(0.2))
        held = pyro.sample("loc", dist.Normal(raw.tanh(), SPREAD).expand([2]).to_event(1))
        observe(loc=held, scale=scale())

    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"loc": LOC.clone()}))
    with pytest.raises(ValueError, match="\n  raw: "):
        EM(model, guide).step()
    em = EM(model, guide, pyro.optim.SGD({"lr": 0.01}))
    history = em.run(num_steps=20, tol=None).history
    assert set(em.plan.gradient) == {"raw"} and history[-1] < history[0]
    assert history[-1] == pytest.approx(objective(model, guide).item(), rel=1e-12)


def test_a_population_of_affine_locations() -> None:
    """The values that have the prior are solved for by least squares."""

    def model() -> None:
        centre = real("centre", CENTRE)
        base = real("base", tensor([-0.5]))
        gap = pyro.sample("gap", dist.Normal(centre, 0.5).expand([1]).to_event(1))
        observe(loc=torch.cat([base, base + gap]), scale=scale())

    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"gap": tensor([1.0])}))
    em = EM(model, guide)
    losses = torch.tensor(em.run(num_steps=30, tol=None).history, dtype=torch.float64)
    assert set(em.plan.affine.names) == {"base", "AutoDelta.gap"}
    assert (losses.diff() <= 1e-9 * losses[0]).all() and losses[-1] < losses[0]
    assert_close(pyro.param("centre").detach(), guide.median()["gap"].detach()[0])


def test_a_mean_of_a_prior_that_is_affine_is_refused() -> None:
    def model() -> None:
        slope = real("slope", tensor(0.2))
        held = pyro.sample("loc", dist.Normal(slope * tensor(-1.0, 1.0), 1.0).to_event(1))
        observe(loc=held, scale=scale())

    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"loc": LOC.clone()}))
    with pytest.raises(ValueError, match="\n  slope: "):
        EM(model, guide).step()


def test_a_value_outside_a_flat_prior_is_told() -> None:
    def model() -> None:
        held = pyro.sample("loc", dist.Uniform(tensor(-0.7), tensor(5.0)).expand([2]).to_event(1))
        observe(loc=held, scale=SCALE)

    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"loc": LOC.clone()}))
    with pytest.raises(ValueError, match="'AutoDelta.loc' to have its maximum within"):
        EM(model, guide).run(num_steps=50)


def test_restarts_have_populations_of_their_own() -> None:
    starts = tensor(0.0, 1.0).reshape(2, 1, 1)

    def model() -> None:
        centre = real("centre", starts)
        with pyro.plate("restarts", 2):
            prior = dist.Normal(centre, 0.5).expand([2, 1, 2]).to_event(2)
            held = pyro.sample("loc", prior)
            observe(loc=held, scale=SCALE, obs=XS[:2])

    values = {"loc": LOC.expand(2, 1, 2).clone()}
    guide = AutoDelta(model, init_loc_fn=init_to_value(values=values))
    em = EM(model, guide)
    losses = torch.tensor(em.run(num_steps=20, tol=None).history, dtype=torch.float64)
    assert not em.plan.gradient and (losses.diff() <= 1e-9 * losses[0]).all()
    held = guide.median()["loc"].detach()
    assert_close(pyro.param("centre").detach().flatten(), held.mean(-1).flatten())
