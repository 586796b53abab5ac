"""EM over up to 64 ranks, which are threads of one process that exchange their messages in memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, Chunks, RegimeHMM
from pyro_regimes.infer.em import em as em_module
from pyro_regimes.infer.em.ranks import Ranks
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
Found = tuple[list[float], dict[str, Tensor]]


def run(model: Model, x: Tensor | Chunks) -> Found:
    """Some steps, and the parameters after them."""
    result = EM(model).run(x, num_steps=NUM_STEPS, tol=None)
    store = pyro.get_param_store().items()
    return result.history, {key: value.detach().clone() for key, value in store}


def run_on_all(
    board: Board, model: Model, shard: Callable[[int], Tensor | Chunks]
) -> list[Found]:
    """What each rank finds. They have one store, to which all write the same values."""
    pyro.clear_param_store()

    def work(rank: int) -> Found:
        board.own.ranks = Thread(rank, board)
        try:
            return run(model, shard(rank))
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


def compare(model: Model, x: Tensor, found: list[Found]) -> None:
    """What the ranks have found with what one process does."""
    pyro.clear_param_store()
    history, values = run(model, x)
    assert history[-1] < history[0] - 0.1
    for own, parameters in found:
        assert own == found[0][0]
        assert_close(own, history, rtol=1e-10, atol=0.0)
        for key, value in values.items():
            assert_close(parameters[key], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "poisson", *slow("stationary")])
def test_shards_of_a_panel(name, board):
    """No sequences on every third rank, and one to six on the others."""
    counts = [0 if rank % 3 == 1 else 1 + rank % 6 for rank in range(SIZE)]
    x = ranks.data(name, seeds.seed(5), num_sequences=sum(counts))
    ends = torch.tensor(counts).cumsum(0).tolist()
    model = ranks.CASES[name].model
    found = run_on_all(board, model, lambda rank: x[ends[rank] - counts[rank] : ends[rank]])
    assert board.num_gathers > NUM_STEPS
    compare(model, x, found)


@pytest.mark.parametrize("name", ["gaussian", "poisson", *slow("stationary")])
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
    compare(model, x, run_on_all(board, model, shard))


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
