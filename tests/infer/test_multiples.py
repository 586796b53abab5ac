"""Spreads that are products of a parameter and of anything else."""

from __future__ import annotations

import pickle
from typing import Any, Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM
from pyro_regimes.emissions.sizes import SIZE, Deviations
from tests import seeds
from tests.infer.models import LOC, LOCS, SCALE, XS, X, Y
from tests.infer.models import observe as observe_two
from tests.infer.models import positive, real
from tests.infer.written import CORRELATION, tensor

FACTOR = "weighted sd given other factors"


def observe(scale: Tensor, loc: Tensor = LOC, obs: Tensor = X) -> None:
    observe_two(observation_dist=dist.Normal(loc, scale), obs=obs)


def series(**spread: Tensor) -> None:
    observe_two(observation_dist=dist.MultivariateNormal(LOCS, **spread), obs=Y)


# ---- what is no multiple -----------------------------------------------------------------------


def with_an_offset() -> None:
    observe(positive("scale", SCALE) + 1.0)


def clamped() -> None:
    observe(2.0 * positive("scale", SCALE).clamp(0.5, 3.0))


def a_sum() -> None:
    scale = positive("scale", SCALE)
    observe(scale + positive("other", SCALE))


def squared() -> None:
    observe(2.0 * positive("scale", SCALE) ** 2)


def of_both() -> None:
    scale = positive("scale", SCALE)
    observe(scale * scale.flip(0))


def with_a_correlation() -> None:
    scale = positive("scale", torch.ones(2, 3))
    eye = torch.eye(3).double()
    series(covariance_matrix=torch.diag_embed(scale) + 0.1 * eye)


@pytest.mark.parametrize(
    "model", [with_an_offset, clamped, a_sum, squared, of_both, with_a_correlation]
)
def test_what_is_no_multiple_is_refused_by_name(model: Callable[[], None]) -> None:
    with pytest.raises(ValueError, match=r"\n  scale: .*is no multiple of it"):
        EM(model).step()


def test_a_value_that_contradicts_its_derivative_is_refused() -> None:
    def model() -> None:
        scale = positive("scale", SCALE)
        observe(2.0 * scale * (1.0 + scale.detach().flip(0)))

    with pytest.raises(ValueError, match="\n  scale: .*contradicts its derivative"):
        EM(model).step()


# ---- the M-step --------------------------------------------------------------------------------


def test_a_constant_factor_changes_nothing_but_the_unit() -> None:
    def model(factor: float) -> Callable[[], None]:
        return lambda: observe(positive("scale", SCALE / factor) * factor)

    ends = []
    for factor in (1.0, 252**-0.5, 1e6):
        with pyro.get_param_store().scope():
            em = EM(model(factor))
            em.run(num_steps=20, tol=None)
            ends.append(pyro.param("scale").detach() * factor)
    assert_close(ends[1], ends[0], rtol=1e-9, atol=0)
    assert_close(ends[2], ends[0], rtol=1e-9, atol=0)


