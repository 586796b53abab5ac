"""Transition probabilities that depend on a covariate through a neural network.

    python examples/neural_transitions.py --out neural

The probability that a calm market becomes a stressed one depends on an observed covariate, here the
volatility of the last month. A small network computes the transition logits of every day. An
optimiser updates the network, which has no closed form but for its last bias, and EM updates that,
the means and the covariances. Each step uses one E-step for both.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.datasets import load_sector_returns
from pyro_regimes.infer import infer_regimes

K = 2  # calm, stressed
WINDOW = 21  # days


def make_covariate(x: Tensor) -> Tensor:
    """The log of the mean absolute return of the days before each day, standardised, ``(T, 1)``."""
    size = x.abs().mean(-1)
    before = size.unfold(0, WINDOW, 1).mean(-1).log()  # of days t - WINDOW + 1 to t
    return ((before - before.mean()) / before.std()).unsqueeze(-1)


def make_model(network: nn.Module):
    def model(x: Tensor, covariate: Tensor) -> None:
        # 1. The network: the transition logits to each day, given the covariate of the day before.
        pyro.module("network", network)
        logits = network(covariate[:-1]).reshape(-1, K, K)

        # 2. The mean and the covariance of each regime.
        scatter = x.T.cov(correction=0)
        sizes = torch.tensor([0.5, 3.0], dtype=x.dtype)[:, None, None]
        loc = pyro.param("loc", x.mean(0).repeat(K, 1))
        covariance = pyro.param(
            "covariance", sizes * scatter, constraint=constraints.positive_definite
        )
        hmm = RegimeHMM(
            initial_logits=x.new_zeros(K),
            transition_logits=logits,
            observation_dist=dist.MultivariateNormal(loc, covariance),
        )
        pyro.sample("returns", hmm, obs=x)

    return model


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    pyro.clear_param_store()
    returns = torch.tensor(load_sector_returns().values[-args.num_rows :])
    covariate = make_covariate(returns)
    x = returns[WINDOW - 1 :]

    # 3. The network. A bias of 3 makes the initial regimes persistent.
    network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, K * K)).double()
    with torch.no_grad():
        network[-1].bias.copy_(3.0 * torch.eye(K).flatten())
    model = make_model(network)

    # 4. EM with both kinds of updates.
    em = EM(model, optim=pyro.optim.Adam({"lr": args.learning_rate}))
    result = em.run(x, covariate, num_steps=args.num_steps, tol=None)
    print(em.plan, end="\n\n")
    print(f"log-likelihood {-result.history[0]:.2f} at the start, {-result.history[-1]:.2f} now\n")

    # 5. The result: transition probabilities after a quiet, an ordinary and a volatile month.
    with torch.no_grad():
        levels = torch.tensor([[-1.5], [0.0], [1.5]]).double()
        moves = network(levels).reshape(-1, K, K).softmax(-1)
    print("last month        calm -> stressed   stressed -> calm")
    for name, move in zip(("quiet", "ordinary", "volatile"), moves):
        print(f"{name:<16}{move[0, 1]:18.3f}{move[1, 0]:19.3f}")
    probs = infer_regimes(model, None, x, covariate)["returns"]
    print(f"\n{float(probs[:, 1].mean()):.1%} of the days are stressed")
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "stressed.csv", "w", newline="") as file:
        csv.writer(file).writerows([["step", "probability"], *enumerate(probs[:, 1].tolist())])
    print(f"probability of stress by day: {args.out / 'stressed.csv'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-rows", type=int, default=2000, help="number of days to use")
    parser.add_argument("--num-steps", type=int, default=150, help="number of EM steps")
    parser.add_argument("--learning-rate", type=float, default=0.02, help="learning rate of Adam")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--out", type=Path, default=Path("neural"), help="output directory")
    main(parser.parse_args())
