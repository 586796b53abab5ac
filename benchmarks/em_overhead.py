"""The cost and the progress of a step of EM and of a step of SVI, on a model of ten parameters.

    python -m benchmarks.em_overhead

Both fit the same model to the same data from the same start, in turns; SVI uses Adam. First, their
losses at the start are compared, which must be equal. ``EM.step`` runs the model twice, the second
time to check that the likelihood has not fallen.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from benchmarks.measure import duration, take_turns
from pyro_regimes import EM, RegimeHMM

K, D, T = 3, 4, 2500
STEPS = 20  # in a turn


def make_model(truth: Tensor) -> Callable[[Tensor], None]:
    """Ten parameters: a row of A, a mean and a scale for each regime, and the initial state."""

    def model(x: Tensor) -> None:
        simplex, positive = constraints.simplex, constraints.positive
        uniform = torch.full((K,), 1 / K, dtype=x.dtype)
        initial = pyro.param("initial", uniform, constraint=simplex)
        rows, locs, scales = [], [], []
        for k in range(K):
            row = 0.1 * torch.ones(K, dtype=x.dtype) / K + 0.9 * torch.eye(K, dtype=x.dtype)[k]
            rows.append(pyro.param(f"row{k}", row, constraint=simplex))
            locs.append(pyro.param(f"loc{k}", 0.5 * truth[k]))
            ones = torch.ones(D, dtype=x.dtype)
            scales.append(pyro.param(f"scale{k}", ones, constraint=positive))
        hmm = RegimeHMM(
            initial_probs=initial,
            transition_probs=torch.stack(rows),
            observation_dist=dist.Normal(torch.stack(locs), torch.stack(scales)).to_event(1),
        )
        pyro.sample("x", hmm, obs=x)

    return model


def _no_guide(x: Tensor) -> None:
    """Nothing is latent."""


def main() -> None:
    """Compare, measure and print."""
    torch.manual_seed(0)
    truth = 1.5 * torch.randn(K, D, dtype=torch.float64)
    sticky = 0.05 / K + 0.95 * torch.eye(K, dtype=torch.float64)
    x = RegimeHMM(
        initial_probs=torch.full((K,), 1 / K, dtype=torch.float64),
        transition_probs=sticky / sticky.sum(-1, keepdim=True),
        observation_dist=dist.Normal(truth, 1.0).to_event(1),
        duration=T,
    ).sample()
    model = make_model(truth)

    def methods() -> dict[str, Callable[[Tensor], float]]:
        adam = pyro.optim.Adam({"lr": 0.02})
        return {"EM": EM(model).step, "SVI": SVI(model, _no_guide, adam, Trace_ELBO()).step}

    # The same loss at the same start, and the steps to within 0.1 of EM's end.
    with pyro.get_param_store().scope():
        step = methods()["EM"]
        ours = [step(x) for _ in range(60)]
    with pyro.get_param_store().scope():
        step = methods()["SVI"]
        theirs = [step(x) for _ in range(600)]
    if abs(ours[0] - theirs[0]) > 1e-9 * abs(ours[0]):
        raise SystemExit(f"the losses at the start differ: {ours[0]} and {theirs[0]}")
    goal = min(ours) + 0.1
    steps = {
        name: next((step for step, loss in enumerate(history) if loss <= goal), None)
        for name, history in (("EM", ours), ("SVI", theirs))
    }

    def turn(step: Callable[[Tensor], float]) -> float:
        return duration(lambda: [step(x) for _ in range(STEPS)]) / STEPS

    with pyro.get_param_store().scope():
        tasks = {name: partial(turn, step) for name, step in methods().items()}
        measured = take_turns(tasks, 9)
    medians = {name: 1e3 * statistics.median(times) for name, times in measured.items()}
    print(f"T={T} D={D} K={K}, ten parameters, float64; losses agree at the start: {ours[0]:.4f}")
    for name, milliseconds in medians.items():
        reached = "never" if steps[name] is None else f"after {steps[name]} steps"
        print(f"{name}.step: {milliseconds:.2f} ms; within 0.1 of EM's end {reached}")
    print(f"ratio of a step: {medians['EM'] / medians['SVI']:.2f}")


if __name__ == "__main__":
    main()
