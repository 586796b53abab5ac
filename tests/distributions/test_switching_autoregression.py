"""Hamilton's autoregression, against enumeration, RegimeHMM of all tuples, and published fits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import RegimeHMM, stationary_probs
from pyro_regimes.distributions import SwitchingAutoregression
from tests import seeds

RGNP = Path(__file__).parents[1] / "data" / "rgnp.csv"

#: A (p00, p10), means, variance, coefficients, log-likelihood; EViews and
#: Stata, as in statsmodels' test_markov_autoregression.py.
PUBLISHED = {
    "Hamilton, AR(4)": (
        (0.754673, 0.095915),
        (-0.358811, 1.163516),
        0.5913684624037406,
        [[0.013486, -0.057521, -0.246983, -0.212923]],
        -181.26339,
    ),
    "switching AR(1)": (
        (0.85472458, 0.53662099),
        (1.041419, -0.479157),
        0.629513487495312,
        [[0.243128], [0.713029]],
        -186.7575,
    ),
    "switching AR(2)": (
        (0.3812383, 0.3564492),
        (-0.0055216, 1.195482),
        0.44583637701604,
        [[0.3710719, 0.7002937], [0.4621503, -0.3206652]],
        -179.32354,
    ),
}


def growth() -> Tensor:
    return torch.from_numpy(np.genfromtxt(RGNP, delimiter=",", names=True)["rgnp"].copy())


def random_model(
    order: int, num_states: int, *batch: int
) -> tuple[SwitchingAutoregression, Tensor]:
    draw = seeds.generator(10 * order + num_states)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*batch, *shape, generator=draw, dtype=torch.float64)

    model = SwitchingAutoregression(
        history=normal(order),
        transition_probs=normal(1, num_states, num_states).softmax(-1),
        loc=2 * normal(num_states),
        coefficients=0.4 * normal(num_states, order),
        scale=normal(num_states).exp(),
    )
    return model, normal(5)


def log_joint(model: SwitchingAutoregression, value: Tensor, path: tuple[int, ...]) -> float:
    """log p(x, q | history) of one path over history and value, from the formula."""
    p, mu, matrices = model.order, model.loc, model.transition_probs
    series = torch.cat([model.history, value])
    total = model.initial_probs[path[0]].log()
    for t in range(1, len(path)):
        total = total + matrices[(t - 1) % len(matrices), path[t - 1], path[t]].log()
    for t in range(p, len(series)):
        phi = model.coefficients[path[t]]
        mean = mu[path[t]] + sum(
            phi[j - 1] * (series[t - j] - mu[path[t - j]]) for j in range(1, p + 1)
        )
        total = total + dist.Normal(mean, model.scale[path[t]]).log_prob(series[t])
    return float(total)


def log_joints(
    model: SwitchingAutoregression, value: Tensor, paths: Iterable[tuple[int, ...]]
) -> Tensor:
    return torch.tensor([log_joint(model, value, path) for path in paths], dtype=torch.float64)


@pytest.mark.parametrize("order, num_states", [(1, 2), (2, 3), (3, 2)])
def test_equals_the_sum_over_all_paths(order, num_states):
    model, value = random_model(order, num_states)
    length = order + len(value)
    paths = list(itertools.product(range(num_states), repeat=length))
    logs = log_joints(model, value, paths)
    assert_close(model.log_prob(value), logs.logsumexp(0), rtol=1e-12, atol=1e-12)
    shares = logs.softmax(0)
    found = model.posterior(value)
    after = torch.tensor(paths)[:, order:]
    for k in range(num_states):
        smoothed = (shares.unsqueeze(-1) * (after == k)).sum(0)
        assert_close(found.smoothed_probs[:, k], smoothed, rtol=1e-10, atol=1e-12)
    best = paths[int(logs.argmax())][order:]
    assert model.viterbi(value).tolist() == list(best)
    assert_close(found.expected_transitions.sum(), torch.tensor(4.0).double())


def test_filter_prediction_and_forecast_agree_with_shorter_series():
    model, value = random_model(2, 3)
    found = model.posterior(value)
    for t in range(1, len(value)):
        before = model.posterior(value[:t])
        assert_close(found.filtered_probs[t - 1], before.smoothed_probs[-1])
        ahead = before.filtered_probs[-1] @ model.transition_probs[0]
        assert_close(found.predicted_probs[t], ahead)
        rise = model.log_prob(value[: t + 1]) - model.log_prob(value[:t])
        assert_close(model.forecast(value[:t]).log_prob(value[t]), rise)


def test_a_batch_is_its_members():
    model, value = random_model(2, 2, 3)
    found = model.posterior(value)
    assert model.batch_shape == (3,) and model.expand((4, 3)).batch_shape == (4, 3)
    for n in range(3):
        one = SwitchingAutoregression(
            history=model.history[n],
            transition_probs=model.transition_probs[n],
            loc=model.loc[n],
            coefficients=model.coefficients[n],
            scale=model.scale[n],
        )
        assert_close(model.log_prob(value)[n], one.log_prob(value[n]))
        assert_close(found.smoothed_probs[n], one.smoothed_probs(value[n]))
        assert_close(model.forecast(value).mean[n], one.forecast(value[n]).mean)
        assert_close(model.viterbi(value)[n], one.viterbi(value[n]))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_log_likelihoods(name):
    (stay, back), loc, variance, coefficients, published = PUBLISHED[name]
    x, coefficients = growth(), torch.tensor(coefficients).double()
    order = coefficients.shape[-1]
    model = SwitchingAutoregression(
        history=x[:order],
        transition_probs=torch.tensor([[stay, 1 - stay], [back, 1 - back]]).double(),
        loc=torch.tensor(loc).double(),
        coefficients=coefficients,
        scale=torch.tensor(math.sqrt(variance)).double(),
    )
    assert_close(model.log_prob(x[order:]).item(), published, rtol=0, atol=2e-5)


def test_samples_have_the_law_of_the_model():
    """The mean over samples of the one-step density's distribution function is uniform."""
    model = SwitchingAutoregression(
        history=torch.tensor([0.5, 3.0]).double(),
        transition_probs=torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double(),
        loc=torch.tensor([-1.0, 2.0]).double(),
        coefficients=torch.tensor([[0.5, -0.2], [0.3, 0.1]]).double(),
        scale=torch.tensor([0.5, 1.0]).double(),
        duration=1,
    )
    torch.manual_seed(seeds.seed(0))
    x = model.sample((20_000,))
    assert x.shape == (20_000, 1)
    # The regimes of history are drawn from the chain: the mixture with their prior weights.
    weights = torch.zeros(8).double()
    means, scales = torch.zeros(8).double(), torch.zeros(8).double()
    for n, (i, j, k) in enumerate(itertools.product(range(2), repeat=3)):
        a, mu, phi = model.transition_probs[0], model.loc, model.coefficients[k]
        weights[n] = model.initial_probs[i] * a[i, j] * a[j, k]
        means[n] = mu[k] + phi[0] * (3.0 - mu[j]) + phi[1] * (0.5 - mu[i])
        scales[n] = model.scale[k]
    levels = (weights * dist.Normal(means, scales).cdf(x)).sum(-1).sort().values
    gap = (levels - torch.linspace(0, 1, len(levels)).double()).abs().max()
    assert gap < 2.3 / math.sqrt(len(levels))  # Kolmogorov: exceeded with probability 5e-5


