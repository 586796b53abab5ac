"""The E-step on one CUDA device, compared with its memory bandwidth and with other libraries.

First, the copy bandwidth of the device is measured. Then, for each workload in float32 and float64,
the result is checked against float64 on the CPU and timed by CUDA events. An E-step must at least
read the observation logits once and write gamma once; the bandwidth that this implies is given as a
share of the copy bandwidth. The peers get the same observation logits: Pyro's DiscreteHMM by
log_prob and its gradient, which is the same E-step, and dynamax's smoother, if jax has a GPU.
Results that fail, or differ from the CPU by more than the tolerance, get no time. Times are medians
without compilation.

    python -m benchmarks.gpu [--repeats N] [--scale N] [--device NAME] [--markdown FILE]

``--scale`` divides the sizes, and ``--device cpu`` runs the program without a GPU, as a test.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import chain_logits, device_milliseconds, fixed, relative_difference
from pyro_regimes.kernels import ops

COPY_BYTES = 2**30  # of the array that is copied to measure bandwidth
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of log-likelihood and gamma, relative

Arguments = tuple[Tensor, Tensor, Tensor]  #: initial, transition and observation logits
Answer = tuple[Any, Any]  #: log-likelihood and gamma, tensors or arrays


class Workload(NamedTuple):
    """Sizes, and whether each sequence has a transition matrix of its own, as restarts do."""

    name: str
    num_sequences: int
    num_steps: int
    num_states: int
    own_transitions: bool = False

    def divide(self, scale: int) -> Workload:
        """Fewer sequences, or fewer steps where there is one sequence."""
        if self.num_sequences == 1:
            return self._replace(num_steps=self.num_steps // scale)
        return self._replace(num_sequences=max(2, self.num_sequences // scale))


WORKLOADS = (
    Workload("many sequences", 4096, 1024, 4),
    Workload("one sequence", 1, 2**24, 4),
    Workload("many states", 64, 4096, 64),
    Workload("restarts", 1000, 2500, 3, own_transitions=True),
)


class Peer(NamedTuple):
    """What came of one peer."""

    milliseconds: float | None
    note: str  #: why there is none


def make_arguments(workload: Workload) -> Arguments:
    """Float64 on the CPU: ``(K,)``, ``(1, K, K)`` or ``(N, 1, K, K)``, and ``(N, T, K)``."""
    initial, transition, observation = chain_logits(*workload[1:4])
    if workload.own_transitions:
        generator = torch.Generator().manual_seed(1)
        shape = (workload.num_sequences, *transition.shape)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        transition = (transition + 0.3 * noise).log_softmax(-1)
    return initial, transition, observation


def ours(arguments: Arguments) -> Answer:
    """The package's E-step."""
    return ops.expectations(*arguments)[:2]


class _Given(dist.TorchDistribution):
    """Observations that are log-densities already: ``(..., K)``, one of each state."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, num_states: int) -> None:
        shape = torch.Size([num_states])
        super().__init__(shape, shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Without the dim that DiscreteHMM puts in for the state."""
        return value.squeeze(-2)


def discrete_hmm(arguments: Arguments) -> Answer:
    """DiscreteHMM's E-step: its log_prob and the gradient.

    One transition matrix for all steps. Its initial state lies one transition before the first
    observation: the answer is that of :func:`ours` to :func:`after_transition`.
    """
    leaves = [each.detach().requires_grad_() for each in arguments]
    initial, transition, observation = leaves
    given, num_steps = _Given(initial.shape[-1]), observation.shape[-2]
    hmm = dist.DiscreteHMM(initial, transition, given, validate_args=False, duration=num_steps)
    value = hmm.log_prob(observation)
    return value.detach(), torch.autograd.grad(value.sum(), leaves)[-1]


def after_transition(arguments: Arguments) -> Arguments:
    """The chain whose initial state is that of these arguments after one transition."""
    initial, transition, observation = arguments
    initial = (initial.unsqueeze(-1) + transition.squeeze(-3)).logsumexp(-2)
    return initial, transition, observation


