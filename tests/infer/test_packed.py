"""EM, SVI and decoding of packed sequences, against the same sequences padded to the longest."""

from __future__ import annotations

from typing import Any, Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, infer_regimes
from pyro_regimes.infer.em.engines import fused_linear
from pyro_regimes.infer.em.result import EMResult
from tests import seeds
from tests.infer.fused import both_engines

pytestmark = pytest.mark.usefixtures("filled_buffers")

LENGTHS = torch.tensor([9, 1, 60, 2, 2, 17, 1, 5])
T, K, D = int(LENGTHS.sum()), 2, 2
VALID = torch.arange(int(LENGTHS.max())) < LENGTHS.unsqueeze(-1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed), dtype=torch.float64)


REGIME = (torch.arange(T) // 6 % 2).double().unsqueeze(-1)
X = 3 * REGIME + (1 + REGIME) * draw(T, D)


def padded(x: Tensor) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(x.split(LENGTHS.tolist())), batch_first=True)


def held(name: str, start: Tensor, constraint: constraints.Constraint) -> Tensor:
    return pyro.param(name, start.clone(), constraint=constraint)


def multivariate_normal(*lead: int) -> dist.Distribution:
    start = torch.tensor([[0.0, 0.5], [2.0, 2.5]]).double().expand(*lead, K, D)
    if lead:
        start = start + 0.3 * draw(*lead, K, D, seed=3)
    spread = torch.eye(D).double().expand(*lead, K, D, D)
    return dist.MultivariateNormal(
        held("loc", start, constraints.real),
        held("covariance", spread, constraints.positive_definite),
    )


def normal(*lead: int) -> dist.Distribution:
    full = multivariate_normal(*lead)
    scale = held("scale", full.loc.detach() * 0 + 1, constraints.positive)
    return dist.Normal(full.loc, scale).to_event(1)


def student_t(*lead: int) -> dist.Distribution:
    start = torch.tensor([[0.0, 0.5], [2.0, 2.5]]).double().expand(*lead, K, D)
    return dist.StudentT(
        held("df", torch.full((*lead, K, 1), 5.0).double(), constraints.positive),
        held("loc", start, constraints.real),
        held("scale", torch.ones(*lead, K, D).double(), constraints.positive),
    ).to_event(1)


def poisson(*lead: int) -> dist.Distribution:
    rate = torch.tensor([[1.0, 1.5], [3.0, 2.5]]).double().expand(*lead, K, D)
    return dist.Poisson(held("rate", rate, constraints.positive)).to_event(1)


def model(
    build: Callable[..., dist.Distribution],
    packed: bool,
    restarts: int = 0,
    x: Tensor = X,
    **options: Any,
) -> Callable[[], None]:
    """The sequences as one site, packed or padded; restarts have the leftmost batch dim."""
    lead = (restarts,) if restarts else ()
    middle = () if packed or not lead else (1,)
    value = x if packed else padded(x)
    lengths = dict(packed_lengths=LENGTHS) if packed else dict(lengths=LENGTHS)

    def run() -> None:
        initial = torch.full((*lead, *middle, K), 0.5).double()
        probs = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).double()
        time = (1,) if lead else ()
        hmm = RegimeHMM(
            initial_probs=held("initial", initial, constraints.simplex),
            transition_probs=held(
                "transition", probs.expand(*lead, *middle, *time, K, K), constraints.simplex
            ),
            observation_dist=build(*lead, *middle, *time),
            **lengths,
            **options,
        )
        plates = [pyro.plate("restarts", restarts, dim=-1 if packed else -2)] if lead else []
        if not packed:
            plates.append(pyro.plate("sequences", len(LENGTHS), dim=-1))
        for plate in plates:
            plate.__enter__()
        pyro.sample("x", hmm, obs=value)
        for plate in reversed(plates):
            plate.__exit__(None, None, None)

    return run


def fitted() -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def run_em(model: Callable[[], None], **options: Any) -> EMResult:
    options = dict(num_steps=12, tol=None) | options
    return EM(model, min_eigenvalue=1e-3).run(**options)


@pytest.mark.parametrize("restarts", [0, 3])
@pytest.mark.parametrize("build", [multivariate_normal, normal, poisson])
def test_em_equals_that_of_the_padded_batch(build: Any, restarts: int) -> None:
    x = X.abs().round() if build is poisson else X
    found = run_em(model(build, True, restarts, x))
    values = fitted()
    pyro.clear_param_store()
    expected = run_em(model(build, False, restarts, x))
    assert_close(found.restart_history, expected.restart_history, rtol=1e-10, atol=0.0)
    for name, value in fitted().items():
        assert_close(values[name].flatten(), value.flatten(), rtol=1e-7, atol=1e-8)


def test_latent_scales_end_at_the_optimum_of_the_padded_batch() -> None:
    """Their statistics are retaken where a sequence alone needs it, so single steps differ."""
    ends = []
    for packed in (True, False):
        pyro.clear_param_store()
        result = run_em(model(student_t, packed), num_steps=2_000, tol=1e-9)
        assert result.converged
        ends.append(result.history[-1])
    assert ends[0] == pytest.approx(ends[1], abs=1e-5)


