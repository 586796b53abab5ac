"""What an EM iteration costs over ranks: counts of operations, and seconds fitted to measured ones.

A Gaussian model with full covariances, of N sequences of T rows and D columns, with K states, on R
ranks of n = N T / R rows each. One iteration of the compiled engine makes, on each rank,

    operations      n (6 K^2 + K (2 D^2 + 4 D + 14))
    memory traffic  8 n (2 D + 4 K) bytes: the rows twice, densities and gamma written and read
    serial rows     n of one sequence, where the kernels cannot take several sequences at once
    messages        1 all-gather, and 1 more for pieces of one sequence
    their bytes     8 (1 + 2 K + K^2 + K D + K D^2) from each rank, and 8 K^2 more for pieces

and its seconds are modelled as

    overhead + a operations + b traffic + c serial rows
        + messages (R - 1) latency + bytes (R - 1) / bandwidth

since gloo sends the parts of an all-gather around a ring in R - 1 rounds. Latency and bandwidth
come from all-gathers of several sizes, and the other four from iterations, each by least squares
of relative errors with coefficients of at least 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from benchmarks import measure
from benchmarks.measure import fixed

Array = npt.NDArray[np.float64]

CHUNK = 2**18  #: rows of a chunk in the extrapolations


#: Rows and ranks of the extrapolations, each with K = 3 and D = 1 and 10.
EXTRAPOLATED = [
    (10**9, 1), (10**9, 8), (10**9, 64), (10**12, 64), (10**12, 1_024), (10**12, 8_192),
]  # fmt: skip


class Size(NamedTuple):
    """A fit."""

    num_sequences: int
    num_steps: int
    num_states: int
    num_columns: int
    num_ranks: int = 1
    is_one_sequence: bool = False  #: of which every rank has consecutive rows

    @property
    def num_rows(self) -> float:
        """Of a rank."""
        return self.num_sequences * self.num_steps / self.num_ranks


class Cost(NamedTuple):
    """What one iteration takes on each rank."""

    operations: float
    traffic: float  #: bytes to and from memory
    serial_rows: float
    messages: int  #: all-gathers
    message_bytes: float  #: that a rank sends to each other one
    rounds: int  #: of an all-gather


def cost(size: Size) -> Cost:
    """The counts of one iteration."""
    n, k, d = size.num_rows, size.num_states, size.num_columns
    is_split = size.num_ranks > 1
    message = 8 * (1 + 2 * k + k**2 + k * d + k * d**2)
    extra = 8 * k**2 if size.is_one_sequence else 0
    return Cost(
        operations=n * (6 * k**2 + k * (2 * d**2 + 4 * d + 14)),
        traffic=8 * n * (2 * d + 4 * k),
        serial_rows=n * size.is_one_sequence,
        messages=(1 + size.is_one_sequence) * is_split,
        message_bytes=(message + extra) * is_split,
        rounds=size.num_ranks - 1,
    )


def memory(size: Size) -> float:
    """Bytes of the data of a rank in chunks: two of them, and densities and gamma of one."""
    n = min(CHUNK, size.num_rows)
    return 8 * n * 2 * (size.num_columns + size.num_states)


class Rates(NamedTuple):
    """Seconds of each kind of cost."""

    overhead: float  #: of an iteration
    operation: float
    traffic_byte: float
    serial_row: float
    latency: float  #: of one round
    message_byte: float

    def computing(self, of: Cost) -> float:
        """Seconds of an iteration without messages."""
        found = self.overhead + self.operation * of.operations + self.traffic_byte * of.traffic
        return found + self.serial_row * of.serial_rows

    def messaging(self, of: Cost) -> float:
        """Seconds of the messages of an iteration."""
        each = of.messages * self.latency + of.message_bytes * self.message_byte
        return of.rounds * each


def fit_messages(num_bytes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Latency and seconds a byte of one round, from all-gathers between two ranks."""
    terms = np.stack([np.ones(len(num_bytes)), np.asarray(num_bytes, np.float64)], 1)
    latency, byte = _relative_nnls(terms, np.asarray(seconds, np.float64))
    return float(latency), float(byte)


def fit(sizes: Sequence[Size], seconds: Sequence[float], message: tuple[float, float]) -> Rates:
    """The rates that explain the seconds of iterations best.

    :param message: from :func:`fit_messages`.
    """
    costs = [cost(size) for size in sizes]
    sent = np.array([Rates(0, 0, 0, 0, *message).messaging(each) for each in costs])
    target = np.asarray(seconds, np.float64)
    terms = np.array([[1.0, *each[:3]] for each in costs])
    # What messages take is subtracted; at least a tenth of the time remains.
    found = _relative_nnls(terms, np.maximum(target - sent, 0.1 * target))
    return Rates(*map(float, found), *message)


def _relative_nnls(terms: Array, target: Array) -> Array:
    scaled = terms / target[:, np.newaxis]
    units = np.linalg.norm(scaled, axis=0)  # counts differ by many orders of magnitude
    units[units == 0] = 1.0
    found: Array = nnls(scaled / units, np.ones(len(target)))[0] / units
    return found


class Landing(NamedTuple):
    """Where a fit of many rows lands."""

    seconds: float  #: of an iteration
    memory: float  #: bytes of a rank
    binds: str  #: "computing", "reading" or "messages"


def landing(size: Size, rates: Rates, read_bytes: float, process: float) -> Landing:
    """The extrapolation for one sequence that each rank reads in chunks in every iteration.

    Several ranks read it twice: first for the messages to the others.

    :param read_bytes: bytes that a rank reads in a second.
    :param process: bytes of a process without data.
    """
    of, passes = cost(size), 1 + (size.num_ranks > 1)
    parts = {
        "computing": rates.computing(of),
        "reading": passes * 8 * size.num_rows * size.num_columns / read_bytes,
        "messages": rates.messaging(of),
    }
    binds = max(parts, key=lambda name: parts[name])
    return Landing(sum(parts.values()), process + memory(size), binds)


def landing_table(rates: Rates, read_bytes: float, process: float) -> str:
    """Where many rows land.

    :param process: bytes of a process without data.
    """
    rows = []
    for num_columns in (1, 10):
        for num_rows, num_ranks in EXTRAPOLATED:
            size = Size(1, num_rows, 3, num_columns, num_ranks, is_one_sequence=True)
            found = landing(size, rates, read_bytes, process)
            cells = [f"{num_rows:.0e}", str(num_columns), str(num_ranks), fixed(found.seconds)]
            rows.append([*cells, f"{found.memory / 1e9:.1f}", found.binds])
    return measure.table(["rows", "D", "ranks", "s an iteration", "GB a rank", "binds"], rows)
