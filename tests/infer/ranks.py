"""Panels fitted by EM in one process, or split among the ranks of a process group."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torch.distributed
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta
from torch import Tensor

from pyro_regimes import EM, Chunks, RegimeHMM, stationary_probs
from pyro_regimes.infer import log_prob_of_pieces
from tests.estimator import rank_fits
from tests.infer.models import positive, probs, real

K, NUM_STEPS = 2, 6
NUM_SEQUENCES = 11
MATRIX = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)
START = torch.tensor([0.6, 0.4], dtype=torch.float64)
LOC = torch.tensor([-0.7, 0.9], dtype=torch.float64)
ONES = torch.ones(2, dtype=torch.float64)


def observe(x: Tensor, emission: Any, initial: Any = None, matrix: Any = None, **more: Any) -> None:
    matrix = probs("matrix", MATRIX) if matrix is None else matrix
    initial = probs("initial", START) if initial is None else initial
    # Pyro has no plate of size 0.
    plate = pyro.plate("sequences", len(x), dim=-1) if len(x) else nullcontext()
    with plate:
        hmm = RegimeHMM(
            initial_probs=initial, transition_probs=matrix, observation_dist=emission, **more
        )
        pyro.sample("x", hmm, obs=x)


def gaussian(x: Tensor) -> None:
    covariance = pyro.param(
        "covariance",
        lambda: torch.eye(2, dtype=torch.float64).expand(2, 2, 2).clone(),
        constraint=constraints.positive_definite,
    )
    loc = real("loc", torch.stack([LOC, -LOC], -1))
    emission = dist.MultivariateNormal(loc, covariance)
    observe(x, emission, missing="marginalise")


def normal(x: Tensor) -> None:
    observe(x, dist.Normal(real("loc", LOC), positive("scale", ONES)))


def student_t(x: Tensor) -> None:
    df = positive("df", 5 * ONES)
    emission = dist.StudentT(df, real("loc", LOC), positive("scale", ONES))
    observe(x, emission, missing="marginalise")


def poisson(x: Tensor) -> None:
    observe(x, dist.Poisson(positive("rate", LOC.exp())))


def stationary(x: Tensor) -> None:
    matrix = probs("matrix", MATRIX)
    observe(
        x, dist.Normal(real("loc", LOC), positive("scale", ONES)), stationary_probs(matrix), matrix
    )


def priors(x: Tensor) -> None:
    rows = dist.Dirichlet(2 + torch.eye(2, dtype=torch.float64)).to_event(1)
    matrix = pyro.sample("matrix", rows)
    observe(x, dist.Normal(real("loc", LOC), positive("scale", ONES)), matrix=matrix)


def with_optim(x: Tensor) -> None:
    loc = real("loc", LOC)
    observe(x, dist.Normal(loc.tanh() * 2, positive("scale", ONES)))


def together(x: Tensor) -> None:
    """Counts with gaps, a prior, a stationary start, and rates that the optimiser moves."""
    rows = dist.Dirichlet(2 + torch.eye(2, dtype=torch.float64)).to_event(1)
    matrix = pyro.sample("matrix", rows)
    emission = dist.Poisson(3 * real("level", LOC).sigmoid())
    observe(x, emission, stationary_probs(matrix), matrix, missing="marginalise")


def restarts(x: Tensor) -> None:
    loc = real("loc", torch.stack([LOC, 0.3 * LOC, -LOC])[:, None, None])  # (R, 1, 1, K)
    matrix = probs("matrix", MATRIX.expand(3, 1, 1, K, K))
    initial = probs("initial", START.expand(3, 1, K))
    scale = positive("scale", ONES.expand(3, 1, 1, K))
    with pyro.plate("restarts", 3, dim=-2):
        observe(x, dist.Normal(loc, scale), initial, matrix)


def affine(x: Tensor) -> None:
    loc = real("level", LOC[:1]) + torch.tensor([0.0, 1.0]) * real("distance", ONES[:1])
    observe(x, dist.Normal(loc, positive("scale", ONES)))


def predicted(x: Tensor) -> None:
    """Counts of which the rate depends on a covariate, in a chain that depends on it, too."""
    y, z = x[..., 0], x[..., 1, None]
    rate = (real("level", LOC) + real("slope", 0.1 * LOC) * z).exp()  # (N, T, K)
    slopes = real("slopes", torch.zeros(2, 2))
    logits = real("levels", MATRIX.log()) + slopes * z[:, 1:, :, None]  # (N, T - 1, K, K)
    plate = pyro.plate("sequences", len(x), dim=-1) if len(x) else nullcontext()
    with plate:
        hmm = RegimeHMM(
            initial_probs=probs("initial", START),
            transition_logits=logits,
            observation_dist=dist.Poisson(rate),
        )
        pyro.sample("x", hmm, obs=y)


def regression(x: Tensor) -> None:
    """Locations that are affine in parameters, with a covariate of every row."""
    y, z = x[..., 0], x[..., 1, None]
    loc = real("level", LOC) + real("slope", 0.1 * LOC) * z
    observe(y, dist.Normal(loc, positive("scale", ONES)))


def counts_of_rows(x: Tensor) -> None:
    """Counts whose rates depend on a covariate of every row."""
    y, z = x[..., 0], x[..., 1, None]
    observe(y, dist.Poisson((real("level", LOC) + real("slope", 0.1 * LOC) * z).exp()))


class Case(NamedTuple):
    model: Callable[[Tensor], None]
    draw: Callable[[Tensor, torch.Generator], Tensor]  # of the states' means (N, T)
    guide: bool = False
    optim: bool = False
    tol: float | None = None
    is_checked: bool = True
    some_are_empty: bool = False  # the shards of every second rank


def _normal(mean: Tensor, rng: torch.Generator) -> Tensor:
    return mean + torch.randn(mean.shape, generator=rng, dtype=torch.float64)


def _with_gaps(draw: Callable[[Tensor, torch.Generator], Tensor]) -> Any:
    def draw_with_gaps(mean: Tensor, rng: torch.Generator) -> Tensor:
        value = draw(mean, rng)
        return value.masked_fill(torch.rand(value.shape, generator=rng) < 0.1, torch.nan)

    return draw_with_gaps


def _heavy_tailed(mean: Tensor, rng: torch.Generator) -> Tensor:
    """Tails that determine degrees of freedom of about 3."""
    draws = torch.randn((3, *mean.shape), generator=rng, dtype=torch.float64)
    return mean + _normal(0 * mean, rng) / draws.square().mean(0).sqrt()


def _counts(mean: Tensor, rng: torch.Generator) -> Tensor:
    return torch.poisson(mean.exp(), generator=rng)


def _pairs(mean: Tensor, rng: torch.Generator) -> Tensor:
    return torch.stack([_normal(mean, rng), _normal(-mean, rng)], -1)


def _with_covariates(draw: Callable[[Tensor, torch.Generator], Tensor]) -> Any:
    def draw_with_covariates(mean: Tensor, rng: torch.Generator) -> Tensor:
        z = torch.randn(mean.shape, generator=rng, dtype=torch.float64)
        return torch.stack([draw(mean + 0.3 * z, rng), z], -1)

    return draw_with_covariates


CASES = {
    "gaussian": Case(gaussian, _with_gaps(_pairs)),
    "student_t": Case(student_t, _with_gaps(_heavy_tailed)),
    "poisson": Case(poisson, _counts, some_are_empty=True),
    "stationary": Case(stationary, _normal),
    "priors": Case(priors, _normal, guide=True),
    "optim": Case(with_optim, _normal, optim=True),
    "together": Case(together, _with_gaps(_counts), guide=True, optim=True),
    "restarts": Case(restarts, _normal, tol=0.05, is_checked=False),
    "converged": Case(normal, _normal, tol=1e-4),
    "affine": Case(affine, _normal),
    "regression": Case(regression, _with_covariates(_normal)),
    "counts of rows": Case(counts_of_rows, _with_covariates(_counts)),
    "predicted": Case(predicted, _with_covariates(_counts)),
}


def data(name: str, seed: int, num_sequences: int = NUM_SEQUENCES) -> Tensor:
    """A panel of sequences of which each stays in a state for ten steps."""
    rng = torch.Generator().manual_seed(seed)
    states = torch.randint(2, (num_sequences, 3), generator=rng).repeat_interleave(10, -1)
    return CASES[name].draw(2 * states.double() - 1, rng)


def fit(name: str, x: Tensor | Chunks) -> dict[str, Any]:
    """The trace and parameters of a few steps."""
    case = CASES[name]
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = None
    if case.guide:
        init = pyro.infer.autoguide.init_to_value(values={"matrix": MATRIX})
        guide = AutoDelta(pyro.poutine.block(case.model, expose=["matrix"]), init_loc_fn=init)
    optim = pyro.optim.SGD({"lr": 1e-3}) if case.optim else None
    em = EM(case.model, guide, optim)
    num_steps = NUM_STEPS if case.tol is None else 200
    result = em.run(x, num_steps=num_steps, tol=case.tol, check=case.is_checked)
    values = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    values["converged at"] = torch.tensor([at or -1 for at in result.converged_at])
    return {"history": result.history, "restarts": result.restart_history, **values}


def shard(name: str, x: Tensor, rank: int, size: int) -> Tensor:
    """Uneven shards: the last rank with sequences has what is left."""
    if CASES[name].some_are_empty:
        if rank % 2:
            return x[:0]
        rank, size = rank // 2, (size + 1) // 2
    each = len(x) // size
    return x[rank * each : (rank + 1) * each if rank < size - 1 else len(x)]


#: Those that are also fitted to one sequence, of which every rank has consecutive rows.
PIECES = (
    "gaussian",
    "student_t",
    "poisson",
    "stationary",
    "priors",
    "optim",
    "together",
    "restarts",
    "converged",
    "affine",
    "regression",
    "counts of rows",
)


def series(name: str, seed: int) -> Tensor:
    """One sequence of 330 steps, as a panel of one."""
    return data(name, seed).flatten(0, 1).unsqueeze(0)


def both(seed: int) -> Tensor:
    """Two sequences, ``(2, T)``."""
    return torch.cat([series("converged", seed), -series("converged", seed).flip(-1)])


def pieces(x: Tensor, rank: int, size: int, is_one: bool = False) -> Chunks:
    """The rows of a rank, each of which has another number, in up to three chunks, or in one."""
    cuts = [round(x.shape[1] * (number / size) ** 1.3) for number in range(size + 1)]
    own = x[:, cuts[rank] : cuts[rank + 1]]
    return Chunks(own.tensor_split(1 if is_one else 1 + rank % 3, 1), continues=True)


def poisson_by_rank(x: Tensor) -> None:
    if torch.distributed.get_rank() == 0:
        return poisson(x)
    observe(x, dist.Poisson(positive("rate", LOC.exp().reciprocal()).reciprocal()))


def differentiate(x: Tensor, log_prob: Callable[[RegimeHMM, Tensor], Tensor]) -> list[Tensor]:
    """A log-probability, and its gradients."""
    given = [MATRIX.log(), START.log(), torch.stack([LOC, -LOC])[:, None], ONES]
    logits, initial, loc, scale = (part.clone().requires_grad_() for part in given)
    hmm = RegimeHMM(
        initial_logits=initial,
        transition_logits=logits,
        observation_dist=dist.Normal(loc, scale),
    )
    value = log_prob(hmm, x)
    weighted = (value * torch.tensor([1.0, 3.0])).sum()
    parameters = [logits, initial, loc, scale]
    gradients = torch.autograd.grad(
        weighted, parameters, allow_unused=True, materialize_grads=True
    )
    return [value.detach(), *gradients]


def difference_messages() -> list[str]:
    """What a rank says that starts from another value, and one that uses it otherwise."""
    found = []
    for model in (poisson, poisson_by_rank):
        pyro.clear_param_store()
        if model is poisson:
            start = LOC.exp() + torch.distributed.get_rank()
            pyro.param("rate", start, constraint=constraints.positive)
        try:
            EM(model).run(torch.ones(2, 5, dtype=torch.float64))
        except ValueError as error:
            found.append(str(error))
    return found


#: Those that cannot be fitted to one sequence of which every rank has consecutive rows.
REFUSED = ("predicted",)


def refusal(name: str, own: Chunks) -> str:
    """Why a model is not fitted to pieces of a sequence."""
    try:
        fit(name, own)
    except ValueError as error:
        return str(error)
    return "fitted"


KILLED_IN = 23  # of the steps
NUM_STEPS_IN_ALL = 40


def die(rank: int, size: int, folder: str, is_killed: bool) -> None:
    """One rank of a run with a checkpoint, in which rank 2 may be killed."""
    begin(rank, size, folder)
    pyro.clear_param_store()

    def callback(number: int, loss: float) -> None:
        if is_killed and rank == 2 and number == KILLED_IN:
            os.kill(os.getpid(), signal.SIGKILL)

    x = shard("priors", data("poisson", 0), rank, size)
    result = EM(poisson).run(
        x,
        num_steps=NUM_STEPS_IN_ALL,
        tol=None,
        callback=callback,
        checkpoint=Path(folder) / "checkpoint",
    )
    torch.save(result.history, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def begin(rank: int, size: int, folder: str) -> None:
    """Join the group."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )


def work(rank: int, size: int, folder: str, seed: int) -> None:
    """One rank: every case twice."""
    begin(rank, size, folder)
    found: dict[str, Any] = {}
    for name in CASES:
        x = shard(name, data(name, seed), rank, size)
        found[name], found[f"{name} again"] = fit(name, x), fit(name, x)
    for name in PIECES:
        varies = name in ("regression", "counts of rows")
        own = pieces(series(name, seed), rank, size, is_one=varies)
        found[f"{name} in pieces"] = fit(name, own)
        found[f"{name} in pieces again"] = fit(name, own)
    for name in REFUSED:
        found[f"{name} refused"] = refusal(name, pieces(series(name, seed), rank, size))
    x = both(seed).tensor_split(size, 1)[rank]
    found["gradients"] = differentiate(x, log_prob_of_pieces)
    found["fits"] = rank_fits.work(rank, size, seed)
    found["differences"] = difference_messages()
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    which = (int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    what = sys.argv[4]
    if what in ("die", "go on"):
        die(*which, what == "die")
    else:
        work(*which, int(what))
