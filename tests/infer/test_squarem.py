"""Extrapolated steps: fewer, never down, each restart by itself, on every engine."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.emissions import charts
from pyro_regimes.estimator.pyro_model import pyro_model, to_arguments
from pyro_regimes.estimator.spec import find_spec
from pyro_regimes.estimator.starts import make_starts
from pyro_regimes.infer.em.ascent import Held
from pyro_regimes.infer.em.engines.tensors import TensorEngine
from pyro_regimes.infer.em.m_step import Maximised
from pyro_regimes.infer.em.problem import Problem, TensorState
from pyro_regimes.infer.em.squarem import Squarem, next_bounds
from tests import seeds
from tests.infer.fused import both_engines, spy
from tests.infer.models import (
    COVARIANCES,
    INITIAL,
    LOC,
    LOCS,
    SCALE,
    TRANSITION,
    X,
    Y,
    observe,
    scale,
)
from tests.infer.test_fused_models import CHAINS, SPREADS, gaussian_model

pytestmark = pytest.mark.usefixtures("filled_buffers")


def overlapping(num_steps: int = 600, seed: int = 70) -> Tensor:
    """Three regimes whose means differ by less than their standard deviations."""
    rng = seeds.rng(seed)
    states = np.arange(num_steps) // 25 % 3
    means = np.array([[-0.5, 0.3], [0.0, -0.4], [0.6, 0.2]])
    x = means[states] + np.array([0.6, 1.0, 1.5])[states, None] * rng.randn(num_steps, 2)
    return torch.tensor(x)


def several_starts(kind: str, x: Tensor, num: int, num_states: int = 3) -> Callable[[Any], Any]:
    """A function of a choice of starts that makes their model."""
    spec = find_spec(kind)
    every = make_starts(x.numpy(), num_states, num, spec, 1e-6, seeds.rng(71))
    return lambda some: pyro_model(to_arguments(every.select(some), spec), spec)


def run(model: Callable[..., None], *args: Tensor, tol: float | None = None, steps: int = 30):
    return EM(model).run(*args, num_steps=steps, tol=tol, acceleration="squarem")


def test_the_step_is_that_of_the_formula():
    """By hand, of one step and two of EM, in the coordinates that the module says."""

    def values(steps: int, **settings: str) -> dict[str, Tensor]:
        pyro.clear_param_store()
        EM(gaussian_model(spread=SPREADS["full"])).run(num_steps=steps, tol=None, **settings)
        return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}

    three = [values(steps) for steps in range(3)]
    names = {"initial": charts.ROWS, "transition": charts.ROWS, "covariance": charts.MATRIX}
    points = [{name: chart.to(each[name]) for name, chart in names.items()} for each in three]
    unit = three[1]["covariance"].diagonal(dim1=-2, dim2=-1).sqrt()
    for point, each in zip(points, three, strict=True):
        point["loc"] = each["loc"] / unit
    step, bend = 0.0, 0.0
    for name in points[0]:
        start, middle, end = (point[name] for point in points)
        step += float((middle - start).square().sum())
        bend += float((end - 2 * middle + start).square().sum())
    alpha = -max(1.0, (step / bend) ** 0.5)
    assert alpha < -1
    found = values(2, acceleration="squarem")
    for name in points[0]:
        start, middle, end = (point[name] for point in points)
        point = start - 2 * alpha * (middle - start) + alpha**2 * (end - 2 * middle + start)
        wanted = point * unit if name == "loc" else names[name].of(point)
        assert_close(found[name], wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("restarts", [0, 3], ids=["one", "restarts"])
@pytest.mark.parametrize("spread", SPREADS)
def test_both_engines_agree_on_spreads(spread, restarts):
    model = gaussian_model(spread=SPREADS[spread], restarts=restarts)
    both_engines(lambda: run(model, steps=8), history=1e-8, values=1e-5)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_both_engines_agree_on_chains(chain):
    both_engines(lambda: run(gaussian_model(chain=chain), steps=8), history=1e-8, values=1e-5)


def test_a_probability_of_zero_stays_one():
    run(gaussian_model(chain=CHAINS["impossible transition"]))
    assert pyro.param("absorbing")[1, 0] == 0.0


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "step by step"])
def test_needs_fewer_steps_and_never_falls(kind, fused, monkeypatch):
    x = overlapping()
    spy(monkeypatch, allowed=fused)
    model = several_starts(kind, x, 4)(slice(None))
    plain = EM(model).run(x, num_steps=2000, tol=1e-9)
    pyro.clear_param_store()
    fast = run(model, x, tol=1e-9, steps=2000)
    assert fast.num_e_steps < 0.7 * plain.num_e_steps
    assert (torch.diff(fast.restart_history, dim=0) <= 0.0).all()


@pytest.mark.parametrize("kind", ["full", "diag"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "step by step"])
def test_a_batch_is_a_loop_of_single_runs(kind, fused, monkeypatch):
    x = overlapping()
    spy(monkeypatch, allowed=fused)
    make = several_starts(kind, x, 5)
    batch = run(make(slice(None)), x, tol=1e-3, steps=300)
    together = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    for start in range(5):
        pyro.clear_param_store()
        alone = run(make(slice(start, start + 1)), x, tol=1e-3, steps=300)
        history = batch.restart_history[:, start]
        assert torch.equal(history[: alone.num_steps + 1], alone.restart_history[:, 0])
        for name, value in pyro.get_param_store().items():
            assert torch.equal(together[name][start], value.detach()[0])


def test_steps_that_are_not_ordinary_go_on_by_tensors():
    """A regime collapses onto a point, to the floor; the other restarts are not affected."""
    x = overlapping()
    x[100:130] = 5.0
    make = several_starts("diag", x, 6)

    def fit(some: slice):
        em = EM(make(some), min_eigenvalue=1e-3)
        return em.run(x, num_steps=60, tol=None, acceleration="squarem"), em.plan.engine

    batch, engine = fit(slice(None))
    assert "tensor operations" in engine
    assert (torch.diff(batch.restart_history, dim=0) <= 1e-8).all()
    for start in range(6):
        pyro.clear_param_store()
        alone, _ = fit(slice(start, start + 1))
        assert torch.equal(batch.restart_history[:, start], alone.restart_history[:, 0])


def test_units_do_not_matter():
    x = overlapping()
    unit = torch.tensor([1e-4, 1e5]).double()
    spec = find_spec("full")
    start = make_starts(x.numpy(), 3, 1, spec, 1e-6, seeds.rng(71)).select(0)
    emission = start.emission
    scaled = start._replace(
        emission={
            "means": emission["means"] * unit.numpy(),
            "covariances": emission["covariances"] * np.outer(unit, unit),
        }
    )
    one = run(pyro_model(to_arguments(start, spec), spec), x, steps=20)
    pyro.clear_param_store()
    other = run(pyro_model(to_arguments(scaled, spec), spec), x * unit, steps=20)
    change = len(x) * float(unit.log().sum())
    assert_close(other.restart_history - change, one.restart_history, rtol=1e-9, atol=0.0)


def test_float32_never_falls_beyond_rounding():
    x = overlapping().float()
    spec = find_spec("full")
    start = make_starts(x.double().numpy(), 3, 3, spec, 1e-6, seeds.rng(71))
    model = pyro_model(to_arguments(start, spec, dtype=torch.float32), spec)
    result = run(model, x, steps=40)
    assert (torch.diff(result.restart_history, dim=0) <= 1e-3).all()


def test_priors():
    def model() -> None:
        rows = dist.Dirichlet(torch.tensor([[5.0, 2.0], [2.0, 5.0]]).double()).to_event(1)
        transition = pyro.sample("transition", rows)
        prior = dist.Normal(torch.zeros(2).double(), 2.0).to_event(1)
        observe(transition_probs=transition, loc=pyro.sample("loc", prior), scale=scale())

    start = {"transition": TRANSITION.clone(), "loc": LOC.clone()}

    def fit(**settings: str):
        pyro.clear_param_store()
        guide = AutoDelta(model, init_loc_fn=init_to_value(values=start))
        return EM(model, guide).run(num_steps=400, tol=1e-10, **settings)

    plain, fast = fit(), fit(acceleration="squarem")
    assert fast.num_e_steps < plain.num_e_steps
    assert fast.history[-1] == pytest.approx(plain.history[-1], abs=1e-6)
    assert (np.diff(fast.history) <= 0).all()


def test_a_model_that_is_run_at_every_step(monkeypatch):
    model = gaussian_model(spread=SPREADS["tied"], restarts=3)
    spy(monkeypatch, allowed=False)
    expected = run(model, steps=20)
    pyro.clear_param_store()
    monkeypatch.setattr(EM, "_agrees", lambda *args: False)
    em = EM(model)
    found = em.run(num_steps=20, tol=None, acceleration="squarem")
    assert "the model is run at every step" in em.plan.engine
    assert_close(found.restart_history, expected.restart_history, rtol=1e-9, atol=0.0)


def test_a_prior_whose_mean_is_a_parameter():
    def model() -> None:
        centre = pyro.sample("centre", dist.Normal(torch.tensor(0.0).double(), 3.0))
        both = dist.Normal(centre.expand(2), 1.0).to_event(1)
        observe(loc=pyro.sample("loc", both), scale=scale())

    start = {"centre": torch.tensor(0.3).double(), "loc": LOC.clone()}

    def fit(**settings: str) -> float:
        pyro.clear_param_store()
        guide = AutoDelta(model, init_loc_fn=init_to_value(values=start))
        return EM(model, guide).run(num_steps=2000, tol=1e-10, **settings).history[-1]

    assert fit(acceleration="squarem") == pytest.approx(fit(), rel=1e-8)


def test_an_optimiser_is_refused():
    """The prior of one parameter has another for its location."""

    def model() -> None:
        centre = pyro.sample("centre", dist.Normal(torch.tensor(0.0).double(), 3.0))
        both = dist.StudentT(4.0, centre.expand(2), 1.0).to_event(1)
        observe(loc=pyro.sample("loc", both), scale=scale())

    start = {"centre": torch.tensor(0.3).double(), "loc": LOC.clone()}

    def fit(**settings: str):
        pyro.clear_param_store()
        guide = AutoDelta(model, init_loc_fn=init_to_value(values=start))
        optim = pyro.optim.Adam({"lr": 0.01})
        return EM(model, guide, optim).run(num_steps=20, tol=None, **settings)

    with pytest.raises(ValueError, match="an optimiser moves"):
        fit(acceleration="squarem")
    assert fit().num_steps == 20


def test_a_parameter_without_coordinates_makes_ems_step():
    """Locations that are affine in parameters have no chart; the others are extrapolated."""

    def model() -> None:
        slope = pyro.param("slope", torch.tensor([0.5, 0.9]).double())
        location = torch.stack([slope[0] - slope[1], slope[0] + slope[1]])
        observe(
            loc=location,
            scale=scale(),
            transition_probs=pyro.param("a", TRANSITION.clone(), constraint=constraints.simplex),
        )

    plain = EM(model).run(num_steps=400, tol=1e-10)
    pyro.clear_param_store()
    fast = run(model, tol=1e-10, steps=400)
    assert fast.num_e_steps < plain.num_e_steps
    assert fast.history[-1] == pytest.approx(plain.history[-1], abs=1e-6)


def test_subsampled_data_are_refused():
    def model() -> None:
        with pyro.plate("sequences", 4, subsample_size=2) as index:
            data = Y.reshape(4, 16, 3)[index]
            hmm = RegimeHMM(
                initial_probs=INITIAL,
                transition_probs=TRANSITION,
                observation_dist=dist.Normal(
                    pyro.param("loc", torch.zeros(2, 3).double()), 1.0
                ).to_event(1),
            )
            pyro.sample("x", hmm, obs=data)

    with pytest.raises(ValueError, match="data are subsampled"):
        run(model)


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="expected acceleration to be None or 'squarem'"):
        EM(gaussian_model()).run(num_steps=1, acceleration="anderson")


def test_bounds_of_the_extrapolation():
    infinite = np.inf
    bounds = np.array([infinite, infinite, 8.0, 8.0, 1.0, 2.0])
    lengths = np.array([40.0, 40.0, 8.0, 5.0, 1.0, 0.0])
    rejected = np.array([True, False, False, False, False, False])
    expected = [10.0, infinite, 32.0, 8.0, 4.0, 2.0]
    assert next_bounds(bounds, lengths, rejected).tolist() == expected
    assert next_bounds(np.array([9.0]), np.array([2.0]), np.array([True])).tolist() == [1.0]


def test_callbacks_see_every_step():
    seen = []
    result = EM(gaussian_model()).run(
        num_steps=9, tol=None, acceleration="squarem", callback=lambda *args: seen.append(args)
    )
    assert [loss for _, loss in seen] == result.history[1:]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "step by step"])
@pytest.mark.parametrize("tol", [3.0, 1.0, 0.3, 0.1, 0.03])
def test_only_a_step_of_em_shows_convergence(tol, fused, monkeypatch):
    """The rise of an extrapolated step may be small by chance. The last step is one of EM."""
    x = overlapping()
    spy(monkeypatch, allowed=fused)
    model = several_starts("diag", x, 1)(slice(None))
    result = EM(model).run(x, num_steps=500, tol=tol, acceleration="squarem", check=False)
    assert result.converged and result.num_steps > 1
    pyro.clear_param_store()
    run(model, x, steps=result.num_steps - 1)
    last = EM(model).run(x, num_steps=1, tol=None).history[-1]
    assert last == pytest.approx(result.history[-1], rel=1e-12)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "step by step"])
@pytest.mark.parametrize("logits", [False, True], ids=["probabilities", "logits"])
def test_no_probability_becomes_zero(fused, logits, monkeypatch):
    """Transitions that the data do not show fall towards 0; EM's steps keep them above."""
    spy(monkeypatch, allowed=fused)
    x = torch.tensor([-1.0, 1.0, 1.0]).double()

    def model() -> None:
        if logits:
            chain = {"transition_logits": pyro.param("a", TRANSITION.log())}
        else:
            rows = pyro.param("a", TRANSITION.clone(), constraint=constraints.simplex)
            chain = {"transition_probs": rows}
        observe(loc=pyro.param("loc", LOC.clone()), scale=scale(), obs=x, **chain)

    for steps in (10, 15, 30):
        pyro.clear_param_store()
        EM(model, min_eigenvalue=0.05).run(num_steps=steps, tol=None, acceleration="squarem")
        rows = pyro.param("a").softmax(-1) if logits else pyro.param("a")
        assert (rows > 0).all()


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "step by step"])
@pytest.mark.parametrize("kind, seed, start", [("full", 71, 5), ("diag", 71, 8), ("diag", 75, 11)])
def test_a_level_extrapolated_step_is_no_convergence(kind, seed, start, fused, monkeypatch):
    """It may end far from a maximum, no higher than before: EM's own next step tells."""
    spy(monkeypatch, allowed=fused)
    x, tol = overlapping(400, seed), 1e-2
    model = several_starts(kind, x, 20)(slice(start, start + 1))
    result = run(model, x, tol=tol, steps=500)
    pyro.clear_param_store()
    run(model, x, steps=result.num_steps - 1)
    before, after = EM(model).run(x, num_steps=1, tol=None).history
    assert 0 <= before - after < tol
    assert result.converged and result.converged_at == [result.num_steps]


