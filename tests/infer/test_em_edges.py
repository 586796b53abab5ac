"""Models that change between calls, parameters given up to an optimiser, restarts with priors."""

from __future__ import annotations

import warnings
from typing import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from tests import seeds
from tests.infer import models
from tests.infer.models import INITIAL, LOC, SCALE, TRANSITION, XS, X, observe, positive, real

Model = Callable[[], None]
COVARIATE = torch.linspace(-2, 2, 64).double()


def regression(x: Tensor, covariate: Tensor) -> None:
    slope, base = real("slope", torch.zeros(1)), real("base", LOC)
    observe(loc=base + covariate.unsqueeze(-1) * slope, obs=x)


@pytest.mark.parametrize("first", [torch.ones(64).double(), COVARIATE.flip(0)])
def test_affine_in_other_covariates_than_before(first) -> None:
    """The Jacobian is that of the data at hand, not of the first call's."""
    x = X + 3 * COVARIATE
    em = EM(regression)
    em.step(X, first)
    pyro.clear_param_store()
    found = em.run(x, COVARIATE, num_steps=50, tol=1e-8)
    again = [em.step(x, COVARIATE) for _ in range(2)]
    pyro.clear_param_store()
    expected = EM(regression).run(x, COVARIATE, num_steps=50, tol=1e-8)
    assert_close(torch.tensor(found.history), torch.tensor(expected.history), rtol=1e-9, atol=1e-7)
    assert again[-1] == pytest.approx(expected.history[-1], rel=1e-7)
    assert float(pyro.param("slope").detach()) == pytest.approx(3.0, abs=0.5)


def adam() -> pyro.optim.PyroOptim:
    return pyro.optim.Adam({"lr": 0.01})


def test_restarts_whose_parameter_is_given_up() -> None:
    """The history goes on as one number for all."""
    starts = torch.tensor([[-1.0, 1.0], [-3.0, 2.0], [0.0, 0.5]]).double().unsqueeze(1)

    def model() -> None:
        loc = pyro.param("loc", starts)
        held = pyro.param(
            "scale", torch.full((3, 1, 2), 3.0).double(), constraint=constraints.greater_than(1.5)
        )
        with pyro.plate("restarts", 3):
            observe(observation_dist=dist.Normal(loc, held), obs=X.expand(3, -1))

    em = EM(model, optim=adam())
    start = em.evaluate_loss()
    result = em.run(num_steps=20, tol=None)
    assert len(result.history) == 21 and result.restart_history.shape == (21, 1)
    assert result.history[0] == pytest.approx(start, rel=1e-12)
    assert result.history[-1] == pytest.approx(em.evaluate_loss(), rel=1e-9)
    assert set(em.plan.gradient) == {"scale"} and em.plan.names == ["loc"]


def test_history_keeps_what_is_constant() -> None:
    def model() -> None:
        bounded = constraints.greater_than(1.5)
        held = pyro.param("scale", torch.full((2,), 3.0).double(), constraint=bounded)
        observe(loc=real("loc", LOC), scale=held)
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(7.0))

    em = EM(model, optim=adam())
    start = em.evaluate_loss()
    history = em.run(num_steps=4, tol=None).history
    assert history[0] == pytest.approx(start, rel=1e-6)
    assert history[-1] == pytest.approx(em.evaluate_loss(), rel=1e-6)
    assert max(np.diff(history)) < 1.0


@pytest.mark.parametrize("prior", [False, True])
def test_first_run_of_a_subsampled_model_may_draw_more(prior) -> None:
    """The start of a parameter, or a guide that is set up at its first call."""

    def model(x: Tensor) -> None:
        if prior:
            loc = pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 2.0).to_event(1))
        else:
            loc = pyro.param("loc", lambda: torch.randn(2).double())
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.Normal(loc, SCALE),
        )
        with pyro.plate("sequences", 4, subsample_size=2) as index:
            pyro.sample("x", hmm, obs=x[index])

    em = EM(model, AutoDelta(model) if prior else None)
    em.step(XS)
    assert em.plan.is_subsampled and len(em.plan.names) == 1


