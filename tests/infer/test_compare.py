"""The comparison is of one model from one start, and leaves nothing behind."""

import numpy as np
import pyro
import pytest
import torch
from torch.distributions import biject_to

from pyro_regimes.comparison import compare_on_returns
from pyro_regimes.datasets import load_sector_returns
from pyro_regimes.gaussian_hmm import COVARIANCE_TYPES, Parameters, regime_hmm, to_arguments
from pyro_regimes.gaussian_priors import prior_model, site_values

RETURNS = load_sector_returns().values[-240:, :3]


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
        progress=lambda method, step, total: seen.append((method, step, total)),
    )
    em, adam, variational = found.runs
    assert em.log_likelihoods[0] == pytest.approx(adam.log_likelihoods[0], rel=1e-12)
    assert em.log_likelihoods[0] == pytest.approx(variational.log_likelihoods[0], rel=1e-9)
    assert (np.diff(em.log_likelihoods) > 0).all()
    assert em.log_likelihood == pytest.approx(em.log_likelihoods[-1], rel=1e-12)
    assert [run.num_steps for run in found.runs] == [4, 3, 3]
    assert seen[0] == ("EM", 1, 4) and seen[-1][1:] == (3, 3)
    for run in found.runs:
        assert run.times == sorted(run.times) and len(run.times) == len(run.log_likelihoods)
    assert dict(pyro.get_param_store().named_parameters()) == store
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_single_series(covariance_type):
    found = compare_on_returns(
        RETURNS[:, :1], n_regimes=2, covariance_type=covariance_type, em_steps=3, svi_steps=2
    )
    starts = [run.log_likelihoods[0] for run in found.runs]
    np.testing.assert_allclose(starts, starts[0], rtol=1e-9)


def test_log_likelihoods_are_in_the_units_of_the_data():
    """A change of unit by c moves log p(x) by T D log c, held out or not."""
    plain = compare_on_returns(RETURNS, n_regimes=2, em_steps=3, svi_steps=1).runs[0]
    scaled = compare_on_returns(10 * RETURNS, n_regimes=2, em_steps=3, svi_steps=1).runs[0]
    cut, rest = 192, 48
    assert plain.log_likelihood - scaled.log_likelihood == pytest.approx(cut * 3 * np.log(10))
    assert plain.held_out - scaled.held_out == pytest.approx(rest * 3 * np.log(10))


def test_held_out_is_given_the_data_before_it():
    """Against the chain rule on a fit of one regime, where it is the plain Gaussian density."""
    run = compare_on_returns(RETURNS, n_regimes=1, em_steps=2, svi_steps=1).runs[0]
    fitted, rest = RETURNS[:192], RETURNS[192:]
    normal = torch.distributions.MultivariateNormal(
        torch.as_tensor(fitted.mean(0)), torch.as_tensor(np.cov(fitted.T, bias=True))
    )
    assert run.held_out == pytest.approx(float(normal.log_prob(torch.as_tensor(rest)).sum()))


def test_seconds_to_the_best():
    run = compare_on_returns(RETURNS, n_regimes=2, em_steps=3, svi_steps=1).runs[0]
    assert run.seconds_to(run.log_likelihoods[2]) == run.times[2]
    assert run.seconds_to(run.log_likelihoods[-1] + 1) is None


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_prior_model_has_the_same_likelihood(covariance_type):
    rng = np.random.default_rng(1)
    spread = {
        "full": np.stack([np.cov(rng.normal(size=(9, 3)).T) for _ in range(2)]),
        "tied": np.cov(rng.normal(size=(9, 3)).T),
        "diag": rng.uniform(0.5, 2.0, size=(2, 3)),
        "spherical": rng.uniform(0.5, 2.0, size=2),
    }[covariance_type]
    parameters = Parameters(
        np.array([0.3, 0.7]), np.array([[0.9, 0.1], [0.2, 0.8]]), rng.normal(size=(2, 3)), spread
    )
    arguments = to_arguments(parameters, covariance_type)
    x = torch.as_tensor(RETURNS[:20])
    model = prior_model(2, 3, covariance_type, x.mean(0), x.std(0))
    conditioned = pyro.poutine.condition(model, data=site_values(arguments))
    trace = pyro.poutine.trace(conditioned).get_trace(x)
    trace.compute_log_prob()
    actual = trace.nodes["observations"]["log_prob_sum"]
    torch.testing.assert_close(actual, regime_hmm(arguments).log_prob(x), rtol=1e-10, atol=0.0)
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and name != "observations":
            assert torch.isfinite(node["log_prob_sum"])
            biject_to(node["fn"].support).inv(node["value"])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"held_out": 0.0}, "expected held_out to lie between 0 and 1, got 0.0"),
        ({"covariance_type": "round"}, "covariance_type"),
        ({"n_regimes": 0}, "n_regimes"),
        ({"n_regimes": 40}, "rows on either side"),
        ({"em_steps": 0}, "expected em_steps to be at least 1, got 0"),
        ({"svi_steps": 0}, "expected svi_steps to be at least 1, got 0"),
        ({"learning_rate": 0.0}, "expected learning_rate to be positive, got 0.0"),
        ({"learning_rate": 1e4}, "expected a learning_rate at which SVI stays finite, got 10000"),
    ],
)
def test_wrong_options(wrong, message):
    with pytest.raises(ValueError, match=message):
        compare_on_returns(RETURNS, **wrong)


def test_a_constant_series_is_refused():
    with pytest.raises(ValueError, match="expected no constant series"):
        compare_on_returns(np.column_stack([RETURNS, np.ones(len(RETURNS))]))
