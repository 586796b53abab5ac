"""Hamilton's autoregression: whole fits beside those of statsmodels, and the cost of its tuples.

The data are the growth of US real GNP (135 quarters), and the model is that of Hamilton (1989): two
regimes, four lags with common coefficients, one variance. Both libraries fit it from the same five
starts. Ours does so in one batch, by EM with extrapolation until a step gains less than 1e-5 nats;
statsmodels by five calls of ``fit``, each with its own five EM steps and then BFGS. A third row is
statsmodels' own search, ``fit(search_reps=5)``, which has other starts. The best log-likelihoods
are compared first, and where they differ there is no ratio. The ratio is that of the medians.

The second table is of one series of 10,000 rows, for two regimes and four lags: the log-likelihood
and the smoothed probabilities of the regimes by the 32 tuples, beside those of the same model as a
RegimeHMM with 32 states; and a step of EM.

    python -m benchmarks.autoregression [--repeats N] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import duration, fixed, relative_difference, take_turns
from pyro_regimes import EM, RegimeHMM
from pyro_regimes.distributions import SwitchingAutoregression
from pyro_regimes.observed import lagged_normal

DATA = Path(__file__).parents[1] / "tests" / "data" / "rgnp.csv"
ORDER = 4
TOLERANCE = 1e-4  #: nats, of the best log-likelihoods
KERNEL_TOLERANCE = 1e-10  #: relative

Array = npt.NDArray[np.float64]


class Starts(NamedTuple):
    """Values from which both libraries begin, of all starts."""

    transition: Array  #: ``(R, 2, 2)``
    loc: Array  #: ``(R, 2)``
    variance: float

    @classmethod
    def draw(cls, x: Array, number: int, seed: int) -> Starts:
        """Random transitions that favour to stay, and means about that of the data."""
        rng = np.random.RandomState(seed)
        stay = rng.uniform(0.6, 0.95, (number, 2))
        rows = np.stack([stay, 1 - stay], -1)
        rows[:, 1] = rows[:, 1, ::-1]
        return cls(rows, x.mean() + x.std() * rng.standard_normal((number, 2)), float(x.var()))


def growth() -> Array:
    """The growth of real GNP in percent, by quarter."""
    values: Array = np.genfromtxt(DATA, delimiter=",", names=True)["rgnp"].copy()
    return values


def model(starts: Starts, history: Tensor, x: Tensor) -> None:
    """All starts in one batch."""
    number = len(starts.loc)
    rows = torch.from_numpy(starts.transition).unsqueeze(-3)  # constant in time
    a = pyro.param("A", rows, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.from_numpy(starts.loc))
    phi = pyro.param("phi", torch.zeros(number, 1, ORDER, dtype=torch.float64))
    spread = torch.full((number, 1), starts.variance**0.5, dtype=torch.float64)
    sigma = pyro.param("sigma", spread, constraint=constraints.positive)
    with pyro.plate("starts", number):
        pyro.sample("x", SwitchingAutoregression(history, a, loc, phi, sigma), obs=x)


def our_fit(x: Array, starts: Starts) -> float:
    """The best log-likelihood; planning, iterations and the check of convergence included."""
    with pyro.get_param_store().scope():
        series = torch.from_numpy(x)
        em = EM(partial(model, starts))
        given = series[:ORDER], series[ORDER:]
        result = em.run(*given, num_steps=2_000, tol=1e-5, acceleration="squarem")
    return -float(result.restart_history[-1].min())


def _statsmodels(x: Array) -> Any:
    from statsmodels.tsa.regime_switching.markov_autoregression import MarkovAutoregression

    return MarkovAutoregression(x, k_regimes=2, order=ORDER, switching_ar=False)


def their_fits(x: Array, starts: Starts) -> float:
    """The best log-likelihood of statsmodels' fits from the same starts."""
    found, theirs = [], _statsmodels(x)
    for rows, loc in zip(starts.transition, starts.loc, strict=True):
        begin = np.array([rows[0, 0], rows[1, 0], *loc, starts.variance, *[0.0] * ORDER])
        found.append(float(theirs.fit(start_params=begin).llf))
    return max(found)


