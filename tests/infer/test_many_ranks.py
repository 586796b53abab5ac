"""EM over 64 ranks, which are threads of one process that exchange their messages in memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import pyro
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, Chunks
from pyro_regimes.infer.em import em as em_module
from pyro_regimes.infer.em.ranks import Ranks
from tests import seeds
from tests.infer import ranks

SIZE = 64
NUM_STEPS = 4


class Board:
    """Where the ranks leave their messages."""

    def __init__(self) -> None:
        self.slots: list[Any] = [None] * SIZE
        self.barrier = threading.Barrier(SIZE)
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
        self.rank, self.size, self.group, self._board = rank, SIZE, None, board

    def _gather(self, buffer: Tensor) -> list[Tensor]:
        return [each.clone() for each in self._board.exchange(self.rank, buffer)]

    def objects(self, own: Any) -> list[Any]:
        return self._board.exchange(self.rank, own)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    found = Board()
    monkeypatch.setattr(em_module, "ranks_of", lambda group: found.own.__dict__.get("ranks"))
    return found


def run(name: str, x: Tensor | Chunks) -> tuple[list[float], dict[str, Tensor]]:
    """Some steps, and the parameters after them."""
    result = EM(ranks.CASES[name].model).run(x, num_steps=NUM_STEPS, tol=None)
    store = pyro.get_param_store().items()
    return result.history, {key: value.detach().clone() for key, value in store}


def run_on_all(
    board: Board, name: str, shard: Callable[[int], Tensor | Chunks]
) -> list[tuple[list[float], dict[str, Tensor]]]:
    """What each rank finds. They have one store, to which all write the same values."""
    pyro.clear_param_store()

    def work(rank: int) -> tuple[list[float], dict[str, Tensor]]:
        board.own.ranks = Thread(rank, board)
        try:
            return run(name, shard(rank))
        except BaseException:
            board.barrier.abort()
            raise

    with ThreadPoolExecutor(SIZE) as pool:
        return [each.result() for each in [pool.submit(work, rank) for rank in range(SIZE)]]


def compare(name: str, x: Tensor, found: list[tuple[list[float], dict[str, Tensor]]]) -> None:
    """What the ranks have found with what one process does."""
    pyro.clear_param_store()
    history, values = run(name, x)
    assert history[-1] < history[0] - 0.1
    for own, parameters in found:
        assert own == found[0][0]
        assert_close(own, history, rtol=1e-10, atol=0.0)
        for key, value in values.items():
            assert_close(parameters[key], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "poisson", "stationary"])
def test_shards_of_a_panel(name, board):
    """No sequences on every third rank, and one to six on the others."""
    counts = [0 if rank % 3 == 1 else 1 + rank % 6 for rank in range(SIZE)]
    x = ranks.data(name, seeds.seed(5), num_sequences=sum(counts))
    ends = torch.tensor(counts).cumsum(0).tolist()
    found = run_on_all(board, name, lambda rank: x[ends[rank] - counts[rank] : ends[rank]])
    assert board.num_gathers > NUM_STEPS
    compare(name, x, found)


@pytest.mark.parametrize("name", ["gaussian", "poisson", "stationary"])
def test_pieces_of_one_sequence(name, board):
    """330 rows in 64 pieces of 1 to 9 rows, too few to forget the state before them."""
    x = ranks.series(name, seeds.seed(6))
    ends = [round(x.shape[1] * (number / SIZE) ** 1.3) for number in range(SIZE + 1)]
    ends = [max(end, number) for number, end in enumerate(ends)]
    sizes = [end - begin for begin, end in zip(ends, ends[1:])]
    assert min(sizes) == 1 and sum(sizes) == x.shape[1]

    def shard(rank: int) -> Chunks:
        return Chunks([x[:, ends[rank] : ends[rank + 1]]], continues=True)

    compare(name, x, run_on_all(board, name, shard))