def test_stochastic_em_gives_up_what_leaves_its_constraint() -> None:
    def model(x: Tensor) -> None:
        bounded = constraints.greater_than(-0.1)
        loc = pyro.param("loc", torch.tensor([0.0, 1.0]).double(), constraint=bounded)
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.Normal(loc, positive("scale", SCALE)),
        )
        with pyro.plate("sequences", 4, subsample_size=2) as index:
            pyro.sample("x", hmm, obs=x[index])

    em = EM(model, optim=adam())
    for _ in range(10):
        em.step(XS)
    assert set(em.plan.gradient) == {"loc"} and em.plan.names == ["scale"]
    pyro.clear_param_store()
    with pytest.raises(ValueError, match="An optim can move it"):
        em = EM(model)
        for _ in range(10):
            em.step(XS)


def prior_of_restarts(starts: Tensor) -> Callable[[], None]:
    def model() -> None:
        prior = dist.Normal(torch.zeros_like(starts), 1.0)
        loc = pyro.sample("loc", prior.to_event(starts.dim()))
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.Normal(loc.unsqueeze(-2), SCALE),
        )
        with pyro.plate("restarts", len(starts)):
            pyro.sample("x", hmm, obs=X.expand(len(starts), -1))

    return model


def fit(starts: Tensor) -> tuple[EM, Tensor, Tensor]:
    model = prior_of_restarts(starts)
    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"loc": starts}))
    em = EM(model, guide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = em.run(num_steps=15, tol=None)
    return em, result.restart_history, guide.median()["loc"].detach().clone()


def test_restarts_with_priors_are_apart() -> None:
    """Each rises by itself, and is the run alone; one without hope does not hold the others."""
    rows = [[-1.0, 1.0], [0.2, 0.9], [1e200, 1e200]]
    starts = torch.tensor(rows, dtype=torch.float64)
    _, history, found = fit(starts)
    assert history.shape == (16, 3) and not history[:, 2].isfinite().any()
    assert (history[:-1, :2] - history[1:, :2] >= -1e-9 * history[:-1, :2].abs()).all()
    assert torch.equal(found[2], starts[2])
    for index in range(2):
        pyro.clear_param_store()
        _, alone, there = fit(starts[index : index + 1])
        assert_close(alone[:, 0], history[:, index], rtol=1e-10, atol=1e-10)
        assert_close(there[0], found[index], rtol=1e-10, atol=1e-10)


def test_a_site_of_another_shape_than_its_parameter() -> None:
    locs = torch.tensor([-1.0, -0.8, 0.9, 1.1]).double()
    y = torch.stack([X, X.flip(0)], -1)

    def model() -> None:
        prior = dist.Normal(torch.zeros(2, 2).double(), torch.tensor([1.0, 0.2]).double())
        loc = pyro.sample("loc", prior.to_event(2))
        observe(observation_dist=dist.Normal(loc, SCALE.unsqueeze(-1)).to_event(1), obs=y)

    def guide() -> None:
        point = pyro.param("point", locs)
        pyro.sample("loc", dist.Delta(point.reshape(2, 2), event_dim=2))

    EM(model, guide).run(num_steps=8, tol=None)
    found = pyro.param("point").detach().reshape(2, 2)
    auto = AutoDelta(model, init_loc_fn=init_to_value(values={"loc": locs.reshape(2, 2)}))
    EM(model, auto).run(num_steps=8, tol=None)
    assert_close(found, auto.median()["loc"].detach(), rtol=1e-10, atol=1e-10)


class _Tempered(dist.Normal):
    """A density of its own, which has no closed form here."""

    def log_prob(self, value: Tensor) -> Tensor:
        return 0.5 * super().log_prob(value)


def _changing(kind: str, concentration: float) -> None:
    if kind == "Dirichlet":
        rows = dist.Dirichlet(torch.full((2, 2), concentration).double()).to_event(1)
        observe(transition_probs=pyro.sample("transition", rows))
        return
    zeros = LOC.new_zeros(2)
    prior = {"Normal": dist.Normal, "Laplace": dist.Laplace, "Tempered": _Tempered}[kind]
    scale = torch.tensor([1.0, 2.0]) if kind == "scaled" else 1.0
    with poutine.scale(scale=scale):
        observe(loc=pyro.sample("loc", prior(zeros, 1.0).to_event(1)))


@pytest.mark.parametrize(
    "start, first, then, message",
    [
        ({"loc": LOC}, ("Normal", 1.0), ("Laplace", 1.0), "Laplace, has no conjugate update"),
        ({"loc": LOC}, ("Normal", 1.0), ("Tempered", 1.0), "_Tempered, has no conjugate update"),
        (
            {"transition": TRANSITION},
            ("Dirichlet", 2.0),
            ("Dirichlet", 0.1),
            "a concentration below 1",
        ),
    ],
)
def test_a_prior_that_becomes_another(start, first, then, message) -> None:
    guide = AutoDelta(_changing, init_loc_fn=init_to_value(values=start))
    em = EM(_changing, guide)
    em.step(*first)
    with pytest.raises(ValueError, match=message):
        em.step(*then)


WRONG_CALLABLES = {
    "a function of Pyro": (lambda: {"optim": pyro.optim.Adam}, r"got Adam itself: call it"),
    "a scheduler of Pyro": (lambda: {"optim": pyro.optim.StepLR}, "got StepLR itself: call it"),
    "clipped": (lambda: {"optim": pyro.optim.ClippedAdam}, "got ClippedAdam itself: call it"),
    "class of Pyro": (lambda: {"optim": pyro.optim.PyroOptim}, "got the class PyroOptim: give an"),
    "class of torch": (lambda: {"optim": torch.optim.Adam}, r"the class Adam of torch: wrap it"),
    "optimiser of torch": (
        lambda: {"optim": torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)},
        r"got torch.optim.SGD, .* pyro.optim.PyroOptim\(torch.optim.SGD",
    ),
    "multi": (lambda: {"optim": pyro.optim.multi.Newton()}, "got Newton, which takes the loss"),
    "number": (lambda: {"optim": 0.01}, r"a Pyro optimiser such as .*got float"),
    "guide class": (lambda: {"guide": AutoDelta}, "got the class AutoDelta: give an instance"),
    "optimiser as guide": (
        lambda: {"guide": pyro.optim.Adam({"lr": 0.01})},
        r"got PyroOptim, an optimiser: pass it by name, EM\(model, optim=",
    ),
    "guide": (lambda: {"guide": "AutoDelta"}, r"such as AutoDelta\(model\), got str"),
    "model class": (lambda: {"model": pyro.nn.PyroModule}, "got the class .*: give an instance"),
    "step_size": (lambda: {"step_size": 0.5}, "step_size to be a function .*got float"),
}


