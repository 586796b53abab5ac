"""One battery for the families of :mod:`tests.emissions.battery`, each one entry of its table."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, init_to_value
from scipy.optimize import minimize
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import transform_to
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, emissions
from pyro_regimes.emissions.base import apply
from tests.emissions.battery import CASES, Case, D, Held, K, N, Params, T

INITIAL = torch.tensor([0.6, 0.4]).double()
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def hmm_of(observation_dist: Any) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=observation_dist
    )


class Model:
    """A Pyro model of one case, with its parameters held as they are or behind a link."""

    def __init__(
        self,
        case: Case,
        start: Params,
        event: tuple[int, ...] = (),
        links: dict[str, Held] | None = None,
        fixed: tuple[str, ...] = (),
        num_sequences: int = N,
    ) -> None:
        self.case, self.start, self.event = case, start, event
        self.links, self.fixed, self.num_sequences = links or {}, fixed, num_sequences

    def params(self) -> Params:
        """The arguments, which are read from the store."""
        found = {}
        for name, value in self.start.items():
            if name in self.fixed:
                found[name] = value
            elif name in self.links:
                link = self.links[name]
                given = pyro.param(name, link.to(value), constraint=link.constraint)
                found[name] = link.of(given)
            else:
                found[name] = pyro.param(name, value, constraint=self.case.constraints[name])
        return found

    def __call__(self, x: Tensor) -> None:
        observed = self.case.distribution(self.params(), self.event)
        with pyro.plate("sequences", self.num_sequences):
            pyro.sample("x", hmm_of(observed), obs=x)


def in_event(case: Case, *shape: int) -> dict[str, tuple[int, ...]]:
    return {name: shape for name in case.constraints}


class Expectation:
    """Q at fixed posterior probabilities, by the distribution's own density."""

    def __init__(self, case: Case, start: Params, x: Tensor, event: tuple[int, ...] = ()) -> None:
        self.case, self.x, self.event = case, x, event
        self.gamma = hmm_of(case.distribution(start, event)).posterior(x).smoothed_probs.detach()

    def __call__(self, params: Params) -> Tensor:
        observed = self.case.distribution(params, self.event)
        x = self.x.unsqueeze(-1 - len(observed.event_shape))
        return (self.gamma * observed.log_prob(x)).sum()

    def maximise(self, params: Params, names: tuple[str, ...], prior: Any = None) -> Params:
        """The numerical maximiser over some parameters, in unconstrained coordinates."""
        transforms = {name: transform_to(self.case.constraints[name]) for name in names}
        first = {name: transforms[name].inv(params[name]).detach() for name in names}

        def at(free: Tensor) -> Params:
            parts = free.split([each.numel() for each in first.values()])
            return params | {
                name: transforms[name](part.reshape(first[name].shape))
                for name, part in zip(names, parts, strict=True)
            }

        def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
            x = torch.tensor(free, requires_grad=True)
            values = at(x)
            found = -self(values)
            if prior is not None:
                found = found - prior(values)
            (gradient,) = torch.autograd.grad(found, x)
            return float(found.detach()), gradient.numpy()

        start = torch.cat([each.flatten() for each in first.values()]).numpy()
        options = {"gtol": 1e-9, "ftol": 1e-15, "maxiter": 5000}
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
        return {name: each.detach() for name, each in at(torch.tensor(found.x)).items()}


# ---- the density -------------------------------------------------------------------------------


def family_of(distribution: Any) -> Any:
    base = emissions.unwrap(distribution).base
    return emissions.find_family(base, len(distribution.event_shape)), base


