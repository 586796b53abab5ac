"""A panel split among processes by torchrun: the parameters of one process that holds it all.

    torchrun --nproc-per-node=2 examples/torchrun_em.py

Each process (rank) draws or reads its own sequences and calls EM as it would alone. EM adds up the
expected statistics and the losses of all ranks, a few hundred bytes in each step.
"""

from __future__ import annotations

import argparse

import pyro
import pyro.distributions as dist
import torch
import torch.distributed
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes import EM, RegimeHMM


def model(x: Tensor) -> None:
    float64 = torch.float64
    matrix = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=float64)
    start = torch.full((2,), 0.5, dtype=float64)
    hmm = RegimeHMM(
        initial_probs=pyro.param("initial", start, constraint=constraints.simplex),
        transition_probs=pyro.param("matrix", matrix, constraint=constraints.simplex),
        observation_dist=dist.Normal(
            pyro.param("loc", torch.tensor([-0.5, 0.5], dtype=float64)),
            pyro.param("scale", torch.ones(2, dtype=float64), constraint=constraints.positive),
        ),
    )
    with pyro.plate("sequences", len(x)):
        pyro.sample("x", hmm, obs=x)


def panel(num_sequences: int, num_rows: int) -> Tensor:
    """Sequences that stay 20 rows in each regime."""
    rng = torch.Generator().manual_seed(0)
    regimes = torch.randint(2, (num_sequences, num_rows // 20 + 1), generator=rng)
    means = 2.0 * regimes.repeat_interleave(20, -1)[:, :num_rows] - 1
    return means + torch.randn(means.shape, generator=rng, dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-sequences", type=int, default=100)
    parser.add_argument("--num-rows", type=int, default=500)
    settings = parser.parse_args()
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    shard = panel(settings.num_sequences, settings.num_rows)[rank::size]
    em = EM(model)
    result = em.run(shard, tol=1e-6)
    if rank == 0:
        loc = ", ".join(f"{float(each):.3f}" for each in pyro.param("loc"))
        print(f"{size} ranks, {result.num_steps} steps, loss {result.history[-1]:.6f}, means {loc}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
