"""Generalised EM on data in chunks is that on all data at once."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, Chunks, RegimeHMM, stationary_probs
from tests import seeds
from tests.infer.models import positive, probs, real

T = 200
ROWS = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)
LOC = torch.tensor([-0.7, 0.9], dtype=torch.float64)
ONES = torch.ones(2, dtype=torch.float64)
Model = Callable[..., None]


def series(*lead: int) -> Tensor:
    """Sequences that stay in a regime for ten steps, ``(..., T)``."""
    rng = seeds.generator(21)
    regimes = torch.randint(2, (*lead, T // 10), generator=rng).repeat_interleave(10, -1)
    return 2.0 * regimes - 1 + torch.randn(regimes.shape, generator=rng, dtype=torch.float64)


def observe(x: Tensor, emission: Any, initial: Any = None, matrix: Any = None, **more: Any) -> None:
    matrix = probs("matrix", ROWS) if matrix is None else matrix
    initial = probs("initial", ONES / 2) if initial is None else initial
    hmm = RegimeHMM(
        initial_probs=initial, transition_probs=matrix, observation_dist=emission, **more
    )
    with pyro.plate("sequences", len(x)) if x.dim() > 1 else nullcontext():
        pyro.sample("x", hmm, obs=x)


def location(x: Tensor) -> None:
    """Beside a scale in closed form."""
    observe(x, dist.Normal(2 * real("loc", LOC).tanh(), positive("scale", ONES)))


def degrees(x: Tensor) -> None:
    """With gaps, and statistics at new values of an argument: one more pass."""
    df = 2 + positive("excess", 3 * ONES).square()
    emission = dist.StudentT(df, real("loc", LOC), positive("scale", ONES))
    observe(x.masked_fill(x > 2.5, torch.nan), emission, missing="marginalise")


def chain(x: Tensor) -> None:
    """Both distributions of the chain."""
    stays = real("stays", ONES / 3).tanh().square()
    rows = torch.stack([stays, 1 - stays], -1)
    matrix = torch.stack([rows[0], rows[1].flip(-1)])
    initial = real("before", LOC).tanh().softmax(-1)
    observe(x, dist.Normal(real("loc", LOC), positive("scale", ONES)), initial, matrix)


def stationary(x: Tensor) -> None:
    leaves = 0.5 * real("leaves", LOC).sin().square() + 0.01
    matrix = torch.stack([1 - leaves, leaves], -1)
    matrix = torch.stack([matrix[0], matrix[1].flip(-1)])
    emission = dist.Normal(real("loc", LOC), positive("scale", ONES))
    observe(x, emission, stationary_probs(matrix), matrix)


def all_moved(x: Tensor) -> None:
    """A distribution of which no family knows anything."""
    spread = dist.SoftLaplace(real("loc", LOC), positive("scale", ONES))
    observe(x, spread, ONES / 2, ROWS)


def with_prior(x: Tensor) -> None:
    """A prior that is conjugate to nothing, beside one that is."""
    rows = pyro.sample("rows", dist.Dirichlet(1 + torch.eye(2).double()).to_event(1))
    loc = pyro.sample("loc", dist.Laplace(torch.zeros(2).double(), 0.1).to_event(1))
    observe(x, dist.Normal(loc, positive("scale", ONES)), matrix=rows)


MODELS: dict[str, Model] = {
    each.__name__: each
    for each in (location, degrees, chain, stationary, all_moved, with_prior)
}


def fit(model: Model, *args: Any, **settings: Any) -> tuple[Any, dict[str, Tensor], EM]:
    """The result and the parameters of a fit from scratch."""
    pyro.clear_param_store()
    guide = None
    if model is with_prior:
        start = {"rows": ROWS, "loc": LOC}
        guide = AutoDelta(model, init_loc_fn=lambda site: start[site["name"]].clone())
    em = EM(model, guide, pyro.optim.Adam({"lr": 0.05}))
    result = em.run(*args, **{"num_steps": 5, "tol": None} | settings)
    values = {name: each.detach().clone() for name, each in pyro.get_param_store().items()}
    return result, values, em


def assert_same(one: tuple[Any, dict[str, Tensor], EM], other: tuple[Any, dict, EM]) -> None:
    np.testing.assert_allclose(one[0].history, other[0].history, rtol=1e-10)
    assert one[0].history[-1] < one[0].history[0]
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        assert_close(value, other[1][name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_pieces_of_one_sequence(name):
    model, x, cut = MODELS[name], series(), [70, 1, 29, 10, 90]
    whole, found = fit(model, x), fit(model, Chunks(x.split(cut), continues=True))
    assert whole[2].plan.gradient and found[2].plan.gradient == whole[2].plan.gradient
    assert_same(found, whole)
    assert "pieces of one sequence" in found[2].plan.engine


@pytest.mark.parametrize("name", MODELS)
def test_whole_sequences(name):
    model, x = MODELS[name], series(7)
    assert_same(fit(model, Chunks(x.split([1, 4, 2]), continues=False)), fit(model, x))


def test_the_gradient_is_that_of_the_log_likelihood():
    """One step of gradient descent, with autograd's gradient of the whole sequence as oracle."""
    x, loc = series(), LOC.clone().requires_grad_()
    hmm = RegimeHMM(
        initial_probs=ONES / 2,
        transition_probs=ROWS,
        observation_dist=dist.Normal(2 * loc.tanh(), ONES),
    )
    (gradient,) = torch.autograd.grad(hmm.log_prob(x), loc)

    def model(x: Tensor) -> None:
        observe(x, dist.Normal(2 * real("loc", LOC).tanh(), ONES), ONES / 2, ROWS)

    pyro.clear_param_store()
    EM(model, None, pyro.optim.SGD({"lr": 1e-3})).run(
        Chunks(x.split([70, 1, 129]), continues=True), num_steps=1, tol=None
    )
    assert_close(pyro.param("loc").detach(), LOC + 1e-3 * gradient, rtol=1e-12, atol=0.0)


