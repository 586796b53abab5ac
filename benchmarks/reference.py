"""The reference recursions beside Pyro's DiscreteHMM: log-likelihood with gradient.

Both run in this process, in turn, on one long sequence of K = 4 states with Gaussian observations.
Their log-likelihoods and gradients are compared first, and no ratio is printed if they disagree.

    python -m benchmarks.reference [--num-steps 200000] [--repeats 5]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from typing import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_regimes import RegimeHMM

NUM_STATES = 4


def make_data(num_steps: int) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters with gradient, and observations ``(T,)``, float64."""
    generator = torch.Generator().manual_seed(0)
    sticky = 3 * torch.eye(NUM_STATES, dtype=torch.float64)
    noise = torch.randn(NUM_STATES, NUM_STATES, generator=generator, dtype=torch.float64)
    parameters = {
        "initial_logits": torch.zeros(NUM_STATES, dtype=torch.float64),
        "transition_logits": sticky + 0.3 * noise,
        "loc": torch.arange(NUM_STATES, dtype=torch.float64),
    }
    data = 1.5 + 1.5 * torch.randn(num_steps, generator=generator, dtype=torch.float64)
    return {name: value.requires_grad_() for name, value in parameters.items()}, data


def ours(parameters: dict[str, Tensor], data: Tensor) -> Tensor:
    """RegimeHMM: the first observation is emitted by the initial state."""
    observation_dist = dist.Normal(parameters["loc"], 1.0)
    return RegimeHMM(
        parameters["initial_logits"], parameters["transition_logits"], observation_dist
    ).log_prob(data)


def peers(parameters: dict[str, Tensor], data: Tensor) -> Tensor:
    """DiscreteHMM with the same meaning: its first transition has our initial logits as rows."""
    first = parameters["initial_logits"].expand(1, NUM_STATES, NUM_STATES)
    rest = parameters["transition_logits"].expand(len(data) - 1, NUM_STATES, NUM_STATES)
    observation_dist = dist.Normal(parameters["loc"], 1.0)
    return dist.DiscreteHMM(
        parameters["initial_logits"], torch.cat([first, rest]), observation_dist
    ).log_prob(data)


def value_and_gradients(
    log_prob: Callable[[dict[str, Tensor], Tensor], Tensor],
    parameters: dict[str, Tensor],
    data: Tensor,
) -> tuple[float, list[Tensor], float]:
    """The log-likelihood, its gradients, and the seconds both took."""
    start = time.perf_counter()
    value = log_prob(parameters, data)
    gradients = torch.autograd.grad(value, list(parameters.values()))
    return value.item(), list(gradients), time.perf_counter() - start


def main() -> None:
    """Compare, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-steps", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    parameters, data = make_data(options.num_steps)

    value, gradients, _ = value_and_gradients(ours, parameters, data)
    other, other_gradients, _ = value_and_gradients(peers, parameters, data)
    difference = abs(value - other) / abs(other)
    for mine, theirs in zip(gradients, other_gradients, strict=True):
        difference = max(difference, float((mine - theirs).abs().max() / theirs.abs().max()))
    print(f"python {platform.python_version()}, torch {torch.__version__}, pyro {pyro.__version__}")
    print(f"T = {options.num_steps}, K = {NUM_STATES}, float64, {torch.get_num_threads()} threads")
    print(f"log-likelihood {value:.6f}; relative difference, gradients too {difference:.1e}")
    if not difference < 1e-8:
        raise SystemExit("the two disagree: no ratio")
    seconds: dict[str, list[float]] = {"pyro_regimes": [], "DiscreteHMM": []}
    for _ in range(options.repeats):  # in turn, so that drift of the machine cancels
        seconds["pyro_regimes"].append(value_and_gradients(ours, parameters, data)[2])
        seconds["DiscreteHMM"].append(value_and_gradients(peers, parameters, data)[2])
    median = {name: statistics.median(times) for name, times in seconds.items()}
    for name, typical in median.items():
        print(f"{name:<14} {typical:8.3f} s, median of {options.repeats}")
    print(f"DiscreteHMM takes {median['DiscreteHMM'] / median['pyro_regimes']:.1f} times as long")


if __name__ == "__main__":
    main()
