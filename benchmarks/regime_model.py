"""``RegimeModel(n_init=10).fit`` and ten fits by hmmlearn, on daily returns of seven US sectors.

For each covariance type both fit three regimes from ten starts, with at most 100 iterations and a
tolerance of 1e-4 on the log-likelihood, and keep the best fit. The complete fit is timed. hmmlearn
runs one start after the other, each with its own k-means, with its default implementation and
without its prior on covariances. The best log-likelihoods are printed first. If ours is lower,
there is no ratio. Runs take turns. Times are medians, and a ratio is hmmlearn's median over ours.

The columns: ours by default, with a callback, without acceleration (plain EM, as hmmlearn's), and
hmmlearn. A second table has ten restarts of plain EM over 50 iterations as a Pyro model, with and
without Dirichlet priors of all probabilities.

    python -m benchmarks.regime_model [--repeats N] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.initialization import init_to_value

from benchmarks import measure
from benchmarks.measure import duration, fixed, take_turns
from pyro_regimes import EM, RegimeModel
from pyro_regimes.datasets import load_sector_returns
from pyro_regimes.estimator.pyro_model import CHAIN_ARGUMENTS, pyro_model, regime_hmm, to_arguments
from pyro_regimes.estimator.spec import COVARIANCE_TYPES, Spec, find_spec
from pyro_regimes.estimator.starts import make_starts

Array = npt.NDArray[np.float64]

K, NUM_STARTS, MAX_ITER, TOL = 3, 10, 100, 1e-4


def ours(x: Array, kind: str, callback: Callable[..., None] | None = None, **more: Any) -> float:
    """The best log-likelihood of ten starts."""
    settings: dict[str, Any] = dict(n_init=NUM_STARTS, max_iter=MAX_ITER, tol=TOL)
    settings |= dict(regularization=0.0, random_state=0)
    return RegimeModel(K, kind, **settings, **more).fit(x, callback=callback).log_likelihood_


def hmmlearn(x: Array, kind: str) -> float:
    """The same by hmmlearn."""
    from hmmlearn.hmm import GaussianHMM

    best = -np.inf
    for seed in range(NUM_STARTS):
        model = GaussianHMM(
            K, kind, n_iter=MAX_ITER, tol=TOL, random_state=seed, min_covar=0.0, covars_prior=0.0
        )
        best = max(best, model.fit(x).score(x))
    return best


def fits(repeats: int) -> str:
    """The first table."""
    x = np.asarray(load_sector_returns().values, dtype=np.float64)
    rows = []
    for kind in COVARIANCE_TYPES:
        tasks: dict[str, Callable[[], float]] = {
            "ours": partial(ours, x, kind),
            "callback": partial(ours, x, kind, lambda *args: None),
            "plain": partial(ours, x, kind, acceleration=None),
            "hmmlearn": partial(hmmlearn, x, kind),
        }
        found = {name: task() for name, task in tasks.items()}
        timed = {name: partial(duration, task) for name, task in tasks.items()}
        measured = take_turns(timed, repeats)
        seconds = {name: statistics.median(each) for name, each in measured.items()}
        own, is_sound = seconds["ours"], found["ours"] >= found["hmmlearn"] - 1e-3
        rows.append(
            [
                kind,
                f"{found['ours']:.3f}",
                f"{found['hmmlearn']:.3f}",
                fixed(own),
                f"{seconds['callback'] / own:.2f}",
                fixed(seconds["plain"]),
                fixed(seconds["hmmlearn"]),
                f"{seconds['hmmlearn'] / own:.1f}" if is_sound else "-",
                f"{seconds['hmmlearn'] / seconds['plain']:.1f}" if is_sound else "-",
            ]
        )
        print("; ".join(rows[-1]), flush=True)
    header = [
        "covariances", "ours, nats", "hmmlearn", "ours s", "with callback", "plain s", "hmmlearn s",
        "ratio", "ratio of plain",
    ]  # fmt: skip
    return measure.table(header, rows)


def _prior_model(arguments: Mapping[str, torch.Tensor], spec: Spec) -> Callable[..., None]:
    """The Pyro model of ten starts with a Dirichlet prior of every row of probabilities."""

    def model(x: torch.Tensor) -> None:
        held = {}
        for name, value in arguments.items():
            if name in CHAIN_ARGUMENTS:
                prior = dist.Dirichlet(torch.full_like(value, 2.0))
                held[name] = pyro.sample(name, prior.to_event(value.dim() - 1))
            else:
                constraint = spec.constraint(name, 0.0)
                held[name] = pyro.param(name, value.clone(), constraint=constraint)
        with pyro.plate("starts", NUM_STARTS):
            pyro.sample("observations", regime_hmm(held, spec), obs=x)

    return model


def _fit(em: EM, x: torch.Tensor) -> None:
    pyro.clear_param_store()
    em.run(x, num_steps=50, tol=None)


def priors(repeats: int) -> str:
    """The second table."""
    x = np.asarray(load_sector_returns().values, dtype=np.float64)
    z = torch.tensor((x - x.mean(0)) / x.std(0))
    rows = []
    for kind in COVARIANCE_TYPES:
        spec = find_spec(kind)
        starts = make_starts(z.numpy(), K, NUM_STARTS, spec, 1e-6, np.random.RandomState(0))
        arguments = to_arguments(starts, spec)
        model = _prior_model(arguments, spec)
        start = init_to_value(values={name: arguments[name] for name in CHAIN_ARGUMENTS})
        plain = EM(pyro_model(arguments, spec))
        mapped = EM(model, AutoDelta(model, init_loc_fn=start))
        tasks = {"plain": partial(_fit, plain, z), "priors": partial(_fit, mapped, z)}
        for task in tasks.values():
            task()
        timed = {name: partial(duration, task) for name, task in tasks.items()}
        measured = take_turns(timed, repeats)
        one, other = (1e3 * statistics.median(each) for each in measured.values())
        engine = str(mapped.plan and mapped.plan.engine)
        rows.append([kind, fixed(one), fixed(other), f"{other / one:.2f}", engine])
        print("; ".join(rows[-1]), flush=True)
    return measure.table(["covariances", "plain ms", "priors ms", "ratio", "engine"], rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # of fits that end before they have converged
    lines = [measure.load(), "", fits(given.repeats), "", priors(given.repeats), ""]
    text = "\n".join(lines + [measure.surroundings()])
    print("\n" + text)
    if given.markdown is not None:
        command = f"python -m benchmarks.regime_model --repeats {given.repeats}"
        page = measure.markdown("Ten starts of RegimeModel beside hmmlearn", command, text)
        given.markdown.write_text(page)


if __name__ == "__main__":
    main()
