"""Regimes after EM, SVI, NUTS, and whatever gives draws."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal, init_to_value
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, infer_regimes
from pyro_regimes.infer import point_values, record_regimes
from tests import seeds
from tests.infer.models import INITIAL, LENGTHS, LOC, SCALE, TRANSITION, XS, X, normal_hmm


def build(loc: Tensor) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.Normal(loc, SCALE),
    )


def model(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 2.0).to_event(1))
    pyro.sample("x", build(loc), obs=x)


DRAWS = torch.tensor([[-0.6, 0.9], [-0.5, 1.0], [0.95, -0.55]]).double()  # the last one swapped


@pytest.mark.parametrize("kind", ["smoothed", "filtered"])
def test_after_em(kind) -> None:
    EM(normal_hmm).run(X, num_steps=5)
    found = infer_regimes(normal_hmm, None, X, kind=kind)
    hmm = poutine.trace(normal_hmm).get_trace(X).nodes["x"]["fn"]
    expected = getattr(hmm.posterior(X), f"{kind}_probs").detach()
    assert list(found) == ["x"]
    assert_close(found["x"], expected, rtol=1e-12, atol=1e-12)


def test_path_after_em() -> None:
    EM(normal_hmm).run(X, num_steps=5)
    found = infer_regimes(normal_hmm, None, X, kind="viterbi")["x"]
    hmm = poutine.trace(normal_hmm).get_trace(X).nodes["x"]["fn"]
    assert found.dtype == torch.long and torch.equal(found, hmm.viterbi(X))


def test_draws_are_aligned_before_they_are_averaged() -> None:
    found = infer_regimes(model, {"loc": DRAWS}, X)["x"]
    aligned = torch.stack([DRAWS[0], DRAWS[1], DRAWS[2].flip(0)])
    # The chain is not symmetric, so that a swapped draw is another model; its states are matched.
    swapped = build(DRAWS[2]).posterior(X).smoothed_probs.flip(-1)
    parts = [build(each).posterior(X).smoothed_probs for each in aligned[:2]] + [swapped]
    assert_close(found, torch.stack(parts).mean(0), rtol=1e-12, atol=1e-12)
    blurred = infer_regimes(model, {"loc": DRAWS}, X, align=False)["x"]
    assert (found.amax(-1).mean() > blurred.amax(-1).mean()).item()


def test_paths_of_draws_vote() -> None:
    found = infer_regimes(model, {"loc": DRAWS}, X, kind="viterbi")["x"]
    paths = [build(DRAWS[0]).viterbi(X), build(DRAWS[1]).viterbi(X), 1 - build(DRAWS[2]).viterbi(X)]
    assert torch.equal(found, torch.stack(paths).mode(0).values)


def test_padding_and_plates() -> None:
    def padded(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 2.0).to_event(1))
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.Normal(loc, SCALE),
            lengths=LENGTHS,
        )
        with pyro.plate("sequences", 4):
            pyro.sample("x", hmm, obs=x)

    path = infer_regimes(padded, {"loc": DRAWS}, XS, kind="viterbi")["x"]
    probs = infer_regimes(padded, {"loc": DRAWS}, XS)["x"]
    beyond = torch.arange(32) >= LENGTHS.unsqueeze(-1)
    assert path.shape == (4, 32) and probs.shape == (4, 32, 2)
    assert (path[beyond] == -1).all() and (path[~beyond] >= 0).all()
    assert not probs[beyond].any()
    assert_close(probs[~beyond].sum(-1), torch.ones(int(LENGTHS.sum())).double())


def test_after_svi() -> None:
    guide = AutoNormal(model, init_loc_fn=init_to_value(values={"loc": LOC}), init_scale=0.05)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    torch.manual_seed(seeds.seed(0))
    for _ in range(50):
        svi.step(X)
    store = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    found = infer_regimes(model, guide, X, num_samples=200)["x"]
    at_median = infer_regimes(model, {"loc": guide.median(X)["loc"].unsqueeze(0)}, X)["x"]
    assert (found - at_median).abs().max() < 0.1 and not torch.equal(found, at_median)
    assert all(torch.equal(store[name], value) for name, value in pyro.get_param_store().items())


def test_a_point_is_drawn_once() -> None:
    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"loc": LOC}))
    expected = build(LOC).posterior(X).smoothed_probs
    assert_close(infer_regimes(model, guide, X)["x"], expected, rtol=1e-12, atol=1e-12)


def test_under_predictive() -> None:
    samples = Predictive(record_regimes(model), {"loc": DRAWS})(X)
    assert samples["x_regimes"].shape == (3, 64, 2)
    for found, loc in zip(samples["x_regimes"], DRAWS, strict=True):
        assert_close(found, build(loc).posterior(X).smoothed_probs, rtol=1e-12, atol=1e-12)


def test_em_then_svi_then_em_then_nuts() -> None:
    """One store, one objective: nobody starts anywhere but where the one before has ended."""
    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"loc": 0.5 * LOC}))
    adam = pyro.optim.Adam({"lr": 0.01})
    svi = SVI(model, guide, adam, Trace_ELBO())
    em = EM(model, guide)
    first = em.run(X, num_steps=5, tol=None).history
    assert svi.step(X) == pytest.approx(first[-1], rel=1e-12)
    for _ in range(4):
        svi.step(X)
    (leaf,) = dict(pyro.get_param_store().named_parameters()).values()
    (state,) = (own.state_dict()["state"][0] for own in adam.optim_objs.values())
    moments = state["exp_avg"].clone()
    middle = svi.evaluate_loss(X)
    assert em.step(X) == pytest.approx(middle, rel=1e-12)
    assert dict(pyro.get_param_store().named_parameters())["AutoDelta.loc"] is leaf
    assert torch.equal(state["exp_avg"], moments)
    svi.step(X)  # with the moments that it had
    assert not torch.equal(state["exp_avg"], moments) and state["step"] == 6
    loss = em.evaluate_loss(X)
    values = point_values(guide, X)
    kernel = NUTS(model, init_strategy=init_to_value(values=values))
    kernel.setup(1, X)
    # The potential is that of the unconstrained space: the same here, where nothing is constrained.
    start = {name: value for name, value in kernel.initial_params.items()}
    assert float(kernel.potential_fn(start)) == pytest.approx(loss, rel=1e-9)
    torch.manual_seed(seeds.seed(0))
    mcmc = MCMC(
        NUTS(model, init_strategy=init_to_value(values=values)),
        num_samples=20,
        warmup_steps=20,
        disable_progbar=True,
    )
    mcmc.run(X)
    probs = infer_regimes(model, mcmc.get_samples(), X)["x"]
    assert_close(probs.sum(-1), torch.ones(64).double())


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"kind": "best"}, "kind to be one of"),
        ({"num_samples": True}, "num_samples to be a positive integer, got True"),
        ({"num_samples": 2.5}, "num_samples to be a positive integer, got 2.5"),
        ({"num_samples": 0}, "num_samples to be a positive integer, got 0"),
    ],
)
def test_wrong_options(wrong, message) -> None:
    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"loc": LOC}))
    with pytest.raises(ValueError, match=message):
        infer_regimes(model, guide, X, **wrong)


@pytest.mark.parametrize(
    "samples, message",
    [
        ({}, "one positive number of draws"),
        ({"loc": torch.zeros(2, 2), "other": torch.zeros(3)}, "got {'loc': 2, 'other': 3}"),
        ({"loc": torch.tensor(0.0)}, "got {'loc': 0}"),
        ({"lok": torch.zeros(3, 2)}, r"a value to every latent site, got none for \['loc'\]"),
        (None, r"a value to every latent site, got none for \['loc'\]"),
        (3, "a guide, a dict of samples or None, got int"),
    ],
)
def test_wrong_samples(samples, message) -> None:
    with pytest.raises(ValueError, match=message):
        infer_regimes(model, samples, X)


def test_a_model_without_regimes() -> None:
    with pytest.raises(ValueError, match="an observed RegimeHMM site"):
        infer_regimes(lambda x: None, None, X)