def density_of(distribution: Any, value: Tensor) -> Tensor:
    family, base = family_of(distribution)
    assert family is not None
    return family.log_prob(value, family.read(base), len(distribution.event_shape))


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_density_is_scipys(case: Case, dtype: torch.dtype) -> None:
    x = case.sample().to(dtype)
    start = {name: value.to(dtype) for name, value in case.start().items()}
    found = density_of(case.distribution(start), x)
    assert found.dtype == dtype and found.shape == (N, T, K)
    for state in range(K):
        given = [value[state].double().numpy() for value in start.values()]
        known = [np.asarray(value) for value in case.known.values()]
        expected = torch.as_tensor(case.density(x.double().numpy(), *known, *given))
        rtol = 1e-11 if dtype == torch.float64 else 2e-6
        assert_close(found[..., state].double(), expected, rtol=rtol, atol=rtol)


@every_case
@pytest.mark.parametrize("event", [(), (D,)], ids=["one", "rows"])
def test_density_is_the_distributions_own(case: Case, event: tuple[int, ...]) -> None:
    if event and case.event:
        pytest.skip("a vector already")
    x = case.sample(*event)
    for shape in [(K,) + event, (N, 1, K) + event, (T, K) + event, (5, 1, 1, K) + event]:
        observed = case.distribution(case.start(in_event(case, *shape)), event)
        own = observed.log_prob(x.unsqueeze(-1 - len(observed.event_shape)))
        found = density_of(observed, x).expand(own.shape)
        assert_close(found, own, rtol=1e-11, atol=1e-11)
    if not case.is_real:
        whole = x.long()
        assert_close(density_of(observed, whole), density_of(observed, x), rtol=0.0, atol=0.0)


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extremes(case: Case, dtype: torch.dtype) -> None:
    """At bounds of the support and at huge values, with gradients that are no NaN."""
    for arguments, value, expected in case.extremes:
        given = {
            name: each if isinstance(each, int) else torch.tensor(each, dtype=dtype)
            for name, each in arguments.items()
        }
        leaves = [
            each.requires_grad_() for name, each in given.items() if isinstance(each, Tensor)
        ]
        observed = case.build(**(case.known | given), validate_args=False)
        if not case.event:
            observed = observed.expand([1])
        x = torch.tensor(value, dtype=dtype).expand((1,) + case.event)
        found = density_of(observed, x)
        rtol = 1e-9 if dtype == torch.float64 else 2e-6
        assert found.item() == pytest.approx(expected, rel=rtol, abs=rtol), (arguments, value)
        gradients = torch.autograd.grad(found.sum(), leaves, allow_unused=True)
        assert all(each is None or not each.isnan().any() for each in gradients), (arguments, value)
        hmm = RegimeHMM(
            initial_probs=torch.ones(1, dtype=dtype),
            transition_probs=torch.ones(1, 1, dtype=dtype),
            observation_dist=observed.expand([1]),
            validate_args=False,
        )
        assert hmm.log_prob(x).item() == pytest.approx(expected, rel=rtol, abs=rtol)


@every_case
def test_gradients_of_the_density(case: Case) -> None:
    x = case.sample()[0, :6]
    start = case.start()
    transforms = {name: transform_to(case.constraints[name]) for name in start}

    def density(*free: Tensor) -> Tensor:
        values = [transforms[name](each) for name, each in zip(start, free, strict=True)]
        return density_of(case.distribution(dict(zip(start, values, strict=True))), x)

    free = tuple(
        transforms[name].inv(value).detach().requires_grad_() for name, value in start.items()
    )
    assert gradcheck(density, free)
    assert torch.autograd.gradgradcheck(density, free)
    if case.is_real:
        fixed = case.distribution(start)
        real = x.double() if case.event else x[x != 0].double()  # where there may be a mass
        real = real.clone().requires_grad_()
        assert gradcheck(lambda value: density_of(fixed, value), (real,))


# ---- the update --------------------------------------------------------------------------------

SHARINGS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "own": ((K,), ()),
    "one for all states": ((1,), ()),
    "of each sequence": ((N, 1, K), ()),
    "of each time": ((T, K), ()),
    "of each time, one for all states": ((T, 1), ()),
    "own of each series": ((K, D), (D,)),
    "one for all series": ((K, 1), (D,)),
    "of each series, one for all states": ((D,), (D,)),
    "of each sequence, one for all series": ((N, 1, K, 1), (D,)),
}


