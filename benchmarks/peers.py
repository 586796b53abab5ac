"""EM, hmmlearn, dynamax and pomegranate, and log_prob with DiscreteHMM, in one process.

Every library gets the same data, simulated from a fixed seed by a sticky Gaussian chain with full
covariances, and the same start. First their results are compared with ours in float64: the
log-likelihood at the start, and log-likelihood and parameters after five iterations. If they differ
by more than the tolerance, the table says so instead of giving a time and a ratio.

The time of an EM iteration is that of a run of n + 1 iterations minus that of a run of one, divided
by n. n is such that the run takes half a second, but at least 2 and at most 50. This excludes
one-time work: tracing and planning in this package, compilation in dynamax, validation in hmmlearn.
A second table has complete fits of 50 iterations, including all of that except compilation, after a
warm-up fit; and the time until our first iteration, also in units of gradients of the same model by
SVI. A third table has fits by this package (with its check of convergence) and by hmmlearn that
stop if an iteration raises the log-likelihood by less than 1e-4, or after 100 iterations.
The same three tables follow for other families; there each library stops as it does by default.
A last one has fits of counts and symbols from random starts, which all stop by the rule above, or
after 1,000 iterations.
Runs of all libraries take turns. Before each timed fit the same library makes one iteration, as
the threads and the data of the library before it slow down whatever comes next. Times are medians,
and a ratio is the peer's median over ours.

For log_prob each side uses one thread of torch or all, whichever is faster. On a busy machine,
threads wait for each other much longer than they compute, and ratios are meaningless. The first
line warns of this.

    python -m benchmarks.peers [--workload NAME ...] [--repeats N] [--dtype float64|float32|both]
        [--threads N] [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from benchmarks import measure, peer_log_prob
from benchmarks.measure import duration, fixed, relative_difference, take_turns
from benchmarks.peer_em import MOST_STEPS, TOL, Dynamax, Fit, Hmmlearn, Library, Ours, Pomegranate
from benchmarks.peer_families import (
    FAMILY_WORKLOADS,
    FamilyProblem,
    OurFamily,
    family_peers,
    from_random_start,
    make_family_problem,
)
from benchmarks.peer_growth import Growth, extra_arrays, growths
from benchmarks.peer_workloads import WORKLOADS, Problem, make_problem

Factory = Callable[[Any, str], Library]
Key = TypeVar("Key")

NUM_COMPARED = 5  # iterations after which parameters are compared
MOST_ITERATIONS = 400  # of the longer of the two runs whose difference is taken, less one
LONG_ENOUGH = 0.5  # seconds of that difference: what a run does once takes longer than a few steps
LONGEST_FIT = 15.0  # seconds; a library that takes longer has no whole fit in the tables
WHOLE_FIT = 50  # iterations of the fit that is timed with all that it does once
RANDOM_STARTS, MOST_RANDOM = 3, 1000  # for each family; iterations of a fit from one of them
MEMORY_STEPS, MEMORY_STATES = 1_000_000, 4

PEERS: dict[str, dict[str, Factory]] = {
    "float64": {
        "hmmlearn": partial(Hmmlearn, implementation="log"),  # its default
        "hmmlearn scaling": partial(Hmmlearn, implementation="scaling"),
        "dynamax": Dynamax,
        "pomegranate": Pomegranate,
    },
    "float32": {"dynamax": Dynamax, "pomegranate": Pomegranate},
}


class Agreement(NamedTuple):
    """Relative differences from our float64 answer, or bounds on them."""

    start: float  #: of the log-likelihood at the start
    after: float  #: of the log-likelihood after five iterations
    parameters: float  #: of the parameters then, each relative to its largest entry

    def within(self, bounds: Agreement) -> bool:
        """Whether none exceeds its bound; NaN does."""
        return all(value <= bound for value, bound in zip(self, bounds, strict=True))

    def __str__(self) -> str:
        return f"start {self.start:.1e}, after {self.after:.1e}, parameters {self.parameters:.1e}"


# Of float32, what rounding leaves over the 200,000 steps of "long": dynamax is 1.0e-5, 7.6e-6 and
# 2.1e-5 away there, ours 2e-9, 5e-8 and 6e-7.
EM_TOLERANCE = {
    "float64": Agreement(1e-9, 1e-9, 1e-8),
    "float32": Agreement(3e-5, 3e-5, 1e-4),
}
# Of values and gradients. DiscreteHMM's float32 gradients are 3e-3 away on "daily" already.
LOG_PROB_TOLERANCE = {"float64": 1e-9, "float32": 1e-2}


@dataclass
class Cell:
    """What came of one peer."""

    milliseconds: float | None = None
    ratio: float | None = None  #: to ours
    note: str = ""  #: which of several forms this is, or why there is no ratio
    whole_fit: float | None = None  #: milliseconds of a fit of 50 iterations
    whole_ratio: float | None = None
    until_level: float | None = None  #: milliseconds of a fit that stops by itself
    steps: int | None = None  #: the iterations of that


@dataclass
class Row:
    """Ours and its peers on one workload."""

    workload: str
    sizes: str
    dtype: str
    milliseconds: float | None  #: ours; None where it differs from float64, or stopped early
    whole_fit: float | None = None  #: milliseconds of a fit of 50 iterations
    ready: float | None = None  #: milliseconds until the first of them
    ready_in_gradients: float | None = None  #: the same, in gradients by SVI
    until_level: float | None = None  #: milliseconds of a fit that stops by itself
    steps: int | None = None  #: the iterations of that
    peers: dict[str, Cell] = field(default_factory=dict)


def em_row(
    problem: Problem | FamilyProblem,
    dtype: str,
    peers: Mapping[str, Factory],
    repeats: int,
    say: Callable[[str], None] = print,
    ours: Factory = Ours,
) -> Row:
    """Check the peers on one workload, then time ours and those that agree.

    :param say: called with each line about what agreed.
    """
    workload = problem.workload
    say(f"{workload.name} ({workload}) {dtype}")
    expected = _answer(ours(problem, "float64"))
    libraries: dict[str, Library] = {}
    cells: dict[str, Cell] = {}
    for name, make in {"ours": ours, **peers}.items():
        cells[name] = Cell()
        try:
            library = make(problem, dtype)
        except ImportError as error:
            cells[name].note = "absent"
            say(f"  {name}: not installed ({error.name})")
            continue
        agreement = _agreement(_answer(library), expected)
        if agreement.within(EM_TOLERANCE[dtype]):
            libraries[name] = library
        else:
            cells[name].note = "differs"
        compiled = getattr(library, "first_call", None)
        compiling = "" if compiled is None else f"; first call {compiled:.1f} s, not counted"
        say(f"  {name}: {cells[name].note or 'agrees'}: {agreement}{compiling}")
    row = Row(workload.name, str(workload), dtype, None, peers=cells)
    del cells["ours"]
    if "ours" in libraries:
        try:
            _time_row(row, libraries, repeats, say)
        except RuntimeError as error:
            say(f"  ours: {error}; nothing measured")
    return row


def _time_row(
    row: Row, libraries: Mapping[str, Library], repeats: int, say: Callable[[str], None]
) -> None:
    """Fill in the times of ours and of the libraries that agree."""
    tasks = {name: _iteration(library) for name, library in libraries.items()}
    milliseconds = _medians(take_turns(tasks, repeats))
    row.milliseconds = own = milliseconds.pop("ours")
    for name, value in milliseconds.items():
        row.peers[name].milliseconds, row.peers[name].ratio = value, value / own
    times = {"ours": own, **milliseconds}
    say("  ms: " + ", ".join(f"{name} {fixed(value)}" for name, value in times.items()))
    quick = {name: each for name, each in libraries.items() if _is_quick(times[name], WHOLE_FIT)}
    whole = _medians(
        take_turns({name: partial(_whole_fit, each) for name, each in quick.items()}, repeats)
    )
    row.whole_fit = own = whole.pop("ours")
    for name, value in whole.items():
        row.peers[name].whole_fit, row.peers[name].whole_ratio = value, value / own
    _time_start(row, libraries["ours"], repeats)
    quick = {name: each for name, each in libraries.items() if _is_quick(times[name], MOST_STEPS)}
    _time_stopping(row, quick, repeats, say)


def _time_stopping(
    row: Row,
    libraries: Mapping[str, Library],
    repeats: int,
    say: Callable[[str], None],
    **settings: Any,
) -> None:
    """Fill in the times of fits that stop by themselves, where a peer has them.

    :param settings: of all libraries; by default each has its own.
    """
    stopping: dict[str, Any] = {
        name: each for name, each in libraries.items() if hasattr(each, "converge")
    }
    tasks = {name: partial(each.converge, **settings) for name, each in stopping.items()}
    if len(tasks) < 2:
        return
    stopped = {name: task() for name, task in tasks.items()}
    ends = (f"{name} {each.score():.4f} ({each.num_steps})" for name, each in stopped.items())
    say("  ends at (iterations): " + ", ".join(ends))
    timed = {
        name: partial(_warm_duration, libraries[name], task) for name, task in tasks.items()
    }
    until_level = _medians(take_turns(timed, repeats))
    row.until_level, row.steps = until_level.pop("ours"), stopped["ours"].num_steps
    for name, value in until_level.items():
        row.peers[name].until_level, row.peers[name].steps = value, stopped[name].num_steps


def random_start_row(
    problem: FamilyProblem, seed: int, repeats: int, say: Callable[[str], None] = print
) -> Row:
    """Time fits from a random start that all stop by the same rule; their ends are printed."""
    workload = problem.workload
    start = from_random_start(problem, seed)
    peers = {
        name: make for name, make in family_peers(workload.name).items() if "hmmlearn" in name
    }
    row = Row(f"{workload.name}, start {seed}", str(workload), "float64", None)
    row.peers = {name: Cell() for name in peers}
    say(row.workload)
    libraries = {"ours": OurFamily(start, "float64")}
    try:
        libraries |= {name: make(start, "float64") for name, make in peers.items()}
    except ImportError as error:
        say(f"  not installed: {error.name}")
    for each in libraries.values():
        each.fit(1)
    _time_stopping(row, libraries, repeats, say, num_steps=MOST_RANDOM, tol=TOL)
    return row


def _is_quick(milliseconds: float, iterations: int) -> bool:
    """Whether so many iterations take less than the time for which a fit is waited for."""
    return milliseconds * iterations < 1e3 * LONGEST_FIT


def _whole_fit(library: Library) -> float:
    return _warm_duration(library, partial(library.fit, WHOLE_FIT))


def _warm_duration(library: Library, task: Callable[[], object]) -> float:
    """Seconds of a task, after an iteration that takes the first hit from other libraries."""
    library.fit(1)
    return duration(task)


def _time_start(row: Row, ours: Library, repeats: int) -> None:
    """Fill in the time until our first iteration."""
    assert isinstance(ours, Ours)
    tasks = {
        "ready": lambda: duration(lambda: ours.fit(0)),
        "gradient": lambda: duration(ours.gradient),
    }
    for task in tasks.values():
        task()
    times = _medians(take_turns(tasks, 3 * repeats))
    row.ready, row.ready_in_gradients = times["ready"], times["ready"] / times["gradient"]


def log_prob_row(
    problem: Problem, dtype: str, repeats: int, say: Callable[[str], None] = print
) -> Row:
    """The same of log_prob with gradient, beside the faster form of DiscreteHMM that agrees.

    :param say: called with the relative difference of ours from float64, and of each form.
    """
    workload = problem.workload
    say(f"{workload.name} ({workload}) {dtype}")
    functions: dict[str, peer_log_prob.LogProb] = {}
    forms = {"ours": (peer_log_prob.ours, peer_log_prob.ours), **peer_log_prob.FORMS}
    for form, (theirs, mine) in forms.items():
        difference = peer_log_prob.difference(theirs, mine, problem, dtype)
        agrees = difference <= LOG_PROB_TOLERANCE[dtype]
        if agrees:
            functions[form] = theirs
        say(f"  {form}: {'agrees' if agrees else 'differs'}: {difference:.1e}")
    cell = Cell(note="differs")
    row = Row(workload.name, str(workload), dtype, None, peers={"DiscreteHMM": cell})
    if "ours" in functions:
        best = _best_threads(problem, dtype, functions, repeats)
        row.milliseconds = own = best.pop("ours")
        if best:
            cell.note = form = min(best, key=best.__getitem__)
            cell.milliseconds, cell.ratio = best[form], best[form] / own
    return row


def _best_threads(
    problem: Problem, dtype: str, functions: Mapping[str, peer_log_prob.LogProb], repeats: int
) -> dict[str, float]:
    """Median milliseconds of each, with one of torch's threads or all: whichever is faster."""
    arguments = peer_log_prob.make_parameters(problem, dtype)

    def timed(function: peer_log_prob.LogProb, threads: int) -> float:
        with measure.torch_threads(threads):
            return duration(lambda: peer_log_prob.value_and_gradients(function, *arguments))

    threads = sorted({1, torch.get_num_threads()})
    tasks = {
        (name, number): partial(timed, function, number)
        for name, function in functions.items()
        for number in threads
    }
    medians = _medians(take_turns(tasks, repeats))
    return {name: min(medians[name, number] for number in threads) for name in functions}


