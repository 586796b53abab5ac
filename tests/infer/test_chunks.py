"""EM on data in chunks is EM on all data at once."""

from __future__ import annotations

import math
from contextlib import ExitStack
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
from pyro_regimes.infer.em.engines.chunk_reader import ChunkReader
from tests import seeds

T = 240
Model = Callable[..., None]


def series(*shape: int, seed: int = 0) -> Tensor:
    """Calm and wild in turn, along the first dim."""
    draws = torch.randn(shape, generator=seeds.generator(seed), dtype=torch.float64)
    wild = (torch.arange(shape[0]) // 25 % 2).double().reshape((-1,) + (1,) * (len(shape) - 1))
    return (1.0 + 1.5 * wild) * draws + 1.2 * wild


def heavy(num_steps: int) -> Tensor:
    """The same with tails that determine degrees of freedom, whatever the seed of the suite."""
    normal = torch.randn((num_steps, 5), generator=seeds.fixed(4), dtype=torch.float64)
    draws = normal[:, 0] / (normal[:, 1:].square().sum(-1) / 3).sqrt()
    wild = (torch.arange(num_steps) // 25 % 2).double()
    return (1.0 + 1.5 * wild) * draws + 1.2 * wild


def counts(*shape: int) -> Tensor:
    rates = torch.where(torch.arange(shape[0]) // 25 % 2 == 1, 6.0, 2.0)
    return torch.poisson(rates.expand(shape), generator=seeds.generator(1)).double()


def chain() -> dict[str, Tensor]:
    start = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)
    initial = torch.tensor([0.6, 0.4], dtype=torch.float64)
    return {
        "initial_probs": pyro.param("initial", initial, constraint=constraints.simplex),
        "transition_probs": pyro.param("transition", start, constraint=constraints.simplex),
    }


def scale(*shape: int) -> Tensor:
    start = (torch.ones(shape) + torch.arange(2.0).reshape((2,) + (1,) * (len(shape) - 1))).double()
    return pyro.param("scale", start, constraint=constraints.positive)


def loc(*shape: int) -> Tensor:
    start = torch.arange(2.0).reshape((2,) + (1,) * (len(shape) - 1)).expand(shape)
    return pyro.param("loc", start.double().clone())


def observe(x: Tensor, **arguments: Any) -> None:
    """Observe sequences, each batch dim within a plate."""
    hmm = RegimeHMM(**arguments)
    shape = torch.broadcast_shapes(hmm.batch_shape, x.shape[: x.dim() - hmm.event_dim])
    with ExitStack() as plates:
        for dim in range(-len(shape), 0):
            plates.enter_context(pyro.plate(f"plate{dim}", shape[dim], dim=dim))
        pyro.sample("x", hmm, obs=x)


def gaussian(x: Tensor) -> None:
    observe(x, **chain(), observation_dist=dist.Normal(loc(2), scale(2)))


def gaps(x: Tensor) -> None:
    observe(
        x,
        **chain(),
        observation_dist=dist.Normal(loc(2, 2), scale(2, 2)).to_event(1),
        missing="marginalise",
    )


def vectors(x: Tensor) -> None:
    start = (1.5 * torch.eye(2).double()).expand(2, 2, 2)
    covariance = pyro.param("covariance", start, constraint=constraints.positive_definite)
    observe(
        x,
        **chain(),
        observation_dist=dist.MultivariateNormal(loc(2, 2), covariance),
        missing="marginalise",
    )


def student_t(x: Tensor) -> None:
    df = pyro.param("df", torch.tensor([5.0, 9.0]).double(), constraint=constraints.positive)
    observe(x, **chain(), observation_dist=dist.StudentT(df, loc(2), scale(2)))


def poisson(x: Tensor) -> None:
    start = torch.tensor([1.0, 4.0]).double()
    rate = pyro.param("rate", start, constraint=constraints.positive)
    observe(x, **chain(), observation_dist=dist.Poisson(rate))


def gamma(x: Tensor) -> None:
    positive = constraints.positive
    shape = pyro.param("shape", torch.tensor([2.0, 5.0]).double(), constraint=positive)
    rate = pyro.param("rate", torch.tensor([1.0, 2.0]).double(), constraint=positive)
    observe(x, **chain(), observation_dist=dist.Gamma(shape, rate))


def mixture(x: Tensor) -> None:
    weights = torch.tensor([[0.6, 0.4], [0.5, 0.5]]).double()
    probs = pyro.param("weights", weights, constraint=constraints.simplex)
    start = torch.tensor([[-0.5, 0.5], [0.0, 2.0]]).double()
    spread = torch.tensor([[0.7, 1.2], [2.0, 1.5]]).double()
    components = dist.Normal(
        pyro.param("loc", start), pyro.param("scale", spread, constraint=constraints.positive)
    )
    base = dist.MixtureSameFamily(dist.Categorical(probs), components)
    observe(x, **chain(), observation_dist=base)


def stationary(x: Tensor) -> None:
    transition = chain()["transition_probs"]
    observe(
        x,
        initial_probs=stationary_probs(transition),
        transition_probs=transition,
        observation_dist=dist.Normal(loc(2), scale(2)),
    )


def tied(x: Tensor) -> None:
    """One standard deviation for both states."""
    observe(x, **chain(), observation_dist=dist.Normal(loc(2), scale(2)[:1]))


def with_gaps(x: Tensor) -> Tensor:
    missing = torch.rand(x.shape, generator=seeds.generator(2)) < 0.2
    missing[7] = missing[100] = True
    return torch.where(missing, torch.nan, x)


CASES: dict[str, tuple[Model, Tensor]] = {
    "gaussian": (gaussian, series(T)),
    "student_t": (student_t, heavy(T)),
    "poisson": (poisson, counts(T)),
    "gamma": (gamma, series(T).abs() + 0.1),
    "mixture": (mixture, series(T)),
    "vectors with gaps": (vectors, with_gaps(series(T, 2))),
    "columns with gaps": (gaps, with_gaps(series(T, 2))),
    "stationary start": (stationary, series(T)),
    "tied": (tied, series(T)),
}


def fit(model: Model, *args: Any, guide: Any = None, **settings: Any) -> tuple[Any, dict, EM]:
    """The result and the parameters of a fit from scratch."""
    pyro.clear_param_store()
    em = EM(model, guide)
    result = em.run(*args, **{"num_steps": 12, "tol": None} | settings)
    return result, {name: value.detach() for name, value in pyro.get_param_store().items()}, em


def assert_same(one: tuple[Any, dict, EM], other: tuple[Any, dict, EM]) -> None:
    """Traces and parameters agree to 1e-10."""
    np.testing.assert_allclose(one[0].history, other[0].history, rtol=1e-10)
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        assert_close(value, other[1][name], rtol=1e-10, atol=1e-12, msg=name)


CUTS = {
    "uneven": [100, 1, 39, 100],
    "two": [120, 120],
    "all": [T],
    "tens": [10] * (T // 10),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", CASES)
def test_pieces_of_one_sequence(name, cut):
    model, x = CASES[name]
    pieces = Chunks(x.split(CUTS[cut]), continues=True)
    assert_same(fit(model, pieces), fit(model, x))


@pytest.mark.parametrize("name", ["gaussian", "vectors with gaps"])
def test_pieces_of_one_row(name):
    model, x = CASES[name]
    x = x[:30]
    pieces = Chunks(x.split(1), continues=True)
    assert_same(fit(model, pieces, num_steps=4), fit(model, x, num_steps=4))


@pytest.mark.parametrize("cut", [[4, 4], [1, 6, 1], [8]], ids=str)
@pytest.mark.parametrize("name", ["gaussian", "student_t", "poisson", "gamma", "mixture"])
def test_whole_sequences(name, cut):
    model, x = CASES[name]
    x = x.reshape(8, -1)
    assert_same(fit(model, Chunks(x.split(cut), continues=False)), fit(model, x))


def test_whole_sequences_of_different_lengths():
    def padded(x: Tensor, lengths: Tensor) -> None:
        observe(
            x,
            **chain(), observation_dist=dist.Normal(loc(2), scale(2)), lengths=lengths
        )

    x = series(T).reshape(8, -1)
    lengths = torch.tensor([30, 1, 17, 30, 5, 9, 28, 2])
    parts = list(zip(x.split(3), lengths.split(3)))
    assert_same(
        fit(padded, Chunks(parts, continues=False)), fit(padded, x, lengths)
    )


def test_a_panel_in_pieces():
    """Sequences that are cut at the same times, with a parameter of each."""

    def panel(x: Tensor) -> None:
        start = torch.tensor([0.0, 1.0]).double().expand(3, 1, 2)
        each = pyro.param("means", start)
        observe(x, **chain(), observation_dist=dist.Normal(each, scale(2)))

    x = torch.stack([series(T, seed=seed) for seed in range(3)])
    pieces = Chunks(x.split([50, 60, 130], -1), continues=True)
    assert_same(fit(panel, pieces), fit(panel, x))


def restarts(x: Tensor) -> None:
    """Three starts in one batch."""
    shape = (3, 1, 2)
    simplex = constraints.simplex
    draws = torch.randn(shape, generator=seeds.generator(3), dtype=torch.float64)
    rows = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).double().expand(3, 1, 2, 2)
    observe(
        x,
        initial_probs=pyro.param("initial", torch.full((3, 2), 0.5).double(), constraint=simplex),
        transition_probs=pyro.param("transition", rows, constraint=simplex),
        observation_dist=dist.Normal(
            pyro.param("loc", draws),
            pyro.param("scale", torch.ones(shape).double(), constraint=constraints.positive),
        ),
    )


def test_restarts_as_a_batch():
    x = series(T)
    pieces = Chunks(x.split([100, 140]), continues=True)
    settings = {"num_steps": 200, "tol": 1e-3}
    ours, whole = fit(restarts, pieces, **settings), fit(restarts, x, **settings)
    assert_same(ours, whole)
    assert_close(ours[0].restart_history, whole[0].restart_history, rtol=1e-10, atol=0.0)
    assert ours[0].converged_at == whole[0].converged_at


def test_restarts_of_whole_sequences():
    def many(x: Tensor) -> None:
        shape = (3, 1, 1, 2)
        simplex = constraints.simplex
        draws = torch.randn(shape, generator=seeds.generator(3), dtype=torch.float64)
        rows = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).double().expand(3, 1, 1, 2, 2)
        initial = torch.full((3, 1, 2), 0.5).double()
        observe(
            x,
            initial_probs=pyro.param("initial", initial, constraint=simplex),
            transition_probs=pyro.param("transition", rows, constraint=simplex),
            observation_dist=dist.Normal(
                pyro.param("loc", draws),
                pyro.param("scale", torch.ones(shape).double(), constraint=constraints.positive),
            ),
        )

    x = series(T).reshape(8, -1)
    ours = fit(many, Chunks(x.split([3, 5]), continues=False))
    whole = fit(many, x)
    assert_same(ours, whole)
    assert ours[0].restart_history.shape == (13, 3)


def with_priors(x: Tensor) -> None:
    concentration = torch.tensor([[8.0, 2.0], [2.0, 8.0]]).double()
    rows = pyro.sample("transition", dist.Dirichlet(concentration).to_event(1))
    spread = pyro.sample("scale", dist.InverseGamma(torch.ones(2).double(), 1.0).to_event(1))
    observe(
        x,
        initial_probs=torch.tensor([0.5, 0.5]).double(),
        transition_probs=rows,
        observation_dist=dist.Normal(loc(2), spread.sqrt()),
    )


@pytest.mark.parametrize("continues", [True, False])
def test_priors_count_once(continues):
    x = series(T)
    given = x if continues else x.reshape(4, -1)
    chunks = Chunks(given.split(100 if continues else 1), continues=continues)
    values = {
        "transition": torch.tensor([[0.8, 0.2], [0.3, 0.7]]).double(),
        "scale": torch.tensor([1.0, 4.0]).double(),
    }

    def guide() -> AutoDelta:
        return AutoDelta(with_priors, init_loc_fn=lambda site: values[site["name"]])

    assert_same(
        fit(with_priors, chunks, guide=guide()), fit(with_priors, given, guide=guide())
    )


@pytest.mark.parametrize("name", ["gaussian", "student_t", "poisson"])
def test_the_same_optimum(name):
    """With a tolerance and extrapolated steps, and confirmed by the model's own gradient."""
    model, x = CASES[name]
    settings = {"num_steps": 500, "tol": 1e-9}
    pieces = Chunks(x.split([90, 150]), continues=True)
    ours, whole = fit(model, pieces, **settings), fit(model, x, **settings)
    assert ours[0].converged and whole[0].converged
    # The solve for degrees of freedom ends at its own tolerance (measured 6e-8).
    loose = {"df": ours[1].pop("df"), "expected": whole[1].pop("df")} if "df" in ours[1] else {}
    assert_same(ours, whole)
    if loose:
        assert_close(loose["df"], loose["expected"], rtol=1e-6, atol=0.0)
    faster = fit(model, pieces, **settings, acceleration="squarem")
    assert faster[0].converged and faster[0].num_steps <= ours[0].num_steps
    assert faster[0].history[-1] == pytest.approx(ours[0].history[-1], abs=1e-6)


def test_chains_that_do_not_forget_take_two_passes():
    """Left to right: no piece says by itself what its rows mean for those before."""

    def ladder(x: Tensor) -> None:
        start = torch.tensor([[0.9, 0.1], [0.0, 1.0]]).double()
        rows = pyro.param("transition", start, constraint=constraints.simplex)
        observe(
            x,
            initial_probs=torch.tensor([1.0, 0.0]).double(),
            transition_probs=rows,
            observation_dist=dist.Normal(loc(2), scale(2)),
        )

    x = series(120)
    pieces = Chunks(x.split([40, 50, 30]), continues=True)
    ours = fit(ladder, pieces)
    assert_same(ours, fit(ladder, x))
    assert "two passes" in ours[2].plan.engine


def test_mixing_chains_take_one_pass(monkeypatch):
    passes = []
    read = ChunkReader.read

    def counted(self: ChunkReader, *args: Any) -> Any:
        passes.append(1)
        return read(self, *args)

    monkeypatch.setattr(ChunkReader, "read", counted)
    x = series(8000)
    engines = {gaussian: "compiled", stationary: "compiled", mixture: "tensor operations"}
    for model, engine in engines.items():
        passes.clear()
        result, _, em = fit(model, Chunks(x.split(2000), continues=True), num_steps=3)
        assert em.plan.engine.startswith(engine) and "one pass" in em.plan.engine
        assert len(passes) == result.num_e_steps


def test_arrays_tuples_and_empty_chunks():
    x = series(T)
    expected = fit(gaussian, x)
    arrays = [part.numpy() for part in x.split([100, 140])]
    arrays.insert(1, np.empty(0))
    for each in arrays:
        each.setflags(write=False)
    assert_same(fit(gaussian, Chunks(arrays, continues=True)), expected)
    tuples = Chunks(lambda: ((part,) for part in x.split(60)), continues=True)
    assert_same(fit(gaussian, tuples), expected)


def test_arrays_that_torch_does_not_share():
    """Arrays that run backwards, or in another byte order, are copied."""
    x = series(T).numpy()
    expected = fit(gaussian, torch.tensor(x))
    backwards = [x[:100], x[100:][::-1].copy()[::-1]]
    assert_same(fit(gaussian, Chunks(backwards, continues=True)), expected)
    swapped = [part.astype(">f8") for part in backwards]
    assert_same(fit(gaussian, Chunks(swapped, continues=True)), expected)


def test_a_tuple_of_an_empty_array_counts_for_nothing():
    x = series(T)
    chunks = Chunks([(x[:0],), (x,)], continues=True)
    assert_same(fit(gaussian, chunks), fit(gaussian, x))


def test_masked_values_are_refused():
    x = np.ma.masked_greater(series(T).numpy(), 1.0)
    with pytest.raises(ValueError, match="expected chunks without masked values.*filled"):
        fit(gaussian, Chunks([x], continues=True))


def test_a_first_step_that_is_not_ordinary():
    """Of sequences of one row, which have no transitions, tensor operations make the steps."""
    x = series(40).reshape(-1, 1)
    chunks = Chunks(x.split(7), continues=False)
    assert_same(fit(gaussian, chunks), fit(gaussian, x))


def test_rows_that_come_and_go_are_refused():
    x, number = series(T), iter(range(100))

    def shrinking() -> list[Tensor]:
        return [x[: 100 - next(number)], x[100:]]

    for continues in (True, False):
        with pytest.raises(ValueError, match="same chunks in every pass.* values.*read again"):
            fit(gaussian, Chunks(shrinking, continues=continues))


def test_a_callback_sees_the_parameters():
    x, seen = series(T), []
    pieces = Chunks(x.split(100), continues=True)

    def callback(number: int, loss: float) -> None:
        values = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
        seen.append((number, loss, values))

    result, params, _ = fit(gaussian, pieces, callback=callback)
    assert [number for number, *_ in seen] == list(range(1, 13))
    assert [loss for _, loss, _ in seen] == result.history[1:]
    for name, value in params.items():
        assert_close(value, seen[-1][2][name], rtol=0.0, atol=0.0)


def test_an_error_in_the_data_keeps_the_last_step():
    x, passes = series(T), []

    def source():
        passes.append(0)
        yield x[:100]
        if len(passes) > 4:
            raise OSError("the disk is gone")
        yield x[100:]

    pyro.clear_param_store()
    seen: list[dict[str, Tensor]] = []

    def callback(number: int, loss: float) -> None:
        seen.append({name: value.detach().clone() for name, value in store.items()})

    store = pyro.get_param_store()
    with pytest.raises(OSError, match="the disk is gone"):
        EM(gaussian).run(Chunks(source, continues=True), callback=callback, tol=None)
    assert seen
    for name, value in store.items():
        assert_close(value.detach(), seen[-1][name], rtol=0.0, atol=0.0)


# ---- what is refused ---------------------------------------------------------------------------


def test_what_can_be_read_once_is_refused():
    x = series(T)
    with pytest.raises(ValueError, match="generator .*can be read once; pass the function"):
        Chunks((part for part in x.split(10)), continues=True)
    with pytest.raises(ValueError, match="list_iterator.*can be read once"):
        Chunks(iter([x]), continues=True)
    once = iter(x.split(100))
    with pytest.raises(ValueError, match="the same chunks in every pass|at least one row"):
        fit(gaussian, Chunks(lambda: once, continues=True))


def test_wrong_chunks():
    for wrong in (None, 1, "yes"):
        with pytest.raises(ValueError, match="expected continues to be True"):
            Chunks([series(T)], continues=wrong)
    for source in (3, np.zeros(3), "data.parquet"):
        with pytest.raises(ValueError, match="expected source to be an iterable of chunks"):
            Chunks(source, continues=True)
    with pytest.raises(ValueError, match="function source to return an iterator"):
        fit(gaussian, Chunks(lambda: 3, continues=True))
    with pytest.raises(ValueError, match="at least one row, got none"):
        fit(gaussian, Chunks([], continues=True))
    with pytest.raises(ValueError, match="EM.run alone takes"):
        EM(gaussian).step(Chunks([series(T)], continues=True))


@pytest.mark.parametrize("continues", [True, False])
def test_affine_locations(continues):
    """Parameters that are solved for together, with a prior, from sums over the chunks."""

    def affine(x: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(torch.tensor(0.0).double(), 2.0))
        slope = pyro.param("slope", torch.tensor(1.0).double())
        base = dist.Normal(level + slope * torch.tensor([0.0, 1.0]).double(), scale(2))
        observe(x, **chain(), observation_dist=base)

    def guide() -> AutoDelta:
        return AutoDelta(affine, init_loc_fn=lambda site: torch.tensor(0.2).double())

    x = series(T) if continues else series(T).reshape(8, -1)
    chunks = Chunks(x.split([x.shape[0] - 3, 1, 2]), continues=continues)
    assert_same(fit(affine, chunks, guide=guide()), fit(affine, x, guide=guide()))


def regression(x: Tensor, z: Tensor) -> None:
    """Locations that depend on a covariate of every row."""
    slope = pyro.param("slope", torch.tensor([0.1, 0.3]).double())
    base = dist.Normal(loc(2) + slope * z.unsqueeze(-1), scale(2))
    observe(x, **chain(), observation_dist=base)


def test_covariates_of_every_row_in_one_chunk():
    """And in several, which is refused."""
    x, z = series(T), series(T, seed=5)
    found = fit(regression, Chunks([(x, z)], continues=True))
    assert_same(found, fit(regression, x, z))
    assert "distributions vary in time" in found[2].plan.engine
    for continues in (True, False):
        chunks = Chunks(list(zip(x.split(80), z.split(80))), continues=continues)
        with pytest.raises(ValueError, match="observation_dist constant in time .* several chunks"):
            fit(regression, chunks)


def test_subsampled_data_are_refused():
    def sampled(x: Tensor) -> None:
        with pyro.plate("n", len(x), subsample_size=2) as index:
            hmm = RegimeHMM(**chain(), observation_dist=dist.Normal(loc(2), scale(2)))
            pyro.sample("x", hmm, obs=x[index])

    x = series(T).reshape(8, -1)
    with pytest.raises(ValueError, match="data are subsampled"):
        fit(sampled, Chunks(x.split(4), continues=False))


def test_pieces_with_lengths_are_refused():
    def packed(x: Tensor) -> None:
        base = dist.Normal(loc(2), scale(2))
        lengths = torch.tensor([len(x) - 5, 5])
        observe(x, **chain(), observation_dist=base, packed_lengths=lengths)

    x = series(T)
    with pytest.raises(ValueError, match="expected no packed_lengths .* continues=False"):
        fit(packed, Chunks(x.split(80), continues=True))
    assert math.isfinite(fit(packed, Chunks(x.split(80), continues=False))[0].history[-1])


def test_constants_that_differ_are_refused():
    def scaled(x: Tensor) -> None:
        base = dist.Normal(loc(2), x.abs().mean())
        observe(x, **chain(), observation_dist=base.expand([2]))

    with pytest.raises(ValueError, match=r"expected x.scale to be the same in every chunk"):
        fit(scaled, Chunks(series(T).split(80), continues=True))