@every_case
@pytest.mark.parametrize("sharing", SHARINGS)
def test_update_is_the_numerical_maximiser(case: Case, sharing: str) -> None:
    shape, event = SHARINGS[sharing]
    if event and case.event:
        pytest.skip("a vector already")
    x = case.sample(*event)
    old = case.start(in_event(case, *shape))
    q = Expectation(case, old, x, event)
    em = EM(Model(case, old, event))
    em.step(x)
    new = {name: pyro.param(name).detach() for name in old}
    assert {each.name for each in em.plan.assignments} == set(old)
    assert q(new) >= q(old)
    between = old
    for name in case.constraints:  # each given those before it
        best = None if name in case.stepwise else q.maximise(between, (name,))
        between = between | {name: new[name]}
        if best is not None:  # a parameter of few observations may be at the bound of the support
            assert q(between) >= q(best) - 1e-7 * abs(q(best))


@every_case
def test_one_parameter_fixed(case: Case) -> None:
    x, old = case.sample(), case.start()
    if len(old) == 1:
        pytest.skip("it has one parameter")
    for name in old:
        pyro.clear_param_store()
        em = EM(Model(case, old, fixed=tuple(set(old) - {name})))
        result = em.run(x, num_steps=2000, tol=1e-10)
        assert result.converged and not result.unconfirmed
        assert list(pyro.get_param_store()) == [name]


@every_case
@pytest.mark.parametrize("seed", range(3))
def test_no_step_lowers_the_likelihood(case: Case, seed: int) -> None:
    x, restarts = case.sample(seed=seed), 5
    start = case.start(in_event(case, restarts, 1, 1, K), seed=seed)

    def model(x: Tensor) -> None:
        observed = case.distribution(Model(case, start).params())
        with pyro.plate("restarts", restarts, dim=-2), pyro.plate("sequences", N, dim=-1):
            pyro.sample("x", hmm_of(observed), obs=x.expand((restarts,) + x.shape))

    em = EM(model)
    result = em.run(x, num_steps=30, tol=None)
    history = result.history
    assert all(later <= now + 1e-9 * abs(now) for now, later in zip(history, history[1:]))
    together = {name: pyro.param(name).detach().clone() for name in start}
    # Each restart as if it had run alone, to the last digit.
    for index in range(restarts):
        pyro.clear_param_store()
        alone = {name: value[index, 0, 0] for name, value in start.items()}
        EM(Model(case, alone)).run(x, num_steps=30, tol=None)
        for name, value in together.items():
            assert_close(pyro.param(name).detach(), value[index, 0, 0], rtol=1e-12, atol=0.0)


@every_case
def test_it_converges_in_both_dtypes(case: Case) -> None:
    """By the model's own gradient, which the check of convergence asks."""
    x, start = case.sample(), case.start()
    result = EM(Model(case, start)).run(x, num_steps=3000, tol=1e-9)
    assert result.converged and not result.unconfirmed
    objective = pyro.poutine.trace(Model(case, start)).get_trace(x).log_prob_sum()
    leaves = [pyro.param(name).unconstrained() for name in start]
    for gradient in torch.autograd.grad(objective, leaves):
        assert gradient.abs().max() < 1e-2
    histories = []
    for dtype in (torch.float64, torch.float32):
        pyro.clear_param_store()
        model = Model(case, {name: value.to(dtype) for name, value in start.items()})
        histories.append(EM(model).run(x.to(dtype), num_steps=20, tol=None).history)
        result = EM(model).run(x.to(dtype), num_steps=3000, tol=1e-2)
        assert result.converged and not result.unconfirmed
    assert histories[1] == pytest.approx(histories[0], rel=1e-5)


