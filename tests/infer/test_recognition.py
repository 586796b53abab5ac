"""What EM sees in a model: every way in which a parameter reaches the objective, and no other."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_regimes import EM, RegimeHMM
from tests import seeds
from tests.infer.models import (
    COVARIANCES,
    INITIAL,
    LOC,
    LOCS,
    SCALE,
    TRANSITION,
    XS,
    X,
    Y,
    chain,
    covariance,
    loc,
    observe,
    positive,
    probs,
    real,
    scale,
)


def loss_of(model: Callable[[], None]) -> float:
    """Minus the log-likelihood, by the model's own densities."""
    with torch.no_grad():
        return -float(poutine.trace(model).get_trace().log_prob_sum())


def end(model: Callable[[], None], **options: Any) -> float:
    """The loss at which EM ends, in a store of its own."""
    with pyro.get_param_store().scope():
        return EM(model, **options).run(num_steps=2000, tol=1e-10).history[-1]


# Cells that nothing uses.


@pytest.mark.parametrize("sectors", [3, 10])
def test_a_shared_location_keeps_its_weights_beside_unused_cells(sectors: int) -> None:
    """Sequences of different scales share a location; sectors that are absent change nothing."""
    sector = torch.tensor([0, 0, 1, 1])
    spread = torch.tensor([1.0, 3.0, 2.0, 5.0]).double()[:, None, None]

    def model(number: int) -> None:
        locs = real("loc", LOC.expand(number, 2))[sector].unsqueeze(-2)
        scales = positive("scale", spread.expand(4, 1, 2))
        with pyro.plate("sequences", 4):
            observe(loc=locs, scale=scales, obs=XS * spread.squeeze(-1))

    assert end(partial(model, sectors)) == pytest.approx(end(partial(model, 2)), abs=1e-6)


def test_one_mean_of_regimes_whose_scales_differ_beside_unused_cells() -> None:
    def model(cells: int) -> Callable[[], None]:
        index = torch.zeros(2, dtype=torch.long)
        return lambda: observe(loc=real("loc", torch.zeros(cells))[index], scale=scale())

    assert end(model(5)) == pytest.approx(end(model(1)), abs=1e-6)


# Parameters out of sight.

SHIFT = torch.tensor([-0.5, 0.5]).double()


def in_a_transform() -> None:
    """The location of what is transformed stands in the transform."""
    shifted = dist.transforms.AffineTransform(real("shift", SHIFT), 1.0)
    base = dist.Normal(torch.zeros(2).double(), scale())
    observe(observation_dist=dist.TransformedDistribution(base, [shifted]))


def in_an_affine_beta() -> None:
    beta = dist.AffineBeta(2.0 * torch.ones(2).double(), 3.0, real("shift", SHIFT - 6.0), 15.0)
    observe(observation_dist=beta)


