"""Times of typical calls with two versions of the package, in turns.

    python -m benchmarks.versions --before CHECKOUT [--rounds N] [--markdown FILE]

Each round runs every task in a new process with the package of the other checkout, and then in one
with this package. A process runs each task once to warm up and then three times. The median of all
rounds is reported. Both get the same data, starts and iterations. Results are printed next to the
times. The tasks are EM as Pyro users run it on 2,500 steps of ten series (50 forced iterations, and
none: all that comes before the first), RegimeModel with ten starts on the embedded sector returns,
the same with a callback, and the posterior of one series.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

KINDS = ("full", "diag", "tied", "spherical")


def tasks() -> dict[str, Callable[[], float]]:
    """The tasks, which return what they found."""
    import numpy as np
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.distributions import constraints

    from pyro_regimes import EM, RegimeHMM, RegimeModel
    from pyro_regimes.datasets import load_sector_returns

    rng = np.random.RandomState(0)
    states = np.cumsum(rng.random_sample(200_000) < 0.1) % 3
    means = 1.5 * rng.standard_normal((3, 10))
    long = torch.tensor(means[states] + rng.standard_normal((200_000, 10)))
    short = long[:2500]
    sectors = np.asarray(load_sector_returns().values, dtype=np.float64)
    rows = torch.full((3, 3), 0.05).double() + 0.85 * torch.eye(3).double()
    starts = torch.tensor(means) + 0.3 * torch.tensor(rng.standard_normal((3, 10)))

    def observation(kind: str) -> dist.TorchDistribution:
        loc = pyro.param("loc", starts.clone)
        eye = torch.eye(10).double()
        if kind in ("full", "tied"):
            start = eye.expand(3, 10, 10).clone() if kind == "full" else eye
            spread = pyro.param("spread", start, constraint=constraints.positive_definite)
            return dist.MultivariateNormal(loc, spread)
        size = (3, 10) if kind == "diag" else (3, 1)
        spread = pyro.param("spread", torch.ones(size).double(), constraint=constraints.positive)
        return dist.Normal(loc, spread).to_event(1)

    def model(x: torch.Tensor, kind: str) -> None:
        simplex = constraints.simplex
        initial = pyro.param("initial", torch.full((3,), 1 / 3).double(), constraint=simplex)
        transition = pyro.param("transition", rows.clone(), constraint=simplex)
        hmm = RegimeHMM(
            initial_probs=initial,
            transition_probs=transition,
            observation_dist=observation(kind),
        )
        pyro.sample("x", hmm, obs=x)

    def run_em(kind: str, num_steps: int) -> float:
        pyro.clear_param_store()
        return EM(model).run(short, kind, num_steps=num_steps, tol=None).history[-1]

    def fit(kind: str, callback: Callable[..., None] | None = None) -> float:
        made = RegimeModel(3, kind, n_init=10, random_state=0, regularization=0.0)
        return made.fit(sectors, callback=callback).log_likelihood_

    def posterior(x: torch.Tensor) -> float:
        normal = dist.Normal(starts, torch.ones(3, 10).double()).to_event(1)
        hmm = RegimeHMM(
            initial_probs=rows[0], transition_probs=rows / rows.sum(-1), observation_dist=normal
        )
        return float(hmm.posterior(x).smoothed_probs.sum())

    found: dict[str, Callable[[], float]] = {}
    for kind in KINDS:
        found[f"EM, 50 iterations, {kind}"] = partial(run_em, kind, 50)
    found["EM, no iteration, full"] = lambda: run_em("full", 0)
    for kind in KINDS:
        found[f"RegimeModel, {kind}"] = partial(fit, kind)
    found["RegimeModel, full, callback"] = lambda: fit("full", lambda *args: None)
    found["posterior, T=2,500"] = lambda: posterior(short)
    found["posterior, T=200,000"] = lambda: posterior(long)
    return found


def measure_here() -> None:
    """Run all tasks and print seconds and answers as JSON; in a process of its own."""
    import warnings

    warnings.simplefilter("ignore")
    results = {}
    for name, task in tasks().items():
        answer, times = task(), []
        for _ in range(3):
            start = time.perf_counter()
            task()
            times.append(time.perf_counter() - start)
        results[name] = {"answer": answer, "seconds": times}
    print(json.dumps(results))


def _run(checkout: Path) -> dict[str, Any]:
    own = Path(__file__).parent.parent  # the benchmark is this one, of either package
    code = f"import sys; sys.path[:0] = [{str(checkout)!r}]; import pyro_regimes; "
    code += f"sys.path[:1] = [{str(own)!r}]; from benchmarks.versions import measure_here; "
    code += "measure_here()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure both in turn, and print."""
    from benchmarks import measure

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="a checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    load = measure.load()
    checkouts = {"before": given.before.resolve(), "after": Path(__file__).parent.parent}
    rounds = [{name: _run(path) for name, path in checkouts.items()} for _ in range(given.rounds)]
    rows = []
    for task in rounds[0]["after"]:
        times = {
            name: statistics.median(sum((each[name][task]["seconds"] for each in rounds), []))
            for name in checkouts
        }
        answers = [f"{rounds[0][name][task]['answer']:.3f}" for name in checkouts]
        milliseconds = [measure.fixed(1e3 * value) for value in times.values()]
        rows.append([task, *milliseconds, f"{times['before'] / times['after']:.1f}", *answers])
    header = ["task", "before ms", "after ms", "ratio", "answer before", "after"]
    revisions = [
        subprocess.run(
            ["git", "-C", str(path), "rev-parse", "--short", "HEAD"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
        for path in checkouts.values()
    ]  # fmt: skip
    text = f"{load}\nbefore {revisions[0]}, after {revisions[1]}\n\n{measure.table(header, rows)}"
    text += f"\n\n{measure.surroundings()}"
    print(text)
    if given.markdown is not None:
        command = f"python -m benchmarks.versions --before CHECKOUT --rounds {given.rounds}"
        given.markdown.write_text(measure.markdown("Before and after", command, text))


if __name__ == "__main__":
    main()