def dense(model: SwitchingAutoregression, value: Tensor) -> RegimeHMM:
    """RegimeHMM of all tuples, for one series."""
    k, p = model.state_dim, model.order
    tuples = list(itertools.product(range(k), repeat=p + 1))
    series = torch.cat([model.history, value])
    matrix = torch.zeros(len(tuples), len(tuples)).double()
    initial, means, scales = [], [], []
    for n, one in enumerate(tuples):
        start = model.initial_probs[one[0]]
        for i, j in zip(one, one[1:]):
            start = start * model.transition_probs[0, i, j]
        initial.append(start)
        for m, other in enumerate(tuples):
            if one[1:] == other[:-1]:
                matrix[n, m] = model.transition_probs[0, other[-2], other[-1]]
        mu = model.loc[list(one)]
        phi = model.coefficients[one[-1] if len(model.coefficients) > 1 else 0]
        mean = mu[-1] + sum(
            phi[j] * (series[p - 1 - j : len(series) - 1 - j] - mu[p - 1 - j]) for j in range(p)
        )
        means.append(mean)
        scales.append(model.scale[one[-1] if len(model.scale) > 1 else 0])
    return RegimeHMM(
        initial_probs=torch.stack(initial),
        transition_probs=matrix,
        observation_dist=dist.Normal(torch.stack(means, -1), torch.stack(scales)),
    )


