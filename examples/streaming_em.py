"""Stochastic EM: regimes from many sequences, with a small batch at each step.

    python examples/streaming_em.py --out streaming

Thousands of sequences come from one regime model. Each step uses a small batch, drawn by a
subsampled plate, and updates running averages of the expected statistics, which are then maximised
in closed form. After a few passes over the data the result is close to that of EM on all the data,
and the cost of a step depends only on the size of the batch.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes import EM, RegimeHMM

K, D = 3, 2


def build(initial: Tensor, transition: Tensor, loc: Tensor, covariance: Tensor, duration: int):
    return RegimeHMM(
        initial_probs=initial,
        transition_probs=transition,
        observation_dist=dist.MultivariateNormal(loc, covariance),
        duration=duration,
    )


def parameters() -> tuple[Tensor, ...]:
    """The parameters, with rough initial values."""
    sticky = 0.7 * torch.eye(K).double() + 0.3 / K
    simplex, definite = constraints.simplex, constraints.positive_definite
    return (
        pyro.param("initial", torch.full((K,), 1 / K).double(), constraint=simplex),
        pyro.param("transition", sticky, constraint=simplex),
        pyro.param("loc", torch.tensor([[0.5, 0.0], [-0.5, 0.5], [-0.5, -0.5]]).double()),
        pyro.param("covariance", 2 * torch.eye(D).double().repeat(K, 1, 1), constraint=definite),
    )


def model(x: Tensor, batch_size: int | None = None) -> None:
    # 1. One model for a batch and for all the data. The plate selects the sequences.
    hmm = build(*parameters(), duration=x.shape[-2])
    with pyro.plate("sequences", len(x), subsample_size=batch_size) as index:
        pyro.sample("x", hmm, obs=x if batch_size is None else x[index])


def held_out(x: Tensor) -> float:
    """Average log-likelihood per observation of held-out sequences."""
    with torch.no_grad():
        total = build(*parameters(), duration=x.shape[-2]).log_prob(x).sum()
    return float(total) / x[..., 0].numel()


def main(args: argparse.Namespace) -> None:
    # 2. Data simulated from known parameters.
    torch.manual_seed(args.seed)
    truth = build(
        torch.tensor([0.5, 0.3, 0.2]).double(),
        torch.tensor([[0.90, 0.06, 0.04], [0.10, 0.80, 0.10], [0.05, 0.15, 0.80]]).double(),
        torch.tensor([[1.5, 0.0], [-1.0, 1.5], [-1.0, -2.0]]).double(),
        torch.tensor([[1.0, 0.3], [0.3, 0.7]]).double().repeat(K, 1, 1),
        args.num_steps,
    )
    x, fresh = truth.sample((args.num_sequences,)), truth.sample((args.num_sequences // 4,))

    # 3. EM on all the data, for comparison.
    pyro.clear_param_store()
    began = time.perf_counter()
    result = EM(model).run(x, num_steps=200)
    took = time.perf_counter() - began
    full = held_out(fresh)
    print(f"full EM: {result.num_steps} passes, {took:.1f} s, held out {full:.5f} an observation\n")

    # 4. Stochastic EM, batch by batch.
    pyro.clear_param_store()
    em = EM(lambda x: model(x, args.batch_size))
    per_pass = args.num_sequences // args.batch_size
    rows = []
    began = time.perf_counter()
    for number in range(1, args.passes + 1):
        for _ in range(per_pass):
            em.step(x)
        took = time.perf_counter() - began
        rows.append((number, took, held_out(fresh)))
        gap = (full - rows[-1][2]) / abs(full)
        print(f"pass {number}: {took:5.1f} s, held out {rows[-1][2]:.5f}, {gap:8.4%} below full EM")
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "held_out.csv", "w", newline="") as file:
        csv.writer(file).writerows([["pass", "seconds", "held_out"], *rows])
    print(f"\nheld-out log-likelihood by pass: {args.out / 'held_out.csv'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-sequences", type=int, default=2000, help="N")
    parser.add_argument("--num-steps", type=int, default=50, help="T")
    parser.add_argument("--batch-size", type=int, default=50, help="sequences per step")
    parser.add_argument("--passes", type=int, default=5, help="passes over the data")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--out", type=Path, default=Path("streaming"), help="output directory")
    main(parser.parse_args())