@pytest.mark.parametrize("kind", ["scales", "covariances", "one series"])
def test_spreads_that_vary_in_time_about_locations_that_do_not(kind):
    later = (1 + torch.arange(len(Y)) / len(Y)).double()

    def model() -> None:
        rows = pyro.param("a", TRANSITION.clone(), constraint=constraints.simplex)
        if kind == "one series":
            scales = later.unsqueeze(-1) * SCALE
            emission, data = dist.Normal(pyro.param("loc", LOC.clone()), scales), X
        else:
            loc, data = pyro.param("loc", LOCS.clone()), Y
            if kind == "scales":
                emission = dist.Normal(loc, later.reshape(-1, 1, 1).expand(-1, 2, 3)).to_event(1)
            else:
                emission = dist.MultivariateNormal(loc, later.reshape(-1, 1, 1, 1) * COVARIANCES)
        observe(transition_probs=rows, observation_dist=emission, obs=data)

    plain = EM(model).run(num_steps=400, tol=1e-10)
    pyro.clear_param_store()
    fast = run(model, tol=1e-10, steps=400)
    assert fast.num_e_steps < plain.num_e_steps
    assert fast.history[-1] == pytest.approx(plain.history[-1], abs=1e-6)
    assert (np.diff(fast.history) <= 0).all()


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "step by step"])
def test_cells_that_no_argument_holds_keep_their_values(fused, monkeypatch):
    """To the last bit, whatever they are."""
    spy(monkeypatch, allowed=fused)
    other = torch.tensor([[1.7, 0.3, 0.1], [0.3, 0.9, 0.2], [0.1, 0.2, 3.1]]).double() / 3
    starts = torch.stack([COVARIANCES[0], other, COVARIANCES[1]])
    locs = torch.cat([LOCS, torch.full((1, 3), torch.inf).double()])

    def model() -> None:
        hold = constraints.positive_definite
        covariances = pyro.param("covariance", starts.clone(), constraint=hold)
        loc = pyro.param("loc", locs.clone())[:2]
        observe(
            observation_dist=dist.MultivariateNormal(loc, covariances[[0, 2]]),
            transition_probs=pyro.param("a", TRANSITION.clone(), constraint=constraints.simplex),
            obs=Y,
        )

    EM(model).run(num_steps=0)
    before = pyro.param("covariance")[1].detach().clone()
    result = run(model)
    assert result.num_e_steps > 10
    assert torch.equal(pyro.param("covariance")[1], before)
    assert torch.equal(pyro.param("loc")[2], locs[2])


