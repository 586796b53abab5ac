"""An interrupt at any moment leaves everything as before the call.

A trace function raises KeyboardInterrupt at the n-th line that is executed within the package, Pyro
or torch's switches of grad mode. So each moment can be had again.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, init_to_value
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK

import pyro_regimes
from pyro_regimes import EM, RegimeHMM
from pyro_regimes.infer.isolation import PYRO_LOCK
from tests.infer.models import INITIAL, LOC, SCALE, TRANSITION, XS, chain, observe, real, scale
from tests.infer.test_fused import gaussian_model

WATCHED = tuple(
    str(Path(module.__file__).parent) for module in (pyro_regimes, pyro)
) + (str(Path(torch.autograd.grad_mode.__file__)),)


class Interrupt:
    """Raise at the n-th line; with n = 0 count them."""

    def __init__(self, moment: int) -> None:
        self.moment, self.count = moment, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(WATCHED):
            return None
        if event == "line":
            self.count += 1
            if self.count == self.moment:
                raise KeyboardInterrupt
        return self

    def during(self, call: Callable[[], Any]) -> None:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            call()
        finally:
            sys.settrace(before)


def plates() -> None:
    with pyro.plate("restarts", 2, dim=-2), pyro.plate("sequences", 4, dim=-1):
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.Normal(real("loc", LOC), scale()),
        )
        pyro.sample("x", hmm.expand([2, 4]), obs=XS)


def everything() -> None:
    observe(loc=real("loc", LOC), scale=scale(), **chain())


def latent() -> None:
    with pyro.plate("states", 2):
        loc = pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 1.0))
    observe(loc=loc, scale=scale())


def minibatch(batch: torch.Tensor) -> None:
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.Normal(real("loc", LOC), scale()),
    )
    with pyro.plate("sequences", 4, subsample=batch):
        pyro.sample("x", hmm, obs=XS[batch])


def guided(model: Callable[[], None]) -> EM:
    return EM(model, AutoDelta(model, init_loc_fn=init_to_value(values={"loc": LOC.clone()})))


def descend(leaves: list[torch.Tensor]) -> None:
    """An optimiser without a memory, of which nothing would have to come back."""
    with torch.no_grad():
        for leaf in leaves:
            leaf -= 0.001 * leaf.grad


CALLS = {
    "on tensors": lambda: EM(everything),
    "in plates": lambda: EM(plates),
    "fused": lambda: EM(gaussian_model()),
    "with a guide": lambda: guided(latent),
    "with a floor": lambda: EM(everything, min_eigenvalue=1.3),
    "an optimiser": lambda: EM(
        lambda: observe(loc=real("loc", LOC), scale=0.1 + scale()),
        optim=descend,
    ),
}
STEPS = 4


def surroundings() -> tuple:
    store = pyro.get_param_store()
    return (
        list(_PYRO_STACK),
        list(_DIM_ALLOCATOR._stack),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        PYRO_LOCK._is_owned(),
        [id(getattr(store, name)) for name in ("_params", "_param_to_name", "_constraints")],
        torch.get_rng_state().tolist(),
    )


def no_other_thread_waits() -> bool:
    """Whether another thread gets the lock."""
    found = []

    def take() -> None:
        if PYRO_LOCK.acquire(timeout=1):
            found.append(True)
            PYRO_LOCK.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return found == [True]


def run(em: EM, steps: int = STEPS) -> list[float]:
    return em.run(num_steps=steps, tol=None).history


def moments(total: int, count: int, seed: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(1, total + 1), min(count, total)))


def check_interrupted(name: str, count: int, seed: int) -> int:
    """Interrupt a run at many moments."""
    start = CALLS[name]().evaluate_loss()
    expected = run(CALLS[name]())
    pyro.clear_param_store()
    whole = Interrupt(0)
    whole.during(lambda: run(CALLS[name]()))
    hits = 0
    for moment in moments(whole.count, count, seed):
        pyro.clear_param_store()
        em = CALLS[name]()
        before = surroundings()
        try:
            Interrupt(moment).during(partial(run, em))
        except KeyboardInterrupt:
            hits += 1
        assert surroundings() == before, moment
        loss = em.evaluate_loss()
        step = min(range(len(expected)), key=lambda index: abs(expected[index] - loss))
        known = expected[step] if loss != start else start  # not raised to the floor yet
        assert loss == pytest.approx(known, rel=1e-11), moment
        step = 0 if loss == start else step
        rest = run(em, STEPS - step)
        assert rest == pytest.approx(expected[step:], rel=1e-11), moment
        pyro.clear_param_store()
        em = em if em.guide is None else CALLS[name]()  # an AutoDelta keeps its points itself
        assert run(em) == pytest.approx(expected, rel=1e-11), moment
    return hits


@pytest.mark.parametrize("name", CALLS)
def test_run_interrupted_at_many_moments(name) -> None:
    assert check_interrupted(name, 6, seed=1) >= 5


def check_steps_interrupted(count: int, seed: int) -> int:
    """Minibatches, of which the averages must come back too."""
    batches = [torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([1, 2])]

    def fit(em: EM, batches: list) -> list:
        for batch in batches:
            em.step(batch)
        return [value.detach().clone() for value in pyro.get_param_store().values()]

    expected = fit(EM(minibatch), batches)
    pyro.clear_param_store()
    em = EM(minibatch)
    fit(em, batches[:2])
    whole = Interrupt(0)
    whole.during(lambda: em.step(batches[2]))
    hits = 0
    for moment in moments(whole.count, count, seed):
        pyro.clear_param_store()
        em = EM(minibatch)
        between = fit(em, batches[:2])
        before = surroundings()
        try:
            Interrupt(moment).during(partial(em.step, batches[2]))
        except KeyboardInterrupt:
            hits += 1
        else:
            continue
        assert surroundings() == before, moment
        after = [value.detach() for value in pyro.get_param_store().values()]
        if moment > whole.count - 20 and all(map(torch.equal, after, expected)):
            continue  # the step was complete
        assert all(map(torch.equal, after, between)), moment
        assert all(map(torch.equal, fit(em, batches[2:]), expected)), moment
    return hits


def test_step_interrupted_at_many_moments() -> None:
    assert check_steps_interrupted(25, seed=2) >= 23


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_of_the_caller_come_back(mode) -> None:
    whole = Interrupt(0)
    whole.during(lambda: EM(everything).step())
    for moment in moments(whole.count, 10, seed=3):
        with mode():
            before = surroundings()
            with contextlib.suppress(KeyboardInterrupt):
                Interrupt(moment).during(lambda: EM(everything).step())
            assert surroundings() == before, moment
            # as it is, and not only as it is told
            assert (torch.ones(1, requires_grad=True) * 2).requires_grad is before[2]
            assert torch.ones(1).is_inference() is before[3]


def test_evaluate_loss_interrupted() -> None:
    em = EM(plates)
    em.step()
    expected, whole = em.evaluate_loss(), Interrupt(0)
    whole.during(em.evaluate_loss)
    for moment in moments(whole.count, 25, seed=4):
        before = surroundings()
        with contextlib.suppress(KeyboardInterrupt):
            Interrupt(moment).during(em.evaluate_loss)
        assert surroundings() == before, moment
        assert em.evaluate_loss() == expected


def test_callback_that_raises() -> None:
    def callback(number: int, loss: float) -> None:
        if number == 2:
            raise RuntimeError("enough")

    expected = run(EM(everything))
    pyro.clear_param_store()
    em, before = EM(everything), surroundings()
    with pytest.raises(RuntimeError, match="enough"):
        em.run(num_steps=4, tol=None, callback=callback)
    assert surroundings() == before
    assert em.evaluate_loss() == pytest.approx(expected[2], rel=1e-12)


def test_a_model_that_raises_in_a_plate() -> None:
    def model(fails: bool) -> None:
        with pyro.plate("sequences", 4):
            observe(loc=real("loc", LOC), scale=real("s", SCALE), obs=XS)
            if fails:
                raise RuntimeError("in a plate")

    em = EM(model)
    em.step(False)
    before, held = surroundings(), pyro.param("loc").detach().clone()
    with pytest.raises(RuntimeError, match="in a plate"):
        em.run(True)
    assert surroundings() == before and torch.equal(pyro.param("loc").detach(), held)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_signals_at_random_times() -> None:
    """As a user would do it."""
    model, draw = gaussian_model(), random.Random(5)
    expected = EM(model).run(num_steps=30, tol=None).history
    start = time.perf_counter()
    pyro.clear_param_store()
    EM(model).run(num_steps=30, tol=None)
    length = time.perf_counter() - start

    def interrupt(_: int, frame: Any) -> None:
        if frame.f_code.co_name == "gc_callback":  # of hypothesis, where an exception would be lost
            signal.setitimer(signal.ITIMER_REAL, 1e-4)
            return
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(20):
            pyro.clear_param_store()
            em, before = EM(model), surroundings()
            try:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-4, length))
                em.run(num_steps=30, tol=None)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                pass
            assert surroundings() == before
            assert no_other_thread_waits()
            loss = em.evaluate_loss()
            assert min(abs(loss - each) for each in expected) < 1e-9 * abs(loss)
            pyro.clear_param_store()
            again = em.run(num_steps=30, tol=None).history
            assert again == pytest.approx(expected, rel=1e-12)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