def test_equals_the_dense_hmm_of_32_states_on_published_data():
    (stay, back), loc, variance, coefficients, _ = PUBLISHED["Hamilton, AR(4)"]
    x = growth()
    model = SwitchingAutoregression(
        history=x[:4],
        transition_probs=torch.tensor([[stay, 1 - stay], [back, 1 - back]]).double(),
        loc=torch.tensor(loc).double(),
        coefficients=torch.tensor(coefficients).double(),
        scale=torch.tensor(math.sqrt(variance)).double(),
    )
    other, found = dense(model, x[4:]).posterior(x[4:]), model.posterior(x[4:])
    assert_close(found.log_likelihood, other.log_likelihood, rtol=1e-10, atol=0)
    for name in ("smoothed_probs", "filtered_probs", "predicted_probs"):
        wide = getattr(other, name).unflatten(-1, (16, 2)).sum(-2)
        assert_close(getattr(found, name), wide, rtol=1e-10, atol=1e-12)


def test_gradients_in_every_parameter():
    model, value = random_model(2, 2)

    def log_prob(history, logits, loc, coefficients, log_scale):
        return SwitchingAutoregression(
            history, logits.softmax(-1), loc, coefficients, log_scale.exp()
        ).log_prob(value)

    given = (model.history, model.transition_probs.log(), model.loc, model.coefficients)
    leaves = [each.clone().requires_grad_() for each in (*given, model.scale.log())]
    assert torch.autograd.gradcheck(log_prob, leaves)
    assert torch.autograd.gradgradcheck(log_prob, leaves)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"history": torch.zeros(0)}, "at least one row"),
        ({"history": torch.tensor([0.0, math.nan])}, "expected history to be finite"),
        ({"coefficients": torch.zeros(3)}, r"coefficients to end in shape \(1 or 2, 2\)"),
        ({"transition_probs": torch.eye(3)}, r"transition_probs to end in shape \(2, 2\)"),
        ({"scale": torch.ones(3)}, r"scale to end in shape \(1 or 2\)"),
        ({"transition_probs": torch.eye(2)}, "one stationary distribution"),
        ({"transition_probs": torch.ones(2, 2)}, "transition_probs to have non-negative rows"),
        ({"duration": 0}, "duration to be a positive integer"),
        ({"transition_probs": torch.full((4, 2, 2), 0.5)}, "initial_probs, as transition_probs"),
        ({"transition_probs": torch.full((4, 2, 2), 0.5), "duration": 5}, r"p\+T-1 = 6"),
        ({"history": torch.zeros(3), "transition_probs": torch.full((2, 2, 2), 0.5),
          "coefficients": torch.zeros(3)}, "dimension -3 is always time"),
        ({"loc": [0.0, 1.0]}, "loc to be a floating point tensor"),
    ],
)
def test_wrong_arguments_are_named(changed, message):
    given = {
        "history": torch.zeros(2),
        "transition_probs": torch.full((2, 2), 0.5),
        "loc": torch.tensor([0.0, 1.0]),
        "coefficients": torch.tensor([0.3, 0.1]),
        "scale": torch.tensor(1.0),
    }
    SwitchingAutoregression(**given)
    with pytest.raises(ValueError, match=message):
        SwitchingAutoregression(**{**given, **changed})


@pytest.mark.parametrize("method", ["log_prob", "posterior", "viterbi", "forecast", "filter"])
def test_missing_rows_are_refused_by_name(method):
    model, value = random_model(2, 2)
    value[3] = math.nan
    with pytest.raises(ValueError, match="value to be finite, got NaN.*first in row 3.*fill it"):
        getattr(model, method)(value)


def test_wrong_values_are_named():
    model, value = random_model(2, 2)
    with pytest.raises(ValueError, match=r"expected value of shape \(..., T\), got shape \(0,\)"):
        model.log_prob(value[:0])
    with pytest.raises(ValueError, match="duration to be given"):
        model.sample()


@pytest.mark.parametrize("num_states, order, num_steps", [(1, 3, 4), (2, 1, 1), (2, 5, 3)])
def test_few_regimes_rows_and_many_lags(num_states, order, num_steps):
    model, _ = random_model(order, num_states)
    value = torch.linspace(-1.0, 2.0, num_steps).double()
    paths = itertools.product(range(num_states), repeat=order + num_steps)
    logs = log_joints(model, value, paths)
    found = model.posterior(value)
    assert_close(found.log_likelihood, logs.logsumexp(0), rtol=1e-12, atol=1e-12)
    assert_close(model.log_prob(value), logs.logsumexp(0), rtol=1e-12, atol=1e-12)
    assert_close(found.expected_transitions.sum().item(), num_steps - 1.0)
    assert model.viterbi(value).shape == (num_steps,)


