"""EM on a series in chunks beside the same series in memory, and the online filter.

One series of three Gaussian regimes is generated chunk by chunk, from a seed of each chunk, so that
no part of it is stored. EM makes one exact iteration on all rows: the E-step at the start, the
M-step, and the E-step at the new parameters, which are two passes over the data. Its rate is rows
per second and pass, with and without the time of generating them. Peak memory is that of the whole
process, Python and torch included.

A shorter part of the same series is then fitted in memory and in chunks. If their log-likelihoods
differ by more than 1e-10 of them, there is no ratio. A ratio is the rate in chunks, without
generating them, over that in memory.

The online filter gets rows one by one, and in blocks.

    python -m benchmarks.stream [--rows T] [--chunk ROWS] [--memory-rows T] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import resource
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import duration
from pyro_regimes import EM, Chunks, EMResult, OnlineFilter, RegimeHMM, RegimeModel

Array = npt.NDArray[np.float64]

K = 3
STAY = 300  # rows of each regime in turn
SPREADS = np.array([0.5, 1.0, 3.0])


def generate(num_rows: int, rows: int) -> Iterator[Array]:
    """The series in chunks, the same at every call."""
    for begin in range(0, num_rows, rows):
        count = min(rows, num_rows - begin)
        regimes = (begin + np.arange(count)) // STAY % K
        draws = np.random.Generator(np.random.SFC64(begin)).standard_normal(count)
        draws *= SPREADS[regimes]
        yield draws


def model(x: Tensor) -> None:
    """Three regimes with their own mean and standard deviation."""
    simplex, positive = constraints.simplex, constraints.positive
    hmm = RegimeHMM(
        initial_probs=pyro.param("initial", torch.full((K,), 1 / K).double(), constraint=simplex),
        transition_probs=pyro.param(
            "transition", (torch.eye(K) * 0.85 + 0.05).double(), constraint=simplex
        ),
        observation_dist=dist.Normal(
            pyro.param("loc", torch.tensor([0.0, 0.5, -0.5]).double()),
            pyro.param("scale", torch.tensor([0.4, 1.2, 2.5]).double(), constraint=positive),
        ),
    )
    pyro.sample("x", hmm, obs=x)


def run(data: Any, num_steps: int) -> EMResult:
    """EM from the same start."""
    with pyro.get_param_store().scope():
        return EM(model).run(data, num_steps=num_steps, tol=None)


def seconds_of_step(data: Any, num_steps: int) -> float:
    """Seconds of one more iteration."""
    one = min(duration(lambda: run(data, 1)) for _ in range(2))
    return (duration(lambda: run(data, 1 + num_steps)) - one) / num_steps


def rate(num_rows: int, seconds: float) -> str:
    """Rows a second, for a line."""
    return f"{num_rows / seconds:.3g} rows a second"


def stream_lines(num_rows: int, rows: int) -> list[str]:
    """One exact iteration on all rows."""
    chunks = Chunks(partial(generate, num_rows, rows), continues=True)
    alone = duration(lambda: [None for _ in chunks])
    found: list[EMResult] = []
    whole = duration(lambda: found.append(run(chunks, 1))) / 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before, after = (-loss for loss in found[0].history)
    without = num_rows / max(whole - alone, 1e-9)
    return [
        f"{'rows':<36}{num_rows:,} in chunks of {rows:,}",
        f"{'log-likelihood before and after':<36}{before:.3f} {after:.3f}",
        f"{'a pass of EM, with generating':<36}{whole:.2f} s, {rate(num_rows, whole)}",
        f"{'generating alone':<36}{alone:.2f} s, {rate(num_rows, alone)}",
        f"{'a pass of EM, without generating':<36}{without:.3g} rows a second",
        f"{'peak memory of the process':<36}{peak / 1e6:.0f} MB",
    ]


def memory_lines(num_rows: int, rows: int, num_steps: int) -> list[str]:
    """The same in memory, and in chunks that are there already."""
    parts = list(generate(num_rows, rows))
    x = torch.from_numpy(np.concatenate(parts))
    chunks = Chunks(parts, continues=True)
    one, other = run(x, 2).history[-1], run(chunks, 2).history[-1]
    differs = abs(one - other) / abs(one)
    lines = [f"{'rows in memory':<36}{num_rows:,}; log-likelihoods differ by {differs:.0e}"]
    if not differs < 1e-10:
        return lines
    tasks = {
        "an iteration in memory": partial(seconds_of_step, x, num_steps),
        "an iteration in chunks": partial(seconds_of_step, chunks, num_steps),
    }
    measured = measure.take_turns(tasks, 3)
    seconds = {name: statistics.median(each) for name, each in measured.items()}
    lines += [f"{name:<36}{rate(num_rows, each)}" for name, each in seconds.items()]
    whole, pieces = seconds.values()
    return lines + [f"{'ratio':<36}{whole / pieces:.2f}"]


def filter_lines(num_rows: int) -> list[str]:
    """Rows a second of the online filter."""
    x = next(generate(20_000, 20_000))[:, np.newaxis]
    fitted = RegimeModel(K, n_init=1, max_iter=20, tol=None, random_state=0).fit(x)
    block = np.resize(x, (num_rows, 1))
    single = x[: max(2, num_rows // 500)]

    def in_turn() -> None:
        online = OnlineFilter(fitted)
        for row in single:
            online.update(row)

    OnlineFilter(fitted).update(block[:2])
    tasks: dict[str, tuple[int, Callable[[], object]]] = {
        "block": (num_rows, lambda: OnlineFilter(fitted).update(block)),
        "row by row": (len(single), in_turn),
    }
    return [
        f"{f'online filter, {name}':<36}{rate(count, min(duration(task) for _ in range(3)))}"
        for name, (count, task) in tasks.items()
    ]


def report(num_rows: int, rows: int, memory_rows: int, num_steps: int) -> list[str]:
    """All lines."""
    run(Chunks(partial(generate, 2 * rows, rows), continues=True), 1)  # compiles the kernels
    lines = stream_lines(num_rows, rows)
    lines += memory_lines(memory_rows, rows, num_steps)
    return lines + filter_lines(memory_rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--chunk", type=int, default=2**18)
    parser.add_argument("--memory-rows", type=int, default=4_000_000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [measure.load(), ""]
    lines += report(given.rows, given.chunk, given.memory_rows, given.steps)
    text = "\n".join([*lines, "", measure.surroundings()])
    print(text)
    if given.markdown is not None:
        command = f"python -m benchmarks.stream --rows {given.rows}"
        given.markdown.write_text(measure.markdown("Series in chunks", command, text))


if __name__ == "__main__":
    main()
