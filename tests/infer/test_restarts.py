"""A batch of restarts is a loop of single runs, to the bit, whatever its neighbours do."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes import EM, EMResult, RegimeHMM
from pyro_regimes.estimator.all_starts import fit_starts
from pyro_regimes.estimator.parameters import Parameters
from pyro_regimes.estimator.spec import find_spec
from pyro_regimes.estimator.starts import make_starts
from pyro_regimes.infer.em.engines import fused_gaussian, gaussian_steps
from tests import seeds
from tests.marks import slow
from tests.regimes import simulate

K, D, T, R = 2, 3, 400, 6


def data(num_steps: int = T, size: int = D) -> Tensor:
    """Calm and wild in turn; a point that occurs again and again; a plane, all but exactly."""
    generator = seeds.generator(0)
    draws = torch.randn((num_steps, size), generator=generator, dtype=torch.float64)
    wild = torch.arange(num_steps) // 40 % 2 == 1
    x = draws * torch.where(wild, 2.5, 1.0).double().unsqueeze(-1)
    x[20:30] = 9.0
    x[60:75, -1] = -9.0 + x[60:75, 0] + 1e-7 * draws[60:75, -1]
    return x


def starts(x: Tensor, kinds: list[str], num_states: int = K) -> dict[str, Tensor]:
    """One start of each kind."""
    generator = seeds.generator(1)
    size = x.shape[-1]
    shape = (len(kinds), 1, num_states, size)
    loc = torch.randn(shape, generator=generator, dtype=torch.float64)
    eye = torch.eye(size, dtype=torch.float64)
    factor = ((x.mT.cov() * eye).sqrt()).expand(*shape, size).clone()
    rows = 0.8 * torch.eye(num_states).double() + 0.2 / num_states
    for r, kind in enumerate(kinds):
        if kind == "near":
            loc[r] *= 0.2
        elif kind == "wide":
            loc[r] *= 3.0
        elif kind == "far":  # its scatter about the old location loses digits
            loc[r] += 1000.0
        elif kind == "infinite":  # its likelihood is not finite
            loc[r] = 1e200
        elif kind == "without data":  # a state, from the first step on
            loc[r, 0, 0] = 1e6
        elif kind == "on a point":
            loc[r, 0, 0] = 9.0
            factor[r, 0, 0] = 0.1 * eye
        elif kind == "on a plane":
            loc[r, 0, 0] = x[60:75].mean(0)
            factor[r, 0, 0] = torch.linalg.cholesky(x[60:75].mT.cov() + 1e-3 * eye)
        else:
            assert kind == "sound"
    return {
        "initial": torch.full((len(kinds), num_states), 1 / num_states).double(),
        "transition": rows.expand(len(kinds), 1, num_states, num_states).contiguous(),
        "loc": loc,
        "factor": factor,
    }


def held(name: str, value: Tensor, constraint: constraints.Constraint) -> Tensor:
    return pyro.param(name, value.clone(), constraint=constraint)


def full(factor: Tensor, loc: Tensor) -> dist.Distribution:
    covariance = held("spread", factor @ factor.mT, constraints.positive_definite)
    return dist.MultivariateNormal(loc, covariance)


def by_factor(factor: Tensor, loc: Tensor) -> dist.Distribution:
    return dist.MultivariateNormal(
        loc, scale_tril=held("spread", factor, constraints.lower_cholesky)
    )


def tied(factor: Tensor, loc: Tensor) -> dist.Distribution:
    return by_factor(factor[:, :, :1], loc)


def diagonal(factor: Tensor, loc: Tensor) -> dist.Distribution:
    scale = held("spread", factor.diagonal(dim1=-2, dim2=-1), constraints.positive)
    return dist.Normal(loc, scale).to_event(1)


def spherical(factor: Tensor, loc: Tensor) -> dist.Distribution:
    return dist.Normal(loc, held("spread", factor[..., 0, :1], constraints.positive)).to_event(1)


class Fit(NamedTuple):
    result: EMResult
    params: dict[str, Tensor]
    plan: str
    warned: str


Build = Callable[[Tensor, Tensor], dist.Distribution]


def fit(
    build: Build, x: Tensor, given: dict[str, Tensor], floor: float = 0.0, **settings: Any
) -> Fit:
    """EM on sequences that all restarts share, ``(T, D)`` or ``(N, T, D)``."""
    number = len(given["loc"])
    if x.dim() == 3:
        given = {name: value.unsqueeze(1) for name, value in given.items()}

    def model() -> None:
        loc = held("loc", given["loc"], constraints.real)
        hmm = RegimeHMM(
            initial_probs=held("initial", given["initial"], constraints.simplex),
            transition_probs=held("transition", given["transition"], constraints.simplex),
            observation_dist=build(given["factor"], loc),
        )
        with pyro.plate("restarts", number, dim=1 - x.dim()):
            if x.dim() == 2:
                pyro.sample("x", hmm, obs=x)
            else:
                with pyro.plate("sequences", len(x), dim=-1):
                    pyro.sample("x", hmm, obs=x)

    with pyro.get_param_store().scope(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        em = EM(model, min_eigenvalue=floor)
        result = em.run(check=False, **settings)
        values = pyro.get_param_store().items()
        params = {name: value.detach().clone() for name, value in values}
    return Fit(result, params, str(em.plan), " ".join(str(each.message) for each in caught))


def compare(build: Build, x: Tensor, given: dict[str, Tensor], **settings: Any) -> list[Fit]:
    """The batch, and each restart alone; they must be equal.

    :return: the batch first.
    """
    batch = fit(build, x, given, **settings)
    history = batch.result.restart_history
    fits = [batch]
    for restart in range(len(given["loc"])):
        alone = fit(build, x, {name: value[[restart]] for name, value in given.items()}, **settings)
        own = alone.result.restart_history[:, 0]
        np.testing.assert_array_equal(history[: len(own), restart].numpy(), own.numpy())
        rest = history[len(own) :, restart]  # it has converged, and stays
        np.testing.assert_array_equal(rest.numpy(), np.full(len(rest), own[-1]))
        for name, value in alone.params.items():
            assert torch.equal(batch.params[name][restart], value[0]), (restart, name)
        fits.append(alone)
    assert batch.result.num_steps == max(each.result.num_steps for each in fits[1:])
    return fits


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(params=["compiled", "tensors"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "tensors":
        monkeypatch.setattr(fused_gaussian, "find", lambda *args: "forbidden")
    return request.param


SETTINGS = dict(num_steps=60, tol=1e-3)
SOUND = ["sound", "near", "wide"]
BUILDS = [full, diagonal, *slow(by_factor, tied, spherical)]


@pytest.mark.parametrize("build", BUILDS)
def test_a_batch_is_a_loop_to_the_bit(build: Build, engine: str) -> None:
    x = data()
    fits = compare(build, x, starts(x, ["sound", "near", "wide", "far", "infinite"]), **SETTINGS)
    assert len({each.result.num_steps for each in fits[1:]}) > 2  # they end at different steps


@pytest.mark.parametrize("trouble", ["on a point", "on a plane", "without data", "far"])
@pytest.mark.parametrize("build", BUILDS)
def test_trouble_does_not_reach_the_neighbours(build: Build, trouble: str, engine: str) -> None:
    x = data()
    kinds = ["sound", trouble, "near", "infinite", "wide"]
    batch, *alone = compare(build, x, starts(x, kinds), **SETTINGS)
    if engine == "compiled" and build in (full, by_factor):
        moved = [each.plan.count("then tensor operations") for each in alone]
        if seeds.SHIFT == 0:  # other data may bring other starts into trouble
            assert moved[:2] == [0, 1]
        assert f"tensor operations (restarts: {sum(moved)}) from where" in batch.plan
        made = int(batch.plan.split("Gaussian model (restarts: ")[1][0])
        assert 4 - sum(moved) <= made <= 4


@pytest.mark.parametrize("build", BUILDS)
def test_a_floor_that_one_reaches_does_not_reach_the_neighbours(build: Build, engine: str) -> None:
    x = data()
    given = starts(x, ["sound", "on a point", "near", "on a plane", "wide"])
    batch, *alone = compare(build, x, given, floor=1e-3, **SETTINGS)
    if engine == "compiled" and build in (full, by_factor):
        moved = ["then tensor operations" in each.plan for each in alone]
        assert ("tensor operations" in batch.plan) == any(moved)
        if seeds.SHIFT == 0:  # other data may bring other starts to the floor
            assert moved[:2] == [False, True]


@pytest.mark.parametrize("build", [full, by_factor])
def test_a_fall_that_is_undone_does_not_reach_the_neighbours(build: Build, engine: str) -> None:
    """Near singularity rounding lowers the likelihood, and parameters are frozen."""
    x = data()
    noise = torch.randn(15, generator=seeds.generator(2), dtype=torch.float64)
    x[60:75, -1] = -9.0 + x[60:75, 0] + 1e-6 * noise
    given = starts(x, ["sound", "on a plane", "near"])
    batch, *alone = compare(build, x, given, num_steps=120, tol=1e-7)
    fell = ["lowered the log-likelihood" in each.warned for each in (batch, *alone)]
    assert fell[0] == any(fell[1:])
    if seeds.SHIFT == 0:
        assert fell[2] and not fell[1]


@pytest.mark.parametrize("covariance_type", ["full", *slow("diag", "spherical", "tied")])
@pytest.mark.parametrize("ragged", [False, True])
def test_starts_of_the_estimator_are_those_of_each_alone(
    covariance_type: str, ragged: bool, engine: str
) -> None:
    """One of them collapses onto a point that occurs again and again, down to the floor."""
    x, _ = simulate(covariance_type, 120)
    x[40:46] = 9.0
    spec = find_spec(covariance_type)
    starts = make_starts(x, 3, 4, spec, 1e-6, seeds.rng(0))
    starts.emission["means"][2, 0] = 9.0
    if covariance_type != "tied":
        starts.emission["covariances"][2, 0] *= 1e-3
    rows, lengths = torch.tensor(x), None
    if ragged:
        lengths = torch.tensor([60, 1, 2, 57])
    settings = dict(inference="em", max_iter=30, tol=1e-3, min_eigenvalue=0.0, least=1e-3)
    batch = fit_starts(starts, spec, rows, lengths, **settings)
    for i in range(4):
        one = Parameters.stack([starts.select(i)])
        alone = fit_starts(one, spec, rows, lengths, **settings)
        own = alone.history[:, 0]
        np.testing.assert_array_equal(batch.history[: len(own), i], own)
        both, single = batch.parameters.select(i), alone.parameters.select(0)
        np.testing.assert_array_equal(both.initial_probs, single.initial_probs)
        np.testing.assert_array_equal(both.transition_matrix, single.transition_matrix)
        for name in spec.attributes:
            np.testing.assert_array_equal(both.emission[name], single.emission[name])


@pytest.mark.parametrize("num_steps, size, num_states", [(70_000, 1, 6), (24_000, 4, 3)])
def test_threads_change_no_digit(
    num_steps: int, size: int, num_states: int, engine: str
) -> None:
    """A long sequence is cut between threads, in a batch at another place than alone."""
    x = data(num_steps, size)
    given = starts(x, SOUND, num_states)
    settings = dict(num_steps=2, tol=None)
    one = fit(by_factor, x, given, **settings)
    with threads(2):
        batch, *_ = compare(by_factor, x, given, **settings)
    assert torch.equal(one.result.restart_history, batch.result.restart_history)
    for name, value in one.params.items():
        assert torch.equal(batch.params[name], value), name


@pytest.mark.parametrize("build", [by_factor, diagonal])
def test_sequences_that_all_restarts_share(build: Build, engine: str) -> None:
    x = data(1200).reshape(12, 100, D)
    given = starts(x.reshape(-1, D), ["sound", "on a point", "near", "wide"])
    batch, *alone = compare(build, x, given, **SETTINGS)
    if engine == "compiled" and build is by_factor:
        assert all("compiled iterations" in each.plan for each in (batch, *alone))


def test_what_is_not_confirmed_is_repeated_for_that_restart_alone(monkeypatch) -> None:
    """The compiled engine, made to say too much of one restart that later goes over to tensors."""
    x = data()
    x[20:30] = x[100:110]
    given = starts(x, ["sound", "on a plane", "near"])
    given["factor"][1, 0, 0] = 4.0 * torch.eye(D).double()  # it comes to the plane step by step
    true_step = gaussian_steps.GaussianEM.step

    def step(self: gaussian_steps.GaussianEM, parameters: gaussian_steps.Parameters) -> Any:
        found = true_step(self, parameters)
        found.log_likelihood[parameters[2][:, 0, -1] < -6.0] += 1.0
        return found

    with monkeypatch.context() as patch:
        patch.setattr(gaussian_steps.GaussianEM, "step", step)
        batch = fit(by_factor, x, given, **SETTINGS)
    alone = [
        fit(by_factor, x, {name: value[[r]] for name, value in given.items()}, **SETTINGS)
        for r in (0, 2)
    ]
    if seeds.SHIFT != 0 and "tensor operations" not in batch.plan:
        pytest.skip("of these data, that restart does not come to the plane")
    assert "(restarts: 3), and tensor operations (restarts: 1)" in batch.plan
    monkeypatch.setattr(fused_gaussian, "find", lambda *args: "forbidden")
    again = {name: value[[1]] for name, value in given.items()}
    alone.insert(1, fit(by_factor, x, again, **SETTINGS))
    history = batch.result.restart_history
    for restart, single in enumerate(alone):
        own = single.result.restart_history[:, 0]
        assert torch.equal(history[: len(own), restart], own)
        assert (history[len(own) :, restart] == own[-1]).all()
        for name, value in single.params.items():
            assert torch.equal(batch.params[name][restart], value[0]), (restart, name)


@pytest.mark.parametrize("floor", [0.0, 2.0])
@pytest.mark.parametrize("size", [5, 9])
@pytest.mark.parametrize("build", [by_factor, diagonal])
def test_where_a_matrix_lies_in_memory_changes_no_digit(
    build: Build, size: int, floor: float, engine: str
) -> None:
    """Of an odd number of entries each, every other one lies between two of a processor's words."""
    x = data(T, size)
    x = x + 0.3 * x.roll(1, -1)
    given = starts(x, SOUND, 3)
    given["factor"] = given["factor"] + 0.3 * torch.ones(size, size).double().tril(-1)
    compare(build, x, given, floor=floor, num_steps=6, tol=None)


WHERE_THE_MODEL_MULTIPLIES = """
import torch
from tests.infer.test_restarts import SOUND, T, compare, data, full, held, starts
import pyro.distributions as dist
from pyro.distributions import constraints

def by_precision(factor, loc):
    precision = held("spread", torch.linalg.inv(factor @ factor.mT), constraints.positive_definite)
    return dist.MultivariateNormal(loc, precision_matrix=precision)

torch.set_num_threads(1)
for build, size in ((full, 9), (full, 11), (by_precision, 5), (by_precision, 9)):
    x = data(T, size)
    x = x + 0.3 * x.roll(1, -1)
    given = starts(x, SOUND, 3)
    given["factor"] = given["factor"] + 0.3 * torch.ones(size, size).double().tril(-1)
    compare(build, x, given, num_steps=6, tol=None)
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch has another BLAS")
def test_where_the_model_multiplies_matrices_mkl_can_be_told_to_reproduce() -> None:
    """Pyro forms a positive definite parameter as a product of matrices of odd size."""
    environment = {**os.environ, "MKL_CBWR": "AUTO"}
    command = [sys.executable, "-c", WHERE_THE_MODEL_MULTIPLIES]
    root = Path(__file__).parents[2]
    ran = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
