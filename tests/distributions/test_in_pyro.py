"""RegimeHMM inside Pyro models: plates, masks, scales, and every inference method's first steps."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.optim import Adam
from torch.distributions import biject_to

from pyro_regimes.distributions import RegimeHMM
from tests import seeds

K, T, N = 2, 6, 3
INITIAL = torch.tensor([0.3, -0.2], dtype=torch.float64)
TRANSITION = torch.tensor([[2.0, 0.0], [0.5, 1.5]], dtype=torch.float64)
LOC = torch.tensor([-1.0, 2.0], dtype=torch.float64)
VALUE = torch.randn(N, T, generator=seeds.generator(0), dtype=torch.float64)


@pytest.fixture(autouse=True)
def a_store_of_its_own():
    with pyro.get_param_store().scope(), pyro.validation_enabled(True):
        pyro.set_rng_seed(seeds.seed(0))
        yield


def hmm_of(loc=LOC, **options):
    return RegimeHMM(INITIAL, TRANSITION, dist.Normal(loc, 1.0), **options)


def log_prob_sum(model):
    return poutine.trace(model).get_trace().log_prob_sum()


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


EACH = hmm_of().log_prob(VALUE)  # (N,)


def test_an_observed_site_keeps_its_arguments():
    hmm = hmm_of()
    site = poutine.trace(lambda: pyro.sample("x", hmm, obs=VALUE)).get_trace().nodes["x"]
    assert site["fn"] is hmm
    assert site["value"] is VALUE


def test_plate():
    def model():
        with pyro.plate("sequences", N):
            return pyro.sample("x", hmm_of(), obs=VALUE)

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["x"]["fn"].batch_shape == (N,)
    assert_equal(trace.nodes["x"]["log_prob"], EACH)


def test_plate_with_an_own_chain_for_each_sequence():
    loc = LOC + torch.arange(3.0).double()[:, None, None]  # (N, 1, K)

    def model():
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm_of(loc), obs=VALUE)

    assert_equal(log_prob_sum(model), sum(hmm_of(loc[n, 0]).log_prob(VALUE[n]) for n in range(N)))


def test_a_batch_outside_its_plate_is_refused():
    loc = LOC + torch.arange(3.0).double()[:, None, None]

    def model():
        pyro.sample("x", hmm_of(loc), obs=VALUE)

    with pytest.raises(ValueError, match='at site "x", invalid log_prob shape'):
        SVI(model, lambda: None, Adam({"lr": 0.1}), Trace_ELBO()).evaluate_loss()


def test_nested_plates():
    values = torch.stack([VALUE, VALUE + 1.0, VALUE - 1.0, VALUE * 2.0])  # (4, N, T)
    lengths = torch.tensor([6, 2, 4])

    def model():
        with pyro.plate("assets", N), pyro.plate("markets", 4):
            pyro.sample("x", hmm_of(lengths=lengths), obs=values)

    expected = sum(
        hmm_of().log_prob(row[: lengths[n]]) for each in values for n, row in enumerate(each)
    )
    assert_equal(log_prob_sum(model), expected)


def test_subsampling_scales():
    lengths = torch.tensor([6, 2, 4])
    chosen = torch.tensor([2, 1])

    def model():
        with pyro.plate("sequences", N, subsample=chosen) as index:
            pyro.sample("x", hmm_of(lengths=lengths[index]), obs=VALUE[index])

    expected = hmm_of(lengths=lengths[chosen]).log_prob(VALUE[chosen]).sum() * N / 2
    assert_equal(log_prob_sum(model), expected)


def test_scale():
    def model():
        with pyro.plate("sequences", N), poutine.scale(scale=0.25):
            pyro.sample("x", hmm_of(), obs=VALUE)

    assert_equal(log_prob_sum(model), 0.25 * EACH.sum())


MASK = torch.tensor([True, False, True])


def masked_distribution():
    with pyro.plate("sequences", N):
        pyro.sample("x", hmm_of().mask(MASK), obs=VALUE)


def masked_by_a_handler():
    with pyro.plate("sequences", N), poutine.mask(mask=MASK):
        pyro.sample("x", hmm_of(), obs=VALUE)


@pytest.mark.parametrize("model", [masked_distribution, masked_by_a_handler])
def test_mask(model):
    assert_equal(log_prob_sum(model), EACH[MASK].sum())


@pytest.mark.parametrize("mask", [True, False])
def test_mask_by_a_bool(mask):
    assert_equal(hmm_of().mask(mask).log_prob(VALUE).double(), EACH * mask)


def test_a_masked_sequence_has_no_gradient():
    loc = LOC.clone().requires_grad_()
    total = hmm_of(loc).mask(MASK).log_prob(VALUE).sum()
    (actual,) = torch.autograd.grad(total, loc)
    (expected,) = torch.autograd.grad(hmm_of(loc).log_prob(VALUE[MASK]).sum(), loc)
    assert_equal(actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 2])
def test_to_event(dims):
    hmm = hmm_of(duration=T).expand((4, N)).to_event(dims)
    assert hmm.batch_shape == (4, N)[: 2 - dims]
    assert hmm.event_shape == (4, N)[2 - dims :] + (T,)
    assert hmm.sample().shape == (4, N, T)
    expected = EACH.expand(4, N).sum(dim=tuple(range(-dims, 0)))
    assert_equal(hmm.log_prob(VALUE.expand(4, N, T)), expected)

    def model():
        pyro.sample("x", hmm_of(duration=T).expand((N,)).to_event(1), obs=VALUE)

    assert_equal(log_prob_sum(model), EACH.sum())


def test_condition_and_replay():
    def model():
        with pyro.plate("sequences", N):
            return pyro.sample("x", hmm_of(duration=T))

    assert_equal(log_prob_sum(pyro.condition(model, data={"x": VALUE})), EACH.sum())
    trace = poutine.trace(model).get_trace()
    assert trace.nodes["x"]["value"].shape == (N, T)
    assert not trace.nodes["x"]["is_observed"]
    assert torch.equal(poutine.replay(model, trace=trace)(), trace.nodes["x"]["value"])


def model_with_priors(value=None, num_steps=T):
    """The regimes' means unknown, as a user would write it."""
    loc = pyro.sample("loc", dist.Normal(LOC, 1.0).to_event(1))
    rows = pyro.sample("rows", dist.Dirichlet(torch.ones(K, K).double() + torch.eye(K)).to_event(1))
    hmm = RegimeHMM(
        INITIAL,
        None,
        dist.Normal(loc.unsqueeze(-2), 1.0),
        transition_probs=rows.unsqueeze(-3),
        duration=num_steps,
    )
    with pyro.plate("sequences", N):
        return pyro.sample("x", hmm, obs=value)


