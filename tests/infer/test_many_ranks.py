"""EM over up to 64 ranks: threads of one process that exchange their messages in memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, Callable, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, Chunks, RegimeHMM
from pyro_regimes.infer.em import em as em_module
from pyro_regimes.infer.em.engines import chunk_kernel
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.kernels import ops
from tests import seeds
from tests.infer import ranks
from tests.marks import slow

SIZE = 64
NUM_STEPS = 4


class Board:
    """Where the ranks leave their messages."""

    def __init__(self, size: int) -> None:
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)
        self.own = threading.local()
        self.num_gathers = 0

    def exchange(self, rank: int, message: Any) -> list[Any]:
        self.slots[rank] = message
        self.barrier.wait(60)
        found = list(self.slots)
        if self.barrier.wait(60) == 0:
            self.num_gathers += 1
        return found


class Thread(Ranks):
    """One rank."""

    def __init__(self, rank: int, board: Board) -> None:
        self.rank, self.size, self.group, self._board = rank, len(board.slots), None, board

    def _gather(self, buffer: Tensor) -> list[Tensor]:
        return [each.clone() for each in self._board.exchange(self.rank, buffer)]

    def objects(self, own: Any) -> list[Any]:
        return self._board.exchange(self.rank, own)


@pytest.fixture
def board(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Board:
    found = Board(getattr(request, "param", SIZE))
    monkeypatch.setattr(em_module, "ranks_of", lambda group: found.own.__dict__.get("ranks"))
    return found


Model = Callable[[Any], None]


class Found(NamedTuple):
    history: list[float]
    values: dict[str, Tensor]
    engine: str


def run(model: Model, x: Tensor | Chunks, acceleration: str | None = None) -> Found:
    """Some steps, and the parameters after them."""
    em = EM(model)
    result = em.run(x, num_steps=NUM_STEPS, tol=None, acceleration=acceleration)
    values = {key: value.detach().clone() for key, value in pyro.get_param_store().items()}
    return Found(result.history, values, em.plan.engine)


def run_on_all(
    board: Board, model: Model, shard: Callable[[int], Tensor | Chunks], **settings: Any
) -> list[Found]:
    """What each rank finds. They have one store, to which all write the same values."""
    pyro.clear_param_store()

    def work(rank: int) -> Found:
        board.own.ranks = Thread(rank, board)
        try:
            return run(model, shard(rank), **settings)
        except BaseException:
            board.barrier.abort()
            raise

    size = len(board.slots)
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(work, rank) for rank in range(size)]
    errors = [each.exception() for each in futures]
    for error in errors:
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [each.result() for each in futures]


def compare(model: Model, x: Tensor, found: list[Found], **settings: Any) -> None:
    """What the ranks have found with what one process does."""
    pyro.clear_param_store()
    wanted = run(model, x, **settings)
    assert wanted.history[-1] < wanted.history[0] - 0.1
    for each in found:
        assert (each.history, each.engine) == (found[0].history, found[0].engine)
        assert_close(each.history, wanted.history, rtol=1e-10, atol=0.0)
        for key, value in wanted.values.items():
            assert_close(each.values[key], value, rtol=1e-10, atol=1e-12)


ENGINES = {
    "gaussian": "compiled iterations of a Gaussian model, added up over 64 ranks",
    "poisson": "compiled iterations of a model of Poisson observations, added up over 64 ranks",
    "stationary": "compiled iterations of a Gaussian model, added up over 64 ranks",
    "regression": "tensor operations on one sequence, of which each of 64 ranks has one piece, as "
    "distributions vary in time",
}


@pytest.mark.parametrize("name", ["gaussian", "poisson", *slow("stationary")])
def test_shards_of_a_panel(name, board):
    """No sequences on every third rank, and one to six on the others."""
    counts = [0 if rank % 3 == 1 else 1 + rank % 6 for rank in range(SIZE)]
    x = ranks.data(name, seeds.seed(5), num_sequences=sum(counts))
    ends = torch.tensor(counts).cumsum(0).tolist()
    model = ranks.CASES[name].model
    found = run_on_all(board, model, lambda rank: x[ends[rank] - counts[rank] : ends[rank]])
    assert board.num_gathers > NUM_STEPS
    assert found[0].engine == ENGINES[name]
    compare(model, x, found)


@pytest.mark.parametrize("board", [3], indirect=True)
@pytest.mark.parametrize("acceleration", [None, "squarem"])
def test_a_step_that_is_not_ordinary(board, acceleration):
    """A restart that has a state without data goes on in tensor operations, on all ranks."""
    start = torch.stack([ranks.LOC, torch.tensor([0.0, 1e5])])[:, None, None].double()

    def model(x: Tensor) -> None:
        loc, scale = ranks.real("loc", start), ranks.positive("scale", torch.ones_like(start))
        matrix = ranks.probs("matrix", ranks.MATRIX.expand(2, 1, 1, 2, 2))
        initial = ranks.probs("initial", ranks.START.expand(2, 1, 2))
        with pyro.plate("restarts", 2, dim=-2):
            ranks.observe(x, dist.Normal(loc, scale), initial, matrix)

    x = ranks.data("converged", seeds.seed(8))
    parts = [x[:4], x[4:], x[:0]]
    settings = {"acceleration": acceleration}
    found = run_on_all(board, model, lambda rank: parts[rank], **settings)
    assert "added up over 3 ranks" in found[0].engine
    assert "(restarts: 1), and tensor operations (restarts: 1)" in found[0].engine
    compare(model, x, found, **settings)


def partly_masked(x: Tensor) -> None:
    """Of three sequences the second one does not count."""
    mask = torch.ones(len(x), dtype=torch.bool)
    if len(x) == 3:
        mask[1] = False
    with pyro.poutine.mask(mask=mask):
        ranks.normal(x)


@pytest.mark.parametrize("board", [2], indirect=True)
def test_one_engine_on_all_ranks(board):
    """Where that of one rank does not serve its data, all use tensor operations."""
    x = ranks.data("converged", seeds.seed(9))
    found = run_on_all(board, partly_masked, lambda rank: x[:3] if rank else x[3:])
    assert found[0].engine == (
        "tensor operations, added up over 2 ranks; not the compiled one, as on rank 1 "
        "observations are weighted or masked"
    )


@pytest.mark.parametrize("board", [2], indirect=True)
def test_one_engine_for_the_chunks_of_all_ranks(board):
    """Likewise if a later chunk of one rank is not served."""
    x = ranks.data("converged", seeds.seed(9))
    parts = [[x[:2], x[2:6]], [x[6:8], x[8:]]]
    found = run_on_all(board, partly_masked, lambda rank: Chunks(parts[rank], continues=False))
    assert found[0].engine.startswith("tensor operations on chunks of whole sequences, added up")
    assert found[0].engine.endswith("as on rank 1 observations are weighted or masked")
    pyro.clear_param_store()
    wanted = run(partly_masked, Chunks(parts[0] + parts[1], continues=False))
    assert_close(found[0].history, wanted.history, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("board", [2], indirect=True)
def test_chunks_that_change_between_passes(board):
    """The other rank would go on with the compiled engine."""
    x = ranks.data("converged", seeds.seed(9))
    passes = []

    def read() -> list[Tensor]:
        passes.append(None)
        return [x[6:10], x[10:]] if len(passes) < 5 else [x[6:8], x[8:]]

    def shard(rank: int) -> Chunks:
        return Chunks(read if rank else [x[:6]], continues=False)

    with pytest.raises(ValueError, match="the same chunks in every pass, got one of which"):
        run_on_all(board, partly_masked, shard)


@pytest.mark.parametrize("board", [2], indirect=True)
def test_data_of_different_dtypes(board):
    """Rounding may decide whether a step is ordinary, and has to decide alike."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", ranks.LOC.float())
        scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
        with pyro.plate("sequences", len(x)):
            hmm = RegimeHMM(
                initial_probs=ranks.START.float(),
                transition_probs=ranks.MATRIX.float(),
                observation_dist=dist.Normal(loc, scale),
            )
            pyro.sample("x", hmm, obs=x)

    x = ranks.data("converged", seeds.seed(9))
    found = run_on_all(board, model, lambda rank: x[:3].float() if rank else x[3:])
    assert found[0].engine.endswith("as the data of the ranks are of different dtypes")


