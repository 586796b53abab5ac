"""EM over one and two gloo ranks of one thread each, and what follows for many more rows.

Two processes form a group. Each workload is a Gaussian model with full covariances: a panel, of
which each rank has half of the sequences, or one sequence, of which each rank has half of the rows.
Before anything is timed, two steps of both ranks are compared with those of one process; if a
log-likelihood or a parameter differs by more than 1e-10, the workload has no time.

The time of an iteration is that of a run of 1 + n steps less that of a run of one step, over n,
which is larger for less data. Runs of one rank (the other one waits) and of two take turns, and
times are medians. The seconds of messages are those of ``all_gather`` on the first rank, which
include its waiting for the other one.

The cost model (:mod:`benchmarks.ranks_cost`) is fitted to these times, and says where more rows on
more ranks land. Its extrapolations assume that a rank reads --read bytes a second, and that
messages between machines take as long as between these two processes.

    python -m benchmarks.ranks [--repeats N] [--read BYTES] [--scale S] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torch.distributed
from pyro.distributions import constraints
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import duration, fixed, relative_difference
from benchmarks.ranks_cost import CHUNK, Rates, Size, cost, fit, fit_messages, landing_table
from pyro_regimes import EM, Chunks, EMResult, RegimeHMM

TOLERANCE = 1e-10
STAY = 50  # rows of each regime in turn
OPERATIONS, MOST_STEPS = 1e9, 500  # of a run that is timed, without those of --scale

#: N, T, K, D; and whether it is one sequence, split in time.
WORKLOADS = [
    Size(200, 5_000, 3, 1),
    Size(1_000, 100, 3, 1),
    Size(40, 2_500, 3, 10),
    Size(100, 2_000, 8, 1),
    Size(100, 1_000, 8, 5),
    Size(20, 100, 3, 1),
    Size(1, 1_000_000, 3, 1, is_one_sequence=True),
    Size(1, 100_000, 3, 10, is_one_sequence=True),
    Size(1, 100_000, 8, 2, is_one_sequence=True),
]

MESSAGE_BYTES = [64, 1_024, 16_384, 262_144, 4_194_304]


class Messages:
    """Counts the all-gathers within :func:`counted`."""

    def __init__(self) -> None:
        self.count, self.num_bytes, self.seconds = 0, 0, 0.0


@contextmanager
def counted() -> Iterator[Messages]:
    """Count and time the all-gathers of this process."""
    found, gather = Messages(), torch.distributed.all_gather

    def timed(parts: list[Tensor], own: Tensor, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = gather(parts, own, *args, **kwargs)
        found.seconds += time.perf_counter() - start
        found.count += 1
        found.num_bytes += own.numel() * own.element_size()
        return result

    torch.distributed.all_gather = timed
    try:
        yield found
    finally:
        torch.distributed.all_gather = gather


def data(size: Size) -> Tensor:
    """``(N, T, D)``, or ``(T, D)`` for one sequence, with regimes in turn."""
    shape = (size.num_sequences, size.num_steps, size.num_columns)
    turns = torch.arange(size.num_steps) // STAY + torch.arange(size.num_sequences).unsqueeze(-1)
    regimes = (turns % size.num_states).double().unsqueeze(-1)  # (N, T, 1)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * (0.5 + regimes) + regimes
    return x[0] if size.is_one_sequence else x


def model_of(size: Size) -> Callable[[Tensor], None]:
    """The model, from a start near the regimes."""
    k, d = size.num_states, size.num_columns
    matrix = (0.9 * torch.eye(k) + 0.1 / k).double()
    means = torch.arange(k).double().unsqueeze(-1).expand(k, d) + 0.3
    spreads = (0.6 + torch.arange(k).double())[:, None, None] ** 2 * torch.eye(d).double()

    def model(x: Tensor) -> None:
        simplex, positive = constraints.simplex, constraints.positive_definite
        hmm = RegimeHMM(
            initial_probs=pyro.param("initial", matrix[0], constraint=simplex),
            transition_probs=pyro.param("transition", matrix, constraint=simplex),
            observation_dist=dist.MultivariateNormal(
                pyro.param("loc", means), pyro.param("covariance", spreads, constraint=positive)
            ),
        )
        with nullcontext() if size.is_one_sequence else pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm, obs=x)

    return model


def shard(size: Size, x: Tensor, rank: int, num_ranks: int) -> Any:
    """The data of a rank."""
    own = x.tensor_split(num_ranks)[rank]
    return Chunks([own], continues=True) if size.is_one_sequence else own


def run(size: Size, own: Any, num_steps: int, group: Any = None) -> tuple[EMResult, list[Tensor]]:
    """Some steps from the same start: the result, and the parameters."""
    with pyro.get_param_store().scope():
        em = EM(model_of(size))
        result = em.run(own, num_steps=num_steps, tol=None, check=False, process_group=group)
        if result.num_steps < num_steps:
            raise RuntimeError(f"EM has stopped: {result.stop_reason}")
        return result, [value.detach().clone() for value in pyro.get_param_store().values()]


class Timed(NamedTuple):
    """What one workload takes."""

    difference: float  #: between one and two ranks, relative
    seconds: dict[int, float]  #: of an iteration, by the number of ranks
    messages: tuple[float, float, float]  #: number, bytes and seconds of an iteration's


def _iteration(size: Size, own: Any, num_steps: int, group: Any) -> tuple[float, Messages]:
    """Seconds and messages of one more iteration."""
    with counted() as before:
        one = duration(lambda: run(size, own, 1, group))
    with counted() as after:
        more = duration(lambda: run(size, own, 1 + num_steps, group))
    each = Messages()
    for name in vars(each):
        setattr(each, name, (getattr(after, name) - getattr(before, name)) / num_steps)
    return (more - one) / num_steps, each


def time_workload(
    size: Size, rank: int, alone: Any, repeats: int, num_steps: int, operations: float
) -> Timed:
    """One workload, on both ranks of the default group.

    :param alone: the group of the first rank.
    :param operations: of a run that is timed, if these take more than ``num_steps``.
    """
    x = data(size)
    num_ranks = torch.distributed.get_world_size()
    own, whole = shard(size, x, rank, num_ranks), shard(size, x, 0, 1)
    num_steps = max(num_steps, min(MOST_STEPS, int(operations / cost(size).operations)))
    two = run(size, own, 2)
    differs = 0.0
    if rank == 0:
        one = run(size, whole, 2, alone)
        pairs = [(two[0].history, one[0].history), *zip(two[1], one[1], strict=True)]
        differs = max(relative_difference(found, wanted) for found, wanted in pairs)
    torch.distributed.barrier()
    seconds: dict[int, list[float]] = {1: [], 2: []}
    sent = []
    for _ in range(repeats):
        if rank == 0:
            seconds[1].append(_iteration(size, whole, num_steps, alone)[0])
        torch.distributed.barrier()
        found, messages = _iteration(size, own, num_steps, None)
        seconds[2].append(found)
        sent.append((messages.count, messages.num_bytes, messages.seconds))
        torch.distributed.barrier()
    medians = {count: statistics.median(each) for count, each in seconds.items() if each}
    number, num_bytes, waited = (statistics.median(each) for each in zip(*sent, strict=True))
    return Timed(differs, medians, (number, num_bytes, waited))


def time_messages(num_bytes: int, repeats: int) -> float:
    """The median seconds of an all-gather between the ranks."""
    own = torch.zeros(num_bytes // 8, dtype=torch.float64)
    found = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    return statistics.median(
        duration(lambda: torch.distributed.all_gather(found, own)) for _ in range(repeats)
    )


def fit_lines(sizes: list[Size], timed: list[Timed], sent: list[float]) -> tuple[list[str], Rates]:
    """The fitted cost model, and how well it does."""
    known = [  # a busy machine may make the longer run the quicker one
        (size._replace(num_ranks=count), seconds)
        for size, each in zip(sizes, timed, strict=True)
        if each.difference < TOLERANCE
        for count, seconds in each.seconds.items()
        if seconds > 0
    ]
    rates = fit(*map(list, zip(*known, strict=True)), fit_messages(MESSAGE_BYTES, sent))
    ratios = []
    for size, seconds in known:
        of = cost(size)
        ratios.append((rates.computing(of) + rates.messaging(of)) / seconds)
    per = {name: value for name, value in zip(rates._fields, rates, strict=True)}
    lines = ["cost model: " + ", ".join(f"{name} {value:.2g} s" for name, value in per.items())]
    low, high = min(ratios), max(ratios)
    return lines + [f"modelled over measured iterations: {low:.2f} to {high:.2f}"], rates


def table(sizes: list[Size], timed: list[Timed]) -> str:
    """Milliseconds of an iteration."""
    rows = []
    for size, each in zip(sizes, timed, strict=True):
        kind = "one sequence" if size.is_one_sequence else f"{size.num_sequences:,} sequences"
        cells = [kind, f"{size.num_steps:,}", str(size.num_states), str(size.num_columns)]
        cells.append(f"{each.difference:.0e}")
        if each.difference < TOLERANCE:
            one, two = (1e3 * each.seconds[count] for count in (1, 2))
            number, num_bytes, waited = each.messages
            cells += [fixed(one), fixed(two), f"{one / two:.2f}"]
            cells += [f"{number:.0f}", f"{num_bytes:.0f}", fixed(1e3 * waited)]
        rows.append(cells + ["-"] * (11 - len(cells)))
    header = ["data", "T", "K", "D", "differs", "1 rank ms", "2 ranks ms", "ratio", "messages",
              "bytes", "messages ms"]  # fmt: skip
    return measure.table(header, rows)


def report(rank: int, given: argparse.Namespace) -> list[str]:
    """All lines, on both ranks of the default group."""
    repeats, num_steps, read = given.repeats, given.steps, given.read
    sizes = [
        each._replace(num_steps=max(4, int(given.scale * each.num_steps))) for each in WORKLOADS
    ]
    alone = torch.distributed.new_group([0])
    for size in (Size(4, 100, 3, 2), Size(1, 20_000, 3, 2, is_one_sequence=True)):
        run(size, shard(size, data(size), rank, torch.distributed.get_world_size()), 2)  # compiles
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    operations = given.scale * OPERATIONS
    timed = [time_workload(each, rank, alone, repeats, num_steps, operations) for each in sizes]
    sent = [time_messages(each, 20 * repeats) for each in MESSAGE_BYTES]
    if rank != 0:
        return []
    fitted, rates = fit_lines(sizes, timed, sent)
    micros = ", ".join(f"{each} bytes {1e6 * at:.0f}" for each, at in zip(MESSAGE_BYTES, sent))
    return [
        table(sizes, timed), "", f"microseconds of an all-gather: {micros}", *fitted, "",
        f"extrapolated, one sequence, K=3, full covariances, chunks of {CHUNK:,} rows, "
        f"processes of {process / 1e6:.0f} MB, which read {read:.2g} bytes a second:",
        landing_table(rates, read, process),
    ]  # fmt: skip


def _work(rank: int, given: argparse.Namespace) -> None:
    """One rank."""
    torch.set_num_threads(1)
    if rank == 0:
        lines = [measure.load(), ""]
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = report(rank, given)
    torch.distributed.barrier()
    gc.collect()  # groups in cycles would be freed while the process ends, which may abort it
    torch.distributed.destroy_process_group()
    if rank != 0:
        return
    text = "\n".join([*lines, *found, "", measure.surroundings()])
    print(text)
    if given.markdown is not None:
        command = f"python -m benchmarks.ranks --repeats {given.repeats}"
        given.markdown.write_text(measure.markdown("EM over ranks", command, text))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--read", type=float, default=1e9)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of rows")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is not None:
        _work(given.rank, given)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "benchmarks.ranks", *sys.argv[1:], "--rank"]
    workers = [subprocess.Popen([*command, rank], env=environment) for rank in "01"]
    sys.exit(max(abs(worker.wait()) for worker in workers))


if __name__ == "__main__":
    main()