def model_with_params(value):
    loc = pyro.param("loc", lambda: torch.tensor([0.0, 0.5]).double())
    scale = pyro.param("scale", lambda: torch.ones(1).double(), dist.constraints.positive)
    initial = pyro.param("initial", lambda: INITIAL.softmax(-1), dist.constraints.simplex)
    transition = pyro.param("transition", lambda: TRANSITION.softmax(-1), dist.constraints.simplex)
    hmm = RegimeHMM(
        initial_probs=initial,
        transition_probs=transition,
        observation_dist=dist.Normal(loc, scale),
    )
    with pyro.plate("sequences", len(value)):
        pyro.sample("x", hmm, obs=value)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_svi_by_maximum_likelihood(elbo):
    torch.manual_seed(seeds.seed(1))
    value = hmm_of(duration=40).sample((5,))
    svi = SVI(model_with_params, lambda value: None, Adam({"lr": 0.1}), elbo())
    losses = [svi.step(value) for _ in range(40)]
    start = RegimeHMM(INITIAL, TRANSITION, dist.Normal(torch.tensor([0.0, 0.5]).double(), 1.0))
    assert losses[0] == pytest.approx(-start.log_prob(value).sum().item(), rel=1e-12)
    # the chain that drew the data is within reach of the best
    assert losses[-1] < losses[0] - 10
    assert losses[-1] < -hmm_of().log_prob(value).sum() + 5
    for _, leaf in pyro.get_param_store().named_parameters():
        assert leaf.is_leaf and leaf.requires_grad
    assert (pyro.param("transition").sum(-1) - 1).abs().max() < 1e-12


def test_svi_with_a_guide():
    guide = AutoNormal(model_with_priors, init_scale=0.05)
    svi = SVI(model_with_priors, guide, Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(VALUE) for _ in range(5)]
    assert torch.tensor(losses).isfinite().all()
    assert guide.median()["loc"].shape == (K,)


@pytest.mark.parametrize("num_particles", [1, 4])
def test_svi_with_vectorised_particles(num_particles):
    def model(value):
        loc = pyro.sample("loc", dist.Normal(LOC, 1.0).to_event(1))
        hmm = hmm_of(loc.unsqueeze(-2))  # time has size 1; a particle's dim stands left of it
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm, obs=value)

    def each(value):
        loc = pyro.sample("loc", dist.Delta(LOC + 0.5, event_dim=1))
        assert loc.shape[-1] == K

    elbo = Trace_ELBO(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)
    loss = elbo.loss(model, each, VALUE)
    prior = dist.Normal(LOC, 1.0).log_prob(LOC + 0.5).sum()
    expected = -(prior + hmm_of(LOC + 0.5).log_prob(VALUE).sum())
    assert loss == pytest.approx(expected.item(), rel=1e-12)


def test_a_mixture_of_chains_by_enumeration():
    """Each sequence has one of two sets of means; which one is summed out by Pyro."""
    locs = torch.stack([LOC, LOC + 1.0])
    share = torch.tensor([0.3, 0.7], dtype=torch.float64)

    @config_enumerate
    def model():
        with pyro.plate("sequences", N):
            kind = pyro.sample("kind", dist.Categorical(share))  # () or (2, 1)
            pyro.sample("x", hmm_of(locs[kind].unsqueeze(-2)), obs=VALUE)

    actual = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda: None)
    each = torch.stack([hmm_of(loc).log_prob(VALUE) for loc in locs], -1)
    assert -actual == pytest.approx((each + share.log()).logsumexp(-1).sum().item(), rel=1e-12)


