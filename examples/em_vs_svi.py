"""One Pyro model, fitted twice from the same start: by EM, and by SVI with Adam.

    python examples/em_vs_svi.py --out em_vs_svi

Both maximise the same likelihood over the same parameters. EM takes closed-form steps and needs no
learning rate. SVI takes gradient steps and would also fit a model that has no closed form.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.datasets import load_sector_returns

K = 3  # regimes


class Row(NamedTuple):
    """One line of the table."""

    method: str
    log_likelihood: float
    iterations: int
    seconds: float


def model(x: Tensor) -> None:
    # 1. The model, with a start that depends on the data alone: three regimes that differ in
    # volatility, and that last ten days.
    scatter = x.T.cov(correction=0)
    sizes = torch.tensor([0.5, 1.0, 3.0], dtype=x.dtype)[:, None, None]
    uniform = torch.full((K,), 1 / K, dtype=x.dtype)
    sticky = torch.full((K, K), 0.05, dtype=x.dtype) + 0.85 * torch.eye(K, dtype=x.dtype)
    initial = pyro.param("initial", uniform, constraint=constraints.simplex)
    transition = pyro.param("transition", sticky, constraint=constraints.simplex)
    loc = pyro.param("loc", x.mean(0).repeat(K, 1))  # (K, D)
    factor = pyro.param(
        "factor", torch.linalg.cholesky(sizes * scatter), constraint=constraints.lower_cholesky
    )
    hmm = RegimeHMM(
        initial_probs=initial,
        transition_probs=transition,
        observation_dist=dist.MultivariateNormal(loc, scale_tril=factor),
    )
    pyro.sample("returns", hmm, obs=x)


def no_guide(x: Tensor) -> None:
    """Nothing is latent but the regimes, and the HMM sums over those."""


def main(args: argparse.Namespace) -> None:
    x = torch.tensor(load_sector_returns().values[-args.num_rows :])
    rows = []

    # 2. EM, from the start that the model states.
    pyro.clear_param_store()
    em = EM(model)
    began = time.perf_counter()
    result = em.run(x, num_steps=args.em_steps, tol=args.tol)
    took = time.perf_counter() - began
    rows.append(Row("EM", -result.history[-1], result.num_steps, took))
    print(em.plan, end="\n\n")

    # 3. SVI, from the same start: the store is cleared, and the model makes its parameters anew.
    # Its loss is minus the log-likelihood, since there is nothing for a guide to guess.
    pyro.clear_param_store()
    svi = SVI(model, no_guide, pyro.optim.Adam({"lr": args.learning_rate}), Trace_ELBO())
    began = time.perf_counter()
    losses = [svi.step(x) for _ in range(args.svi_steps)]
    losses.append(svi.evaluate_loss(x))
    took = time.perf_counter() - began
    rows.append(Row("SVI", -losses[-1], args.svi_steps, took))
    assert abs(losses[0] - result.history[0]) < 1e-6 * abs(losses[0])  # one start, one loss

    # 4. EM from where SVI ended: one model, one parameter store, so either may take over.
    began = time.perf_counter()
    more = EM(model).run(x, num_steps=args.em_steps, tol=args.tol)
    took = time.perf_counter() - began
    rows.append(Row("SVI, then EM", -more.history[-1], args.svi_steps + more.num_steps, took))

    # 5. The table. The last row's seconds are those of EM alone.
    print(f"{len(x)} days, log-likelihood at the start {-result.history[0]:.2f}\n")
    print(f"{'method':<14}{'log-likelihood':>16}{'iterations':>12}{'seconds':>10}")
    for row in rows:
        print(f"{row.method:<14}{row.log_likelihood:16.2f}{row.iterations:12}{row.seconds:10.1f}")
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "em_vs_svi.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["iteration", "em", "svi"])
        for step in range(max(len(result.history), len(losses))):
            # Nothing stands where a method had already ended.
            pair = [-each[step] if step < len(each) else "" for each in (result.history, losses)]
            writer.writerow([step, *pair])
    print(f"\nlog-likelihoods by iteration: {args.out / 'em_vs_svi.csv'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-rows", type=int, default=1000, help="use the last so many days")
    parser.add_argument("--em-steps", type=int, default=200, help="EM iterations at most")
    parser.add_argument("--tol", type=float, default=1e-4, help="smallest rise that EM goes on for")
    parser.add_argument("--svi-steps", type=int, default=200, help="gradient steps")
    parser.add_argument("--learning-rate", type=float, default=0.02, help="of Adam")
    parser.add_argument("--out", type=Path, default=Path("em_vs_svi"), help="directory of results")
    main(parser.parse_args())
