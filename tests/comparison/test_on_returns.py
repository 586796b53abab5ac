"""The comparison is of one model from one start, and leaves nothing behind."""

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine

from pyro_regimes import RegimeModel
from pyro_regimes.comparison import compare_on_returns
from pyro_regimes.comparison.distances import with_distances
from pyro_regimes.datasets import load_sector_returns
from pyro_regimes.estimator.spec import COVARIANCE_TYPES
from tests import seeds

RETURNS = load_sector_returns().values[-240:, :3]


RATES = [0.02, 0.05]


@pytest.mark.slow
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_every_method_starts_at_the_same_point(covariance_type):
    store = dict(pyro.get_param_store().named_parameters())
    state = torch.get_rng_state()
    seen = []
    found = compare_on_returns(
        RETURNS,
        n_regimes=2,
        covariance_type=covariance_type,
        em_steps=4,
        svi_steps=3,
        learning_rates=RATES,
        progress=lambda method, step, total, _: seen.append((method, step, total)),
    )
    assert [run.method for run in found.runs] == [
        "EM",
        "EM, SQUAREM",
        "SVI, Adam(0.02)",
        "SVI, Adam(0.05)",
        "SVI, DecayingAdam(0.02)",
        "SVI, DecayingAdam(0.05)",
        "L-BFGS",
        "EM, MAP",
        "SVI, AutoDelta(0.05)",
        "SVI, AutoNormal(0.05)",
        "SVI, AutoMultivariateNormal(0.05)",
        "SVI, AutoLowRank(0.05)",
    ]
    em, mode = found.runs[0], found.runs[7]
    for run in found.runs:
        start = mode if run.objective == "joint" else em
        assert run.values[0] == pytest.approx(start.values[0], rel=1e-9), run.method
        assert run.times == sorted(run.times) and len(run.times) == len(run.values)
        assert run.passes == sorted(run.passes) and len(run.passes) == len(run.values)
        assert run.num_steps == (4 if run.method.startswith("EM") else 3)
        assert 0 == run.times[0] < run.times[-1] <= run.seconds
        assert (run.gradient_norm is None) == (run.objective == "ELBO")
    for run in (em, mode):
        assert (np.diff(run.values) > 0).all()
        assert run.passes == [1, 2, 3, 4, 5]
        assert run.num_passes == 5 and run.distance_to_em is None
    assert em.log_likelihood == pytest.approx(em.values[-1], rel=1e-12)
    assert mode.log_joint == pytest.approx(mode.values[-1], rel=1e-12)
    assert mode.log_joint != mode.log_likelihood
    # Each method is announced before it compiles its kernels.
    assert seen[:2] == [("EM", 0, 4), ("EM", 4, 4)] and seen[-1][1:] == (3, 3)
    assert [name for name, step, _ in seen if not step] == [run.method for run in found.runs]
    assert dict(pyro.get_param_store().named_parameters()) == store
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.parametrize(
    "state",
    [
        torch.no_grad,
        torch.inference_mode,
        poutine.trace,
        lambda: poutine.scale(scale=2.0),
        lambda: poutine.condition(data={"loc": torch.zeros(2, 3).double()}),
        lambda: pyro.plate("outer", 3),
        lambda: torch.autocast("cpu"),
    ],
    ids=["no_grad", "inference_mode", "trace", "scale", "condition", "plate", "autocast"],
)
def test_the_callers_handlers_and_modes_change_nothing(state):
    settings = dict(n_regimes=2, em_steps=3, svi_steps=3, learning_rates=[0.05])
    settings |= dict(methods=["EM", "Adam", "L-BFGS", "EM, MAP", "AutoNormal"])
    settings |= dict(covariance_type="diag")
    expected = compare_on_returns(RETURNS, **settings)
    handler = state()
    with handler:
        found = compare_on_returns(RETURNS, **settings)
    for one, other in zip(found.runs, expected.runs, strict=True):
        assert one.values == other.values and one.gradient_norm == other.gradient_norm
        assert one.held_out == other.held_out and one.elbo == other.elbo
        assert one.values[-1] > one.values[0]
    assert not getattr(getattr(handler, "trace", None), "nodes", None)