class Listed(dist.TorchDistribution):
    """A normal distribution that keeps its parts in a list."""

    support = constraints.real
    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, loc: Tensor) -> None:
        self.parts = [{"loc": loc}]
        super().__init__(loc.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return dist.Normal(self.parts[0]["loc"], 1.0).log_prob(value)


def in_a_list() -> None:
    observe(observation_dist=Listed(real("shift", SHIFT)))


@pytest.mark.parametrize("model", [in_a_transform, in_an_affine_beta, in_a_list])
def test_a_parameter_out_of_sight_is_found(model: Callable[[], None]) -> None:
    with pytest.raises(ValueError, match=r"\n  shift: used in the observation distribution of"):
        EM(model).step()
    em = EM(model, optim=pyro.optim.SGD({"lr": 0.002}))
    history = em.run(num_steps=50, tol=None).history
    assert "shift" in em.plan.gradient and history[-1] < history[0] - 0.1
    assert history[-1] == pytest.approx(loss_of(model), rel=1e-9)


# Densities other than the one that the class's parent has.


class Huber(dist.Normal):
    def log_prob(self, value: Tensor) -> Tensor:
        z = ((value - self.loc) / self.scale).abs()
        return -torch.where(z < 1.5, 0.5 * z**2, 1.5 * (z - 0.75)) - self.scale.log()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Huber:
        return Huber(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


class Correlated(dist.MultivariateNormal):
    def log_prob(self, value: Tensor) -> Tensor:
        return 0.9 * super().log_prob(value)


class Penalised(dist.Independent):
    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) - 0.1 * value.square().sum(-1)


GAPS = Y.masked_fill(torch.arange(Y.numel()).reshape(Y.shape) % 7 == 0, torch.nan)


def huber() -> None:
    observe(observation_dist=Huber(loc(), scale()))


def correlated() -> None:
    observe(observation_dist=Correlated(real("loc", LOCS), covariance()), obs=Y)


def penalised() -> None:
    base = dist.Normal(real("loc", LOCS), positive("scale", torch.ones(2, 3)))
    observe(observation_dist=Penalised(base, 1), obs=Y)


def missing_entries() -> None:
    scales = positive("scale", torch.ones(2, 3))
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=probs("transition", TRANSITION),
        observation_dist=dist.NanMaskedNormal(real("loc", LOCS), scales).to_event(1),
        validate_args=False,
    )
    pyro.sample("x", hmm, obs=GAPS)


def missing_entries_of_correlated_series() -> None:
    factor = pyro.param(
        "factor", torch.eye(3).double().repeat(2, 1, 1), constraint=constraints.lower_cholesky
    )
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=probs("transition", TRANSITION),
        observation_dist=dist.NanMaskedMultivariateNormal(real("loc", LOCS), scale_tril=factor),
        validate_args=False,
    )
    pyro.sample("x", hmm, obs=GAPS)


@pytest.mark.parametrize(
    "model",
    [huber, correlated, penalised, missing_entries, missing_entries_of_correlated_series],
)
@pytest.mark.filterwarnings("ignore:.*nan")
def test_a_subclass_with_a_density_of_its_own(model: Callable[[], None]) -> None:
    """It is not the Gaussian that it inherits from."""
    em = EM(model, optim=pyro.optim.SGD({"lr": 0.001}))
    result = em.run(num_steps=10, tol=None)
    assert "loc" in em.plan.gradient
    assert result.history[-1] < result.history[0]
    assert result.history[-1] == pytest.approx(loss_of(model), rel=1e-9)


def test_a_subclass_of_regime_hmm_is_another_distribution() -> None:
    class Tempered(RegimeHMM):
        def log_prob(self, value: Tensor) -> Tensor:
            return 0.5 * super().log_prob(value)

    def model() -> None:
        hmm = Tempered(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.Normal(loc(), 1.0),
        )
        pyro.sample("x", hmm, obs=X)

    with pytest.raises(ValueError, match="observed RegimeHMM.*Tempered"):
        EM(model, optim=pyro.optim.SGD({"lr": 0.001})).step()

    def beside_one() -> None:
        model()
        observe(name="y", loc=loc(), scale=scale())

    em = EM(beside_one, optim=pyro.optim.SGD({"lr": 0.001}))
    history = em.run(num_steps=10, tol=None).history
    assert set(em.plan.gradient) == {"loc"}
    assert history[-1] == pytest.approx(loss_of(beside_one), rel=1e-9)


# Square parameters, started at 0.


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("start", [0.0, -0.3])
def test_log_scales_with_as_many_series_as_states(size: int, start: float) -> None:
    def model() -> None:
        hmm = RegimeHMM(
            torch.zeros(size).double(),
            torch.eye(size).double(),
            dist.Normal(
                real("loc", torch.linspace(-1, 1, size).unsqueeze(-1).expand(size, size)),
                real("log_scale", torch.full((size, size), start)).exp(),
            ).to_event(1),
        )
        pyro.sample("x", hmm, obs=Y[:, :size])

    em = EM(model)
    history = em.run(num_steps=5, tol=None).history
    assert set(em.plan.names) == {"loc", "log_scale"} and history[-1] < history[0]


