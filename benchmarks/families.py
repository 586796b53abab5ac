"""The cost of an EM step for every family of observations with a closed form.

Every model has three states and 2,500 steps simulated from itself; EM starts nearby. Vectors have
seven independent series or dims, counts over categories seven categories. First the log-likelihood
at the start is compared with that of the distribution's own densities under the recursion
in log space, and no step may lower it; a family that fails has no time in the table.

The time of a step is that of a run of 1 + n steps minus that of a run of one, divided by n, the
median over rounds in which all families take turns. The last column is in steps of ``Normal`` with
seven series.

    python -m benchmarks.families [--family NAME ...] [--steps N] [--repeats N] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints as to
from torch import Tensor
from torch.distributions import transform_to

from benchmarks import measure
from benchmarks.measure import duration, fixed, relative_difference, take_turns
from pyro_regimes import EM, RegimeHMM

K, T, D = 3, 2_500, 7
TOLERANCE = 1e-9  #: relative, of the log-likelihood at the start
BASE = "Normal"


class Workload(NamedTuple):
    """A model of one family."""

    name: str
    parameters: dict[str, tuple[Any, to.Constraint]]  #: values and constraints, by argument
    build: Callable[..., dist.TorchDistribution]  #: ``(K,)`` distributions of an observation


def _series(kind: Callable[..., Any], **given: tuple[float, float, to.Constraint]) -> Workload:
    """Independent series; the arguments go from the first value in state 0 to the second."""
    parameters = {
        name: (torch.linspace(first, last, K).unsqueeze(-1).expand(K, D), constraint)
        for name, (first, last, constraint) in given.items()
    }
    return Workload(kind.__name__, parameters, lambda **each: kind(**each).to_event(1))


def _covariances() -> Tensor:
    factor = torch.eye(D) + 0.3 * torch.ones(D, D).tril(-1)
    return torch.linspace(0.5, 2.0, K)[:, None, None] * (factor @ factor.mT)


def _probs() -> Tensor:
    return torch.softmax(torch.linspace(-1.0, 1.0, K)[:, None] * torch.linspace(0.0, 2.0, D), -1)


def _mixture(probs: Tensor, loc: Tensor, scale: Tensor) -> dist.MixtureSameFamily:
    component = dist.Normal(loc, scale).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(probs), component)


def workloads() -> Iterator[Workload]:
    """Every family."""
    loc, positive, unit = to.real, to.positive, to.unit_interval
    locs = torch.linspace(-1.0, 1.0, K).unsqueeze(-1).expand(K, D)
    trils = torch.linalg.cholesky(_covariances())
    yield _series(dist.Normal, loc=(-1, 1, loc), scale=(0.5, 1.5, positive))
    yield Workload(
        "MultivariateNormal",
        {"loc": (locs, loc), "covariance_matrix": (_covariances(), to.positive_definite)},
        dist.MultivariateNormal,
    )
    yield _series(dist.LogNormal, loc=(-1, 1, loc), scale=(0.5, 1.5, positive))
    yield _series(
        dist.StudentT, df=(4, 8, positive), loc=(-1, 1, loc), scale=(0.5, 1.5, positive)
    )
    yield Workload(
        "MultivariateStudentT",
        {
            "df": (torch.linspace(4.0, 8.0, K), positive),
            "loc": (locs, loc),
            "scale_tril": (trils, to.lower_cholesky),
        },
        dist.MultivariateStudentT,
    )
    yield _series(dist.Laplace, loc=(-1, 1, loc), scale=(0.5, 1.5, positive))
    yield _series(dist.Gamma, concentration=(2, 5, positive), rate=(1, 3, positive))
    yield _series(dist.InverseGamma, concentration=(3, 6, positive), rate=(1, 3, positive))
    yield _series(dist.Weibull, scale=(1, 3, positive), concentration=(1.2, 2, positive))
    yield _series(dist.Exponential, rate=(0.5, 3, positive))
    yield _series(dist.HalfNormal, scale=(0.5, 2, positive))
    yield _series(dist.Beta, concentration1=(2, 5, positive), concentration0=(4, 2, positive))
    yield _series(dist.VonMises, loc=(-1, 1, loc), concentration=(1, 4, positive))
    yield _series(dist.Poisson, rate=(1, 6, positive))
    yield _series(dist.ZeroInflatedPoisson, rate=(2, 6, positive), gate=(0.2, 0.4, unit))
    yield _series(dist.NegativeBinomial, total_count=(3, 6, positive), probs=(0.3, 0.6, unit))
    yield _series(dist.Geometric, probs=(0.2, 0.7, unit))
    yield _series(dist.Bernoulli, probs=(0.2, 0.7, unit))
    yield Workload(
        "Binomial",
        {"probs": (torch.linspace(0.2, 0.7, K).unsqueeze(-1).expand(K, D), unit)},
        lambda probs: dist.Binomial(10, probs).to_event(1),
    )
    yield Workload("Categorical", {"probs": (_probs(), to.simplex)}, dist.Categorical)
    yield Workload("OneHotCategorical", {"probs": (_probs(), to.simplex)}, dist.OneHotCategorical)
    yield Workload(
        "Multinomial", {"probs": (_probs(), to.simplex)}, partial(dist.Multinomial, 10)
    )
    yield Workload("Dirichlet", {"concentration": (1 + 10 * _probs(), positive)}, dist.Dirichlet)
    yield Workload(
        "MixtureSameFamily",
        {
            "probs": (torch.tensor([0.3, 0.7]).expand(K, 2), to.simplex),
            "loc": (locs.unsqueeze(-2) + torch.tensor([[-1.0], [1.0]]), loc),
            "scale": (torch.full((K, 2, D), 0.7), positive),
        },
        _mixture,
    )
    yield Workload(
        "LowRankMultivariateNormal",
        {
            "loc": (locs, loc),
            "cov_factor": (torch.linspace(0.5, 1.0, K * D).reshape(K, D, 1), loc),
            "cov_diag": (torch.ones(K, D), positive),
        },
        dist.LowRankMultivariateNormal,
    )


def _near(value: Tensor, constraint: to.Constraint, generator: torch.Generator) -> Tensor:
    """A value a little away from this one."""
    transform = transform_to(constraint)
    free = transform.inv(value)
    return transform(free + 0.1 * torch.randn(free.shape, generator=generator, dtype=free.dtype))


class Fit:
    """A model of a family on its simulated data."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        generator = torch.Generator().manual_seed(0)
        true = {
            name: (value.double().contiguous(), constraint)
            for name, (value, constraint) in workload.parameters.items()
        }
        stays = torch.rand(T, generator=generator) < 0.95
        states = torch.where(stays, 0, torch.randint(1, K, (T,), generator=generator)).cumsum(0) % K
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            every = workload.build(**{name: value for name, (value, _) in true.items()})
            self.x = every.sample(torch.Size([T]))[torch.arange(T), states]
        self.start = {name: _near(*each, generator) for name, each in true.items()}
        self.probs = torch.full((K,), 1 / K, dtype=torch.float64)
        self.rows = 0.05 * torch.ones(K, K).double() + 0.85 * torch.eye(K).double()
        self.em = EM(self.model)

    def model(self) -> None:
        """The model of these observations."""
        initial = pyro.param("initial_probs", self.probs.clone(), constraint=to.simplex)
        rows = pyro.param("transition_probs", self.rows.clone(), constraint=to.simplex)
        arguments = {
            name: pyro.param(name, value.clone(), constraint=self.workload.parameters[name][1])
            for name, value in self.start.items()
        }
        hmm = RegimeHMM(
            initial_probs=initial,
            transition_probs=rows,
            observation_dist=self.workload.build(**arguments),
        )
        pyro.sample("x", hmm, obs=self.x)

    def run(self, num_steps: int) -> list[float]:
        """The losses of a run from the start."""
        pyro.clear_param_store()
        history: list[float] = self.em.run(num_steps=num_steps, tol=None, check=False).history
        return history

    def doubt(self, num_steps: int) -> str | None:
        """Why its time would mean nothing; None if it is right."""
        losses = self.run(num_steps)
        logits = self.workload.build(**self.start).log_prob(self.x.unsqueeze(1))
        alpha = self.probs.log() + logits[0]
        for now in logits[1:]:
            alpha = (alpha.unsqueeze(-1) + self.rows.log()).logsumexp(0) + now
        difference = relative_difference(losses[0], -float(alpha.logsumexp(0)))
        if not difference <= TOLERANCE:
            return f"differs: {difference:.0e}"
        falls = max(after - before for before, after in zip(losses, losses[1:]))
        return f"falls by {falls:.0e}" if falls > 1e-12 * abs(losses[0]) else None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", nargs="*", help="only these, and Normal")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    busy = measure.load()
    warnings.simplefilter("ignore", RuntimeWarning)
    fits, notes = {}, {}
    for workload in workloads():
        if given.family is None or workload.name in (BASE, *given.family):
            fit = Fit(workload)
            notes[workload.name] = fit.doubt(given.steps)
            if notes[workload.name] is None:
                fits[workload.name] = fit
    tasks = {
        (name, number): partial(duration, partial(fit.run, number))
        for name, fit in fits.items()
        for number in (1, 1 + given.steps)
    }
    seconds = take_turns(tasks, given.repeats)
    each = {
        name: statistics.median(
            (long - short) / given.steps
            for short, long in zip(seconds[name, 1], seconds[name, 1 + given.steps])
        )
        for name in fits
    }
    rows = [
        [name, note or fixed(1e3 * each[name]), "-" if note else f"{each[name] / each[BASE]:.1f}"]
        for name, note in notes.items()
    ]
    text = "\n".join(
        [
            busy,
            "",
            f"an EM step, K={K}, T={T}, D={D}, float64, median of {given.repeats}",
            measure.table(["family", "ms", "in steps of Normal"], rows),
            "",
            measure.surroundings(),
        ]
    )
    print(text)
    if given.markdown is not None:
        command = "python -m benchmarks.families"
        given.markdown.write_text(measure.markdown("EM steps of all families", command, text))


if __name__ == "__main__":
    main()