@pytest.mark.parametrize("name", WRONG_CALLABLES)
def test_what_cannot_be_called_is_refused_at_once(name) -> None:
    given, message = WRONG_CALLABLES[name]
    with pytest.raises(ValueError, match=message):
        EM(**{"model": regression, **given()})


@pytest.mark.parametrize(
    "make",
    [
        lambda: pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 0.01}),
        lambda: pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.9}
        ),
        lambda: pyro.optim.ClippedAdam({"lr": 0.01}),
        lambda: lambda leaves: None,
    ],
)
def test_optimisers_that_serve(make) -> None:
    def model() -> None:
        observe(loc=2 * real("loc", LOC).tanh())

    optim = make()
    em = EM(model, optim=optim)
    before = em.evaluate_loss()
    assert em.step() == pytest.approx(before, rel=1e-12)
    is_moved = bool((pyro.param("loc") != LOC).any())
    assert is_moved == isinstance(optim, pyro.optim.PyroOptim)  # the function above does nothing


@pytest.mark.parametrize(
    "hmm, message",
    [
        (
            lambda: dist.DiscreteHMM(INITIAL, TRANSITION.log()[None], dist.Normal(LOC, SCALE)),
            r"'x', a DiscreteHMM: .*RegimeHMM\(first.log\(\), transition_logits, observation_dist\)"
            ", first = initial_logits.softmax.*coming_from",
        ),
        (
            lambda: dist.GaussianHMM(
                dist.Normal(0.0, 1.0).expand([1]).to_event(1),
                torch.eye(1),
                dist.Normal(0.0, 1.0).expand([1]).to_event(1),
                torch.eye(1),
                dist.Normal(0.0, 1.0).expand([1]).to_event(1),
                duration=64,
            ),
            r"'x', a GaussianHMM, whose hidden state is not discrete; use SVI",
        ),
    ],
    ids=["DiscreteHMM", "GaussianHMM"],
)
def test_other_hidden_markov_models_are_told_what_to_do(hmm, message) -> None:
    found = hmm()

    def model() -> None:
        value = X if found.event_dim == 1 else X.float().unsqueeze(-1)
        pyro.param("loc", LOC.clone())
        pyro.sample("x", found.mask(True), obs=value)

    with pytest.raises(ValueError, match=message):
        EM(model).step()


