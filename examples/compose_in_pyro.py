"""A hidden Markov model as one part of a larger Pyro model: many series, and a neural network.

    python examples/compose_in_pyro.py --out compose

Each of N series has its own chain of calm and stressed regimes. The mean return of a series in each
regime is an unknown function of a characteristic of the series, such as its leverage. A small
neural network learns this function from all series together. The network has no closed-form update.
This example therefore uses SVI, which updates the network, the transitions and the volatilities
together.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_regimes import RegimeHMM

K = 2  # calm, stressed


def true_means(leverage: Tensor) -> Tensor:
    """The function that the network has to learn, ``(N, 1) -> (N, K)``."""
    return torch.cat([1.0 + 0.5 * leverage, -1.0 - 0.5 * leverage**2], -1)


def build(
    initial: Tensor, transition: Tensor, means: Tensor, scale: Tensor, duration: int
) -> RegimeHMM:
    # 1. One chain per series. Dimension -2 of the observations' batch shape is always time, so
    # means of N series that are constant in time have shape (N, 1, K). All series share the
    # transitions.
    return RegimeHMM(
        initial_probs=initial,
        transition_probs=transition,
        observation_dist=dist.Normal(means.unsqueeze(-2), scale),
        duration=duration,
    )


def make_model(network: nn.Module):
    def model(leverage: Tensor, returns: Tensor) -> None:
        # 2. The model. pyro.module puts the network's weights in the parameter store.
        pyro.module("network", network)
        initial = pyro.param("initial", torch.full((K,), 1 / K), constraint=constraints.simplex)
        transition = pyro.param(
            "transition", torch.tensor([[0.8, 0.2], [0.2, 0.8]]), constraint=constraints.simplex
        )
        scale = pyro.param("scale", torch.ones(K), constraint=constraints.positive)
        hmm = build(initial, transition, network(leverage), scale, returns.shape[-1])
        with pyro.plate("series", len(returns)):
            pyro.sample("returns", hmm, obs=returns)

    return model


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    pyro.clear_param_store()

    # 3. Data simulated from known parameters: N series of T steps.
    leverage = torch.linspace(-1, 1, args.num_series).unsqueeze(-1)
    transition = torch.tensor([[0.95, 0.05], [0.10, 0.90]])
    scale = torch.tensor([0.5, 1.0])
    means = true_means(leverage)
    truth = build(torch.tensor([0.5, 0.5]), transition, means, scale, args.num_steps)
    returns = truth.sample()  # (N, T)

    # 4. The network. Its last bias gives the two regimes different initial means. If they were
    # equal, no gradient would separate them.
    network = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, K))
    with torch.no_grad():
        network[-1].bias.copy_(torch.tensor([0.5, -0.5]))

    # 5. SVI. Only the regimes are latent, and the HMM sums over them, so the guide is empty.
    adam = pyro.optim.Adam({"lr": args.learning_rate})
    svi = SVI(make_model(network), lambda *_: None, adam, Trace_ELBO())
    losses = [svi.step(leverage, returns) / returns.numel() for _ in range(args.svi_steps)]
    print("step    loss per observation")
    for step in range(0, args.svi_steps, max(1, args.svi_steps // 5)):
        print(f"{step:<8}{losses[step]:.4f}")
    print(f"{args.svi_steps - 1:<8}{losses[-1]:.4f}")
    at_truth = -float(truth.log_prob(returns).sum()) / returns.numel()
    print(f"truth   {at_truth:.4f}\n")

    # 6. The results, compared with the true parameters.
    with torch.no_grad():
        found = network(leverage)
        error = (found - means).abs().mean(0).tolist()
        learned = pyro.param("transition")
        scale = pyro.param("scale")
        fitted = build(pyro.param("initial"), learned, found, scale, args.num_steps)
        agree = (fitted.viterbi(returns) == truth.viterbi(returns)).float().mean()
    print(f"mean absolute error of the regime means: {error[0]:.3f} calm, {error[1]:.3f} stressed")
    print(f"probability of staying: {learned[0, 0]:.3f} calm, {learned[1, 1]:.3f} stressed")
    print(f"the path is that of the true parameters at {agree:.1%} of the steps")
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "losses.csv", "w", newline="") as file:
        csv.writer(file).writerows([["step", "loss"], *enumerate(losses)])
    print(f"\nlosses by step: {args.out / 'losses.csv'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-series", type=int, default=30, help="N")
    parser.add_argument("--num-steps", type=int, default=100, help="T")
    parser.add_argument("--svi-steps", type=int, default=200, help="number of steps of SVI")
    parser.add_argument("--learning-rate", type=float, default=0.03, help="learning rate of Adam")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--out", type=Path, default=Path("compose"), help="output directory")
    main(parser.parse_args())