def dynamax_smoother(arguments: Arguments, device: str = "gpu") -> Callable[[], Answer]:
    """A jitted smoother over arguments that lie on jax's device already.

    Two-filter, by vmap over sequences; of one sequence the associative scan.

    :raises ImportError: if dynamax is not installed.
    :raises RuntimeError: if jax has no such device.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave torch its memory
    import jax
    from dynamax.hidden_markov_model import hmm_two_filter_smoother, parallel_hmm_smoother

    initial, transition, observation = arguments
    alone = len(observation) == 1
    smooth = parallel_hmm_smoother if alone else hmm_two_filter_smoother
    transitions = 0 if transition.dim() == 4 else None
    function = jax.jit(jax.vmap(smooth, in_axes=(None, transitions, 0)))
    values = (initial.exp(), transition.squeeze(-3).exp(), observation)
    double = observation.dtype == torch.float64
    with jax.enable_x64(double):
        place = jax.devices(device)[0]
        placed = [jax.device_put(value.cpu().numpy(), place) for value in values]

    def run() -> Answer:
        with jax.enable_x64(double):
            posterior = jax.block_until_ready(function(*placed))
        return posterior.marginal_loglik, posterior.smoothed_probs

    return run


def difference(answer: Answer, truth: Answer) -> float:
    """The largest relative difference of log-likelihoods and of gamma; NaN if there is one."""
    pairs = zip(map(_numpy, answer), map(_numpy, truth), strict=True)
    return float(np.max([relative_difference(*pair) for pair in pairs]))


def _numpy(value: Any) -> Any:
    return value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def copy_bandwidth(device: torch.device, num_bytes: int, repeats: int) -> float:
    """Bytes read and written each second by a copy within the device."""
    source = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2e3 * num_bytes / device_milliseconds(lambda: target.copy_(source), device, repeats)


def time_peer(
    prepare: Callable[[], Callable[[], Answer]],
    truth: Answer,
    tolerance: float,
    device: torch.device,
    repeats: int,
) -> Peer:
    """Milliseconds of a peer that agrees.

    :param prepare: returns the function to time.
    """
    try:
        function = prepare()
        error = difference(function(), truth)
        if not error <= tolerance:
            return Peer(None, f"differs by {error:.1e}")
        return Peer(device_milliseconds(function, device, repeats), "")
    except ImportError:
        return Peer(None, "absent")
    except RuntimeError as error:  # out of memory, or no such device
        return Peer(None, str(error).splitlines()[0][:60])


class Bench(NamedTuple):
    """Where and how to measure, and whom to tell of each answer."""

    device: torch.device
    bandwidth: float
    repeats: int
    say: Callable[[str], None] = print

    def rows(self, workload: Workload) -> list[list[str]]:
        """Rows of the table, one a dtype; see :data:`HEADER`."""
        exact = make_arguments(workload)
        truth, truth_after = ours(exact), ours(after_transition(exact))
        rows = []
        for dtype in TOLERANCE:
            initial, transition, observation = (each.to(dtype) for each in exact)
            arguments = (initial, transition, observation)
            name = str(dtype).removeprefix("torch.")
            rows.append([workload.name, name, *self._cells(arguments, truth, truth_after)])
        return rows

    def _cells(self, on_cpu: Arguments, truth: Answer, truth_after: Answer) -> list[str]:
        initial, transition, observation = (each.to(self.device) for each in on_cpu)
        arguments = (initial, transition, observation)
        tolerance, error = TOLERANCE[observation.dtype], difference(ours(arguments), truth)
        self.say(f"  {observation.dtype}: relative error {error:.1e}")
        if not error <= tolerance:
            return ["differs", *["-"] * (len(HEADER) - 3)]
        own = device_milliseconds(lambda: ours(arguments), self.device, self.repeats)
        moved = 2 * observation.numel() * observation.element_size()
        cells = [fixed(own), f"{100 * moved / (1e-3 * own) / self.bandwidth:.1f}%"]
        clock = torch.device("cpu")  # jax has streams of its own, and waits for them
        peers = {
            "DiscreteHMM": time_peer(
                lambda: lambda: discrete_hmm(arguments),
                truth_after,
                tolerance,
                self.device,
                self.repeats,
            ),
            "dynamax": time_peer(
                lambda: dynamax_smoother(arguments), truth, tolerance, clock, self.repeats
            ),
            "our CPU": Peer(device_milliseconds(lambda: ours(on_cpu), clock, self.repeats), ""),
        }
        for peer, (milliseconds, note) in peers.items():
            if milliseconds is None:
                self.say(f"    {peer}: {note}")
                cells += ["-", "-"]
            else:
                cells += [fixed(milliseconds), f"{milliseconds / own:.1f}"]
        return cells


HEADER = ["workload", "dtype", "ours ms", "of copy"] + [
    title for peer in ("DiscreteHMM", "dynamax", "our CPU") for title in (f"{peer} ms", "ratio")
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure bandwidth, then each workload; print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--markdown", type=Path, help="write a page of benchmarks/results here")
    options = parser.parse_args(arguments)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing measured")
        return
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say(measure.load())
    bandwidth = copy_bandwidth(options.device, COPY_BYTES // options.scale, options.repeats)
    say(f"{_device_name(options.device)}: copy bandwidth {bandwidth / 1e9:.0f} GB/s")
    bounds = ", ".join(f"{str(dtype)[6:]} {bound:.0e}" for dtype, bound in TOLERANCE.items())
    say(f"relative differences from float64 on the CPU, at most: {bounds}\n")
    bench = Bench(options.device, bandwidth, options.repeats, say)
    rows = []
    for workload in WORKLOADS:
        sizes = workload.divide(options.scale)
        say(f"{sizes.name}: N={sizes.num_sequences} T={sizes.num_steps} K={sizes.num_states}")
        rows += bench.rows(sizes)
    say(f"\n{measure.table(HEADER, rows)}\n")
    say(measure.surroundings())
    if options.markdown is not None:
        command = " ".join(["python -m benchmarks.gpu", *(arguments or sys.argv[1:])])
        page = measure.markdown("The E-step on a GPU", command, "\n".join(lines))
        options.markdown.write_text(page)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else measure.processor()


if __name__ == "__main__":
    main()