@pytest.mark.parametrize("name", ["gaussian", "poisson", *slow("stationary", "regression")])
def test_pieces_of_one_sequence(name, board):
    """330 rows in 64 pieces of 1 to 9 rows, too few to forget the state before them."""
    x = ranks.series(name, seeds.seed(6))
    ends = [round(x.shape[1] * (number / SIZE) ** 1.3) for number in range(SIZE + 1)]
    ends = [max(end, number) for number, end in enumerate(ends)]
    sizes = [end - begin for begin, end in zip(ends, ends[1:])]
    assert min(sizes) == 1 and sum(sizes) == x.shape[1]

    def shard(rank: int) -> Chunks:
        return Chunks([x[:, ends[rank] : ends[rank + 1]]], continues=True)

    model = ranks.CASES[name].model
    found = run_on_all(board, model, shard)
    assert found[0].engine.startswith(ENGINES[name].split(",")[0])
    assert "added up over 64 ranks" in found[0].engine or name == "regression"
    compare(model, x, found)


@pytest.mark.parametrize("board", [3], indirect=True)
def test_the_ends_of_long_pieces(board, monkeypatch):
    """Of pieces that forget, the densities of the first and last rows decide the messages."""
    monkeypatch.setattr(chunk_kernel, "_HEAD", 100)
    found = []

    def note(*given: Any) -> Tensor | None:
        found.append(ops.outline_of_ends(*given))
        assert given[2].shape[-2] == given[3].shape[-2] == 100
        return found[-1]

    noting = SimpleNamespace(**(vars(ops) | {"outline_of_ends": note}))
    monkeypatch.setattr(chunk_kernel, "ops", noting)
    x = ranks.data("converged", seeds.seed(10), num_sequences=40).flatten().unsqueeze(0)
    parts = x.split([500, 300, 400], 1)
    shards = [parts[0].split(250, 1), [parts[1]], parts[2].split(200, 1)]
    with_restarts = ranks.CASES["restarts"].model
    ran = run_on_all(board, with_restarts, lambda rank: Chunks(shards[rank], continues=True))
    assert "one pass for each E-step" in ran[0].engine and ran[0].engine.startswith("compiled")
    assert any(each is not None for each in found)
    compare(with_restarts, x, ran)