def test_covariates_of_every_row():
    """A location that is not affine in parameters, of chunks with covariates: all moved."""

    def model(x: Tensor, z: Tensor) -> None:
        loc = real("loc", LOC) * (real("slope", ONES / 2) * z.unsqueeze(-1)).tanh()
        scale = positive("size", ONES) + 0.1 * z.square().unsqueeze(-1)
        observe(x, dist.Normal(loc, scale))

    z = torch.randn(T, generator=seeds.generator(22), dtype=torch.float64)
    cut = [90, 1, 109]
    chunks = Chunks(list(zip(series().split(cut), z.split(cut))), continues=True)
    found, whole = fit(model, chunks), fit(model, series(), z)
    assert set(whole[2].plan.gradient) == {"loc", "slope", "size"}
    assert_same(found, whole)


def test_covariates_beside_a_closed_form_are_refused():
    def model(x: Tensor, z: Tensor) -> None:
        loc = real("loc", LOC) * (real("slope", ONES / 2) * z.mean()).tanh()
        observe(x, dist.Normal(loc, positive("scale", ONES)))

    z = torch.randn(T, generator=seeds.generator(22), dtype=torch.float64)
    chunks = Chunks(list(zip(series().split(50), z.split(50))), continues=True)
    with pytest.raises(ValueError, match="expected x.loc to be the same in every chunk, as EM set"):
        fit(model, chunks)


def test_it_converges_as_in_memory():
    x, settings = series(), {"num_steps": 300, "tol": 1e-3}
    whole = fit(location, x, **settings)
    found = fit(location, Chunks(x.split(60), continues=True), **settings)
    assert whole[0].converged and found[0].converged
    assert_same(found, whole)


def test_a_closed_form_that_fails_is_left_to_the_optimiser():
    """A maximiser outside its constraint, in the midst of a run in closed forms."""

    def model(x: Tensor) -> None:
        bound = constraints.interval(-5.0, 0.2)
        loc = pyro.param("loc", LOC.clamp(max=0.0), constraint=bound)
        observe(x, dist.Normal(loc, positive("scale", ONES)))

    x = series()
    found, whole = fit(model, Chunks(x.split(60), continues=True)), fit(model, x)
    assert list(found[2].plan.gradient) == ["loc"]
    assert found[0].num_steps == 5
    assert_same(found, whole)


def test_acceleration_is_refused():
    with pytest.raises(ValueError, match="expected acceleration=None"):
        fit(location, Chunks([series()], continues=True), acceleration="squarem")


def test_an_error_keeps_the_last_step():
    reads = []
    x = series()

    def read():
        for number, piece in enumerate(x.split(100)):
            reads.append(number)
            if len(reads) == 14:
                raise OSError("the disk is gone")
            yield piece

    pyro.clear_param_store()
    em = EM(location, None, pyro.optim.Adam({"lr": 0.05}))
    losses = []
    with pytest.raises(OSError, match="the disk is gone"):
        em.run(Chunks(read, continues=True), callback=lambda number, loss: losses.append(loss))
    assert losses
    assert_close(em.evaluate_loss(x), losses[-1], rtol=1e-10, atol=0.0)


def test_packed_sequences_begin_one_after_the_other():
    """The gradient of an initial distribution is of the first rows of all of them."""

    def padded(x: Tensor) -> None:
        moved(x.reshape(8, -1))

    def packed(x: Tensor) -> None:
        moved(x, packed_lengths=torch.full((8,), T // 8))

    def moved(x: Tensor, **more: Any) -> None:
        initial = real("before", LOC).tanh().softmax(-1)
        observe(x, dist.Normal(real("loc", LOC), positive("scale", ONES)), initial, **more)

    x = series()
    assert_same(fit(packed, x), fit(padded, x))
