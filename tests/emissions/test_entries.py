"""Single missing entries, of all families that have independent entries and of all vectors."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints, transforms
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.distributions import Columns, observation
from tests import seeds

K, D, N, T = 2, 3, 2, 60
POSITIVE, REAL, UNIT = constraints.positive, constraints.real, constraints.unit_interval
Params = dict[str, Tensor]


class Case(NamedTuple):
    """A family, and ranges from which its arguments are drawn."""

    build: Callable[..., dist.Distribution]
    arguments: dict[str, tuple[constraints.Constraint, float, float]]
    own: tuple[int, ...] = ()  #: dims of a block
    has_family: bool = True


SHIFT = torch.tensor([1.0, -2.0, 0.5]).double()


def shifted(loc: Tensor, scale: Tensor) -> dist.Distribution:
    """Each column behind a shift of its own."""
    shift = SHIFT if loc.shape[-1] == D else SHIFT[:1]
    moved = [transforms.ExpTransform(), transforms.AffineTransform(shift, 2.0)]
    return dist.TransformedDistribution(dist.Normal(loc, scale), moved)


LOC, SCALE, RATE = (REAL, -1.0, 1.0), (POSITIVE, 0.5, 1.5), (POSITIVE, 1.0, 6.0)
SHARE, SHAPE = (UNIT, 0.2, 0.8), (POSITIVE, 1.5, 4.0)
INDEPENDENT = {
    "Normal": Case(dist.Normal, {"loc": LOC, "scale": SCALE}),
    "StudentT": Case(dist.StudentT, {"df": (POSITIVE, 3.0, 9.0), "loc": LOC, "scale": SCALE}),
    "Laplace": Case(dist.Laplace, {"loc": LOC, "scale": SCALE}),
    "LogNormal": Case(dist.LogNormal, {"loc": LOC, "scale": SCALE}),
    "a transform of columns": Case(shifted, {"loc": LOC, "scale": SCALE}),
    "Gamma": Case(dist.Gamma, {"concentration": SHAPE, "rate": RATE}),
    "InverseGamma": Case(dist.InverseGamma, {"concentration": SHAPE, "rate": RATE}),
    "Weibull": Case(dist.Weibull, {"scale": SCALE, "concentration": SHAPE}),
    "HalfNormal": Case(dist.HalfNormal, {"scale": SCALE}),
    "Exponential": Case(dist.Exponential, {"rate": RATE}),
    "Beta": Case(dist.Beta, {"concentration1": SHAPE, "concentration0": SHAPE}),
    "VonMises": Case(dist.VonMises, {"loc": LOC, "concentration": SHAPE}),
    "Poisson": Case(dist.Poisson, {"rate": RATE}),
    "Bernoulli": Case(dist.Bernoulli, {"probs": SHARE}),
    "Bernoulli by logits": Case(
        lambda logits: dist.Bernoulli(logits=logits), {"logits": LOC}
    ),
    "Binomial": Case(lambda probs: dist.Binomial(5, probs), {"probs": SHARE}),
    "Geometric": Case(dist.Geometric, {"probs": SHARE}),
    "NegativeBinomial": Case(
        dist.NegativeBinomial, {"total_count": (POSITIVE, 2.0, 5.0), "probs": SHARE}
    ),
    "ZeroInflatedPoisson": Case(
        lambda rate, gate: dist.ZeroInflatedPoisson(rate, gate=gate), {"rate": RATE, "gate": SHARE}
    ),
    "Categorical": Case(
        lambda probs: dist.Categorical(probs / probs.sum(-1, keepdim=True)),
        {"probs": SHARE}, own=(4,),
    ),  # fmt: skip
    "Cauchy": Case(dist.Cauchy, {"loc": LOC, "scale": SCALE}, has_family=False),
}
independent = pytest.mark.parametrize("case", INDEPENDENT.values(), ids=INDEPENDENT)
of_a_family = pytest.mark.parametrize(
    "case",
    [case for case in INDEPENDENT.values() if case.has_family and not case.own],
    ids=[name for name, case in INDEPENDENT.items() if case.has_family and not case.own],
)


def arguments(case: Case, *lead: int, seed: int = 1) -> Params:
    """Random arguments of each state and column."""
    found = {}
    for index, (name, (_, low, high)) in enumerate(case.arguments.items()):
        generator = seeds.generator(100 * seed + index)
        share = torch.rand(*lead, K, D, *case.own, generator=generator, dtype=torch.float64)
        found[name] = low + (high - low) * share
    return found


def at(given: Params, where: Any) -> Params:
    """The arguments of some columns."""
    return {name: value[:, where] for name, value in given.items()}


def sample(case: Case, *shape: int, seed: int = 2) -> Tensor:
    """Data of two states in turn."""
    with torch.random.fork_rng():
        torch.manual_seed(seeds.seed(seed))
        drawn = case.build(**arguments(case, seed=7)).sample(shape).double()
    states = torch.arange(shape[-1]) // 8 % K
    return drawn[..., torch.arange(shape[-1]), states, :]


def holes(value: Tensor, share: float = 0.3, seed: int = 9) -> Tensor:
    """The value with entries, and the whole of the third row, missing."""
    gone = torch.rand(value.shape, generator=seeds.generator(seed)) < share
    gone[..., 2, :] = True
    return value.masked_fill(gone, torch.nan)


def hmm(emission: dist.Distribution, **settings: Any) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=torch.tensor([0.6, 0.4]).double(),
        transition_probs=torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double(),
        observation_dist=emission, missing="marginalise", **settings,
    )  # fmt: skip


def densities(emission: dist.Distribution, x: Tensor) -> Tensor:
    return hmm(emission).chain(x)[2]


@independent
def test_density_is_that_of_the_columns_that_are_there(case: Case) -> None:
    given, x = arguments(case), holes(sample(case, T))
    found = densities(case.build(**given).to_event(1), x)
    for row, density in zip(x, found):
        seen = ~row.isnan()
        expected = torch.zeros(K).double()
        for column in seen.nonzero().flatten().tolist():
            if case.build is shifted:
                whole = case.build(**given)
                each = whole.log_prob(row.nan_to_num(10.0))[:, column]
            else:
                one = case.build(**at(given, column))
                each = observation.log_prob(one, row[column : column + 1])[0]
            expected = expected + each
        assert_close(density, expected, rtol=1e-10, atol=1e-10)


@independent
def test_batches_lengths_and_time(case: Case) -> None:
    """As each sequence alone, with arguments that vary in time."""
    if case.build is shifted:
        pytest.skip("its shift has no time")
    steps, given = 9, arguments(case, 2, 1, 9)
    x = holes(sample(case, 3, steps))
    lengths = torch.tensor([9, 4, 7])
    found = hmm(case.build(**given).to_event(1), lengths=lengths).log_prob(x)
    assert found.shape == (2, 3)
    for i in range(2):
        for n, length in enumerate(lengths.tolist()):
            own = {name: value[i, 0, :length] for name, value in given.items()}
            alone = hmm(case.build(**own).to_event(1)).log_prob(x[n, :length])
            assert_close(found[i, n], alone, rtol=1e-10, atol=1e-10)


@independent
def test_gradients(case: Case) -> None:
    x, given = holes(sample(case, 6)), arguments(case)
    leaves = [value.requires_grad_() for value in given.values()]

    def log_prob(*values: Tensor) -> Tensor:
        emission = case.build(**dict(zip(given, values, strict=True)))
        return hmm(emission.to_event(1), validate_args=False).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, leaves)
    value = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(
        hmm(case.build(**given).to_event(1)).log_prob(value), value, materialize_grads=True
    )
    assert not slope.isnan().any() and bool((slope[x.isnan()] == 0).all())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@independent
def test_a_trace_and_vmap_serve_other_holes(case: Case) -> None:
    with pyro.validation_enabled(False):
        chain = hmm(case.build(**arguments(case)).to_event(1), validate_args=False)
        whole = sample(case, 8)
        some, others = holes(whole), holes(whole, seed=10)
        expected = torch.stack([chain.log_prob(each) for each in (whole, some, others)])
        traced = torch.jit.trace(chain.log_prob, (some,), check_trace=False)
        found = torch.stack([traced(each) for each in (whole, some, others)])
        assert_close(found, expected, rtol=1e-11, atol=1e-10)
        together = torch.func.vmap(chain.log_prob)(torch.stack([whole, some, others]))
        assert_close(together, expected, rtol=1e-11, atol=1e-10)


# ---- EM ----------------------------------------------------------------------------------------


def fit(case: Case, x: Tensor, emission: Callable[[Params], Any], **settings: Any) -> Any:
    """:return: the result, and the parameters at the end."""
    pyro.clear_param_store()

    def model(x: Tensor) -> None:
        params = {
            name: pyro.param(name, value, constraint=case.arguments[name][0])
            for name, value in arguments(case).items()
        }
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm(emission(params)), obs=x)

    result = EM(model).run(x, **settings)
    return result, {name: pyro.param(name).detach().clone() for name in case.arguments}


@of_a_family
def test_updates_are_those_of_one_part_for_each_column(case: Case) -> None:
    """A part of ``Columns`` has weights of its own for each row."""
    if case.build is shifted:
        pytest.skip("the shift of one column is another one")
    x = holes(sample(case, N, T))
    settings = {"num_steps": 5, "tol": None, "check": False}
    together = fit(case, x, lambda given: case.build(**given).to_event(1), **settings)

    def apart(given: Params) -> Columns:
        return Columns([(case.build(**at(given, column)), column) for column in range(D)])

    one_by_one = fit(case, x, apart, **settings)
    assert_close(together[0].history, one_by_one[0].history, rtol=1e-9, atol=1e-9)
    for name, value in together[1].items():
        assert_close(value, one_by_one[1][name], rtol=1e-6, atol=1e-8)


@of_a_family
def test_em_climbs_to_an_optimum(case: Case) -> None:
    x = holes(sample(case, N, T))
    result, at_end = fit(
        case, x, lambda given: case.build(**given).to_event(1), num_steps=3000, tol=1e-8
    )
    assert result.converged and not result.unconfirmed
    history = result.history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))


def test_categories_with_missing_entries() -> None:
    """Shares of the observed categories of each column, given the states."""
    generator = seeds.generator(3)
    x = holes(torch.randint(4, (T, D), generator=generator).double())

    start = torch.rand(K, D, 4, generator=seeds.generator(4), dtype=torch.float64)
    start = start / start.sum(-1, keepdim=True)

    def model(x: Tensor) -> None:
        probs = pyro.param("probs", start.clone(), constraint=constraints.simplex)
        pyro.sample("x", hmm(dist.Categorical(probs).to_event(1)), obs=x)

    emission = dist.Categorical(start).to_event(1)
    gamma = hmm(emission).smoothed_probs(x)
    counts = torch.stack(
        [(gamma.unsqueeze(-1) * (x == each).unsqueeze(-2)).sum(0) for each in range(4)], -1
    )
    EM(model).step(x)
    assert_close(
        pyro.param("probs").detach(), counts / counts.sum(-1, keepdim=True), rtol=1e-9, atol=1e-12
    )
