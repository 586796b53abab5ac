"""Missing entries are marginalised: in densities, gradients, probabilities and EM."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.utils._python_dispatch
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.emissions import Observed, missing
from tests import seeds

K, D, T = 2, 3, 12


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed), dtype=torch.float64)


def spreads(*shape: int, seed: int = 0) -> Tensor:
    root = draw(*shape, D, D, seed=seed)
    return root @ root.mT + torch.eye(D).double()


def holes(value: Tensor, share: float = 0.4, seed: int = 9) -> Tensor:
    """The value with entries, and the whole of the third row, missing."""
    gone = torch.rand(value.shape, generator=seeds.generator(seed)) < share
    gone[..., 2, :] = True
    return value.masked_fill(gone, torch.nan)


KINDS = {
    "normal": lambda loc, spread: dist.Normal(loc, spread.diagonal(dim1=-2, dim2=-1)).to_event(1),
    "covariance": lambda loc, spread: dist.MultivariateNormal(loc, covariance_matrix=spread),
    "factor": lambda loc, spread: dist.MultivariateNormal(
        loc, scale_tril=torch.linalg.cholesky(spread)
    ),
    "precision": lambda loc, spread: dist.MultivariateNormal(
        loc, precision_matrix=torch.linalg.inv(spread)
    ),
    "student": lambda loc, spread: dist.MultivariateStudentT(
        torch.tensor([3.0, 5.0]).to(loc), loc, torch.linalg.cholesky(spread)
    ),
    "factors": lambda loc, spread: dist.LowRankMultivariateNormal(
        loc, spread[..., :1], spread.diagonal(dim1=-2, dim2=-1)
    ),
    "mixture": lambda loc, spread: dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([[0.3, 0.7], [0.6, 0.4]]).to(loc)),
        dist.MultivariateNormal(torch.stack([loc, 2 * loc], -2), spread.unsqueeze(-3)),
    ),
    "mixture of series": lambda loc, spread: dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([[0.3, 0.7], [0.6, 0.4]]).to(loc)),
        dist.Normal(
            torch.stack([loc, 2 * loc], -2), spread.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
        ).to_event(1),
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def hmm(emission: dist.Distribution, **settings) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=draw(K, seed=1).softmax(-1), transition_probs=draw(K, K, seed=2).softmax(-1),
        observation_dist=emission, missing="marginalise", **settings,
    )  # fmt: skip


def marginal(emission: dist.Distribution, row: Tensor) -> Tensor:
    """The log densities of what a row holds, by the marginal distribution."""
    seen = ~row.isnan()
    if not seen.any():
        return torch.zeros(K).double()
    return part_of(emission, seen).log_prob(row[seen])


def part_of(emission: dist.Distribution, seen: Tensor) -> dist.Distribution:
    """The marginal distribution of some entries."""
    where = seen.nonzero().flatten()
    if isinstance(emission, dist.MixtureSameFamily):
        part = part_of(emission._component_distribution, seen)
        return dist.MixtureSameFamily(emission._mixture_distribution, part)
    if isinstance(emission, dist.MultivariateStudentT):
        whole = emission.scale_tril @ emission.scale_tril.mT
        root = torch.linalg.cholesky(whole[..., where, :][..., where])
        return dist.MultivariateStudentT(emission.df, emission.loc[..., seen], root)
    if isinstance(emission, torch.distributions.Independent):
        matrix = torch.diag_embed(emission.variance)
    else:
        matrix = emission.covariance_matrix
    part = matrix[..., where, :][..., where]
    return dist.MultivariateNormal(emission.mean[..., seen], part)


@kinds
def test_against_brute_force(kind):
    emission = KINDS[kind](draw(K, D, seed=3), spreads(K, seed=4))
    x = holes(draw(T, D, seed=5))
    chain = hmm(emission)
    logits = torch.stack([marginal(emission, row) for row in x])
    impossible = torch.zeros(K).double().expand(T, K)
    by_hand = RegimeHMM(
        chain.initial_logits, chain.transition_logits, _Given(logits), duration=T
    )
    assert_close(chain.log_prob(x), by_hand.log_prob(impossible[:, 0]), rtol=1e-11, atol=1e-10)
    zeros = impossible[:, 0]
    assert_close(chain.smoothed_probs(x), by_hand.smoothed_probs(zeros), rtol=1e-10, atol=1e-10)
    assert_close(chain.filtered_probs(x), by_hand.filtered_probs(zeros), rtol=1e-10, atol=1e-10)
    assert torch.equal(chain.viterbi(x), by_hand.viterbi(zeros))
    forecast = chain.forecast(x, 2)
    assert forecast.mean.isfinite().all()


class _Given(dist.TorchDistribution):
    """Log densities that are given, ``(T, K)``."""

    arg_constraints: dict = {}
    support = constraints.real

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.logits


@kinds
def test_gradients_are_right_and_never_nan(kind):
    x = holes(draw(6, D, seed=5))

    def log_prob(loc: Tensor, root: Tensor) -> Tensor:
        spread = root @ root.mT + torch.eye(D).double()
        return hmm(KINDS[kind](loc, spread)).log_prob(x)

    given = draw(K, D, seed=3).requires_grad_(), draw(K, D, D, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(log_prob, given)
    value = x.clone().requires_grad_()
    hmm(KINDS[kind](given[0].detach(), spreads(K, seed=4))).log_prob(value).backward()
    assert value.grad is not None and not value.grad.isnan().any()
    assert bool((value.grad[x.isnan()] == 0).all())


@kinds
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batches_lengths_and_time(kind, dtype):
    emission = KINDS[kind](
        draw(5, 1, T, K, D, seed=3).to(dtype), spreads(1, 1, K, seed=4).to(dtype)
    )
    x = holes(draw(4, T, D, seed=5)).to(dtype)
    lengths = torch.tensor([T, 5, 1, 7])
    x[1, 6:] = torch.nan
    batch = hmm(emission, lengths=lengths).log_prob(x)
    assert batch.shape == (5, 4)
    for i in range(5):
        for n, length in enumerate(lengths.tolist()):
            one = KINDS[kind](
                draw(5, 1, T, K, D, seed=3).to(dtype)[i, 0, :length],
                spreads(1, 1, K, seed=4).to(dtype)[0, 0],
            )
            alone = hmm(one).log_prob(x[n, :length])
            tolerance = 1e-4 if dtype is torch.float32 else 1e-10
            assert_close(batch[i, n], alone, rtol=tolerance, atol=tolerance)


@kinds
def test_nothing_missing_is_as_ever(kind):
    emission = KINDS[kind](draw(K, D, seed=3), spreads(K, seed=4))
    x = draw(T, D, seed=5)
    chain = hmm(emission)
    plain = RegimeHMM(chain.initial_logits, chain.transition_logits, emission)
    assert_close(chain.log_prob(x), plain.log_prob(x))
    nothing = chain.log_prob(torch.full((T, D), torch.nan).double())
    assert_close(nothing, torch.zeros(()).double(), rtol=0, atol=1e-12)


def test_whole_rows_of_any_distribution():
    chain = RegimeHMM(
        initial_probs=torch.tensor([0.5, 0.5]),
        transition_probs=torch.tensor([[0.7, 0.3], [0.3, 0.7]]),
        observation_dist=dist.Poisson(torch.tensor([1.0, 5.0])), missing="marginalise",
    )  # fmt: skip
    x = torch.tensor([1.0, torch.nan, 6.0])
    power = torch.tensor([[0.7, 0.3], [0.3, 0.7]]) @ torch.tensor([[0.7, 0.3], [0.3, 0.7]])
    density = dist.Poisson(torch.tensor([1.0, 5.0]))
    first, last = (density.log_prob(torch.tensor(each)).exp() for each in (1.0, 6.0))
    expected = ((0.5 * first) @ power @ last).log()
    assert_close(chain.log_prob(x), expected)


def joined() -> dist.Distribution:
    """Vectors whose entries are not independent, of no family."""
    weights = dist.Categorical(torch.ones(K, 2).double())
    return dist.MixtureSameFamily(weights, dist.Laplace(draw(K, 2, D), 1.0).to_event(1))


def test_what_is_refused():
    emission = joined()
    x = holes(draw(T, D))
    with pytest.raises(ValueError, match="whole observations to be missing, got some with single"):
        hmm(emission).log_prob(x)
    with pytest.raises(ValueError, match="missing to be 'refuse' or 'marginalise', got 'drop'"):
        RegimeHMM(draw(K), draw(K, K), emission, missing="drop")
    with pytest.raises(ValueError, match="expected value to lie in the support"):
        RegimeHMM(draw(K), draw(K, K), emission).log_prob(x)


# ---- where Python cannot look at the values ----------------------------------------------------


def by_hand(emission: dist.Distribution, x: Tensor) -> Tensor:
    """The log-likelihood, from the marginal densities of the rows."""
    chain = hmm(emission)
    logits = torch.stack([marginal(emission, row) for row in x])
    given = RegimeHMM(chain.initial_logits, chain.transition_logits, _Given(logits), duration=T)
    return given.log_prob(torch.zeros(T).double())


def three_holes() -> list[Tensor]:
    """Nothing missing, a whole row, single entries."""
    x = draw(T, D, seed=5)
    row, entries = x.clone(), x.clone()
    row[4] = torch.nan
    entries[1, 0] = entries[6, 1:] = torch.nan
    return [x, row, entries]


@kinds
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_serves_other_holes(kind):
    emission = KINDS[kind](draw(K, D, seed=3), spreads(K, seed=4))
    chain = hmm(emission, validate_args=False)
    for example in three_holes():
        traced = torch.jit.trace(chain.log_prob, (example,), check_trace=False)
        for x in three_holes():
            assert_close(traced(x), by_hand(emission, x), rtol=1e-11, atol=1e-10)


@kinds
def test_vmap(kind):
    emission = KINDS[kind](draw(K, D, seed=3), spreads(K, seed=4))
    chain = hmm(emission, validate_args=False)
    together = torch.stack(three_holes())
    expected = torch.stack([by_hand(emission, x) for x in together])
    assert_close(torch.func.vmap(chain.log_prob)(together), expected, rtol=1e-11, atol=1e-10)

    locs, spread = draw(2, K, D, seed=3), spreads(K, seed=4)
    initial, transition = chain.initial_logits, chain.transition_logits

    def at(loc: Tensor) -> Tensor:
        return RegimeHMM(
            initial, transition, KINDS[kind](loc, spread), missing="marginalise"
        ).log_prob(together)

    with pyro.validation_enabled(False):
        found = torch.func.vmap(at)(locs)
        slopes = torch.func.vmap(torch.func.grad(lambda loc: at(loc).sum()))(locs)
        moved = locs[1].clone().requires_grad_()
        (slope,) = torch.autograd.grad(at(moved).sum(), moved)
    assert_close(found[1], at(locs[1]), rtol=1e-11, atol=1e-10)
    assert_close(slopes[1], slope, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("validation_as_it_was")
@kinds
def test_a_compiled_graph_serves_other_holes(kind):
    emission = KINDS[kind](draw(K, D, seed=3), spreads(K, seed=4))
    expected = [by_hand(emission, x) for x in three_holes()]
    torch._dynamo.reset()  # graphs of other kinds count against a limit
    with pyro.validation_enabled(False):
        chain = hmm(KINDS[kind](draw(K, D, seed=3), spreads(K, seed=4)))
        compiled = torch.compile(chain.log_prob, fullgraph=True, backend="aot_eager")
        found = [compiled(x) for x in three_holes()]
    assert_close(found, expected, rtol=1e-11, atol=1e-10)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("emission", ["mixture", "shares"])
def test_a_trace_has_no_number_for_what_is_not_marginalised(emission):
    """It cannot raise; NaN is not taken for a log-probability."""
    made = {"mixture": joined(), "shares": dist.Dirichlet(draw(K, D).exp())}[emission]
    chain = hmm(made, validate_args=False)
    whole, row, entries = three_holes()
    if emission == "shares":
        whole = whole.softmax(-1)
        row, entries = (torch.where(each.isnan(), each, whole) for each in (row, entries))
    for example in (whole, row):
        traced = torch.jit.trace(chain.log_prob, (example,), check_trace=False)
        assert_close(traced(whole), chain.log_prob(whole))
        assert_close(traced(row), chain.log_prob(row))
        assert traced(entries).isnan()


# ---- many rows ---------------------------------------------------------------------------------


def test_rows_in_blocks_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr(missing, "_LEAST_BLOCK", 0)
    monkeypatch.setattr(missing, "_SHARE", 0.1)
    test_gradients_are_right_and_never_nan("covariance")
    test_against_brute_force("factor")
    test_batches_lengths_and_time("covariance", torch.float64)
    x = holes(draw(6, D, seed=5))

    def log_prob(loc: Tensor, root: Tensor) -> Tensor:
        spread = root @ root.mT + torch.eye(D).double()
        return hmm(KINDS["covariance"](loc, spread)).log_prob(x)

    given = draw(K, D, seed=3).requires_grad_(), draw(K, D, D, seed=4).requires_grad_()
    assert torch.autograd.gradgradcheck(log_prob, given)
    x = holes(simulated(60), 0.3)
    blocks = fit(x, "covariance", num_steps=4, tol=None)[1].restart_history
    monkeypatch.undo()
    whole = fit(x, "covariance", num_steps=4, tol=None)[1].restart_history
    assert_close(blocks, whole, rtol=1e-11, atol=1e-9)


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The most numbers of a tensor that an operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.numel = max(self.numel, found.untyped_storage().nbytes() // found.itemsize)
        return found


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_no_array_of_a_matrix_for_each_row(share):
    num_steps, size = 6000, 12
    x = draw(num_steps, size, seed=5)
    x[7, 3] = torch.nan
    x[torch.rand(x.shape, generator=seeds.generator(9)) < share] = torch.nan
    loc = draw(K, size, seed=3).requires_grad_()
    spread = torch.eye(size).double().expand(K, size, size)
    with _Largest() as largest:
        hmm(dist.MultivariateNormal(loc, spread)).log_prob(x).backward()
    assert loc.grad is not None and loc.grad.isfinite().all()
    assert largest.numel <= max(x.numel() * K, missing._LEAST_BLOCK)

    value = x.nan_to_num(0.0).unsqueeze(-2)
    weights = draw(num_steps, K, seed=6).softmax(-1)
    observed = Observed(value, weights, False, x.isnan().unsqueeze(-2))
    with _Largest() as largest:
        blocks = missing.moments(observed, loc.detach(), spread, True)
    assert largest.numel <= max(x.numel() * K, missing._LEAST_BLOCK)
    whole = missing._moments(observed, loc.detach(), spread, True)
    assert_close(blocks.first, whole.first, rtol=1e-10, atol=1e-8)
    assert_close(blocks.second, whole.second, rtol=1e-10, atol=1e-8)


# ---- infinite values ---------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("at", [(0, 0), (0, 2), (5, 1)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("hole", ["entry", "row"])
def test_an_infinite_value_has_density_zero(kind, at, sign, hole):
    loc = draw(K, D, seed=3).requires_grad_()
    x = draw(T, D, seed=5)
    x[5, 0] = torch.nan
    if hole == "row":
        x[5], at = torch.nan, (0, at[1])
    x[at] = sign * torch.inf
    value = x.clone().requires_grad_()
    found = hmm(KINDS[kind](loc, spreads(K, seed=4))).log_prob(value)
    assert found.item() == -torch.inf
    found.backward()
    assert loc.grad is not None and not loc.grad.isnan().any()
    assert value.grad is not None and not value.grad.isnan().any()


# ---- nothing observed --------------------------------------------------------------------------

SUPPORTS = {
    "lognormal": lambda at: dist.LogNormal(at[:, 0], 1.0),
    "lognormals": lambda at: dist.LogNormal(at, 1.0).to_event(1),
    "dirichlet": lambda at: dist.Dirichlet(at.exp()),
    "beta": lambda at: dist.Beta(at[:, 0].exp(), 2.0),
    "gamma": lambda at: dist.Gamma(at[:, 0].exp(), 2.0),
    "uniform": lambda at: dist.Uniform(3 + at[:, 0].sigmoid(), 9.0),
    "pareto": lambda at: dist.Pareto(at[:, 0].exp(), 2.0),
    "poisson": lambda at: dist.Poisson(at[:, 0].exp()),
    "geometric": lambda at: dist.Geometric(at[:, 0].sigmoid()),
    "one hot": lambda at: dist.OneHotCategorical(logits=at),
    "multinomial": lambda at: dist.Multinomial(4, logits=at),
    "mixture": lambda at: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(K, 3).double()), dist.LogNormal(at, 1.0)
    ),
    "wishart": lambda at: dist.Wishart(
        5 + at[:, 0].exp(), covariance_matrix=torch.eye(2).double().expand(K, 2, 2)
    ),
    "von mises": lambda at: dist.VonMises(at[:, 0], 2.0),
    "student": lambda at: dist.MultivariateStudentT(
        4 + at[:, 0].exp(), at, torch.eye(D).double().expand(K, D, D)
    ),
}


@pytest.mark.parametrize("kind", SUPPORTS)
@pytest.mark.parametrize("validate_args", [True, False])
def test_a_sequence_of_which_nothing_is_observed(kind, validate_args):
    at = draw(K, D, seed=3).requires_grad_()
    emission = SUPPORTS[kind](at)
    x = torch.full((T, *emission.event_shape), torch.nan).double()
    chain = hmm(emission, validate_args=validate_args)
    found = chain.log_prob(x)
    assert_close(found, torch.zeros(()).double(), rtol=0, atol=1e-12)
    found.backward()
    assert at.grad is None or bool((at.grad == 0).all())
    stationary = hmm(SUPPORTS[kind](at.detach()))
    assert_close(
        stationary.filtered_probs(x)[0], stationary.initial_probs, rtol=1e-12, atol=1e-12
    )


# ---- distributions that marginalise by themselves ----------------------------------------------

NAN_MASKED = {
    "normal": lambda loc, spread: dist.NanMaskedNormal(
        loc, spread.diagonal(dim1=-2, dim2=-1)
    ).to_event(1),
    "covariance": lambda loc, spread: dist.NanMaskedMultivariateNormal(loc, spread),
}


@pytest.mark.parametrize("kind", NAN_MASKED)
def test_nan_masked_distributions(kind):
    loc, spread = draw(K, D, seed=3), spreads(K, seed=4)
    normal = KINDS[kind](loc, spread.diagonal(dim1=-2, dim2=-1).sqrt().diag_embed() ** 2)
    emission = NAN_MASKED[kind](loc, spread)
    x = holes(draw(T, D, seed=5))
    found = hmm(emission).log_prob(x)
    refusing = hmm(emission)
    refusing.missing = "refuse"  # it marginalises by itself
    assert_close(found, refusing.log_prob(x), rtol=1e-11, atol=1e-10)
    if kind == "normal":
        assert_close(found, hmm(normal).log_prob(x), rtol=1e-11, atol=1e-10)
    x[0, 1] = torch.inf  # which Pyro takes as missing, too
    assert_close(hmm(emission).log_prob(x), refusing.log_prob(x), rtol=1e-11, atol=1e-10)


def test_the_error_for_nan_names_the_remedy():
    chain = RegimeHMM(draw(K), draw(K, K), dist.Normal(draw(K), 1.0))
    x = draw(T)
    x[3] = torch.nan
    with pytest.raises(ValueError, match="got .*nan.*; NaN is missing data with missing='marg"):
        chain.log_prob(x)
    positive = RegimeHMM(draw(K), draw(K, K), dist.Gamma(draw(K).exp(), 1.0))
    with pytest.raises(ValueError) as error:
        positive.log_prob(torch.tensor([-1.0, 2.0]).double())
    assert "marginalise" not in str(error.value)


# ---- EM ----------------------------------------------------------------------------------------


def simulated(num_steps: int) -> Tensor:
    states = (torch.arange(num_steps) // 10) % 2
    loc = torch.tensor([[-2.0, 0, 1], [1, 2, -1]]).double()
    roots = torch.linalg.cholesky(spreads(K, seed=4))
    return loc[states] + (roots[states] @ draw(num_steps, D, 1, seed=5)).squeeze(-1)


def fit(x: Tensor, kind: str, num_starts: int = 1, **settings):
    loc = draw(num_starts, 1, K, D, seed=7)

    def model(x: Tensor) -> None:
        name = {"normal": "scale", "covariance": "covariance_matrix"}[kind]
        if kind == "normal":
            start, constraint = torch.full((num_starts, 1, K, D), 2.0), constraints.positive
        else:
            start = 4 * torch.eye(D).expand(num_starts, 1, K, D, D)
            constraint = constraints.positive_definite
        spread = pyro.param(name, start.double().clone(), constraint=constraint)
        matrix = torch.full((num_starts, 1, K, K), 0.5).double()
        rows = pyro.param("rows", matrix, constraint=constraints.simplex)
        at = pyro.param("loc", loc.clone())
        emission = (
            dist.Normal(at, spread).to_event(1)
            if kind == "normal"
            else dist.MultivariateNormal(at, covariance_matrix=spread)
        )
        chain = RegimeHMM(
            initial_probs=torch.tensor([0.5, 0.5]).double(), transition_probs=rows,
            observation_dist=emission, missing="marginalise",
        )  # fmt: skip
        with pyro.plate("starts", num_starts):
            pyro.sample("x", chain, obs=x)

    pyro.clear_param_store()
    em = EM(model)
    return em, em.run(x, **settings)


@pytest.mark.parametrize("kind", ["normal", "covariance"])
def test_em_climbs_to_an_optimum_of_the_model(kind):
    """The check of convergence differentiates the model's own likelihood."""
    x = holes(simulated(200), 0.3)
    em, result = fit(x, kind, num_starts=2, num_steps=500, tol=1e-7)
    assert result.converged and not result.unconfirmed
    assert "compiled iterations of a Gaussian model" in str(em.plan)
    assert bool((result.restart_history.diff(dim=0) <= 1e-8).all())


@pytest.mark.parametrize("kind", ["normal", "covariance"])
def test_em_without_missing_entries_takes_the_same_steps(kind):
    x = simulated(100)
    whole = fit(x, kind, num_steps=5, tol=None)[1].restart_history
    more = torch.cat([x, torch.full((1, D), torch.nan).double()])  # the last row says nothing
    padded = fit(more, kind, num_steps=5, tol=None)[1].restart_history
    assert_close(whole[0], padded[0])  # from the second step on, one more transition counts


def test_estimates_are_near_those_of_the_complete_data():
    x = simulated(3000)
    fit(x, "covariance", num_steps=200, tol=1e-6)
    whole = {name: pyro.param(name).detach().clone() for name in ("loc", "covariance_matrix")}
    fit(holes(x, 0.3), "covariance", num_steps=400, tol=1e-6)
    # A standard error of the complete data: about sd / sqrt(1500).
    error = whole["covariance_matrix"].diagonal(dim1=-2, dim2=-1).sqrt() / np.sqrt(1500)
    assert bool(((pyro.param("loc").detach() - whole["loc"]).abs() < 3 * error).all())