@pytest.mark.parametrize("wrong", ["a", None, -1.0])
def test_floors_that_are_none(wrong) -> None:
    with pytest.raises(ValueError, match="expected min_eigenvalue"):
        EM(regression, min_eigenvalue=wrong)


def test_numbers_of_numpy() -> None:
    em = EM(regression, min_eigenvalue=np.float32(0.0))
    assert em.run(X, COVARIATE, num_steps=np.int32(3), tol=np.float32(0.5)).num_steps <= 3


def test_a_model_that_becomes_another_within_a_run() -> None:
    steps = []

    def model() -> None:
        observe(loc=real("loc", LOC))
        if len(steps) % 2:
            observe(name="y", loc=real("loc", LOC))

    with pytest.raises(ValueError, match="the same observed RegimeHMM sites.*at every step"):
        EM(model).run(num_steps=5, tol=None, callback=lambda number, loss: steps.append(number))


def test_how_often_the_model_is_run() -> None:
    """At the start, at two other points to recognise its parameters, at the end, and to check."""
    calls = []

    def model() -> None:
        calls.append(1)
        observe(loc=real("loc", LOC), scale=positive("scale", SCALE))

    em = EM(model)
    em.run(num_steps=3, tol=None)
    assert len(calls) == 4
    em.run(num_steps=3, tol=None)  # with the plan that it has
    assert len(calls) == 4 + 2
    assert em.run(num_steps=300, tol=1e-6).converged
    assert len(calls) == 4 + 2 + 3


def test_a_model_whose_first_run_differs() -> None:
    """One that standardises its data once, and one that reads a parameter once."""

    def centred() -> Model:
        mean: list[Tensor] = []

        def model() -> None:
            x = X - mean[0] if mean else X
            mean[:] = [X.mean()]
            observe(loc=real("loc", LOC), obs=x)

        return model

    def scaled_once() -> Model:
        calls = []

        def model() -> None:
            calls.append(1)
            spread = SCALE * positive("factor", torch.ones(1)) if len(calls) == 1 else SCALE
            observe(loc=real("loc", LOC), scale=spread)

        return model

    for model in (centred(), scaled_once()):
        pyro.clear_param_store()
        em = EM(model)
        result = em.run(num_steps=200, tol=1e-6)
        assert result.converged
        assert result.history[-1] == pytest.approx(em.evaluate_loss(), rel=1e-12)


def test_an_error_of_the_second_run_is_the_models_own() -> None:
    calls = []

    def model() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("the file is closed")
        observe(loc=real("loc", LOC))

    with pytest.raises(RuntimeError, match="^the file is closed"):
        EM(model).step()


def test_a_slice_whose_place_hangs_on_values() -> None:
    """All cells start at one value, so that values do not tell which of them are read."""

    def model() -> None:
        held = real("loc", torch.zeros(4))
        first = 2 if float(held[3].detach()) == 0 else 0
        observe(loc=held[first : first + 2], scale=SCALE)

    with pytest.raises(ValueError, match="loc: x.loc is not an affine function of it"):
        EM(model).step()
    assert (pyro.param("loc") == 0).all()