@pytest.mark.slow
def test_with_nuts():
    found = compare_on_returns(
        RETURNS[-80:, :1],
        n_regimes=2,
        methods=["EM, MAP", "AutoNormal", "NUTS"],
        em_steps=5,
        svi_steps=20,
        learning_rates=[0.03],
        nuts_steps=4,
    )
    mode, variational, nuts = found.runs
    assert nuts.objective == "draws" and nuts.posterior.keys() == mode.point.keys()
    assert nuts.num_passes > 8 and nuts.posterior_errors is None
    # tests/comparison/test_distances.py says what they are
    expected = with_distances([variational._replace(posterior_errors=None), nuts])[0]
    assert variational.posterior_errors == expected.posterior_errors
    assert len(variational.posterior_errors) == 2 and mode.posterior_errors is None
    for run in (variational, nuts):
        assert 0 < run.distance_to_em < 1
        # An average over the posterior is near the value at its mean, and not it.
        assert run.held_out_averaged != run.held_out
        assert run.held_out_averaged == pytest.approx(run.held_out, abs=1.0)
    assert found.best() == -np.inf and found.speed_up() is None


@pytest.mark.slow
def test_adam_comes_to_where_em_is():
    """The two have one likelihood: the parameters approach, and the gradient vanishes."""
    found = compare_on_returns(
        RETURNS, n_regimes=2, methods=["EM", "Adam"], svi_steps=400, learning_rates=[0.003, 0.05]
    )
    em, slow, fast = found.runs
    assert fast.log_likelihood == pytest.approx(em.log_likelihood, abs=0.5)
    assert fast.distance_to_em < slow.distance_to_em < 1
    assert fast.gradient_norm < slow.gradient_norm
    assert em.gradient_norm < 1.0
    # Within 0.1 nats before it stops by tol, and not by its first step.
    assert em.times[1] < found.seconds_to_best(em) < em.times[-2]
    assert found.seconds_to_best(slow) is None


@pytest.mark.slow
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_single_series(covariance_type):
    found = compare_on_returns(
        RETURNS[:, :1], n_regimes=2, covariance_type=covariance_type, em_steps=3, svi_steps=2
    )
    starts = [run.values[0] for run in found.runs if run.objective != "joint"]
    np.testing.assert_allclose(starts, starts[0], rtol=1e-9)


@pytest.mark.parametrize("rate", [1e2, 1e200])
def test_compiled_steps_that_diverge_are_rows(rate):
    """A singular covariance is an error inside the compiled step."""
    methods = ["Adam", "ClippedAdam", "AutoDelta", "AutoLowRank"]
    found = compare_on_returns(
        RETURNS, n_regimes=2, methods=methods, svi_steps=20, learning_rates=[rate]
    )
    assert len(found.runs) == 4
    for run in found.runs:
        assert run.diverged and run.point == {} and np.isfinite(run.values).all()


def test_log_likelihoods_are_in_the_units_of_the_data():
    """A change of unit by c moves log p(x) by T D log c, held out or not."""
    plain = compare_on_returns(RETURNS, n_regimes=2, methods=["EM"], em_steps=3).runs[0]
    scaled = compare_on_returns(10 * RETURNS, n_regimes=2, methods=["EM"], em_steps=3).runs[0]
    cut, rest = 192, 48
    assert plain.log_likelihood - scaled.log_likelihood == pytest.approx(cut * 3 * np.log(10))
    assert plain.held_out - scaled.held_out == pytest.approx(rest * 3 * np.log(10))