def test_predictive_from_the_prior_and_a_posterior():
    prior = Predictive(model_with_priors, num_samples=7)()
    assert prior["x"].shape == (7, N, T)
    assert prior["x"].isfinite().all()
    far = {"loc": 1e3 * torch.arange(1.0, 8.0).double().unsqueeze(-1).expand(7, K)}
    drawn = Predictive(model_with_priors, far, return_sites=["x"])(num_steps=9)
    assert drawn["x"].shape == (7, N, 9)
    assert ((drawn["x"] - far["loc"][:, :1, None]).abs() < 10).all()


def test_predictive_in_parallel():
    def model():
        with pyro.plate("sequences", N):
            return pyro.sample("x", hmm_of(duration=T))

    drawn = Predictive(model, num_samples=50, parallel=True)()["x"]
    assert drawn.shape == (50, N, T)
    assert len(drawn.flatten().unique()) == drawn.numel()


def test_nuts():
    def model(value):
        loc = pyro.sample("loc", dist.Normal(LOC, 1.0).to_event(1))
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm_of(loc), obs=value)

    mcmc = MCMC(NUTS(model), num_samples=8, warmup_steps=8, disable_progbar=True)
    mcmc.run(VALUE)
    drawn = mcmc.get_samples()["loc"]
    assert drawn.shape == (8, K)
    assert drawn.isfinite().all()
    assert len(drawn.unique(dim=0)) > 1


@pytest.mark.parametrize(
    "observed",
    [
        dist.Normal(LOC, 1.0),
        dist.LogNormal(LOC, 1.0),
        dist.Beta(LOC.exp(), 2.0),
        dist.MultivariateNormal(torch.zeros(K, 3).double(), torch.eye(3).double()),
        dist.Dirichlet(torch.ones(K, 3).double()),
    ],
    ids=lambda observed: type(observed).__name__,
)
def test_a_latent_sequence_has_an_unconstrained_form(observed):
    hmm = RegimeHMM(INITIAL, TRANSITION, observed, duration=T)
    value = hmm.sample()
    assert hmm.support.event_dim == hmm.event_dim
    assert hmm.support.check(value).shape == ()
    assert hmm.support.check(value)
    transform = biject_to(hmm.support)
    free = transform.inv(value)
    torch.testing.assert_close(transform(free), value, rtol=1e-6, atol=1e-8)
    assert transform.log_abs_det_jacobian(free, value).shape == ()


@pytest.mark.parametrize("guide", [AutoDelta, AutoNormal])
def test_a_latent_sequence_is_inferred(guide):
    """A sequence of positive values seen through noise."""
    seen = torch.tensor([0.4, 0.5, 8.0, 7.0, 0.3, 0.6], dtype=torch.float64)

    def model():
        observed = dist.LogNormal(LOC, 0.5)
        clean = pyro.sample("clean", RegimeHMM(INITIAL, TRANSITION, observed, duration=T))
        pyro.sample("seen", dist.Normal(clean, 0.1).to_event(1), obs=seen)

    guide = guide(model)
    svi = SVI(model, guide, Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step() for _ in range(60)]
    assert losses[-1] < losses[0]
    clean = guide()["clean"]
    assert clean.shape == (T,)
    assert (clean > 0).all()


def _two_states(initial: torch.Tensor) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=initial,
        transition_probs=torch.tensor([[0.8, 0.2], [0.3, 0.7]]),
        observation_dist=dist.Normal(torch.tensor([-1.0, 1.0]), 1.0),
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_look_without_gradients_leaves_gradients_possible(mode):
    """The logits are computed at the first look, and kept."""
    initial = torch.tensor([0.6, 0.4]).requires_grad_()
    hmm, x = _two_states(initial), torch.tensor([0.3, -0.2, 1.5])
    with mode():
        hmm.log_prob(x)
    (gradient,) = torch.autograd.grad(hmm.log_prob(x), initial)
    (expected,) = torch.autograd.grad(_two_states(initial).log_prob(x), initial)
    assert gradient.any() and torch.equal(gradient, expected)


def test_autocast_takes_no_digits():
    hmm, x = _two_states(torch.tensor([0.6, 0.4])), torch.randn(50)
    expected = hmm.posterior(x).predicted_probs, hmm.forecast(x, 3).mixture_distribution.probs
    with torch.autocast("cpu", torch.bfloat16):
        found = hmm.posterior(x).predicted_probs, hmm.forecast(x, 3).mixture_distribution.probs
    for one, other in zip(found, expected):
        assert torch.equal(one, other)


def test_no_sequences_at_all():
    hmm, x = _two_states(torch.tensor([0.6, 0.4])), torch.empty(0, 5)
    assert hmm.filter(x).probs.shape == (0, 2)
    assert hmm.forecast(x, 3).mixture_distribution.probs.shape == (0, 3, 2)
