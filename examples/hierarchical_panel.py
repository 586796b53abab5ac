"""A panel of sectors with one regime chain, a mean for each sector, and a population of means.

    python examples/hierarchical_panel.py --out panel

All sectors share one chain of regimes. Each sector has its own mean in each regime. These means
have a common prior, the population, whose center is estimated too, so they are shrunk towards each
other. EM updates the means of the sectors, the center of the population, the transitions and the
variances in closed form (MAP, with AutoDelta as the guide).
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.datasets import load_sector_returns

K = 2  # calm, stressed
SPREAD = 0.03  # standard deviation of the sectors' means in the population, in percent per day


def model(x: Tensor) -> None:
    # 1. The population: a mean in each regime, the same for all sectors.
    start = x.mean() + x.new_tensor([0.02, -0.02])
    center = pyro.param("center", start)

    # 2. The sectors: means with the population as their prior, (D, K), and variances in each
    # regime.
    num_sectors = x.shape[-1]
    with pyro.plate("sectors", num_sectors, dim=-2), pyro.plate("regimes", K, dim=-1):
        means = pyro.sample("means", dist.Normal(center, SPREAD))
    variances = pyro.param(
        "variances", x.var(0) * x.new_tensor([[0.5], [3.0]]), constraint=constraints.positive
    )

    # 3. One chain for all sectors.
    sticky = 0.9 * torch.eye(K, dtype=x.dtype) + 0.1 / K
    transition = pyro.param("transition", sticky, constraint=constraints.simplex)
    hmm = RegimeHMM(
        initial_probs=x.new_full((K,), 1 / K),
        transition_probs=transition,
        observation_dist=dist.Normal(means.mT, variances.sqrt()).to_event(1),
    )
    pyro.sample("returns", hmm, obs=x)


def main(args: argparse.Namespace) -> None:
    data = load_sector_returns().last(args.num_rows)
    x = torch.tensor(data.values)
    pyro.clear_param_store()

    # 4. EM for the log joint density. The plan describes how each parameter is updated.
    start = x.mean(0).unsqueeze(-1).expand(-1, K)
    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"means": start}))
    em = EM(model, guide)
    result = em.run(x, num_steps=args.num_steps, tol=None)
    print(em.plan, end="\n\n")
    start, end = -result.history[0], -result.history[-1]
    print(f"log joint {start:.2f} at the start, {end:.2f} at the end\n")

    # 5. The means of the sectors and of the population.
    means = guide.median(x)["means"].detach()
    center = pyro.param("center").detach()
    print(f"{'percent a day':<16}{'calm':>8}{'stressed':>10}")
    print(f"{'population':<16}{center[0]:8.3f}{center[1]:10.3f}")
    for name, row in zip(data.names, means):
        print(f"{name:<16}{row[0]:8.3f}{row[1]:10.3f}")
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "means.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sector", "calm", "stressed"])
        writer.writerows([name, *row.tolist()] for name, row in zip(data.names, means))
    print(f"\nmeans by sector: {args.out / 'means.csv'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-rows", type=int, default=2000, help="number of days to use")
    parser.add_argument("--num-steps", type=int, default=100, help="number of EM steps")
    parser.add_argument("--out", type=Path, default=Path("panel"), help="output directory")
    main(parser.parse_args())
