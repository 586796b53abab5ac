"""``Columns``: independent distributions, each of its own columns."""

from __future__ import annotations

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes.distributions import Columns
from tests import seeds

K = 3


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed), dtype=torch.float64)


def parts(*lead: int) -> list[tuple[dist.Distribution, int | slice | list[int]]]:
    """Five distributions of seven columns, out of order."""
    root = draw(*lead, 2, 2, seed=4)
    spread = root @ root.mT + torch.eye(2).double()
    return [
        (dist.StudentT(5.0, draw(*lead, 2, seed=1), 1.0).to_event(1), [4, 1]),
        (dist.LogNormal(draw(*lead, seed=2), 0.5), 0),
        (dist.MultivariateNormal(draw(*lead, 2, seed=3), spread), slice(-2, None)),
        (dist.Bernoulli(draw(*lead, seed=5).sigmoid()), 3),
        (dist.Poisson(draw(*lead, seed=6).exp()), torch.tensor(2)),
    ]


def test_density_is_the_sum_of_those_of_the_parts():
    columns = Columns(parts(K))
    assert columns.batch_shape == (K,) and columns.event_shape == (7,)
    assert columns.columns == ((4, 1), 0, (5, 6), 3, 2)
    torch.manual_seed(seeds.seed(1))
    x = columns.sample((50,))
    assert x.shape == (50, K, 7)
    (returns, _), (volume, _), (pair, _), (up, _), (count, _) = parts(K)
    expected = (
        returns.log_prob(x[..., [4, 1]])
        + volume.log_prob(x[..., 0])
        + pair.log_prob(x[..., 5:])
        + up.log_prob(x[..., 3])
        + count.log_prob(x[..., 2])
    )
    assert_close(columns.log_prob(x), expected, rtol=1e-13, atol=1e-13)
    assert bool(columns.support.check(x).all())
    outside = x.clone()
    outside[..., 3] = 0.5
    assert not bool(columns.support.check(outside).any())
    with pytest.raises(ValueError, match="within the support"):
        columns.log_prob(outside)
    assert_close(
        columns.mean[:, 3], draw(K, seed=5).sigmoid(), rtol=1e-13, atol=1e-13
    )
    assert_close(columns.mean[:, [4, 1]], draw(K, 2, seed=1), rtol=1e-13, atol=1e-13)
    assert_close(columns.variance[:, 5:], pair.variance, rtol=1e-13, atol=1e-13)
    assert not columns.has_rsample


def test_samples_follow_the_parts():
    columns = Columns(parts(K))
    torch.manual_seed(seeds.seed(2))
    x = columns.sample((40_000,))
    error = (columns.variance / 40_000).sqrt()
    assert bool(((x.mean(0) - columns.mean).abs() < 5 * error).all())


def test_reparametrised_samples():
    loc = draw(K, 2, seed=1).requires_grad_()
    parts = [(dist.Normal(loc, 1.0).to_event(1), [2, 0]), (dist.Gamma(loc[:, 0].exp(), 1.0), 1)]
    columns = Columns(parts)
    assert columns.has_rsample
    x = columns.rsample((5,))
    (slope,) = torch.autograd.grad(x[..., [2, 0]].sum(), loc)
    assert_close(slope, torch.full_like(loc, 5.0))


def test_batch_shapes_broadcast_and_expand():
    mixed = [
        (dist.Normal(draw(4, 1, K, seed=1), 1.0), 0),
        (dist.Poisson(torch.tensor(2.0).double()), 1),
        (dist.Normal(draw(9, 1, 2, seed=2), 1.0).to_event(1), [2, 3]),
    ]
    columns = Columns(mixed)
    assert columns.batch_shape == (4, 9, K)
    whole = columns.expand((5, 4, 9, K))
    assert whole.batch_shape == (5, 4, 9, K) and whole.event_shape == (4,)
    torch.manual_seed(seeds.seed(1))
    x = whole.sample((2,))
    assert x.shape == (2, 5, 4, 9, K, 4)
    assert_close(whole.log_prob(x), columns.log_prob(x), rtol=1e-13, atol=1e-13)
    assert whole.mean.shape == whole.variance.shape == (5, 4, 9, K, 4)
    assert whole.log_prob(x[0, 0, 0, 0, 0]).shape == (5, 4, 9, K)
    assert columns.batch_shape == (4, 9, K)


def test_expansion_leaves_a_part_as_it_was():
    part = dist.Normal(0.0, 1.0).expand([1]).mask(True).expand([1])
    columns = Columns([(part, 0), (dist.Poisson(torch.ones(K)), 1)])
    assert columns.sample().shape == (K, 2) and part.batch_shape == (1,)


def test_in_pyro():
    def model(x: Tensor | None = None) -> Tensor:
        with pyro.plate("rows", 6):
            return pyro.sample("x", Columns(parts(6)), obs=x)

    torch.manual_seed(seeds.seed(1))
    x = model()
    assert x.shape == (6, 7)
    trace = pyro.poutine.trace(model).get_trace(x)
    assert_close(trace.log_prob_sum(), Columns(parts(6)).log_prob(x).sum())
    again = pickle.loads(pickle.dumps(Columns(parts(6))))
    assert_close(again.log_prob(x), Columns(parts(6)).log_prob(x))


NORMAL = dist.Normal(0.0, 1.0)
PAIR = dist.Normal(torch.zeros(2), 1.0)


@pytest.mark.parametrize(
    "pairs, message",
    [
        ([], "at least one pair of a distribution and columns, got none"),
        ([(NORMAL, 0), NORMAL], "pairs of a distribution and its columns, got Normal at 1"),
        ([(0, NORMAL)], "part 0 to begin with a distribution, got int"),
        ([(NORMAL, 0), (NORMAL, 0)], r"exactly one part, got \[0\] in several and \[1\] in none"),
        ([(NORMAL, 1), (NORMAL, 2)], r"expected columns below 2, .* got 2 for part 1"),
        ([(NORMAL, "a")], "to be an int, a slice or a list of ints, got 'a'"),
        ([(NORMAL, 0.0)], "to be an int, a slice or a list of ints, got 0.0"),
        ([(NORMAL, True)], "to be an int, a slice or a list of ints, got True"),
        ([(NORMAL, [0])], r"an int for the column of part 0, .*use .to_event\(1\)"),
        ([(PAIR, [0, 1])], r"an int for the column of part 0, .*use .to_event\(1\)"),
        ([(PAIR.to_event(1), 0)], "a slice or a list for the columns of part 0"),
        ([(PAIR.to_event(1), [0, 1, 1])], r"2 columns for part 0, .* which are 3 of 2"),
        ([(PAIR.to_event(1), slice(0, 1))], r"2 columns for part 0, .* which are 1 of 2"),
        ([(dist.Normal(torch.zeros(2, 2), 1.0).to_event(2), slice(4))], "numbers or vectors"),
        ([(PAIR, 0), (dist.Normal(torch.zeros(3), 1.0), 1)], "whose batch shapes broadcast"),
    ],
)
def test_what_is_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        Columns(pairs)


def test_a_value_with_other_columns_is_refused():
    columns = Columns([(NORMAL, 0), (NORMAL, 1)])
    with pytest.raises(ValueError):
        columns.log_prob(torch.zeros(3))