def their_search(x: Array, number: int) -> float:
    """The log-likelihood after statsmodels' own search for a start."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        return float(_statsmodels(x).fit(search_reps=number).llf)
    finally:
        np.random.set_state(state)


def fits_table(repeats: int, number: int = 5, seed: int = 0) -> str:
    """Whole fits, in milliseconds."""
    x = growth()
    starts = Starts.draw(x, number, seed)
    tasks: dict[str, Callable[[], float]] = {
        "EM.run": partial(our_fit, x, starts),
        "statsmodels fit": partial(their_fits, x, starts),
        "statsmodels search_reps": partial(their_search, x, number),
    }
    found = {}
    for name, task in list(tasks.items()):
        try:
            found[name] = task()
        except ImportError:
            del tasks[name]
    best = found["EM.run"]
    seconds = take_turns({name: partial(duration, task) for name, task in tasks.items()}, repeats)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    rows = []
    for name, value in found.items():
        agrees = abs(value - best) <= TOLERANCE
        ratio = f"{medians[name] / medians['EM.run']:.1f}" if agrees else "differs"
        rows.append([name, f"{value:.5f}", fixed(1e3 * medians[name]), ratio])
    header = [f"{number} starts, T={len(x) - ORDER}", "log-likelihood", "ms", "ratio"]
    return measure.table(header, rows)


def dense(given: SwitchingAutoregression, x: Tensor) -> RegimeHMM:
    """The same model as a chain whose states are the tuples of p + 1 regimes."""
    initial, matrix = given.initial_probs, given.transition_probs.squeeze(-3)
    tuples = list(itertools.product(range(len(initial)), repeat=ORDER + 1))
    steps = torch.zeros(len(tuples), len(tuples), dtype=torch.float64)
    start = initial[[one[0] for one in tuples]]
    for row, one in enumerate(tuples):
        for before, after in zip(one, one[1:]):
            start[row] *= matrix[before, after]
        for column, other in enumerate(tuples):
            if one[1:] == other[:-1]:
                steps[row, column] = matrix[other[-2], other[-1]]
    rows = torch.cat([given.history, x]).unfold(0, ORDER + 1, 1).flip(-1)
    ahead = rows[:, 1:] @ given.coefficients.mT  # (T, 1)
    means = ahead + lagged_normal.centre(given.loc, given.coefficients)
    return RegimeHMM(
        initial_probs=start / start.sum(),
        transition_probs=steps,
        observation_dist=dist.Normal(means, given.scale),
        validate_args=False,
    )


def long_model(num_steps: int) -> tuple[SwitchingAutoregression, Tensor]:
    """The published estimates, and a series drawn from them."""
    given = SwitchingAutoregression(
        history=torch.from_numpy(growth()[:ORDER]),
        transition_probs=torch.tensor([[0.754673, 0.245327], [0.095915, 0.904085]]).double(),
        loc=torch.tensor([-0.358811, 1.163516]).double(),
        coefficients=torch.tensor([0.013486, -0.057521, -0.246983, -0.212923]).double(),
        scale=torch.tensor(0.769005).double(),
        duration=num_steps,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return given, given.sample()


def tuples_table(repeats: int, num_steps: int = 10_000) -> str:
    """The sums over the paths of tuples, in milliseconds."""
    given, x = long_model(num_steps)
    wide = dense(given, x)
    tasks: dict[tuple[str, str], Callable[[], Tensor]] = {
        ("log-likelihood", "tuples"): partial(given.log_prob, x),
        ("log-likelihood", "dense"): partial(wide.log_prob, x),
        ("E-step", "tuples"): partial(given.smoothed_probs, x),
        ("E-step", "dense"): partial(wide.smoothed_probs, x),
    }
    with torch.no_grad():
        for what in ("log-likelihood", "E-step"):
            one, other = (tasks[what, kind]() for kind in ("tuples", "dense"))
            if what == "E-step":
                other = other.unflatten(-1, (-1, given.state_dim)).sum(-2)
            apart = relative_difference(one, other)
            if not apart <= KERNEL_TOLERANCE:
                raise RuntimeError(f"the {what} of tuples differs by {apart:.0e}")
        timed = {name: partial(duration, task) for name, task in tasks.items()}
        seconds = take_turns(timed, repeats)
    medians = {name: 1e3 * statistics.median(each) for name, each in seconds.items()}
    rows = [
        [what, *(fixed(medians[what, kind]) for kind in ("tuples", "dense"))]
        + [f"{medians[what, 'dense'] / medians[what, 'tuples']:.1f}"]
        for what in ("log-likelihood", "E-step")
    ]
    rows.append(["step of EM", fixed(1e3 * step_seconds(given, x, repeats)), "-", "-"])
    return measure.table([f"T={num_steps}", "tuples", "32 states", "ratio"], rows)


def step_seconds(given: SwitchingAutoregression, x: Tensor, repeats: int) -> float:
    """Seconds of a step of EM: a run of 21 steps less a run of one."""

    def autoregression() -> None:
        rows = given.transition_probs.squeeze(-3)
        a = pyro.param("A", rows.clone(), constraint=constraints.simplex)
        loc = pyro.param("loc", given.loc + 0.1)
        phi = pyro.param("phi", given.coefficients.clone())
        sigma = pyro.param("sigma", given.scale.clone(), constraint=constraints.positive)
        pyro.sample("x", SwitchingAutoregression(given.history, a, loc, phi, sigma), obs=x)

    em = EM(autoregression)

    def run(num_steps: int) -> None:
        with pyro.get_param_store().scope():
            em.run(num_steps=num_steps, tol=None, check=False)

    run(1)
    seconds = take_turns({n: partial(duration, partial(run, n)) for n in (1, 21)}, repeats)
    return (statistics.median(seconds[21]) - statistics.median(seconds[1])) / 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    busy = measure.load()
    warnings.simplefilter("ignore")
    parts = [busy, fits_table(given.repeats), tuples_table(given.repeats), measure.surroundings()]
    text = "\n\n".join(parts)
    print(text)
    if given.markdown is not None:
        command = "python -m benchmarks.autoregression"
        given.markdown.write_text(measure.markdown("Hamilton's autoregression", command, text))


if __name__ == "__main__":
    main()
