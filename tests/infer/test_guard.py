"""The check of convergence speaks where EM has misread a model, and only there.

Each fault is one that EM once had: with its fix taken out the run still says that it has converged.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any, Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor

from pyro_regimes import EM, EMResult, RegimeHMM, emissions
from pyro_regimes.datasets import load_sector_returns
from pyro_regimes.distributions import observation
from pyro_regimes.emissions import normal
from pyro_regimes.infer import tracing
from pyro_regimes.infer.em import ascent, e_step, guard, measures
from pyro_regimes.infer.em.recognise import find as parameters
from pyro_regimes.infer.em.recognise import matching
from tests.infer import table, test_recognition
from tests.infer.models import (
    INITIAL,
    LEFT_TO_RIGHT,
    LOC,
    LOCS,
    SCALE,
    TRANSITION,
    X,
    Y,
    chain,
    covariance,
    loc,
    observe,
    positive,
    probs,
    real,
    scale,
)

Model = Callable[..., None]


def run(
    model: Model, *, guide: Model | None = None, optim: Any = None, **options: Any
) -> tuple[EMResult, list[str]]:
    """EM to its end, and what it warned of."""
    options = {"num_steps": 3000, "tol": 1e-4} | options
    em = EM(model, guide, optim, options.pop("min_eigenvalue", 0.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = em.run(**options)
    return result, [str(each.message) for each in caught]


def assert_spoken(outcome: tuple[EMResult, list[str]], said: str) -> None:
    result, messages = outcome
    assert not result.converged and "not at an optimum" in result.stop_reason
    assert any("check of convergence failed" in each and said in each for each in messages)
    assert any("nats" in each for each in messages)


def assert_silent(outcome: tuple[EMResult, list[str]]) -> None:
    result, messages = outcome
    assert result.converged, result.stop_reason
    assert not [each for each in messages if "check of convergence" in each], messages


# It speaks.


def test_weights_lost_beside_unused_cells(monkeypatch: Any) -> None:
    def by_counting(uses: list, num_cells: int) -> bool:
        return sum(int((use.cells >= 0).sum()) for use in uses) > num_cells

    def model() -> None:
        index = torch.zeros(2, dtype=torch.long)
        # Few large values: their weight in the mean is what the scales decide.
        data = torch.where(X > 0.5, 6.0 * X, X)
        scales = positive("scale", SCALE * torch.tensor([1.0, 5.0]))
        observe(loc=real("loc", torch.zeros(5))[index], scale=scales, obs=data)

    assert_silent(run(model))
    pyro.clear_param_store()
    monkeypatch.setattr(matching, "_is_shared", by_counting)
    monkeypatch.setattr(ascent, "fallen", lambda params, before, after: before > 1e9)
    assert_spoken(run(model), "parameter 'loc'")


@pytest.mark.parametrize(
    "model",
    [
        test_recognition.in_a_transform,
        test_recognition.in_an_affine_beta,
        test_recognition.in_a_list,
    ],
)
def test_a_parameter_out_of_sight(monkeypatch: Any, model: Model) -> None:
    densities = tracing.Site.densities
    monkeypatch.setattr(tracing.Site, "densities", lambda site: densities(site).detach())

    def beside_another() -> None:
        model()
        observe(name="y", loc=loc())

    assert_spoken(run(beside_another), "parameter 'shift'")


@pytest.mark.parametrize("model", [test_recognition.huber, test_recognition.correlated])
def test_the_density_of_a_parent_class(monkeypatch: Any, model: Model) -> None:
    def by_inheritance(base: Any, event_dim: int) -> Any:
        families = emissions.FAMILIES
        return next((each for each in families if isinstance(base, each.distributions)), None)

    monkeypatch.setattr(emissions, "find_family", by_inheritance)
    monkeypatch.setattr(observation, "_find", lambda *args: None)  # the model's own density
    monkeypatch.setattr(e_step.SiteData, "is_as_read", False)  # and EM's, from the first step on
    # The run that reads the model at every step, as its losses are another's.
    monkeypatch.setattr(EM, "_agrees", lambda *args: True)
    assert_spoken(run(model), "the model's own loss")


def test_the_chain_of_a_parent_class(monkeypatch: Any) -> None:
    class Tempered(RegimeHMM):
        def log_prob(self, value: Tensor) -> Tensor:
            return 0.5 * super().log_prob(value)

    def model() -> None:
        hmm = Tempered(
            observation_dist=dist.Normal(loc(), scale()), validate_args=False, **chain()
        )
        pyro.sample("x", hmm, obs=X)

    monkeypatch.setattr(tracing, "read_chain", lambda node: node["fn"])
    monkeypatch.setattr(EM, "_agrees", lambda *args: True)
    assert_spoken(run(model), "the model's own loss")


def test_minibatches_drawn_by_the_model(monkeypatch: Any) -> None:
    """Taken for the whole data, each step is full EM on another batch."""
    data = torch.cat([X, 3 * X]).reshape(8, 16)

    def model() -> None:
        with pyro.plate("sequences", 8, subsample=torch.arange(4)) as index:
            hmm = RegimeHMM(
                initial_probs=INITIAL,
                transition_probs=TRANSITION,
                observation_dist=dist.Normal(loc(), scale()),
            )
            pyro.sample("x", hmm, obs=data[index + 4 * (next(calls) % 2)])

    calls = iter(range(10**6))
    monkeypatch.setattr(tracing, "is_subsampled", lambda trace: False)
    monkeypatch.setattr(parameters, "find_hidden_dependence", lambda *args: {})
    monkeypatch.setattr(EM, "_agrees", lambda *args: True)
    assert_spoken(run(model), "the model's own loss")


def test_an_update_that_is_no_maximiser(monkeypatch: Any) -> None:
    def short(*given: Any) -> Tensor:
        return 1.05 * normal._standard_deviation(*given)

    arguments = (normal.LOC, replace(normal.SCALE, maximise=short))
    monkeypatch.setattr(type(normal.NORMAL), "arguments", arguments)
    monkeypatch.setattr(ascent, "fallen", lambda params, before, after: before > 1e9)
    assert_spoken(run(lambda: observe(loc=loc(), scale=scale()), tol=1e-3), "parameter 'scale'")


def test_an_optimiser_that_hardly_moves() -> None:
    def model() -> None:
        p = pyro.param("p", torch.tensor(0.7).double(), constraint=constraints.unit_interval)
        stay = torch.stack([p**2, 1 - p**2])
        observe(loc=loc(), transition_probs=torch.stack([stay, stay.flip(0)]))

    slow = pyro.optim.SGD({"lr": 1e-6})
    said = "parameter 'p': by the model's own gradient a step could gain"
    assert_spoken(run(model, optim=slow), said)


def heavy_tails(start: Tensor) -> Model:
    """All of its parameters are moved by an optimiser."""
    return lambda: observe(observation_dist=dist.Cauchy(real("loc", start), 1.0))


def test_an_optimiser_that_starts_where_the_objective_is_not_concave() -> None:
    slow = pyro.optim.SGD({"lr": 1e-9})
    assert_spoken(run(heavy_tails(torch.tensor([-60.0, 60.0])), optim=slow), "parameter 'loc'")


def test_a_second_run_is_checked_and_told_of_again() -> None:
    slow = pyro.optim.SGD({"lr": 1e-9})
    em = EM(heavy_tails(torch.tensor([-60.0, 60.0])), optim=slow)
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="check of convergence failed"):
            assert em.run(num_steps=50).unconfirmed == [0]


def test_a_check_that_cannot_be_made_is_said(monkeypatch: Any) -> None:
    def fail(*args: Any) -> Any:
        raise torch.linalg.LinAlgError("singular")

    monkeypatch.setattr(measures, "differentiate", fail)
    outcome = run(lambda: observe(loc=loc(), scale=scale()))
    assert outcome[0].history[-1] < outcome[0].history[0]
    assert any("could not be differentiated: singular" in each for each in outcome[1])


def test_one_restart_of_many_is_named(monkeypatch: Any) -> None:
    """An update that is off in one restart; the others are confirmed."""

    def short(*given: Any) -> Tensor:
        found = normal._standard_deviation(*given)
        return found * torch.tensor([1.0, 1.0, 1.05, 1.05]).double()

    arguments = (normal.LOC, replace(normal.SCALE, maximise=short))
    monkeypatch.setattr(type(normal.NORMAL), "arguments", arguments)
    monkeypatch.setattr(ascent, "fallen", lambda params, before, after: before > 1e9)

    def model() -> None:
        with pyro.plate("restarts", 2):
            observe(
                loc=real("loc", LOC.expand(2, 1, 2)),
                scale=positive("scale", SCALE.expand(2, 1, 2)),
                obs=X.expand(2, -1),
            )

    result, messages = run(model, tol=1e-3)
    assert result.unconfirmed == [1] and "parameter 'scale'" in messages[-1]


def test_states_that_start_alike() -> None:
    """A saddle, where the gradient is zero and nothing rises."""
    start = torch.tensor([0.0, 0.0])
    model = lambda: observe(  # noqa: E731
        loc=real("loc", start),
        scale=positive("scale", torch.ones(2)),
        initial_probs=torch.full((2,), 0.5).double(),
        transition_probs=probs("transition", torch.full((2, 2), 0.5)),
    )
    result, messages = run(model)
    assert not result.converged and result.unconfirmed == [0]
    assert "states [0, 1] of site 'x' have the same parameters" in messages[-1]
    pyro.clear_param_store()
    start = torch.tensor([-0.1, 0.1])
    assert_silent(run(model))


def test_states_that_start_alike_among_many() -> None:
    number = 40
    start = torch.linspace(-3, 3, number).double()
    start[36] = start[33]

    def model() -> None:
        observe(
            loc=real("loc", start),
            scale=torch.ones(number).double(),
            initial_probs=torch.full((number,), 1 / number).double(),
            transition_probs=torch.full((number, number), 1 / number).double(),
        )

    result, messages = run(model, tol=1.0)
    assert not result.converged
    assert "states [33, 36] of site 'x' have the same parameters" in messages[-1]


def test_states_that_start_alike_in_one_restart() -> None:
    """It is named, whatever the others do, and ends as it would alone."""
    starts = torch.tensor([[-0.1, 0.1], [0.0, 0.0]])

    def model() -> None:
        with pyro.plate("restarts", 2):
            observe(
                loc=real("loc", starts.unsqueeze(1)),
                scale=positive("scale", torch.ones(2, 1, 2)),
                initial_probs=torch.full((2,), 0.5).double(),
                transition_probs=probs("transition", torch.full((2, 1, 2, 2), 0.5)),
                obs=X.expand(2, -1),
            )

    result, messages = run(model)
    assert not result.converged and result.unconfirmed == [1]
    assert "in restarts [1], states [0, 1] of site 'x' have the same parameters" in messages[-1]


def test_the_warning_points_at_the_line_of_the_caller() -> None:
    slow = pyro.optim.SGD({"lr": 1e-9})
    em = EM(heavy_tails(torch.tensor([-60.0, 60.0])), optim=slow)
    with pytest.warns(RuntimeWarning, match="check of convergence failed") as caught:
        em.run(num_steps=50)
    assert caught[-1].filename == __file__


def test_a_run_may_go_unchecked(monkeypatch: Any) -> None:
    def unwanted(*args: Any) -> list:
        raise AssertionError("checked")

    monkeypatch.setattr(guard, "check", unwanted)
    observed = partial(observe, loc=LOC)
    model = lambda: observed(scale=scale())  # noqa: E731
    assert run(model, check=False)[0].converged
    assert not run(model, tol=None, num_steps=3)[0].converged
    assert not run(model, tol=1e-12, num_steps=1)[0].converged
    with pytest.raises(AssertionError, match="checked"):
        run(model)


# It is silent.


def entries_of_the_table() -> list[Any]:
    """Of those that an optimiser moves, which take long, two are enough for the quick tests."""
    quick = {"one_minus_p", "neural_transitions"}
    return [
        pytest.param(
            entry,
            id=entry.name,
            marks=pytest.mark.slow if entry.moved and entry.name not in quick else [],
        )
        for entry in table.ENTRIES
    ]


@pytest.mark.parametrize("entry", entries_of_the_table())
def test_silent_on_the_table(entry: table.Entry) -> None:
    for rate in (0.01, 0.001):  # with other data the first may be too large
        pyro.clear_param_store()
        optim = pyro.optim.SGD({"lr": rate, "momentum": 0.9}) if entry.moved else None
        outcome = run(entry.model, guide=table.make_guide(entry), optim=optim)
        if outcome[0].converged:
            break
    assert_silent(outcome)


def gaussian(data: Tensor, dtype: torch.dtype, spread: str) -> Model:
    size = data.shape[1]
    start = torch.stack([0.3 * data.T.cov(), data.T.cov(), 3 * data.T.cov()]).to(dtype)
    data = data.to(dtype)

    def model() -> None:
        locs = pyro.param("loc", torch.zeros(3, size, dtype=dtype))
        if spread == "full":
            matrix = pyro.param("covariance", start, constraint=constraints.positive_definite)
            normal: Any = dist.MultivariateNormal(locs, matrix)
        else:
            scales = start.diagonal(dim1=-2, dim2=-1).sqrt()
            scales = pyro.param("scale", scales, constraint=constraints.positive)
            normal = dist.Normal(locs, scales).to_event(1)
        matrix = torch.full((3, 3), 0.05, dtype=dtype) + 0.85 * torch.eye(3, dtype=dtype)
        hmm = RegimeHMM(
            initial_probs=pyro.param(
                "initial", torch.full((3,), 1 / 3, dtype=dtype), constraint=constraints.simplex
            ),
            transition_probs=pyro.param("transition", matrix, constraint=constraints.simplex),
            observation_dist=normal,
        )
        pyro.sample("x", hmm, obs=data)

    return model


RETURNS = torch.tensor(load_sector_returns().values[-2000:])


@pytest.mark.parametrize("spread", ["full", "diag"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_silent_on_sector_returns(spread: str, dtype: torch.dtype, floor: float) -> None:
    assert_silent(run(gaussian(RETURNS, dtype, spread), min_eigenvalue=floor))


@pytest.mark.parametrize("unit", [1e-6, 1e6])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_silent_in_any_unit(unit: float, shift: float) -> None:
    data = (RETURNS[:500] + shift) * unit
    model = gaussian(data, torch.float64, "full")

    def about_the_mean() -> None:
        pyro.param("loc", data.mean(0).expand(3, -1))
        model()

    assert_silent(run(about_the_mean))


def test_silent_where_a_floor_binds() -> None:
    """One state sits on two observations, whose covariance is singular."""
    data = torch.cat([Y, 1e3 + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1e-3]]).double()])

    def model() -> None:
        locs = real("loc", torch.stack([LOCS[0], LOCS[1] + 1e3]))
        observe(observation_dist=dist.MultivariateNormal(locs, covariance()), obs=data)

    assert_silent(run(model, min_eigenvalue=1e-2))
    lowest = torch.linalg.eigvalsh(pyro.param("covariance").detach())[1, 0]
    assert lowest.item() == pytest.approx(1e-2, rel=1e-6)


def test_silent_beside_zeros_frozen_parameters_and_states_without_data() -> None:
    def zeros() -> None:
        observe(
            loc=real("loc", torch.tensor([-1.0, 0.0, 1e5])),
            scale=positive("scale", torch.ones(3)),
            initial_probs=torch.tensor([0.5, 0.5, 0.0]).double(),
            transition_probs=probs("transition", LEFT_TO_RIGHT * 0.5 + 0.5 * torch.eye(3)),
        )

    result, messages = run(zeros)
    assert_silent((result, messages))

    def collapsing() -> None:
        """One state is left with one observation: its scale has no maximum."""
        data = torch.cat([X, torch.tensor([1e3]).double()])
        observe(loc=real("loc", torch.tensor([0.0, 1e3])), scale=scale(), obs=data)

    pyro.clear_param_store()
    result, messages = run(collapsing)
    assert not [each for each in messages if "check of convergence" in each], messages
    assert any("has no maximum" in each for each in messages)
    # Its likelihood is unbounded: that does not count as converged either.
    assert not result.converged and "'scale' kept a value without a maximum" in result.stop_reason


def test_silent_with_many_restarts() -> None:
    """What is promised counts for each of them."""
    spread = torch.linspace(0.5, 1.5, 100).double()[:, None, None]

    def model() -> None:
        with pyro.plate("restarts", 100):
            observe(
                loc=real("loc", spread * LOC),
                scale=positive("scale", SCALE.expand(100, 1, 2)),
                obs=X.expand(100, -1),
            )

    assert_silent(run(model, tol=1e-3))


def test_silent_where_everything_is_moved_and_leaves_need_no_gradient() -> None:
    other = pyro.param("of another model", torch.zeros(2))
    other.requires_grad_(False)
    fast = pyro.optim.SGD({"lr": 0.01})
    assert_silent(run(heavy_tails(torch.tensor([-0.5, 0.5])), optim=fast))


def test_silent_with_priors() -> None:
    def model() -> None:
        rows = dist.Dirichlet(torch.tensor([[8.0, 2.0], [3.0, 7.0]]).double()).to_event(1)
        held = pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 0.5).to_event(1))
        gamma = dist.Gamma(torch.tensor(3.0).double(), torch.tensor(2.0).double())
        precision = pyro.sample("precision", gamma.expand([2]).to_event(1))
        transition = pyro.sample("transition", rows)
        observe(loc=held, scale=precision.rsqrt(), transition_probs=transition)

    values = {"loc": LOC, "precision": SCALE**-2, "transition": TRANSITION}
    guide = AutoDelta(model, init_loc_fn=init_to_value(values=values))
    assert_silent(run(model, guide=guide))
