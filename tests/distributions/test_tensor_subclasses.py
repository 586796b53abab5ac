"""Tensors that are more than a Tensor: Pyro's provenance, subclasses, fake tensors."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoGaussian
from pyro.infer.inspect import get_dependencies, get_model_relations, render_model
from pyro.ops.provenance import ProvenanceTensor, get_provenance
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pyro_regimes.distributions import RegimeHMM
from tests import seeds

LOC = torch.tensor([-1.0, 1.0])
PROBS = torch.tensor([0.4, 0.6])
TRANSITION = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
SERIES = torch.linspace(-2.0, 2.0, 18).reshape(3, 6)

#: name: (observation_dist of one tensor of K numbers, a value)
OBSERVATIONS = {
    "Normal": (lambda loc: dist.Normal(loc, 1.0), SERIES),
    "Normal.to_event": (
        lambda loc: dist.Normal(loc.unsqueeze(-1), 1.0).to_event(1),
        SERIES[..., None],
    ),
    "MultivariateNormal": (
        lambda loc: dist.MultivariateNormal(loc.unsqueeze(-1), torch.eye(1)),
        SERIES[..., None],
    ),
    "StudentT": (lambda loc: dist.StudentT(3.0, loc, 1.0), SERIES),
    "Bernoulli": (lambda loc: dist.Bernoulli(loc.sigmoid()), (SERIES > 0).float()),
    "Categorical": (
        lambda loc: dist.Categorical(torch.stack([loc.sigmoid(), (-loc).sigmoid()], -1)),
        (SERIES > 0).long(),
    ),
    "ZeroInflatedPoisson": (
        lambda loc: dist.ZeroInflatedPoisson(loc.exp(), gate=loc.sigmoid()),
        (SERIES > 0).float(),
    ),
}

METHODS = {
    "log_prob": lambda hmm, x: hmm.log_prob(x),
    "expand": lambda hmm, x: hmm.expand((2, 3)).log_prob(x),
    "mask": lambda hmm, x: hmm.mask(True).log_prob(x),
    "filter": lambda hmm, x: hmm.filter(x).logits,
    "posterior": lambda hmm, x: hmm.posterior(x),
    "viterbi": lambda hmm, x: hmm.viterbi(x),
    "sample_posterior": lambda hmm, x: hmm.sample_posterior(x, torch.Size([2])),
    "forecast": lambda hmm, x: hmm.forecast(x, 2).log_prob(x[:, :2]),
}


def track(tensor: Tensor, name: str) -> Tensor:
    return ProvenanceTensor(tensor, frozenset({name}))


def untouched(tensor: Tensor, name: str) -> Tensor:
    return tensor


def build(observation, wrap, probs=True, **changes):
    initial, transition = PROBS, TRANSITION
    if not probs:
        initial, transition = initial.log(), transition.log()
    kind = "probs" if probs else "logits"
    given = {f"initial_{kind}": wrap(initial, "pi"), f"transition_{kind}": wrap(transition, "A")}
    return RegimeHMM(observation_dist=observation(wrap(LOC, "loc")), **given, **changes)


def parts(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize(
    "probs, validate_args", [(True, True), (False, False)], ids=["probs", "logits"]
)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_provenance_passes_through(name, method, probs, validate_args):
    observation, value = OBSERVATIONS[name]
    results = []
    for wrap in (track, untouched):
        lengths = wrap(torch.tensor([6, 4, 2]), "lengths")
        hmm = build(observation, wrap, probs, lengths=lengths, validate_args=validate_args)
        torch.manual_seed(seeds.seed(0))
        results.append(parts(METHODS[method](hmm, wrap(value, "x"))))
    for tracked, expected in zip(*results):
        assert get_provenance(tracked) == {"pi", "A", "loc", "lengths", "x"}
        torch.testing.assert_close(tracked._t, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_provenance_of_a_draw(name):
    observation, _ = OBSERVATIONS[name]
    hmm = build(observation, track, duration=4)
    torch.manual_seed(seeds.seed(0))
    drawn = hmm.sample((3,))
    assert get_provenance(drawn) == {"pi", "A", "loc"}
    torch.manual_seed(seeds.seed(0))
    expected = build(observation, untouched, duration=4).sample((3,))
    torch.testing.assert_close(drawn._t, expected, rtol=0, atol=0)


@pytest.mark.parametrize("only", ["pi", "A", "loc", "lengths", "x"])
def test_one_argument_with_provenance_is_enough(only):
    def wrap(tensor, name):
        return track(tensor, name) if name == only else tensor

    observation, value = OBSERVATIONS["Normal"]
    hmm = build(observation, wrap, lengths=wrap(torch.tensor([6, 4, 2]), "lengths"))
    assert get_provenance(hmm.log_prob(wrap(value, "x"))) == {only}


def test_provenance_leaves_gradients():
    observation, value = OBSERVATIONS["Normal"]
    loc = LOC.clone().requires_grad_()
    hmm = RegimeHMM(PROBS.log(), TRANSITION.log(), observation(track(loc, "loc")))
    (found,) = torch.autograd.grad(hmm.log_prob(value).sum()._t, loc)
    hmm = RegimeHMM(PROBS.log(), TRANSITION.log(), observation(loc))
    (expected,) = torch.autograd.grad(hmm.log_prob(value).sum(), loc)
    torch.testing.assert_close(found, expected)


def model():
    loc = pyro.sample("loc", dist.Normal(LOC, 1.0).to_event(1))
    transition = pyro.param("A", TRANSITION, constraint=dist.constraints.simplex)
    with pyro.plate("n", 3):
        pyro.sample(
            "y",
            RegimeHMM(
                initial_probs=PROBS,
                transition_probs=transition,
                observation_dist=dist.Normal(loc, 1.0),
            ),
            obs=SERIES,
        )


def test_pyro_finds_dependencies():
    assert set(get_dependencies(model)["prior_dependencies"]["y"]) == {"y", "loc"}
    relations = get_model_relations(model)
    assert relations["sample_sample"]["y"] == ["loc"]
    assert relations["sample_param"]["y"] == ["A"]
    assert relations["sample_dist"]["y"] == "RegimeHMM"


def test_render_model():
    pytest.importorskip("graphviz")
    assert "loc -> y" in render_model(model).source


def test_trace_graph_elbo_with_a_score_function_site():
    def discrete():
        c = pyro.sample("c", dist.Bernoulli(0.3))
        loc = torch.stack([c - 1.0, c + 1.0])
        hmm = RegimeHMM(torch.zeros(2), 2 * torch.eye(2), dist.Normal(loc, 1.0))
        pyro.sample("y", hmm, obs=SERIES[0])

    def guide():
        pyro.sample("c", dist.Bernoulli(pyro.param("q", torch.tensor(0.4))))

    losses = []
    for elbo in (Trace_ELBO(), TraceGraph_ELBO()):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        losses.append(elbo.loss_and_grads(discrete, guide))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_auto_gaussian():
    svi = SVI(model, AutoGaussian(model), pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step() for _ in range(3)]
    assert torch.tensor(losses).isfinite().all()


class Tagged(Tensor):
    """With the default ``__torch_function__``, which keeps the class."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_a_subclass_of_tensor(name, method):
    observation, value = OBSERVATIONS[name]

    def wrap(tensor, _):
        return tensor.as_subclass(Tagged)

    results = []
    for each in (wrap, untouched):
        hmm = build(observation, each, lengths=each(torch.tensor([6, 4, 2]), "lengths"))
        torch.manual_seed(seeds.seed(0))
        results.append(parts(METHODS[method](hmm, each(value, "x"))))
    for found, expected in zip(*results):
        assert isinstance(found, Tagged)
        if method == "sample_posterior":  # by tensor code, which draws other numbers
            assert found.shape == expected.shape
            continue
        torch.testing.assert_close(found.as_subclass(Tensor), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", OBSERVATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_fake_tensors(method, name):
    observation, value = OBSERVATIONS[name]
    value = value[:, :3]  # the tensor code takes one step after another
    expected = parts(METHODS[method](build(observation, untouched, validate_args=False), value))
    with pyro.validation_enabled(False), FakeTensorMode(allow_non_fake_inputs=True) as mode:

        def wrap(tensor, _):
            return mode.from_tensor(tensor)

        hmm = build(observation, wrap, validate_args=False)
        found = parts(METHODS[method](hmm, wrap(value, "x")))
    for fake, real in zip(found, expected):
        assert fake.shape == real.shape and fake.dtype == real.dtype
