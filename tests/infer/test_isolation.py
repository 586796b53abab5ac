"""Pyro's handlers and store are shared with the caller, with other threads and with a fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.params.param_store import ParamStoreDict
from pyro.poutine import runtime

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.infer import isolation
from pyro_regimes.infer.em import measures
from pyro_regimes.infer.isolation import PYRO_LOCK, Alone, isolated, plain_torch
from pyro_regimes.kernels import ops
from tests.infer import models

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
# From Python 3.12 on any fork of a process with threads is reported.
ignores_fork = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def run_in_fork(function: Callable[[], bool], seconds: float = 20.0) -> str:
    """What became of a forked child that calls the function."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if function() else 1)
        finally:
            traceback.print_exc()
            os._exit(2)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return {0: "true", 1: "false"}.get(os.waitstatus_to_exitcode(status), "error")
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


class Held:
    """A thread that stays in a block until it is told to leave."""

    def __init__(self, block: Callable[[], object]) -> None:
        self._entered, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(block,), daemon=True)

    def _run(self, block: Callable[[], object]) -> None:
        with block():  # type: ignore[attr-defined]
            self._entered.set()
            self._leave.wait(60)

    def __enter__(self) -> None:
        self._thread.start()
        assert self._entered.wait(20)

    def __exit__(self, *raised: object) -> None:
        self._leave.set()
        self._thread.join(20)


def may_use_pyro() -> bool:
    """Whether a new thread gets the lock, and models run as in a new process."""
    got = []

    def work() -> None:
        with Alone():
            got.append(True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5)

    def model() -> None:
        loc = pyro.param("mine", torch.tensor(0.0))
        with pyro.plate("starts", 2, dim=-1):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.zeros(2))

    trace = poutine.trace(model).get_trace()
    names = ["_INPUT", "mine", "starts", "x", "_RETURN"]
    return bool(got) and list(trace.nodes) == names and float(pyro.param("mine").detach()) == 3.0


@needs_fork
@ignores_fork
@pytest.mark.parametrize("inside", ["the lock", "a section with handlers", "isolation"])
def test_a_fork_while_another_thread_is_in_a_section(inside) -> None:
    pyro.param("mine", torch.tensor(3.0))

    class Block:
        def __enter__(self) -> None:
            if inside == "the lock":
                self.parts = [PYRO_LOCK]
            elif inside == "isolation":
                self.parts = [isolated(ParamStoreDict()), poutine.trace()]
            else:
                self.parts = [Alone(), poutine.block(), pyro.plate("starts", 3, dim=-1)]
            for part in self.parts:
                part.__enter__()

        def __exit__(self, *raised: object) -> None:
            for part in reversed(self.parts):
                part.__exit__(None, None, None)

    with Held(Block):
        assert run_in_fork(may_use_pyro) == "true"
    assert may_use_pyro() and not isolation._outside


@needs_fork
@ignores_fork
def test_a_fork_inside_ones_own_section() -> None:
    """The child goes on inside it, and leaves it as the parent does."""
    pyro.param("mine", torch.tensor(3.0))
    store = ParamStoreDict()

    def leave() -> bool:
        inside = not list(pyro.get_param_store())
        block.__exit__(None, None, None)
        return inside and may_use_pyro()

    block = isolated(store)
    block.__enter__()
    try:
        assert run_in_fork(leave) == "true"
        assert not list(pyro.get_param_store())
    finally:
        block.__exit__(None, None, None)
    assert may_use_pyro()