@every_case
def test_a_state_without_data_keeps_its_parameters(case: Case) -> None:
    x, start = case.sample(), case.start()
    only = torch.tensor([1.0, 0.0]).double()

    def model(x: Tensor) -> None:
        observed = case.distribution(Model(case, start).params())
        hmm = RegimeHMM(
            initial_probs=only, transition_probs=torch.eye(2).double(), observation_dist=observed
        )
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm, obs=x)

    EM(model).run(x, num_steps=3, tol=None)
    for name, value in start.items():
        new = pyro.param(name).detach()
        assert_close(new[1], value[1], rtol=1e-12, atol=0.0)
        assert not torch.allclose(new[0], value[0])


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_that_are_all_equal(case: Case, dtype: torch.dtype) -> None:
    """Also at the lower bound of the support: parameters stay valid, and no step fails."""
    x, start = case.sample().to(dtype), case.start()
    start = {name: value.to(dtype) for name, value in start.items()}
    values = [x[:1, :1], x[-1:, -1:]] + ([] if case.event else [torch.zeros_like(x[:1, :1])])
    for value in values:
        pyro.clear_param_store()
        same = value.expand(x.shape).contiguous()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*has no maximum", RuntimeWarning)
            history = EM(Model(case, start)).run(same, num_steps=60, tol=None, check=False).history
        assert np.isfinite(history).all()
        slack = 1e-9 if dtype == torch.float64 else 1e-5
        assert all(b <= a + slack * (1 + abs(a)) for a, b in zip(history, history[1:]))
        for name in start:
            assert pyro.param(name).isfinite().all()


@every_case
def test_it_is_pickled(case: Case) -> None:
    x, start = case.sample(), case.start()
    plain = EM(Model(case, start))
    plain.step(x)
    plans = [plain.plan]
    for name, links in case.links.items():
        for link in links:
            pyro.clear_param_store()
            em = EM(Model(case, start, links={name: link}))
            em.step(x)
            plans.append(em.plan)
    for plan in plans:
        again = pickle.loads(pickle.dumps(plan))
        for one, two in zip(plan.assignments, again.assignments, strict=True):
            assert one.argument is two.argument and one.link.name == two.link.name


@every_case
def test_links(case: Case) -> None:
    x, start = case.sample(), case.start()
    EM(Model(case, start)).run(x, num_steps=10, tol=None)
    expected = {name: pyro.param(name).detach().clone() for name in start}
    for name, links in case.links.items():
        for link in links:
            pyro.clear_param_store()
            model = Model(case, start, links={name: link})
            em = EM(model)
            em.run(x, num_steps=10, tol=None)
            assert (f"as {link.link}" if link.link else "share") in str(em.plan)
            with torch.no_grad():
                found = model.params()
            for each in start:
                assert_close(found[each], expected[each], rtol=1e-7, atol=1e-9)


PRIORS = [
    pytest.param(case, *prior, id=f"{name}, {type(prior[2]).__name__} on {prior[0]} {index}")
    for name, case in CASES.items()
    for index, prior in enumerate(case.priors)
]


@pytest.mark.parametrize("case, name, link, prior", PRIORS)
def test_conjugate_priors(case: Case, name: str, link: Held | None, prior: Any) -> None:
    """The mode of the posterior given the expected statistics, by a numerical optimiser."""
    x, start = case.sample(), case.start()
    value = start[name] if link is None else link.to(start[name])

    def model(x: Tensor) -> None:
        with pyro.plate("states", K):
            given = pyro.sample(name, prior)
        own = given if link is None else link.of(given)
        with pyro.plate("sequences", N):
            pyro.sample("x", hmm_of(case.distribution(start | {name: own})), obs=x)

    def log_prior(values: Params) -> Tensor:
        own = values[name] if link is None else link.to(values[name])
        return prior.log_prob(own).sum()

    em = EM(model, AutoDelta(model, init_loc_fn=init_to_value(values={name: value})))
    em.step(x)
    assert f"with its {type(prior).__name__} prior" in str(em.plan)
    best = Expectation(case, start, x).maximise(start, (name,), log_prior)
    found = pyro.param(f"AutoDelta.{name}").detach()
    found = found if link is None else link.of(found)
    if name not in case.stepwise:
        densities = [
            density_of(case.distribution(start | {name: each}), x) for each in (found, best[name])
        ]
        assert_close(*densities, rtol=1e-5, atol=1e-6)
    result = em.run(x, num_steps=3000, tol=1e-9)
    assert result.converged and not result.unconfirmed