def test_a_site_that_is_there_at_some_calls() -> None:
    def model(both: bool) -> None:
        held = real("loc", LOC)
        observe(loc=held, scale=SCALE)
        if both:
            observe(loc=held, scale=SCALE, obs=X.flip(0) + 1.0, name="y")

    em = EM(model)
    em.run(False, num_steps=50, tol=None)
    result = em.run(True, num_steps=300, tol=1e-7)
    assert result.converged
    pyro.clear_param_store()
    again = EM(model).run(True, num_steps=300, tol=1e-7)
    assert result.history[-1] == pytest.approx(again.history[-1], abs=1e-5)


def test_data_that_become_others_within_a_run() -> None:
    """The model is run at every step then, from the start, to where a fit of these data ends."""
    data = [X]

    def model() -> None:
        observe(loc=real("loc", LOC), scale=positive("scale", SCALE), obs=data[-1])

    em = EM(model)
    result = em.run(num_steps=200, tol=1e-6, callback=lambda *_: data.append(X.flip(0) + 1.0))
    assert "the model is run at every step" in str(em.plan)
    assert result.converged and result.history[-1] == pytest.approx(em.evaluate_loss(), rel=1e-12)
    assert result.history[1] < result.history[0] - 1.0
    pyro.clear_param_store()
    again = EM(model).run(num_steps=200, tol=1e-6)
    assert_close(result.restart_history, again.restart_history, rtol=1e-12, atol=0)


def test_a_model_that_runs_at_its_start_alone() -> None:
    def model() -> None:
        held = real("loc", LOC)
        if not torch.equal(held, LOC):
            raise ValueError("not here")
        observe(loc=held)

    with pytest.raises(ValueError, match=r"at any admissible value .*\['loc'\].*: not here"):
        EM(model).step()


def test_a_model_whose_shapes_hang_on_its_parameters() -> None:
    def model() -> None:
        held = real("loc", LOC)
        slices = 1 if torch.equal(held, LOC) else len(X) - 1
        observe(loc=held, transition_probs=TRANSITION.expand(slices, 2, 2))

    with pytest.raises(ValueError, match="transition_probs of shape .*at one point and not at"):
        EM(model).step()


def test_a_parameter_that_is_read_past_pyro_param() -> None:
    def model() -> None:
        real("loc", LOC)
        observe(loc=dict(pyro.get_param_store().named_parameters())["loc"])

    with pytest.raises(ValueError, match="loc: read directly by a module, not through pyro.param"):
        EM(model).step()
    losses = EM(model, optim=pyro.optim.SGD({"lr": 0.01})).run(num_steps=20, tol=None).history
    assert losses[-1] < losses[0]


def test_parameters_given_up_from_an_affine_group() -> None:
    """The others stay in closed form; what was given up is the optimiser's."""
    em = EM(regression, optim=pyro.optim.SGD({"lr": 1e-3}))
    first = em.step(X, COVARIATE)
    em._session.give_up(["slope"])
    assert em.plan.affine.names == ["base"] and set(em.plan.gradient) == {"slope"}
    before = {name: pyro.param(name).detach().clone() for name in ("slope", "base")}
    losses = em.run(X, COVARIATE, num_steps=30, tol=None).history
    assert all(pyro.param(name).ne(value).any() for name, value in before.items())
    assert (np.diff(losses) < 1e-9).all() and losses[-1] < first
    assert losses[-1] == pytest.approx(em.evaluate_loss(X, COVARIATE), rel=1e-12)


def test_families_without_a_closed_form() -> None:
    """Their parameters go to the optimiser; those of the chain are set in closed form beside."""

    def model() -> None:
        rows = pyro.param("rows", TRANSITION, constraint=constraints.simplex)
        heavy = dist.Cauchy(real("loc", LOC), positive("scale", SCALE))
        observe(observation_dist=heavy, transition_probs=rows)

    em = EM(model, optim=adam())
    history = em.run(num_steps=60, tol=None).history
    assert em.plan.names == ["rows"] and set(em.plan.gradient) == {"loc", "scale"}
    assert history[-1] < history[0] - 1