def test_raw_factors_and_zero_weights_are_moved() -> None:
    design = torch.linspace(-1, 1, 64).double().unsqueeze(-1) ** torch.arange(2).double()

    def model() -> None:
        raw = real("raw", torch.zeros(2, 3, 3))
        factor = raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())
        observe(observation_dist=dist.MultivariateNormal(LOCS, scale_tril=factor), obs=Y)
        log_scale = design @ real("weights", torch.zeros(2, 2))
        observe(observation_dist=dist.Laplace(LOC, log_scale.exp()), name="y")

    with pytest.raises(ValueError, match="\n  raw: .*\n  weights: "):
        EM(model).step()
    em = EM(model, optim=pyro.optim.SGD({"lr": 0.001}))
    history = em.run(num_steps=5, tol=None).history
    assert set(em.plan.gradient) == {"raw", "weights"} and history[-1] < history[0]


# Parameters of modules.


class Regimes(PyroModule):
    """The regimes' locations and logits as plain parameters of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(LOC.clone())
        self.logits = nn.Parameter(TRANSITION.log())

    def forward(self) -> None:
        observe(loc=self.loc, transition_logits=self.logits)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(LOC.clone())
        self.slope = nn.Linear(1, 2).double()

    def forward(self) -> Tensor:
        trend = torch.linspace(-1, 1, 64).double().unsqueeze(-1)
        return self.loc + self.slope(trend)


def test_a_registered_module_is_no_reason_to_warn() -> None:
    """Warnings are errors here: pyro.module asks whether a parameter requires a gradient."""
    plain = Plain()
    EM(lambda: observe(observation_dist=dist.Normal(pyro.module("plain", plain)(), 1.0))).step()
    assert plain.loc.requires_grad and plain.loc.is_leaf and plain.loc.grad is None


@pytest.mark.parametrize("is_written", [False, True])
def test_a_model_that_uses_data_of_its_parameters_is_refused(is_written: bool) -> None:
    """Autograd does not see it, and neither would EM."""
    plain = Plain()

    def model() -> None:
        locs = pyro.module("plain", plain)()
        if is_written:
            plain.loc.data.clamp_(-1.0, 1.0)
        observe(observation_dist=dist.Normal(locs, SCALE), obs=X - plain.loc.data.mean())

    with pytest.raises(ValueError, match=r"uses \.data of one"):
        EM(model).step()


def test_a_start_outside_its_constraint_is_refused_by_name() -> None:
    above = constraints.greater_than(1.2)

    def model() -> None:
        scales = pyro.param("scale", torch.ones(2).double(), constraint=above)
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.Normal(loc(), scales, validate_args=False),
        )
        pyro.sample("x", hmm, obs=X)

    with pytest.raises(ValueError, match=r"start outside its constraint.*'scale': 'GreaterThan"):
        EM(model, optim=pyro.optim.SGD({"lr": 0.01})).run()


@pytest.mark.parametrize("update", [False, True])
def test_plain_parameters_of_modules_have_closed_forms(update: bool) -> None:
    regimes, plain = Regimes(), Plain()
    weight = plain.slope.weight

    def model() -> None:
        regimes()
        locs = pyro.module("plain", plain, update_module_params=update)()
        observe(observation_dist=dist.Normal(locs, SCALE), name="y")

    em = EM(model)
    history = em.run(num_steps=10, tol=None).history
    assert set(em.plan.names) == {
        "loc",
        "logits",
        "plain$$$loc",
        "plain$$$slope.weight",
        "plain$$$slope.bias",
    }
    rise = -torch.tensor(history).diff()
    assert (rise >= -1e-9 * abs(history[0])).all() and rise[0] > 1e-3
    assert history[-1] == pytest.approx(loss_of(model), rel=1e-9)
    # The modules hold what was learned, in their own parameters.
    assert plain.slope.weight is weight and isinstance(regimes.loc, nn.Parameter)
    assert weight is pyro.get_param_store()._params["plain$$$slope.weight"]
    assert not torch.equal(regimes.loc.detach(), LOC)
    assert not torch.func.functional_call(plain, {}, ()).detach().eq(LOC).any()


# Families.


def test_a_location_of_two_families_is_solved_for() -> None:
    """Its cells are numbers to one site and vectors to the other: weighted least squares."""

    def model() -> None:
        locs = real("loc", LOCS)
        observe(observation_dist=dist.MultivariateNormal(locs, covariance()), obs=Y)
        scales = positive("scale", torch.ones(2, 3))
        observe(observation_dist=dist.Normal(locs, scales).to_event(1), obs=Y.flip(0), name="y")

    em = EM(model)
    result = em.run(num_steps=1000, tol=1e-9)
    assert em.plan.affine.names == ["loc"] and result.converged
    assert (torch.tensor(result.history).diff() <= 1e-9 * abs(result.history[0])).all()
    assert result.history[-1] == pytest.approx(loss_of(model), rel=1e-9)


def test_correlated_series_side_by_side_have_no_closed_form() -> None:
    def model() -> None:
        locs = real("loc", torch.stack([LOCS, LOCS + 0.1], 1))  # (K, S, D)
        both = dist.MultivariateNormal(locs, COVARIANCES.unsqueeze(1)).to_event(1)
        observe(observation_dist=both, obs=torch.stack([Y, Y.flip(0)], 1))

    with pytest.raises(ValueError, match="\n  loc: used in the observation distribution"):
        EM(model).step()
    history = EM(model, optim=pyro.optim.SGD({"lr": 0.002})).run(num_steps=5, tol=None).history
    assert history[-1] < history[0]
    assert history[-1] == pytest.approx(loss_of(model), rel=1e-9)


# Sizes.


@pytest.mark.parametrize("constraint", [constraints.real, constraints.simplex])
def test_one_state(constraint: constraints.Constraint) -> None:
    """A chain of one state has nothing to learn, whether by probabilities or logits."""
    kind = "logits" if constraint is constraints.real else "probs"
    start = torch.zeros(1, 1) if constraint is constraints.real else torch.ones(1, 1)

    def model() -> None:
        transition = pyro.param("transition", start.double(), constraint=constraint)
        hmm = RegimeHMM(
            torch.zeros(1).double(),
            observation_dist=dist.Normal(real("loc", torch.zeros(1)), 1.0),
            **{f"transition_{kind}": transition},
        )
        pyro.sample("x", hmm, obs=X)

    em = EM(model)
    em.run(num_steps=2, tol=None)
    assert set(em.plan.names) == {"transition", "loc"}
    assert pyro.param("loc").item() == pytest.approx(X.mean().item(), abs=1e-12)


@pytest.mark.slow
def test_a_long_switching_regression_has_a_closed_form() -> None:
    """Of its Jacobian two thirds are 0, and are not kept: 7.2 million numbers of 21.6."""
    num_steps, num_series = 300_000, 8
    generator = seeds.generator(5)
    design = torch.randn(num_steps, num_series, generator=generator, dtype=torch.float64)
    truth = torch.randn(num_series, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_steps, generator=generator, dtype=torch.float64)
    data = (design @ truth)[:, 0] + noise

    def model() -> None:
        beta = real("beta", 0.9 * truth)
        hmm = RegimeHMM(
            initial_probs=torch.tensor([1.0, 0.0, 0.0]).double(),
            transition_probs=torch.eye(3).double(),
            observation_dist=dist.Normal(design @ beta, 1.0),
        )
        pyro.sample("x", hmm, obs=data)

    em = EM(model)
    em.run(num_steps=1, tol=None)
    assert em.plan.affine.names == ["beta"]
    expected = torch.linalg.lstsq(design, data.unsqueeze(-1)).solution.squeeze(-1)
    assert torch.allclose(pyro.param("beta")[:, 0].detach(), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(pyro.param("beta")[:, 1:].detach(), 0.9 * truth[:, 1:])  # no data


def test_a_jacobian_that_is_too_large_is_the_reason_given(monkeypatch: Any) -> None:
    monkeypatch.setattr("pyro_regimes.infer.em.recognise.slices.MOST", 50)

    def model() -> None:
        observe(observation_dist=dist.Normal(X.unsqueeze(-1) * real("beta", LOC), 1.0))

    with pytest.raises(ValueError, match=r"x.loc, with 128 entries.*Jacobian .*too large"):
        EM(model).step()


# The process's own settings.


@pytest.mark.parametrize("optim", [None, {"lr": 0.01}])
def test_tensors_on_the_cpu_where_another_device_is_the_default(optim: Any) -> None:
    """A Gaussian and a minibatch, with all that EM makes for itself on the tensors' device."""
    data, gap = XS.clone(), torch.zeros(1).double()
    one = torch.ones(1).double()

    def model(size: int | None) -> None:
        held = pyro.param("loc", LOC.clone())
        if optim is not None:
            held = torch.cat([held[:1], held[:1] + pyro.param("gap", gap).exp()])
        with pyro.plate("sequences", 4, subsample_size=size, device="cpu") as index:
            observe(loc=held, scale=scale(), obs=data[index.cpu()], **chain())
        observe(name="y", loc=pyro.param("base", one) * LOC, scale=scale())

    before = torch.tensor(0.0).device
    with torch.device("meta"):
        for size in (None, 2):
            optimiser = None if optim is None else pyro.optim.SGD(optim)
            with pyro.get_param_store().scope():
                result = EM(partial(model, size), optim=optimiser).run(num_steps=20, tol=1e-2)
                assert result.history[-1] < result.history[0] or size
    assert torch.tensor(0.0).device == before


