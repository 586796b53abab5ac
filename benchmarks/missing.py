"""The cost of a step of EM on data with missing entries, in steps on complete data.

    python -m benchmarks.missing

Gaussian regimes with full covariances. First, the log-likelihood at the start is compared with that
of the observed entries' own marginal distributions, row by row; and the likelihoods of both engines
along the steps with each other. The time of a step is the difference of two runs over that of their
steps, in seconds of the processor and on one thread, which other processes hardly change.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from benchmarks.measure import take_turns
from pyro_regimes import EM, RegimeHMM
from pyro_regimes.infer.em.engines import fused_gaussian

K, T, SHARE = 3, 2500, 0.3
STEPS, ROUNDS = {True: 100, False: 20}, 5  # by the compiled engine or not


class Workload(NamedTuple):
    """A table with missing entries.

    :param share: of the entries of a row that are missing, or of the rows if they are whole.
    """

    name: str
    size: int
    share: float
    whole_rows: bool = False


WORKLOADS = [
    Workload("complete", 7, 0.0),
    Workload("entries", 7, SHARE),
    Workload("whole rows", 7, SHARE, True),
    Workload("complete", 20, 0.0),
    Workload("entries", 20, SHARE),
    Workload("whole rows", 20, SHARE, True),
]


def make_data(workload: Workload) -> Tensor:
    """Regimes of 30 rows that differ in their spread, with NaN."""
    generator = torch.Generator().manual_seed(0)
    shape = (T, workload.size)
    factors = torch.randn(K, workload.size, workload.size, generator=generator).double()
    factors = factors / (2 * workload.size**0.5)  # well-conditioned with the identity
    regimes = torch.arange(T) // 30 % K
    noise = torch.randn(shape, generator=generator).double()
    x = torch.einsum("tij,tj->ti", factors[regimes] + torch.eye(workload.size), noise)
    x = x * (1 + regimes).unsqueeze(-1)
    drawn = torch.rand((T, 1) if workload.whole_rows else shape, generator=generator)
    return x.masked_fill(drawn < workload.share, torch.nan)


def start(size: int) -> dict[str, Tensor]:
    """The first parameters."""
    generator = torch.Generator().manual_seed(1)
    scales = torch.arange(1, K + 1).double().square().reshape(K, 1, 1)
    return {
        "initial": torch.full((K,), 1 / K, dtype=torch.float64),
        "transition": 0.9 * torch.eye(K).double() + 0.1 / K,
        "loc": 0.1 * torch.randn(K, size, generator=generator).double(),
        "covariance": scales * torch.eye(size).double(),
    }


def make_model(size: int) -> Callable[[Tensor], None]:
    """Gaussian regimes with full covariances."""
    values = start(size)
    kinds = {
        "initial": constraints.simplex,
        "transition": constraints.simplex,
        "loc": constraints.real,
        "covariance": constraints.positive_definite,
    }

    def model(x: Tensor) -> None:
        held = {
            name: pyro.param(name, values[name].clone(), constraint=kind)
            for name, kind in kinds.items()
        }
        hmm = RegimeHMM(
            initial_probs=held["initial"],
            transition_probs=held["transition"],
            observation_dist=dist.MultivariateNormal(held["loc"], held["covariance"]),
            missing="marginalise",
        )
        pyro.sample("x", hmm, obs=x)

    return model


def by_rows(x: Tensor) -> float:
    """The log-likelihood at the start by the marginal distribution of each row."""
    held = start(x.shape[-1])
    alpha = held["initial"].log()
    total = torch.zeros(()).double()
    for row in x:
        seen = ~row.isnan()
        if seen.any():
            part = dist.MultivariateNormal(
                held["loc"][:, seen], held["covariance"][:, seen][:, :, seen]
            )
            alpha = alpha + part.log_prob(row[seen])
        size = alpha.logsumexp(-1)
        total = total + size
        alpha = ((alpha - size).unsqueeze(-1) + held["transition"].log()).logsumexp(-2)
    return float(total)


def losses(x: Tensor, num_steps: int, compiled: bool) -> Tensor:
    """EM from the start: the losses before each step, and the last one."""
    find = fused_gaussian.find
    if not compiled:
        fused_gaussian.find = lambda *_: "tensors, for the comparison"
    try:
        with pyro.get_param_store().scope():
            run = EM(make_model(x.shape[-1])).run(x, num_steps=num_steps, tol=None)
    finally:
        fused_gaussian.find = find
    return run.restart_history.flatten()


def milliseconds_of_a_step(x: Tensor, compiled: bool) -> float:
    """The time of a step, without what happens once."""
    used = [time.process_time()]
    for num_steps in (2, 2 + STEPS[compiled]):
        losses(x, num_steps, compiled)
        used.append(time.process_time())
    first, second, third = used
    return 1e3 * ((third - second) - (second - first)) / STEPS[compiled]


def main() -> None:
    """Compare, measure and print."""
    torch.set_num_threads(1)
    print(f"T={T} K={K}, float64, full covariances, {SHARE:.0%} missing; milliseconds of a step")
    print("| D | missing | compiled | ratio | tensors | ratio |")
    print("|---|---|---|---|---|---|")
    whole: dict[bool, float] = {}
    for workload in WORKLOADS:
        x = make_data(workload)
        ours, others = losses(x, 5, True), losses(x, 5, False)
        expected = -by_rows(x)
        if abs(float(ours[0]) - expected) > 1e-10 * abs(expected):
            raise SystemExit(f"{workload}: expected the loss {expected}, got {float(ours[0])}")
        if (ours - others).abs().max() > 1e-9 * ours.abs().max():
            raise SystemExit(f"{workload}: the engines differ: {ours} and {others}")
        tasks = {
            compiled: partial(milliseconds_of_a_step, x, compiled) for compiled in (True, False)
        }
        found = {key: min(each) for key, each in take_turns(tasks, ROUNDS).items()}
        if workload.name == "complete":
            whole = found
        cells = " | ".join(f"{found[key]:.2f} | {found[key] / whole[key]:.1f}" for key in tasks)
        print(f"| {workload.size} | {workload.name} | {cells} |")


if __name__ == "__main__":
    main()