class _Answer(NamedTuple):
    start: float
    after: float
    fit: Fit


def _answer(library: Library) -> _Answer:
    """Log-likelihoods at the start and after five iterations, and the parameters then."""
    log_likelihoods = library.fit(NUM_COMPARED + 1).log_likelihoods
    return _Answer(log_likelihoods[0], log_likelihoods[-1], library.fit(NUM_COMPARED))


def _agreement(answer: _Answer, expected: _Answer) -> Agreement:
    pairs = zip(answer.fit.parameters, expected.fit.parameters, strict=True)
    return Agreement(
        relative_difference(answer.start, expected.start),
        relative_difference(answer.after, expected.after),
        float(np.max([relative_difference(*pair) for pair in pairs])),  # keeps NaN
    )


def _iteration(library: Library) -> Callable[[], float]:
    """A task that measures the seconds of one EM iteration."""
    more = 2

    def difference() -> float:
        library.fit(1)  # takes the first hit after another library's threads
        one = duration(lambda: library.fit(1))
        return duration(lambda: library.fit(1 + more)) - one

    while more < MOST_ITERATIONS and difference() < LONG_ENOUGH:
        more = min(2 * more, MOST_ITERATIONS)
    return lambda: difference() / more


def _medians(seconds: Mapping[Key, Sequence[float]]) -> dict[Key, float]:
    """In milliseconds."""
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def table(rows: Sequence[Row], whole: bool = False) -> str:
    """Milliseconds and ratios, aligned.

    :param whole: of whole fits, not of one iteration.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.peers))
    header = ["workload", "dtype", "ours ms"] + ["ready after", "in gradients"] * whole
    for name in names:
        header += [f"{name} ms", "ratio"]
    lines = []
    for row in rows:
        line = [row.workload, row.dtype, _number(row.whole_fit if whole else row.milliseconds)]
        if whole:
            line += [_number(row.ready), _number(row.ready_in_gradients)]
        for name in names:
            line += _cell_text(row.peers.get(name), whole)
        lines.append(line)
    return measure.table(header, lines)


def stopping_table(rows: Sequence[Row]) -> str:
    """Milliseconds and ratios of the fits that stop by themselves."""
    timed = [row for row in rows if row.until_level is not None]
    names = [name for name in PEERS["float64"] if name.startswith("hmmlearn")]
    header = ["workload", "steps", "ours ms"]
    for name in names:
        header += ["steps", f"{name} ms", "ratio"]
    lines = []
    for row in timed:
        line = [row.workload, str(row.steps), _number(row.until_level)]
        for name in names:
            cell, own = row.peers.get(name, Cell()), row.until_level
            if cell.until_level is None or not own:
                line += ["-", "-", "-"]
            else:
                ratio = f"{cell.until_level / own:.1f}"
                line += [str(cell.steps), fixed(cell.until_level), ratio]
        lines.append(line)
    return measure.table(header, lines)


def _number(value: float | None) -> str:
    return "-" if value is None else fixed(value)


def _cell_text(cell: Cell | None, whole: bool) -> list[str]:
    if cell is None:
        return ["", ""]
    value, ratio = cell.milliseconds, cell.ratio
    if whole:
        value, ratio = cell.whole_fit, cell.whole_ratio
    if value is None or ratio is None:
        return [cell.note or "-", "-"]
    note = f"{cell.note} " if cell.note else ""
    return [note + fixed(value), f"{ratio:.1f}"]


def growth_text(growth: Growth) -> str:
    """One line of sizes and times, and the exponent."""
    times = ", ".join(
        f"{size}: {fixed(value)}"
        for size, value in zip(growth.sizes, growth.milliseconds, strict=True)
    )
    return (
        f"{growth.variable} to the power {growth.exponent:.2f} ({growth.rest}; "
        f"{growth.variable}: ms {times})"
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [workload.name for workload in (*WORKLOADS, *FAMILY_WORKLOADS)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", choices=["float64", "float32", "both"], default="both")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--markdown", type=Path, help="write a page of benchmarks/results here")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, time, print."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    dtypes = ["float64", "float32"] if options.dtype == "both" else [options.dtype]
    problems = [make_problem(each) for each in WORKLOADS if each.name in options.workload]
    pairs = [(problem, dtype) for problem in problems for dtype in dtypes]

    say(measure.load())
    bounds = "; ".join(f"{dtype} {EM_TOLERANCE[dtype]}" for dtype in dtypes)
    say(f"EM: relative differences from our float64 answer, at most: {bounds}\n")
    em = [em_row(*pair, PEERS[pair[1]], options.repeats, say) for pair in pairs]
    say(f"\nEM iteration, median of up to {options.repeats}")
    say(table(em))
    say(f"\nA whole fit of {WHOLE_FIT} iterations, all counted, after one to warm up")
    say(table(em, whole=True))
    say("\nA fit that stops where an iteration gains less than 1e-4, or after 100, float64")
    say(stopping_table(em))

    say("\nOther families, float64: likewise\n")
    chosen = [each for each in FAMILY_WORKLOADS if each.name in options.workload]
    families = [
        em_row(
            make_family_problem(each),
            "float64",
            family_peers(each.name),
            options.repeats,
            say,
            OurFamily,
        )
        for each in chosen
    ]
    say(f"\nEM iteration, median of up to {options.repeats}")
    say(table(families))
    say(f"\nA whole fit of {WHOLE_FIT} iterations, all counted, after one to warm up")
    say(table(families, whole=True))
    say("\nA fit that stops by itself, with the settings that each library has by default")
    say(stopping_table(families))
    say("\nFits from random starts that stop where an iteration gains less than 1e-4, float64")
    random = [
        random_start_row(make_family_problem(each), seed, options.repeats, say)
        for each in chosen
        if each.name in ("poisson", "categorical")
        for seed in range(RANDOM_STARTS)
    ]
    say(stopping_table(random))

    bounds = "; ".join(f"{dtype} {LOG_PROB_TOLERANCE[dtype]:.0e}" for dtype in dtypes)
    say(f"\nlog_prob with gradient: likewise, values and gradients, at most: {bounds}\n")
    log_prob = [log_prob_row(*pair, options.repeats, say) for pair in pairs]
    say(f"\nlog_prob with gradient, median of up to {options.repeats}")
    say(table(log_prob))

    arrays = extra_arrays(MEMORY_STEPS, MEMORY_STATES)
    amount = "not measured (needs /proc)" if arrays is None else f"{arrays:.2f} arrays of (T, K)"
    say(f"\nE-step, float64, T={MEMORY_STEPS} K={MEMORY_STATES}: peak extra memory {amount}")
    grown = growths(repeats=options.repeats)
    for growth in grown:
        say(f"E-step, float64: time grows as {growth_text(growth)}")
    say(f"\n{measure.surroundings()}")

    if options.json is not None:
        results: dict[str, Any] = {
            "em": [asdict(row) for row in em],
            "families": [asdict(row) for row in families],
            "random_starts": [asdict(row) for row in random],
            "log_prob": [asdict(row) for row in log_prob],
            "extra_arrays": arrays,
            "growth": [{**growth._asdict(), "exponent": growth.exponent} for growth in grown],
            "surroundings": measure.surroundings(),
        }
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    if options.markdown is not None:
        command = " ".join(["python -m benchmarks.peers", *(arguments or sys.argv[1:])])
        page = measure.markdown("EM and log_prob beside other libraries", command, "\n".join(lines))
        options.markdown.write_text(page)


if __name__ == "__main__":
    main()