# Errors.


def test_a_model_that_runs_out_of_memory_is_not_blamed() -> None:
    calls = []

    def model() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        observe(loc=loc())

    with pytest.raises(RuntimeError, match="allocate memory") as error:
        EM(model).step()
    assert not isinstance(error.value, ValueError)


def test_a_model_that_draws_by_itself_is_told_so() -> None:
    def noisy_data() -> None:
        observe(loc=loc(), obs=X + 0.1 * torch.randn(len(X)))

    def noisy_scale() -> None:
        observe(loc=loc(), scale=SCALE * (1 + 0.1 * torch.rand(2)))

    for model, label in ((noisy_data, "x.value"), (noisy_scale, "x.scale")):
        with pytest.raises(ValueError, match=f"\n  {label}: changes from one run of the model"):
            EM(model).step()


def test_planning_leaves_the_generators_alone(monkeypatch: Any) -> None:
    """Nothing sets the global generator back: another thread may be drawing from it."""

    def refuse(state: Tensor) -> None:
        raise AssertionError("the global generator was set back")

    monkeypatch.setattr(torch, "set_rng_state", refuse)
    states = []

    def model() -> None:
        states.append(torch.get_rng_state())
        with pyro.plate("sequences", 4, subsample_size=2) as index:
            observe(loc=loc(), obs=XS[index], **chain())

    torch.manual_seed(seeds.seed(0))
    before = torch.get_rng_state()
    em = EM(model)
    em._session.make_plan(em._call((), {}))
    assert all(torch.equal(state, before) for state in states[1:])
    assert torch.equal(torch.get_rng_state(), before)
    assert em.plan.is_subsampled and set(em.plan.names) == {"initial", "transition", "loc"}
