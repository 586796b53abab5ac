"""Regimes after EM, SVI, NUTS, and whatever gives draws."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal, init_to_value
from pyro.poutine import runtime
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, infer_regimes
from pyro_regimes.infer import point_values, record_regimes
from tests import seeds
from tests.infer.models import INITIAL, LENGTHS, LOC, SCALE, TRANSITION, XS, X, normal_hmm, real


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
    start = init_to_value(values={"loc": LOC.clone()})
    guide = AutoNormal(model, init_loc_fn=start, init_scale=0.05)
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
    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"loc": LOC.clone()}))
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
    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"loc": LOC.clone()}))
    with pytest.raises(ValueError, match=message):
        infer_regimes(model, guide, X, **wrong)


@pytest.mark.parametrize(
    "samples, message",
    [
        ({}, "equal positive numbers of draws"),
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


# ---- what is refused -----------------------------------------------------------------------------


def two_sites(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 2.0).to_event(1))
    with pyro.plate("states", 2):
        scale = pyro.sample("scale", dist.Gamma(LOC.new_full((2,), 2.0), 2.0))
    shift = pyro.deterministic("shift", loc.sum())
    offset = pyro.param("offset", torch.tensor(0.0).double())
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.Normal(loc + offset + 0 * shift, scale),
    )
    pyro.sample("x", hmm, obs=x)


SAMPLES = {"loc": DRAWS, "scale": torch.ones(3, 2).double()}


@pytest.mark.parametrize(
    "more, message",
    [
        ({"lok": torch.zeros(3, 2)}, r"latent sites of the model.*no site \['lok'\]"),
        ({"a": torch.zeros(3), "b": torch.zeros(3)}, r"no site \['a', 'b'\]"),
        ({"offset": torch.zeros(3)}, r"'offset', which is a parameter"),
        ({"x": X.expand(3, 64)}, r"'x', which the model observes"),
        ({"loc": DRAWS.unsqueeze(0).expand(3, 3, 2)}, r"shape \(2,\) for 'loc', got \(3, 2\)"),
        ({"loc": torch.zeros(3)}, r"shape \(2,\) for 'loc', got \(\)"),
        ({"scale": torch.ones(3, 1)}, r"shape \(2,\) for 'scale', got \(1,\)"),
        ({"loc": DRAWS.numpy()}, "expected samples to be tensors, got ndarray for 'loc'"),
    ],
)
@pytest.mark.parametrize("kind", ["smoothed", "viterbi"])
def test_samples_that_are_not_the_models_are_refused_by_name(kind, more, message) -> None:
    with pytest.raises(ValueError, match=message):
        infer_regimes(two_sites, SAMPLES | more, X, kind=kind)


def test_samples_of_what_follows_from_the_others_are_ignored() -> None:
    expected = infer_regimes(two_sites, SAMPLES, X)["x"]
    more = {"shift": torch.zeros(3), "states": torch.arange(2).expand(3, 2)}
    assert torch.equal(infer_regimes(two_sites, SAMPLES | more, X)["x"], expected)
    leading = {name: value.unsqueeze(1) for name, value in SAMPLES.items()}  # as vmap may leave it
    assert torch.equal(infer_regimes(two_sites, leading, X)["x"], expected)


def test_a_guide_of_another_model_is_refused_by_name() -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("loc", dist.Delta(LOC).to_event(1))
        pyro.sample("helper", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        if wrong:
            pyro.sample("lok", dist.Delta(LOC).to_event(1))

    wrong = False
    infer_regimes(model, guide, X)
    wrong = True
    with pytest.raises(ValueError, match=r"no site \['lok'\]"):
        infer_regimes(model, guide, X)


class Tempered(RegimeHMM):
    """Another density, of which RegimeHMM's regimes say nothing."""

    def log_prob(self, value: Tensor) -> Tensor:
        return 0.5 * super().log_prob(value)


class Named(RegimeHMM):
    """The same density."""