@pytest.mark.parametrize("board", [8], indirect=True)
def test_covariates(board):
    """Counts and transitions that depend on a covariate of each sequence: Newton's steps."""
    x = ranks.data("predicted", seeds.seed(7), num_sequences=20)
    parts = x.tensor_split(8)
    compare(ranks.predicted, x, run_on_all(board, ranks.predicted, lambda rank: parts[rank]))


@pytest.mark.parametrize("board", [12], indirect=True)
def test_covariates_of_no_sequences_are_refused(board):
    x = ranks.data("predicted", seeds.seed(7))
    with pytest.raises(ValueError, match="sequences on every rank where arguments of site 'x'"):
        run_on_all(board, ranks.predicted, lambda rank: x[rank : rank + 1])


@pytest.mark.parametrize("board", [3], indirect=True)
def test_outcomes_that_a_covariate_separates(board):
    """A coefficient without a maximum is named, and ends where it does in one process."""
    z = torch.linspace(0.1, 1.0, 10, dtype=torch.float64).repeat(3, 1)
    z[:, ::2] *= -1
    y = (z > 0).double()

    def model(x: Tensor) -> None:
        eta = ranks.real("slope", torch.ones(1)) * x[..., 1, None]
        one = torch.ones(1, 1, dtype=torch.float64)
        with pyro.plate("sequences", len(x)):
            hmm = RegimeHMM(
                initial_probs=one[0],
                transition_probs=one,
                observation_dist=dist.Bernoulli(logits=eta),
            )
            pyro.sample("x", hmm, obs=x[..., 0])

    x = torch.stack([y, z], -1)
    with pytest.warns(RuntimeWarning, match="'slope' has no maximum"):
        found = run_on_all(board, model, lambda rank: x[rank : rank + 1])
        compare(model, x, found)