@every_case
def test_stochastic_em(case: Case) -> None:
    """Minibatches lead to where all data lead, but for a small part of the way."""
    size, start = 40, case.start()
    x = case.sample(num_sequences=size)

    def minibatches(x: Tensor) -> None:
        observed = case.distribution(Model(case, start).params())
        with pyro.plate("sequences", size, subsample_size=8) as index:
            pyro.sample("x", hmm_of(observed), obs=x[index])

    whole = Model(case, start, num_sequences=size)
    first = EM(whole).evaluate_loss(x)
    torch.manual_seed(1)
    EM(minibatches).run(x, num_steps=100, tol=None)
    history = EM(whole).run(x, num_steps=200, tol=1e-6).history
    assert first - history[0] > 0.9 * (first - history[-1])


@every_case
def test_natural_coordinates(case: Case) -> None:
    """The score is the derivative of Q in e, and near the maximum the gain is that of Newton's."""
    x, start = case.sample(), case.start()
    EM(Model(case, start)).run(x, num_steps=3000, tol=1e-11, check=False)
    at = {name: pyro.param(name).detach().clone() for name in start}
    q = Expectation(case, at, x)
    gamma = q.gamma
    base, event_dim = emissions.unwrap(case.build(**at, **case.known)).base, len(case.event)
    family = emissions.find_family(base, event_dim)
    given = {name: value.detach() for name, value in family.read(base).items()}
    observed = emissions.Observed(x.double().unsqueeze(-1 - event_dim), gamma, False)
    stats = family.statistics(observed, given, frozenset(given))
    for argument in family.arguments:
        if argument.name not in given or argument.name in case.known or not argument.links:
            continue
        link, name = argument.links[0], _name_of(case, argument.name)
        pooled = argument.reduce(stats, given, False)
        pooled = apply(lambda part: part.sum(0).squeeze(0), pooled)
        found = argument.maximise(pooled, argument.canonical(at[name]), 0.0)

        def objective(cells: Tensor) -> Tensor:
            return q(at | {name: argument.written(link, cells)})

        shift = 0.01 * torch.ones_like(found).cumsum(-1)
        moved = argument.natural.perturb(found, shift)
        if name in case.stepwise:  # by Fisher's identity where the statistics were taken
            found = argument.canonical(at[name])
        for cells in (found, moved):
            by = torch.zeros_like(cells, requires_grad=True)
            (slope,) = torch.autograd.grad(objective(argument.natural.perturb(cells, by)), by)
            score = argument.natural.score(pooled, cells)
            if cells is found or name not in case.stepwise:
                # Autograd loses digits at a total_count of 1e7, where a state is nearly Poisson.
                rounding = 16 * torch.finfo(slope.dtype).eps * x.numel() * float(cells.abs().max())
                assert_close(score, slope, rtol=1e-6, atol=1e-6 + rounding)
        if name not in case.stepwise:
            gain = argument.natural.gain(score, pooled, moved, 0.0).sum()
            true = objective(found) - objective(moved)
            assert_close(gain, true, rtol=0.05, atol=0.0)


def _name_of(case: Case, argument: str) -> str:
    """The parameter of a case that holds an argument."""
    for name in (argument, argument.rpartition(".")[2]):
        if name in case.constraints:
            return name
    return next(iter(case.constraints))