class Complete(Tempered):
    """Another density, and its own regimes."""

    def posterior(self, value: Tensor) -> Any:
        found = super().posterior(value)
        return found._replace(smoothed_probs=found.smoothed_probs.flip(-1))

    def viterbi(self, value: Tensor) -> Tensor:
        return 1 - super().viterbi(value)


def subclassed(kind: type[RegimeHMM], batch: bool = False) -> Any:
    def model(x: Tensor) -> None:
        loc = real("loc", LOC)
        hmm = kind(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.Normal(loc, SCALE),
        )
        pyro.sample("x", hmm.expand([2]).to_event(1).mask(True) if batch else hmm, obs=x)

    return model


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("kind", ["smoothed", "filtered", "viterbi"])
def test_a_subclass_with_its_own_density_is_refused_by_name(kind, batch) -> None:
    x = X.expand(2, 64) if batch else X
    with pytest.raises(ValueError, match=r"Tempered.*log_prob of its own.*at 'x'"):
        infer_regimes(subclassed(Tempered, batch), None, x, kind=kind)
    expected = infer_regimes(subclassed(RegimeHMM, batch), None, x, kind=kind)["x"]
    assert torch.equal(infer_regimes(subclassed(Named, batch), None, x, kind=kind)["x"], expected)
    if not batch:
        found = infer_regimes(subclassed(Complete), None, x, kind=kind)["x"]
        turned = {"smoothed": expected.flip(-1), "filtered": expected, "viterbi": 1 - expected}
        assert torch.equal(found, turned[kind])


# ---- the caller's state --------------------------------------------------------------------------


def changed(kind: str) -> Any:
    return {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "trace": poutine.trace,
        "block": poutine.block,
        "condition": lambda: poutine.condition(data={"loc": LOC, "x": X + 1}),
        "scale": lambda: poutine.scale(scale=2.0),
        "mask": lambda: poutine.mask(mask=False),
        "plate": lambda: pyro.plate("sequences", 3),
        "uncondition": poutine.uncondition,
        "device": lambda: torch.device("meta"),
        "nothing": nullcontext,
    }[kind]()


@pytest.mark.parametrize("kind", ["smoothed", "viterbi"])
@pytest.mark.parametrize(
    "name",
    [
        "no_grad", "inference_mode", "trace", "block", "condition", "scale", "mask", "plate",
        "uncondition", "device", "nothing",
    ],
)  # fmt: skip
def test_the_callers_handlers_and_modes_change_nothing(name, kind) -> None:
    # It makes no tensors of its own, so that a default device is of no concern to it.
    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"loc": LOC.clone()}))
    expected = [
        infer_regimes(model, {"loc": DRAWS}, X, kind=kind)["x"],
        infer_regimes(normal_hmm, None, X, kind=kind)["x"],
        infer_regimes(model, guide, X, kind=kind)["x"],
        point_values(guide, X)["loc"],
    ]
    pyro.param("mine", torch.tensor(1.0))
    before, handler = list(pyro.get_param_store()), changed(name)
    with handler:
        state = list(runtime._PYRO_STACK), list(runtime._DIM_ALLOCATOR._stack)
        found = [
            infer_regimes(model, {"loc": DRAWS}, X, kind=kind)["x"],
            infer_regimes(normal_hmm, None, X, kind=kind)["x"],
            infer_regimes(model, guide, X, kind=kind)["x"],
            point_values(guide, X)["loc"],
        ]
        with pytest.raises(ValueError, match="lok"):
            infer_regimes(model, {"loc": DRAWS, "lok": DRAWS}, X)
        after = list(runtime._PYRO_STACK), list(runtime._DIM_ALLOCATOR._stack)
        assert after[1] == state[1]
        assert all(one is other for one, other in zip(after[0], state[0], strict=True))
    if name == "trace":
        assert not handler.trace.nodes
    assert list(pyro.get_param_store()) == before and "loc" not in before
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype
        assert not one.is_inference() and not one.requires_grad