def test_a_matrix_of_one_variance_is_that_of_one_scale() -> None:
    def as_matrix() -> None:
        variance = positive("variance", SCALE**2)
        series(covariance_matrix=variance[:, None, None] * torch.eye(3).double())

    def as_scale() -> None:
        scale = positive("scale", SCALE.unsqueeze(-1))
        observe_two(observation_dist=dist.Normal(LOCS, scale).to_event(1), obs=Y)

    first, second = EM(as_matrix), EM(as_scale)
    ours, theirs = (em.run(num_steps=20, tol=None).history for em in (first, second))
    assert FACTOR in str(first.plan) and ours == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_the_maximiser_of_a_size_beside_others(seed: int) -> None:
    generator = seeds.generator(seed)
    weight, own = torch.rand(2, 50, generator=generator, dtype=torch.float64) * 10
    cross = torch.randn(50, generator=generator, dtype=torch.float64) * 10
    now = torch.rand(50, generator=generator, dtype=torch.float64) + 0.1
    pooled = Deviations(weight, own * now**2, cross * now**2, torch.zeros(50).double())
    new = SIZE.maximise(pooled, now, 0.0)
    ratio = now / new  # w
    assert_close(weight / ratio - own * ratio - cross, torch.zeros(50).double(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("matrix", ["covariance_matrix", "scale_tril", "precision_matrix"])
def test_scales_beside_correlations_that_an_optimiser_moves(matrix: str) -> None:
    """The scales have a closed form, and the factor a gradient."""

    def model() -> None:
        scale = positive("scale", torch.ones(2, 3))
        raw = real("raw", torch.zeros(3, 3))
        eye = torch.eye(3).double()
        factor = (raw.tril(-1) + eye) / (raw.tril(-1).square().sum(-1, keepdim=True) + 1).sqrt()
        factor = scale.unsqueeze(-1) * factor
        if matrix == "scale_tril":
            series(scale_tril=factor)
        elif matrix == "covariance_matrix":
            series(covariance_matrix=factor @ factor.mT)
        else:
            inverse = torch.linalg.inv(factor @ factor.mT)
            series(precision_matrix=(inverse + inverse.mT) / 2)

    em = EM(model, optim=pyro.optim.Adam({"lr": 0.02}))
    history = em.run(num_steps=60, tol=None).history
    if matrix == "precision_matrix":  # its unit is that of the other series given
        assert set(em.plan.names) | set(em.plan.gradient) == {"scale", "raw"}
    else:
        assert set(em.plan.names) == {"scale"} and set(em.plan.gradient) == {"raw"}
    assert history[-1] < history[0] - 1.0


def test_a_shared_scale_of_correlated_series_rises_at_each_step() -> None:
    def model() -> None:
        scale = positive("scale", tensor(3.0, 0.3, 1.0))
        series(scale_tril=scale.unsqueeze(-1) * torch.linalg.cholesky(CORRELATION))

    em = EM(model)
    losses = torch.tensor(em.run(num_steps=30, tol=None).history, dtype=torch.float64)
    assert (losses.diff() <= 1e-9 * losses.abs().max()).all() and losses[-1] < losses[0] - 1
    assert len(em.plan.assignments[0].turns) == 3


# ---- floors ------------------------------------------------------------------------------------


def collapsing(**spread: Any) -> Callable[[], None]:
    point = Y.clone()
    point[16:24] = 7.0  # eight times the same observation

    def model() -> None:
        loc = real("loc", torch.stack([Y.mean(0), torch.full((3,), 7.0).double()]))
        matrices = {name: make() for name, make in spread.items()}
        observe_two(observation_dist=dist.MultivariateNormal(loc, **matrices), obs=point)

    return model


def diagonal() -> Tensor:
    return torch.diag_embed(4.0 * positive("variance", torch.ones(2, 3)))


def multiples_of_a_matrix() -> Tensor:
    start = torch.eye(3).double().repeat(2, 1, 1)
    matrix = pyro.param("matrix", start, constraint=constraints.positive_definite)
    return 0.25 * matrix


def products() -> Tensor:
    level = positive("level", tensor(1.0, 1.0))
    return level[:, None, None] * CORRELATION * 0.5


@pytest.mark.parametrize("make", [diagonal, multiples_of_a_matrix, products])
def test_a_floor_holds_for_the_product(make: Callable[[], Tensor]) -> None:
    floor = 1e-2
    em = EM(collapsing(covariance_matrix=make), min_eigenvalue=floor)
    result = em.run(num_steps=100)
    assert result.converged
    with torch.no_grad():
        least = torch.linalg.eigvalsh(make()).amin()
    assert least == pytest.approx(floor, rel=1e-6)


def test_a_start_below_the_floor_is_raised() -> None:
    def model() -> None:
        observe(0.01 * positive("scale", tensor(1.0, 200.0)))

    em = EM(model, min_eigenvalue=0.25)
    result = em.run(num_steps=3, tol=None)
    assert (torch.tensor(result.history).diff() <= 1e-9).all()
    assert (0.01 * pyro.param("scale") >= 0.5 - 1e-9).all()


# ---- batches, precision, the plan --------------------------------------------------------------


def restarts(starts: Tensor) -> Callable[[], None]:
    def model() -> None:
        scale = positive("scale", starts) * 0.5
        with pyro.plate("restarts", len(starts)):
            observe(scale.unsqueeze(-2), obs=X.expand(len(starts), -1))

    return model


def test_restarts_are_those_of_a_loop_to_the_bit() -> None:
    starts = tensor([[1.0, 2.0], [3.0, 1.0], [0.5, 9.0]])
    together = EM(restarts(starts)).run(num_steps=30, tol=1e-3)
    for index, start in enumerate(starts):
        with pyro.get_param_store().scope():
            alone = EM(restarts(start.unsqueeze(0))).run(num_steps=30, tol=1e-3)
            value = pyro.param("scale").detach()
        ours = together.restart_history[: len(alone.history), index]
        assert torch.equal(torch.as_tensor(alone.restart_history[:, 0]), torch.as_tensor(ours))
        assert torch.equal(pyro.param("scale").detach()[index : index + 1], value)


def test_single_precision() -> None:
    def model() -> None:
        start = torch.tensor([10.0, 20.0])
        scale = pyro.param("scale", start, constraint=constraints.positive) / 16
        observe(scale, LOC.float(), X.float())

    em = EM(model)
    result = em.run(num_steps=20)
    assert FACTOR in str(em.plan) and result.history[-1] < result.history[0]


def test_minibatches_of_sequences() -> None:
    def model() -> None:
        scale = 2.0 * positive("scale", SCALE)
        with pyro.plate("sequences", 4, subsample_size=2) as index:
            observe(scale, obs=XS[index])

    torch.manual_seed(seeds.seed(0))
    em = EM(model)
    em.run(num_steps=20)
    assert em.plan.is_subsampled and FACTOR in str(em.plan)


def annualised() -> None:
    observe(0.1 * positive("scale", 10 * SCALE))


def test_the_plan_can_be_pickled() -> None:
    em = EM(annualised)
    em.step()
    again = pickle.loads(pickle.dumps(em.plan))
    assert str(again) == str(em.plan) and again.assignments[0].argument is SIZE


def test_another_function_of_the_same_parameter_is_planned_anew() -> None:
    offset = 0.0

    def model() -> None:
        observe(0.1 * positive("scale", 10 * SCALE) + offset)

    em = EM(model)
    em.step()
    offset = 0.5
    with pytest.raises(ValueError, match="\n  scale: "):
        em.step()


def test_extrapolated_steps() -> None:
    plain = EM(annualised).run(num_steps=2000, tol=1e-10)
    pyro.clear_param_store()
    fast = EM(annualised).run(num_steps=2000, tol=1e-10, acceleration="squarem")
    assert fast.history[-1] <= plain.history[-1] + 1e-6