def test_a_covariance_that_would_become_singular_makes_ems_step(monkeypatch):
    """Its coordinates are finite, but in rounding the matrix has no Cholesky factor."""
    seen: list[tuple[Problem, TensorState]] = []
    maximise = TensorEngine.maximise

    def remember(self: TensorEngine, now: TensorState, held: Held) -> Maximised:
        seen.append((self.problem, now))
        return maximise(self, now, held)

    monkeypatch.setattr(TensorEngine, "maximise", remember)
    spy(monkeypatch, allowed=False)
    run(gaussian_model(chain=CHAINS["known"], spread=SPREADS["full"], known_loc=True), steps=1)
    problem, now = seen[0]

    def proposed(size: float):
        middle = charts.MATRIX.to(now.params["covariance"].detach())
        step = torch.zeros_like(middle)
        step[..., -1] = size  # of an entry of the factor, by the pivot of its row
        before, after = (charts.MATRIX.of(middle + part) for part in (-0.99 * step, step))
        squarem, free = Squarem(), np.ones(1, dtype=np.bool_)
        squarem.propose(problem, now._replace(params={"covariance": before}), {}, ~free)
        squarem._armed = free
        return squarem.propose(problem, now, {"covariance": after}, free)

    assert proposed(0.01).which.all()
    assert not proposed(1e7).which.any()  # 300 times this size, where one pivot is lost


def test_another_default_device_changes_nothing(monkeypatch):
    spy(monkeypatch, allowed=False)

    def model() -> None:
        observe(loc=pyro.param("loc", LOC), scale=pyro.param("scale", SCALE, constraints.positive))

    with torch.device("meta"):
        found = run(model, steps=8)
    pyro.clear_param_store()
    assert torch.equal(found.restart_history, run(model, steps=8).restart_history)