@pytest.mark.parametrize("restarts", [0, 3])
def test_compiled_steps_of_counts_equal_those_on_tensors(restarts: int) -> None:
    x = X.abs().round()
    both_engines(lambda: run_em(model(poisson, True, restarts, x)), module=fused_linear)


@pytest.mark.parametrize("restarts", [0, 3])
@pytest.mark.parametrize("build", [multivariate_normal, normal])
def test_compiled_steps_with_missing_entries_equal_those_on_tensors(
    build: Any, restarts: int
) -> None:
    x = X.clone()
    x[::7] = torch.nan
    x[3::11, 0] = torch.nan
    both_engines(lambda: run_em(model(build, True, restarts, x, missing="marginalise")))


@pytest.mark.parametrize("restarts", [0, 3])
@pytest.mark.parametrize("build", [multivariate_normal, normal])
def test_the_compiled_steps_equal_those_on_tensors(build: Any, restarts: int) -> None:
    both_engines(lambda: run_em(model(build, True, restarts)))
    pyro.clear_param_store()
    both_engines(lambda: run_em(model(build, True, restarts), acceleration="squarem", tol=1e-6,
                                num_steps=60), values=1e-6)  # fmt: skip


@pytest.mark.parametrize("build", [multivariate_normal, poisson])
def test_missing_rows_and_known_states(build: Any) -> None:
    """In both forms the same rows are missing, and the same states allowed."""
    x = X.abs().round() if build is poisson else X.clone()
    x[::7] = torch.nan
    allowed = torch.ones(T, K).bool()
    allowed[[0, 9, 20]] = torch.tensor([True, False])
    both = []
    for packed in (True, False):
        pyro.clear_param_store()
        states = allowed if packed else padded(allowed.double()).bool() | ~VALID.unsqueeze(-1)
        options = dict(missing="marginalise", allowed_states=states)
        result = run_em(model(build, packed, x=x, **options))
        both.append((result.history, fitted()))
    assert_close(both[0][0], both[1][0], rtol=1e-10, atol=0.0)
    for name, value in both[0][1].items():
        assert_close(value, both[1][1][name], rtol=1e-7, atol=1e-8)


def test_single_precision() -> None:
    x = X.float()

    def run() -> None:
        hmm = RegimeHMM(
            initial_probs=held("initial", torch.full((K,), 0.5), constraints.simplex),
            transition_probs=torch.tensor([[0.8, 0.2], [0.3, 0.7]]),
            observation_dist=dist.Normal(
                held("loc", torch.tensor([[0.0], [2.0]]), constraints.real), 1.0
            ).to_event(1),
            packed_lengths=LENGTHS,
        )
        pyro.sample("x", hmm, obs=x[:, :1])

    fast, _ = both_engines(lambda: run_em(run), history=1e-5, values=1e-3)
    assert fast.history[-1] < fast.history[0]


def test_em_and_svi_end_at_the_same_place() -> None:
    run_em(model(normal, True), num_steps=500, tol=1e-9)
    expected = fitted()
    pyro.clear_param_store()
    svi = SVI(model(normal, True), lambda: None, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(400):
        last = svi.step()
    hmm = RegimeHMM(
        initial_probs=expected["initial"],
        transition_probs=expected["transition"],
        observation_dist=dist.Normal(expected["loc"], expected["scale"]).to_event(1),
        packed_lengths=LENGTHS,
    )
    assert last == pytest.approx(-float(hmm.log_prob(X)), abs=0.05)


@pytest.mark.parametrize("kind", ["smoothed", "filtered", "viterbi"])
def test_regimes(kind: str) -> None:
    run_em(model(normal, True))
    found = infer_regimes(model(normal, True), kind=kind)["x"]
    assert len(found) == T
    assert_close(found, infer_regimes(model(normal, False), kind=kind)["x"][VALID])


def test_stochastic_em_takes_packed_minibatches() -> None:
    """Each step has other sequences, and so another number of rows."""
    generator = seeds.generator(9)

    def run(sizes: Tensor) -> None:
        x = 2 * draw(int(sizes.sum()), 1, seed=int(sizes[0]))
        hmm = RegimeHMM(
            initial_probs=held("initial", torch.full((K,), 0.5).double(), constraints.simplex),
            transition_probs=torch.tensor([[0.8, 0.2], [0.3, 0.7]]).double(),
            observation_dist=dist.Normal(
                held("loc", torch.tensor([[0.0], [1.0]]).double(), constraints.real), 1.0
            ).to_event(1),
            packed_lengths=sizes,
        )
        pyro.sample("x", hmm, obs=x)

    em = EM(run)
    for _ in range(5):
        loss = em.step(torch.randint(1, 9, (6,), generator=generator))
        assert loss == loss
    assert float(pyro.param("initial").detach().sum()) == pytest.approx(1.0)
