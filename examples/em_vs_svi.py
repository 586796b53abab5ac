"""One Pyro model, fitted from one start by EM and by SVI with several optimisers.

    python examples/em_vs_svi.py --out em_vs_svi

All maximise the same likelihood over the same parameters. EM takes closed-form steps and has no
learning rate. SVI takes gradient steps, and also fits models without closed forms. Both use the
same parameter store, so each can continue from where the other stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from rich.console import Console
from torch import Tensor

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.comparison import compare, plot_comparison
from pyro_regimes.comparison.tables import speed_up_line, tables
from pyro_regimes.datasets import load_sector_returns

K = 3  # regimes


def model(x: Tensor) -> None:
    # 1. The model. It starts with three regimes that differ in volatility and last ten days on
    # average.
    size, dtype = x.shape[-1], x.dtype
    scatter = 0.4 * torch.eye(size, dtype=dtype) + 0.6
    sizes = torch.tensor([0.5, 1.0, 3.0], dtype=dtype)[:, None, None]
    uniform = torch.full((K,), 1 / K, dtype=dtype)
    sticky = torch.full((K, K), 0.05, dtype=dtype) + 0.85 * torch.eye(K, dtype=dtype)
    initial = pyro.param("initial", uniform, constraint=constraints.simplex)
    transition = pyro.param("transition", sticky, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.zeros(K, size, dtype=dtype))  # (K, D)
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
    """Empty: only the regimes are latent, and the HMM sums over them."""


def main(args: argparse.Namespace) -> None:
    returns = torch.tensor(load_sector_returns().values[-args.num_rows :])
    cut = int(0.8 * len(returns))
    # Scale all series to the same unit, because the step size of Adam does not depend on units.
    scaled = (returns - returns[:cut].mean(0)) / returns[:cut].std(0)
    x, held_out = scaled[:cut], scaled[cut:]

    # 2. EM and SVI alternate. Each continues from the parameters of the other.
    pyro.clear_param_store()
    em = EM(model)
    first = em.run(x, num_steps=5, tol=None)
    svi = SVI(model, no_guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(20)]
    again = em.run(x, num_steps=5, tol=None)
    print(em.plan, end="\n\n")
    print(f"EM   {first.history[0]:12.2f} -> {first.history[-1]:.2f}")
    print(f"SVI  {losses[0]:12.2f} -> {svi.evaluate_loss(x):.2f}")
    print(f"EM   {again.history[0]:12.2f} -> {again.history[-1]:.2f}\n")

    # 3. Complete runs of all methods from the same start, with their times.
    comparison = compare(
        model,
        x,
        held_out,
        ["EM", "Adam", "ClippedAdam"],
        em_steps=args.em_steps,
        svi_steps=args.svi_steps,
        learning_rates=args.learning_rates,
    )
    console = Console(width=80)
    for table in tables(comparison, f"{len(x)} days, {K} regimes, full covariances"):
        console.print(table)
    console.print(speed_up_line(comparison), highlight=False)
    args.out.mkdir(parents=True, exist_ok=True)
    plot_comparison(comparison).savefig(args.out / "em_vs_svi.png", dpi=150)
    print(f"\nlikelihood against seconds and passes: {args.out / 'em_vs_svi.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-rows", type=int, default=8312, help="number of days to use")
    parser.add_argument("--em-steps", type=int, default=200, help="maximum number of EM steps")
    parser.add_argument("--svi-steps", type=int, default=2000, help="number of steps of SVI")
    parser.add_argument(
        "--learning-rates", type=float, nargs="+", default=[0.01, 0.03, 0.1], help="of Adam"
    )
    parser.add_argument("--out", type=Path, default=Path("em_vs_svi"), help="output directory")
    main(parser.parse_args())
