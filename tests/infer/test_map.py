"""With priors EM ends where the log joint, in constrained space, is stationary."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from pyro_regimes import EM
from pyro_regimes.infer.tracing import run_model
from tests.infer.models import INITIAL, LOC, SCALE, TRANSITION, Y, observe, real, scale
from tests.infer.table import ENTRIES, Entry, make_guide

WITH_PRIORS = [
    entry for entry in ENTRIES if (entry.values or entry.guide is not None) and not entry.moved
]


def project(name: str, value: Tensor, gradient: Tensor) -> Tensor:
    """On the tangent space of what the parameter may be."""
    if torch.allclose(value.sum(-1), torch.ones(()).double(), rtol=1e-9, atol=1e-9):
        return gradient - gradient.mean(-1, keepdim=True)
    if name.endswith(("precision", "covariance")) and value.dim() > 1:
        return (gradient + gradient.mT) / 2
    return gradient


@pytest.mark.parametrize("entry", WITH_PRIORS, ids=lambda entry: entry.name)
def test_stationary_in_constrained_space(entry: Entry) -> None:
    guide = make_guide(entry)
    em = EM(entry.model, guide)
    for _ in range(40):
        # Without a tolerance: losses are equal, up to rounding, long before gradients are zero.
        em.run(num_steps=100, tol=None)
        slopes = steepest(entry, guide)
        if max(slopes.values()) < 1e-7:
            break
    assert max(slopes.values()) < 1e-6, slopes


def steepest(entry: Entry, guide: Callable[..., object] | None) -> dict[str, float]:
    """The largest derivative of the log joint in each parameter."""
    run = run_model(entry.model, (), {}, guide=guide)
    objective = sum(site.hmm.log_prob(site.value).sum() for site in run.sites.values())
    objective = objective + sum(latent.log_prob for latent in run.latents.values())
    gradients = torch.autograd.grad(objective, list(run.params.values()))
    return {
        name: float(project(name, value, gradient).abs().max())
        for (name, value), gradient in zip(run.params.items(), gradients, strict=True)
    }


def test_a_prior_that_pulls_hard_decides() -> None:
    """The data say little against a standard deviation of a millionth."""

    def model() -> None:
        held = pyro.sample("loc", dist.Normal(LOC.new_zeros(2) + 3, 1e-6).to_event(1))
        observe(loc=held)

    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"loc": LOC.clone()}))
    EM(model, guide).run(num_steps=5)
    assert (guide.median()["loc"] - 3).abs().max() < 1e-6


def test_a_state_without_data_goes_to_its_prior() -> None:
    """Without a prior it would stay where it is."""
    center = torch.tensor([0.0, 50.0]).double()

    def model() -> None:
        held = pyro.sample("loc", dist.Normal(center, 1.0).to_event(1))
        stays = torch.eye(2).double()
        observe(loc=held, initial_probs=stays[0], transition_probs=stays)

    start = {"loc": torch.tensor([0.5, 40.0]).double()}
    guide = AutoDelta(model, init_loc_fn=init_to_value(values=start))
    EM(model, guide).run(num_steps=3)
    assert guide.median()["loc"][1] == 50.0


@pytest.mark.parametrize(
    "concentration, message",
    [(0.5, "a concentration below 1"), (1.0, None)],
)
def test_mode_on_the_boundary(concentration, message) -> None:
    def model() -> None:
        prior = dist.Dirichlet(torch.full((2,), concentration).double())
        observe(initial_probs=pyro.sample("initial", prior))

    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"initial": INITIAL.clone()}))
    if message is None:
        EM(model, guide).step()
    else:
        with pytest.raises(ValueError, match=message):
            EM(model, guide).step()


def _joint() -> None:
    held = pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 1.0).to_event(1))
    observe(loc=held, scale=scale())


def test_a_guide_that_is_no_point() -> None:
    with pytest.raises(ValueError, match=r"\(a Delta\) at every latent site.* Normal at 'loc_"):
        EM(_joint, AutoNormal(_joint)).step()


def test_a_guide_that_forgets_a_site() -> None:
    with pytest.raises(ValueError, match="latent site 'loc'"):
        EM(_joint, lambda: None).step()


def test_prior_that_uses_the_parameter_twice() -> None:
    def model() -> None:
        held = pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 1.0).to_event(1))
        pyro.sample("other", dist.StudentT(4.0, held, SCALE).to_event(1), obs=LOC)
        observe(loc=held)

    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"loc": LOC.clone()}))
    with pytest.raises(ValueError, match="AutoDelta.loc: used in the log density of site other"):
        EM(model, guide).step()


def masked() -> Tensor:
    with pyro.plate("states", 2):
        return pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 0.5).mask(LOC > 0))


def scaled_cell_by_cell() -> Tensor:
    with pyro.plate("states", 2), poutine.scale(scale=torch.tensor([1.0, 0.1]).double()):
        return pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 0.5))


def within_a_block() -> Tensor:
    """Weights that differ within one location of correlated series."""
    weights = torch.tensor([1.0, 0.5, 0.1]).double()
    with pyro.plate("series", 3), pyro.plate("states", 2), poutine.scale(scale=weights):
        return pyro.sample("loc", dist.Normal(torch.zeros(2, 3).double(), 0.5))


@pytest.mark.parametrize("prior", [masked, scaled_cell_by_cell])
def test_weighted_priors(prior: Callable[[], Tensor]) -> None:
    """EM ends at a stationary point of the log joint."""

    def model() -> None:
        observe(loc=prior(), scale=SCALE)

    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"loc": LOC.clone()}))
    em = EM(model, guide)
    result = em.run(num_steps=2000, tol=1e-11)
    joint = poutine.trace(poutine.replay(model, poutine.trace(guide).get_trace())).get_trace()
    loss = -joint.log_prob_sum()
    assert result.history[-1] == pytest.approx(loss.item(), rel=1e-12)
    leaves = dict(pyro.get_param_store().named_parameters())
    (gradient,) = torch.autograd.grad(loss, [leaves["AutoDelta.loc"]])
    assert "with its Normal prior" in str(em.plan) and gradient.abs().max() < 1e-3


def test_weights_that_differ_within_a_block_are_refused() -> None:
    def model() -> None:
        normal = dist.MultivariateNormal(within_a_block(), torch.eye(3).double())
        observe(observation_dist=normal, obs=Y)

    guide = AutoDelta(model)
    with pytest.raises(ValueError, match="AutoDelta.loc: .*different weights or masks"):
        EM(model, guide).step()


def test_parameter_with_two_priors() -> None:
    """A guide by hand, which gives one point to two sites."""

    def model() -> None:
        held = pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 1.0).to_event(1))
        pyro.sample("same", dist.Normal(LOC.new_zeros(2), 2.0).to_event(1))
        observe(loc=held)

    def guide() -> None:
        point = real("point", LOC)
        for name in ("loc", "same"):
            pyro.sample(name, dist.Delta(point).to_event(1))

    with pytest.raises(ValueError, match="point: the value of several sites with priors, loc and"):
        EM(model, guide).step()


def test_a_guide_whose_point_is_a_function_of_the_parameter() -> None:
    def model() -> None:
        observe(loc=pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 1.0).to_event(1)))

    def guide() -> None:
        pyro.sample("loc", dist.Delta(2.0 * real("half", LOC / 2)).to_event(1))

    with pytest.raises(ValueError, match="half: .*"):
        EM(model, guide).step()


def test_transition_prior_counts_by_hand() -> None:
    """One step from known statistics: counts plus concentration minus one."""
    rows = torch.tensor([[3.0, 2.0], [1.0, 5.0]]).double()

    def model() -> None:
        observe(transition_probs=pyro.sample("transition", dist.Dirichlet(rows).to_event(1)))

    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"transition": TRANSITION.clone()}))
    run = run_model(model, (), {}, guide=guide)
    (site,) = run.sites.values()
    counts = site.hmm.posterior(site.value).expected_transitions + rows - 1
    EM(model, guide).step()
    expected = counts / counts.sum(-1, keepdim=True)
    torch.testing.assert_close(guide.median()["transition"], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_svi_with_autodelta_reaches_the_same_point() -> None:
    guide = AutoDelta(_joint, init_loc_fn=init_to_value(values={"loc": LOC.clone()}))
    em = EM(_joint, guide)
    em.run(num_steps=2000, tol=1e-12)
    ours = guide.median()["loc"].clone(), real("scale", SCALE).detach().clone()
    adam = pyro.optim.Adam({"lr": 0.01})
    svi = pyro.infer.SVI(_joint, guide, adam, pyro.infer.Trace_ELBO())
    with torch.no_grad():
        for leaf in dict(pyro.get_param_store().named_parameters()).values():
            leaf += 0.05
    for _ in range(1500):
        svi.step()
    torch.testing.assert_close(guide.median()["loc"], ours[0], rtol=0, atol=2e-4)
    torch.testing.assert_close(real("scale", SCALE).detach(), ours[1], rtol=0, atol=2e-4)
