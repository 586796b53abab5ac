"""Methods in two processes: who runs what, and what happens to errors."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from typing import Any

import pytest
import torch

from pyro_regimes.comparison import MethodRun
from pyro_regimes.comparison.side_by_side import can_fork, run_side_by_side
from tests.comparison.made_runs import make_run

pytestmark = pytest.mark.skipif(
    not can_fork(torch.device("cpu")), reason="needs Linux without CUDA"
)


def run(name: str, tell: Any) -> list[MethodRun]:
    """A run whose number of steps is the process that made it."""
    for step in range(4):
        tell(name, step, 3, -1.0)
        time.sleep(0.02)
    return [make_run(name, "ELBO", [-2.0, -1.0])._replace(num_steps=os.getpid())]


def test_each_process_takes_the_next_method() -> None:
    heard: list[tuple[Any, ...]] = []
    names = ["a", "b", "c", "d", "e"]
    found = run_side_by_side(run, names, lambda *step: heard.append((os.getpid(), *step)))
    assert list(found) == names
    runs = [each for name in names for each in found[name]]
    assert [each.method for each in runs] == names and all(each.is_beside for each in runs)
    assert torch.equal(runs[0].point["loc"], torch.zeros(2, 3))
    processes = [each.num_steps for each in runs]
    # The first goes to the other process, the second is run here, and both do more than one.
    assert processes[0] != os.getpid() == processes[1]
    assert min(processes.count(process) for process in set(processes)) >= 2
    assert len(set(processes)) == 2
    steps = [(os.getpid(), name, step, 3, -1.0) for name in names for step in range(4)]
    assert sorted(heard) == steps
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("name", ["a", "b"])
def test_an_error_in_either_process_is_raised(name: str) -> None:
    def fail(method: str, tell: Any) -> list[MethodRun]:
        if method == name:
            raise ValueError(f"expected more of {method}")
        return run(method, tell)

    with pytest.raises(ValueError, match=f"expected more of {name}"):
        run_side_by_side(fail, ["a", "b", "c"], None)
    assert not multiprocessing.active_children()


def test_an_error_of_the_callback_ends_both() -> None:
    with pytest.raises(ZeroDivisionError):
        run_side_by_side(run, ["a", "b", "c"], lambda *step: 1 / 0)
    assert not multiprocessing.active_children()


def test_a_process_that_ends_is_told() -> None:
    def end(method: str, tell: Any) -> list[MethodRun]:
        if method == "a":
            os._exit(7)
        return run(method, tell)

    with pytest.raises(RuntimeError, match="ended with exit code 7; use processes=1"):
        run_side_by_side(end, ["a", "b"], None)


def test_a_daemon_runs_alone() -> None:
    context = multiprocessing.get_context("fork")
    parent, child = context.Pipe()
    process = context.Process(
        target=lambda: child.send(can_fork(torch.device("cpu"))), daemon=True
    )
    process.start()
    assert parent.recv() is False
    process.join()


_PARALLEL = """
import torch
from pyro_regimes.comparison.side_by_side import run_side_by_side
from tests.comparison.made_runs import make_run

def run(name, tell):
    torch.ones(1_000_000).exp().sum()  # of several threads, where there are
    return [make_run(name, "log-likelihood", [0.0, 1.0])]

torch.set_num_threads(2)
run("before the fork", None)
print(sorted(run_side_by_side(run, ["one", "two", "three"], None)))
"""


def test_operations_of_several_threads_end_in_the_other_process() -> None:
    """OpenMP's threads do not survive a fork, and an operation that needs them never ends."""
    done = subprocess.run(
        [sys.executable, "-c", _PARALLEL], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "['one', 'three', 'two']\n"