def test_counts():
    """EM with the priors is at a mode, and SVI comes near; log-likelihoods are those of scipy."""
    state = np.arange(300) // 30 % 2
    rates = np.array([[2.0, 9.0], [30.0, 4.0]])
    x = seeds.rng(0).poisson(rates[state]).astype(float)
    x[7, 1] = np.nan
    found = compare_on_returns(
        x, n_regimes=2, emission="poisson", methods=["EM", "EM, MAP", "AutoDelta"],
        svi_steps=300, learning_rates=[0.1],
    )  # fmt: skip
    em, mode, delta = found.runs
    assert em.log_likelihood >= mode.log_likelihood >= em.log_likelihood - 5
    assert mode.log_joint >= delta.log_joint - 1e-6 and mode.log_joint < delta.log_joint + 5
    for run in (em, mode):
        np.testing.assert_allclose(np.sort(run.point["rate"].T), np.sort(rates.T), rtol=0.15)
    probs, matrix, rate = (
        em.point[name].numpy() for name in ("initial_probs", "transition_probs", "rate")
    )
    model = RegimeModel.from_parameters(probs, matrix, emission="poisson", rates=rate)
    assert em.log_likelihood == pytest.approx(model.score(x[:240]), rel=1e-6)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_heavy_tails(covariance_type):
    """All methods start at the same point, and EM and L-BFGS end at the same maximum."""
    wild = np.arange(300)[:, None] % 60 < 30
    # The same for all seeds of the suite: there may be several maxima.
    x = np.random.RandomState(1).standard_t(4.0, (300, 2)) * np.where(wild, 4.0, 1.0)
    x[9, 1] = np.nan
    found = compare_on_returns(
        x, n_regimes=2, emission="student_t", covariance_type=covariance_type, svi_steps=150,
        learning_rates=[0.05], tol=1e-7,
    )  # fmt: skip
    assert [run.method for run in found.runs] == [
        "EM", "EM, SQUAREM", "SVI, Adam(0.05)", "SVI, DecayingAdam(0.05)", "L-BFGS",
    ]  # fmt: skip
    em, squarem, adam, decaying, lbfgs = found.runs
    for run in found.runs:
        assert run.values[0] == pytest.approx(em.values[0], rel=1e-9), run.method
    assert squarem.log_likelihood == pytest.approx(em.log_likelihood, abs=1e-3)
    assert lbfgs.log_likelihood == pytest.approx(em.log_likelihood, abs=0.05)
    assert em.values[0] < adam.log_likelihood < em.log_likelihood + 0.05
    assert em.values[0] < decaying.log_likelihood < em.log_likelihood + 0.05
    model = RegimeModel(
        2, emission="student_t", covariance_type=covariance_type, n_init=1, random_state=0
    ).fit(x[:240])
    assert em.log_likelihood == pytest.approx(model.log_likelihood_, abs=0.1)


OTHERS = {
    "gaussian_mixture": lambda rng: rng.standard_normal((90, 2)),
    "negative_binomial": lambda rng: rng.negative_binomial(3, 0.3, (90, 2)).astype(float),
    "gamma": lambda rng: rng.gamma(2.0, size=(90, 2)),
    "lognormal": lambda rng: np.exp(rng.standard_normal((90, 2))),
    "exponential": lambda rng: rng.exponential(size=(90, 2)),
    "von_mises": lambda rng: rng.vonmises(0.0, 1.0, (90, 2)),
    "categorical": lambda rng: rng.randint(3, size=(90, 2)).astype(float),
    "bernoulli": lambda rng: rng.randint(2, size=(90, 2)).astype(float),
}


@pytest.mark.parametrize("emission", OTHERS)
def test_other_emissions(emission):
    """Each method raises the likelihood from the same start."""
    found = compare_on_returns(
        OTHERS[emission](seeds.rng(2)), n_regimes=2, emission=emission, em_steps=5, svi_steps=5,
        learning_rates=[0.001],
    )  # fmt: skip
    assert len(found.runs) == 5
    for run in found.runs:
        assert run.values[0] == pytest.approx(found.runs[0].values[0], rel=1e-9), run.method
        assert run.log_likelihood > run.values[0] and np.isfinite(run.held_out)