def test_transitions_that_vary_in_time():
    """Slice t leads from row t to row t + 1 of history and value."""
    draw = seeds.generator(6)
    model, value = random_model(2, 2)
    matrices = torch.randn(6, 2, 2, generator=draw, dtype=torch.float64).softmax(-1)
    varying = SwitchingAutoregression(
        model.history, matrices, model.loc, model.coefficients, model.scale,
        initial_probs=torch.tensor([0.3, 0.7]).double(),
    )  # fmt: skip
    assert varying.event_shape == (5,)
    paths = list(itertools.product(range(2), repeat=7))
    logs = log_joints(varying, value, paths)
    found, shares = varying.posterior(value), logs.softmax(0)
    assert_close(found.log_likelihood, logs.logsumexp(0), rtol=1e-12, atol=1e-12)
    after = torch.tensor(paths)[:, 2:]
    for t in range(4):
        both = (after[:, t] == 0) & (after[:, t + 1] == 1)
        assert_close(found.expected_transitions[t, 0, 1], shares[both].sum())
    assert varying.viterbi(value).tolist() == after[int(logs.argmax())].tolist()
    ahead = found.filtered_probs[:-1].unsqueeze(-2) @ matrices[2:]
    assert_close(found.predicted_probs[1:], ahead.squeeze(-2))
    torch.manual_seed(seeds.seed(1))
    assert varying.sample((3,)).shape == (3, 5)


def test_paths_of_samples_follow_the_transitions_of_each_step():
    certain = torch.eye(2).double()[[1, 0]]  # it changes the regime
    matrices = torch.stack([certain, torch.eye(2).double(), certain, certain])
    model = SwitchingAutoregression(
        history=torch.zeros(1).double(),
        transition_probs=matrices,
        loc=torch.tensor([-10.0, 10.0]).double(),
        coefficients=torch.zeros(1).double(),
        scale=torch.tensor(0.1).double(),
        initial_probs=torch.tensor([1.0, 0.0]).double(),
    )
    assert (model.sample((5,)).sign() == torch.tensor([1.0, 1.0, -1.0, 1.0]).double()).all()


def test_float32_has_the_log_likelihood_of_float64():
    model, _ = random_model(2, 2)
    names = ("history", "transition_probs", "loc", "coefficients", "scale", "initial_probs")
    narrow = {name: getattr(model, name).float() for name in names}
    value = torch.randn(500, generator=seeds.generator(2)).float()
    one = SwitchingAutoregression(**narrow)
    other = SwitchingAutoregression(**{name: each.double() for name, each in narrow.items()})
    found, wanted = one.posterior(value), other.posterior(value.double())
    assert_close(found.log_likelihood, wanted.log_likelihood, rtol=1e-9, atol=0)
    assert one.log_prob(value).dtype == found.smoothed_probs.dtype == torch.float32
    assert_close(found.smoothed_probs.double(), wanted.smoothed_probs, rtol=1e-5, atol=1e-5)


def test_arguments_of_any_strides():
    model, _ = random_model(2, 2)
    value = torch.randn(30, 4, generator=seeds.generator(3), dtype=torch.float64).T
    other = SwitchingAutoregression(
        model.history, model.transition_probs.mT.contiguous().mT, model.loc,
        model.coefficients.T.contiguous().T, model.scale,
    )  # fmt: skip
    wanted = torch.stack([model.log_prob(each.contiguous()) for each in value])
    assert_close(other.log_prob(value), wanted, rtol=1e-12, atol=0)
    assert other.posterior(value.unsqueeze(1)).smoothed_probs.shape == (4, 1, 30, 2)
    wide = model.expand((3, 4))
    assert_close(wide.log_prob(value), wanted.expand(3, 4), rtol=1e-12, atol=0)


def test_a_batch_of_no_series():
    model, _ = random_model(2, 2)
    value = torch.zeros(0, 7).double()
    assert model.log_prob(value).shape == (0,) and model.viterbi(value).shape == (0, 7)
    assert model.posterior(value).smoothed_probs.shape == (0, 7, 2)


def test_transitions_of_probability_zero():
    model, value = random_model(1, 2)
    chain = SwitchingAutoregression(
        model.history, torch.tensor([[1.0, 0.0], [0.3, 0.7]]).double(), model.loc,
        model.coefficients, model.scale, initial_probs=torch.tensor([0.2, 0.8]).double(),
    )  # fmt: skip
    found = chain.posterior(value)
    assert found.expected_transitions[0, 1] == 0
    paths = itertools.product(range(2), repeat=6)
    logs = log_joints(chain, value, paths)
    assert_close(found.log_likelihood, logs.logsumexp(0), rtol=1e-12, atol=1e-12)


def test_the_initial_distribution_is_the_stationary_one():
    model, value = random_model(1, 3)
    assert_close(model.initial_probs, stationary_probs(model.transition_probs[0]))
    assert model.log_prob(value).isfinite()
