"""The input of every method, and its own parameter store and random state."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, NamedTuple

import torch
from pyro.infer.autoguide import init_to_value
from pyro.params.param_store import ParamStoreDict
from torch import Tensor

from pyro_regimes.infer.isolation import isolated

Model = Callable[[Tensor], Any]
#: Called with the name of the method, the step, the number of steps, and the objective.
Progress = Callable[[str, int, int, float], None]


class Task(NamedTuple):
    """The data, the start and the options that all methods share."""

    data: Tensor
    held_out: Tensor | None
    tol: float | None
    num_draws: int
    init_values: dict[str, Tensor]
    seed: int
    progress: Progress | None
    jit_compile: bool = False
    time_dim: int = -2  #: of the data, from the right

    def start(self) -> Callable[..., Any]:
        """Initial values of the latent sites. They are copied, as a guide may keep the tensors."""
        return init_to_value(values={n: value.clone() for n, value in self.init_values.items()})

    def workspace(self) -> Workspace:
        """Make a new workspace."""
        return Workspace(self.seed, self.data.device)

    def tell(self, method: str, step: int, total: int, objective: float = math.nan) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(method, step, total, objective)


class Workspace:
    """A private parameter store and random state of one method.

    They replace Pyro's store and torch's random state, under Pyro's lock, for one step, one draw or
    one evaluation at a time. In between, the caller's are restored, and other threads can run.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.store = ParamStoreDict()
        self._devices = [torch.device("cpu"), *([device] if device.type == "cuda" else [])]
        generators = [torch.Generator(device).manual_seed(seed) for device in self._devices]
        self._random = [generator.get_state() for generator in generators]
        self._depth = 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Enter the workspace: no handlers, own parameters and random state, gradients enabled."""
        with ExitStack() as modes:
            modes.enter_context(self.pyro())
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.enable_grad())
            yield

    @contextmanager
    def pyro(self) -> Iterator[None]:
        """Enter the workspace without changing torch's modes. Calls may be nested."""
        with isolated(self.store):
            if self._depth:
                yield
                return
            self._depth += 1
            try:
                with torch.random.fork_rng(devices=self._devices[1:]):
                    self._set_random_state()
                    try:
                        yield
                    finally:
                        self._random = self._random_state()
            finally:
                self._depth -= 1

    def _random_state(self) -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices[1:])]

    def _set_random_state(self) -> None:
        torch.set_rng_state(self._random[0])
        for state, device in zip(self._random[1:], self._devices[1:], strict=True):
            torch.cuda.set_rng_state(state, device)


class Stopwatch:
    """Measures the seconds spent in its ``with`` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A part of such a block that is not measured."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()
