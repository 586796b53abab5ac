"""Code shared by the benchmarks: taking turns, comparing results, tables, and the environment."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Key = TypeVar("Key")

PACKAGES = (
    "numpy",
    "torch",
    "numba",
    "pyro-ppl",
    "hmmlearn",
    "jax",
    "dynamax",
    "pomegranate",
    "statsmodels",
)


def take_turns(
    tasks: Mapping[Key, Callable[[], float]], repeats: int, seconds: float = 20.0
) -> dict[Key, list[float]]:
    """Run each task in turn, round after round, so that drift of the machine cancels.

    :param tasks: functions that return what they measured.
    :param seconds: a task that has used so many sits the later rounds out, after its second one.
    :return: what each task measured, round by round.
    """
    measured: dict[Key, list[float]] = {name: [] for name in tasks}
    used = dict.fromkeys(tasks, 0.0)
    for number in range(repeats):
        for name, task in tasks.items():
            if number < 2 or used[name] < seconds:
                start = time.perf_counter()
                measured[name].append(task())
                used[name] += time.perf_counter() - start
    return measured


def duration(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def relative_difference(value: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """The largest absolute difference over the largest expected value; NaN if either has one."""
    value, expected = np.asarray(value, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if value.shape != expected.shape:
        raise ValueError(f"expected shape {expected.shape}, got {value.shape}")
    return float(np.abs(value - expected).max() / np.abs(expected).max())


#: Linux's account of this process, and the file that resets its high-water mark.
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def can_measure_memory() -> bool:
    """Whether the system has what :func:`extra_bytes` reads."""
    return _CLEAR.exists()


def extra_bytes(function: Callable[[], object]) -> int:
    """Peak memory of a call beyond what the process holds before it."""
    _CLEAR.write_text("5")  # the high-water mark starts again from here
    before = _kilobytes("VmRSS")
    function()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"no {field} in {_STATUS}")


def device_milliseconds(
    function: Callable[[], object], device: torch.device, repeats: int
) -> float:
    """Median milliseconds of a call, after a first one that is not counted.

    By CUDA events on a CUDA device, by the clock on any other.
    """
    function()
    if device.type != "cuda":
        return 1e3 * statistics.median(duration(function) for _ in range(repeats))
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def chain_logits(
    num_sequences: int, num_steps: int, num_states: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of an E-step: a sticky chain, and observations that tell states apart a little.

    :return: initial ``(K,)``, transition ``(1, K, K)`` and observation logits ``(N, T, K)``.
    """
    generator = torch.Generator().manual_seed(0)
    transition = torch.log_softmax(3 * torch.eye(num_states, dtype=dtype), -1).unsqueeze(0)
    shape = (num_sequences, num_steps, num_states)
    observation = torch.randn(shape, generator=generator, dtype=dtype).mul_(2).sub_(2)
    return torch.zeros(num_states, dtype=dtype).log_softmax(-1), transition, observation


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their headings: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def fixed(value: float) -> str:
    """A number to three significant digits, never in powers of ten."""
    digits = max(0, 2 - int(np.floor(np.log10(value)))) if value > 0 else 2
    return f"{value:.{digits}f}"


def installed() -> dict[str, str]:
    """Versions of the packages that take part, and of Python; "absent" where one is not there."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def processor() -> str:
    """The processor's model, as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def surroundings() -> str:
    """When and where this ran, and with what."""
    versions = ", ".join(f"{name} {version}" for name, version in installed().items())
    return (
        f"{versions}\n{processor()}, {torch.get_num_threads()} threads of torch, "
        f"{datetime.date.today().isoformat()}"
    )


#: Seconds of rest before a benchmark, in which the work of others is counted.
_REST = 2.0


def load() -> str:
    """How many cores others keep busy, with a warning if they do; to be asked before measuring.

    With other work on a core, libraries that use several threads take many times as long as alone,
    each to its own extent, so that ratios are wrong too.
    """
    busy = _busy_cores()
    if busy is None:
        return "load unknown"
    warning = "; BUSY: quote no time or ratio of this run" if busy > 0.5 else ""
    return f"{busy:.1f} of {os.cpu_count()} cores busy with other work{warning}"


def _busy_cores() -> float | None:
    """The mean number of cores in use while this process rests; None where it is not known."""
    before = _ticks()
    time.sleep(_REST)
    after = _ticks()
    if before is None or after is None:
        return None
    spent = [later - earlier for earlier, later in zip(before, after, strict=True)]
    idle = spent[3] + spent[4]  # idle, and waiting for a disk
    return (os.cpu_count() or 1) * (1 - idle / max(sum(spent), 1))


def _ticks() -> list[int] | None:
    """The clock ticks that all cores have spent in each state: proc(5), ``/proc/stat``."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    return [int(each) for each in stat.read_text().split("\n", 1)[0].split()[1:9]]


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Another number of torch's threads, for a while."""
    previous = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


def markdown(title: str, command: str, text: str) -> str:
    """A page of ``benchmarks/results``."""
    return f"# {title}\n\n`{command}`:\n\n```text\n{text}\n```\n"