FORK_DURING_A_FIT = """
import os, sys, threading, time, warnings
import numpy as np
import torch
from pyro_regimes import RegimeModel
torch.set_num_threads(1)
warnings.simplefilter("ignore")
from pyro_regimes.infer.em.engines.fused_gaussian import FusedEngine
write = FusedEngine.write
def write_slowly(*args):  # so that forks happen there, too
    time.sleep(0.01)
    return write(*args)
FusedEngine.write = write_slowly
x = np.random.RandomState(0).standard_normal((200, 2))
settings = dict(n_regimes=2, n_init=1, max_iter=3, tol=None, random_state=0)
expected = RegimeModel(**settings).fit(x).means_
stop = threading.Event()
def work():
    while not stop.is_set():
        RegimeModel(**settings, inference=sys.argv[1]).fit(x)
thread = threading.Thread(target=work, daemon=True)
thread.start()
for _ in range(4):
    time.sleep(0.02)
    child = os.fork()
    if child == 0:
        os._exit(0 if (RegimeModel(**settings).fit(x).means_ == expected).all() else 1)
    end = time.monotonic() + 20
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(child, 9)
            sys.exit("the child hangs")
        time.sleep(0.01)
    if status:
        sys.exit(f"the child ended with {status}")
stop.set()
thread.join()
"""


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("inference", ["em", "svi"])
def test_a_child_forked_during_a_fit_can_fit(inference) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK_DURING_A_FIT, inference],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


def test_isolation_is_undone_to_the_very_objects() -> None:
    mine = pyro.param("mine", torch.tensor(3.0)).unconstrained()
    parts, own = vars(pyro.get_param_store()), ParamStoreDict()
    plate = pyro.plate("outer", 3)
    with poutine.block() as block, plate:
        for error in (None, KeyboardInterrupt):
            try:
                with isolated(own):
                    assert not runtime._PYRO_STACK and not runtime._DIM_ALLOCATOR._stack
                    pyro.param("other", torch.tensor(1.0))
                    poutine.trace().__enter__()  # left behind, as an interrupt may leave it
                    if error is not None:
                        raise error
            except KeyboardInterrupt:
                pass
            assert runtime._PYRO_STACK == [block, plate]
            assert runtime._DIM_ALLOCATOR._stack == ["outer"]
            assert vars(pyro.get_param_store()) is parts
        with isolated(own):
            pyro.clear_param_store()
        assert list(own) == []
    assert pyro.param("mine").unconstrained() is mine and list(pyro.get_param_store()) == ["mine"]


def test_plain_torch_is_undone() -> None:
    cpu = torch.device("cpu")
    with torch.inference_mode(), torch.autocast("cpu"), torch.device("meta"):
        with plain_torch(cpu):
            x = torch.ones(2, 2, requires_grad=True)
            assert (x @ x).requires_grad and (x @ x).dtype == torch.float32
            assert x.device == cpu and not x.is_inference()
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
        assert torch.empty(0).device.type == "meta" and not torch.is_grad_enabled()
    with plain_torch(cpu):
        assert torch.is_grad_enabled()


def switching() -> None:
    """A scale that an optimiser moves."""
    hmm = RegimeHMM(
        models.probs("initial", models.INITIAL).log(),
        models.probs("transition", models.TRANSITION).log(),
        dist.Normal(models.loc(), models.real("log_scale", models.SCALE.log()).exp() + 0.1),
    )
    pyro.sample("x", hmm, obs=models.X)


def lock_is_free() -> bool:
    """Whether another thread gets it."""
    got = []

    def work() -> None:
        got.append(PYRO_LOCK.acquire(timeout=5))
        PYRO_LOCK.release()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    return got == [True]


@pytest.mark.parametrize("way", ["step", "run"])
def test_the_lock_is_free_while_expectations_are_taken(way, monkeypatch):
    """And while the check of convergence measures. Other threads run their models meanwhile."""
    free = []

    def recorded(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            free.append(lock_is_free())
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(ops, "expectations", recorded(ops.expectations))
    monkeypatch.setattr(measures, "measure", recorded(measures.measure))
    em = EM(switching, optim=pyro.optim.Adam({"lr": 0.05}))
    if way == "step":
        em.step()
        assert free == [True]
    else:
        result = em.run(num_steps=300, tol=1e-2)
        assert "rose by less" in result.stop_reason
        assert len(free) == result.num_steps + 2 and all(free)