def test_held_out_is_given_the_data_before_it():
    """Against the chain rule on a fit of one regime, where it is the plain Gaussian density."""
    run = compare_on_returns(RETURNS, n_regimes=1, methods=["EM"], em_steps=2).runs[0]
    fitted, rest = RETURNS[:192], RETURNS[192:]
    normal = torch.distributions.MultivariateNormal(
        torch.as_tensor(fitted.mean(0)), torch.as_tensor(np.cov(fitted.T, bias=True))
    )
    assert run.held_out == pytest.approx(float(normal.log_prob(torch.as_tensor(rest)).sum()))


def test_seconds_to_the_best():
    run = compare_on_returns(RETURNS, n_regimes=2, methods=["EM"], em_steps=3).runs[0]
    assert run.seconds_to(run.values[2]) == run.times[2]
    assert run.seconds_to(run.values[-1] + 1) is None


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"held_out": 0.0}, "expected held_out to lie between 0 and 1, got 0.0"),
        ({"covariance_type": "round"}, "covariance_type"),
        ({"n_regimes": 0}, "n_regimes"),
        ({"emission": "cauchy"}, "expected emission to be one of 'gaussian', .* got 'cauchy'"),
        ({"emission": "student_t", "methods": ["EM", "NUTS"]}, "no priors here, got .'NUTS'."),
        ({"emission": "poisson"}, "expected X to hold counts, non-negative integers"),
        ({"emission": "poisson", "covariance_type": "diag"}, "covariance_type='full' where"),
        ({"n_regimes": 40}, "rows on either side"),
        ({"em_steps": 0}, "expected em_steps to be at least 1, got 0"),
        ({"svi_steps": 0}, "expected svi_steps to be at least 1, got 0"),
        ({"nuts_steps": 0}, "expected nuts_steps to be at least 1, got 0"),
        ({"em_steps": 2.5}, "expected em_steps to be an integer, got 2.5"),
        ({"learning_rates": 0.1}, "expected learning_rates to be positive, got 0.1"),
        ({"learning_rates": [0.0]}, r"expected learning_rates to be positive, got \[0.0\]"),
        ({"learning_rates": []}, r"expected learning_rates to be positive, got \[\]"),
        ({"methods": ["EM", "Magic"]}, "expected methods from .*'Magic'"),
        ({"methods": []}, "expected methods from"),
        ({"em_steps": 10**400}, r"expected em_steps to be below 2\*\*63"),
        ({"svi_steps": 10**5000}, r"expected svi_steps to be below 2\*\*63"),
        ({"nuts_steps": 10**400}, r"expected nuts_steps to be below 2\*\*63"),
        ({"learning_rates": [0.1, 10**400]}, "expected learning_rates to be positive"),
        ({"learning_rates": [10**5000]}, "expected learning_rates to be positive"),
        ({"learning_rates": ["a"]}, "expected learning_rates to be positive"),
        ({"learning_rates": [0.1, "a"]}, "expected learning_rates to be positive"),
        ({"held_out": "a"}, "expected held_out to lie between 0 and 1, got 'a'"),
        ({"held_out": None}, "expected held_out to lie between 0 and 1, got None"),
        ({"held_out": 10**5000}, "expected held_out to lie between 0 and 1"),
        ({"tol": 10**400}, "expected tol to be"),
        ({"random_state": 10**400}, "expected random_state to be"),
        ({"random_state": -1}, "expected random_state to be at least 0, got -1"),
        ({"random_state": None}, "expected random_state to be an integer, got None"),
        ({"random_state": 1.5}, "expected random_state to be an integer, got 1.5"),
    ],
)
def test_wrong_options(wrong, message):
    with pytest.raises(ValueError, match=message):
        compare_on_returns(RETURNS, **wrong)


def test_a_constant_series_is_refused():
    with pytest.raises(ValueError, match="expected returns without constant series"):
        compare_on_returns(np.column_stack([RETURNS, np.ones(len(RETURNS))]))