@pytest.mark.parametrize("start", ["a run without a floor", "a higher floor", "a step"])
def test_every_start_is_raised_to_the_floor(start: str) -> None:
    """Also where the plan is known, and another method has moved the parameters meanwhile."""

    def model() -> None:
        observation_dist = dist.MultivariateNormal(real("loc", models.LOCS), models.covariance())
        models.observe(observation_dist=observation_dist, obs=0.1 * models.Y)

    def least() -> float:
        return float(torch.linalg.eigvalsh(pyro.param("covariance").detach()).min())

    floored = EM(model, min_eigenvalue=0.5)
    floored.run(num_steps=5)
    assert least() == pytest.approx(0.5, rel=1e-6)
    if start == "a higher floor":
        floored.min_eigenvalue = 2.0
        assert floored.min_eigenvalue == 2.0
        floored.run(num_steps=1)
        assert least() >= 2.0 * (1 - 1e-6)
        with pytest.raises(ValueError, match="min_eigenvalue of at least 0, got -1"):
            floored.min_eigenvalue = -1
        return
    EM(model).run(num_steps=5, tol=None)
    assert least() < 0.1
    if start == "a step":
        floored.step()
    else:
        assert floored.run(num_steps=50).converged
    assert least() >= 0.5 * (1 - 1e-6)


def test_restarts_of_a_single_state_stay_apart() -> None:
    """All their probabilities are 1, so no value tells one's from another's."""
    locs = torch.randn(4, 1, 1, generator=seeds.generator(3)).double()
    locs[3] = 1e200

    def model() -> None:
        with pyro.plate("restarts", 4):
            models.observe(
                initial_probs=models.probs("initial", torch.ones(4, 1)),
                transition_probs=models.probs("transition", torch.ones(4, 1, 1, 1)),
                loc=models.real("loc", locs),
                scale=models.positive("scale", torch.ones(4, 1, 1)),
                obs=models.X.expand(4, -1),
            )

    result = EM(model).run()
    assert result.restart_history.shape[1] == 4
    best = dist.Normal(models.X.mean(), models.X.std(correction=0)).log_prob(models.X).sum()
    assert torch.allclose(result.restart_history[-1, :3], -best)
    assert result.restart_history[-1, 3] == torch.inf


LATER = (1 + torch.arange(64) / 16).double()  # of the spreads


def _of_scales() -> tuple[dist.TorchDistribution, Tensor]:
    loc = pyro.param("loc", models.LOCS.clone())
    return dist.Normal(loc, LATER.reshape(-1, 1, 1).expand(-1, 2, 3)).to_event(1), models.Y


def _of_covariances() -> tuple[dist.TorchDistribution, Tensor]:
    loc = pyro.param("loc", models.LOCS.clone())
    covariances = LATER.reshape(-1, 1, 1, 1) * models.COVARIANCES
    return dist.MultivariateNormal(loc, covariances), models.Y


def _of_one_series() -> tuple[dist.TorchDistribution, Tensor]:
    return dist.Normal(real("loc", LOC), LATER.unsqueeze(-1) * SCALE), X


@pytest.mark.parametrize("emission", [_of_scales, _of_covariances, _of_one_series])
def test_locations_that_are_constant_in_time_beside_spreads_that_are_not(emission) -> None:
    """Their maximum weighs each observation by its own precision."""

    def model() -> None:
        observation_dist, data = emission()
        observe(observation_dist=observation_dist, obs=data)

    result = EM(model).run(num_steps=300, tol=1e-10)  # the check of convergence warns otherwise
    assert result.converged
    observation_dist, data = emission()
    hmm = RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=observation_dist
    )
    (gradient,) = torch.autograd.grad(hmm.log_prob(data), pyro.param("loc"))
    assert_close(gradient, torch.zeros_like(gradient), rtol=0.0, atol=1e-3)
