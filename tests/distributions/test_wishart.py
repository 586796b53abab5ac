"""The Wishart prior with a bijection to its support."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to, constraints, transform_to

from pyro_regimes.distributions import Wishart
from tests import seeds


def make(size: int, batch: tuple[int, ...] = ()) -> Wishart:
    scale = 0.3 * torch.eye(size).double() + 0.1
    return Wishart(torch.tensor(size + 2.0).double(), covariance_matrix=scale).expand(batch)


@pytest.mark.parametrize("batch", [(), (2,), (3, 1)])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_bijection(size, batch):
    wishart = make(size, batch)
    transform = biject_to(wishart.support)
    generator = seeds.generator(0)
    shape = transform.inverse_shape(torch.Size(batch + (size, size)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    y = transform(x)
    assert y.shape == transform.forward_shape(shape) == batch + (size, size)
    assert wishart.support.check(y).all() and constraints.positive_definite.check(y).all()
    torch.testing.assert_close(transform.inv(y), x, rtol=1e-9, atol=1e-9)
    # The Jacobian of the lower triangle, which says all of a symmetric matrix.
    row, column = torch.tril_indices(size, size)
    flat = x.reshape(-1, x.shape[-1])
    logs = transform.log_abs_det_jacobian(x, y).reshape(-1)
    for one, log in zip(flat, logs, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda z: transform(z)[row, column], one)
        assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(float(log))


def test_density_is_pyros():
    wishart, y = make(3), torch.eye(3).double() + 0.2
    theirs = dist.Wishart(wishart.df, covariance_matrix=wishart.covariance_matrix)
    assert torch.equal(wishart.log_prob(y), theirs.log_prob(y))
    assert type(wishart.expand([4]).to_event(1).base_dist) is Wishart


def test_nothing_of_torchs_has_changed():
    with pytest.raises(NotImplementedError):
        biject_to(constraints.positive_definite)
    assert type(transform_to(constraints.positive_definite)).__module__.startswith("torch")


@pytest.mark.parametrize("count", [2, 4, 5])
def test_not_a_triangle(count):
    with pytest.raises(ValueError, match="a triangular number of entries"):
        biject_to(Wishart.support)(torch.zeros(count))


def test_samples():
    wishart = make(3)
    torch.manual_seed(seeds.seed(0))
    drawn = wishart.sample((4000,))  # without a warning
    assert wishart.support.check(drawn).all()
    torch.testing.assert_close(drawn.mean(0), wishart.mean, rtol=0.1, atol=0.05)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_density_keeps_its_digits_in_a_trace():
    def log_prob(scale):
        df = torch.full_like(scale[0, 0], 6.0)
        wishart = Wishart(df, covariance_matrix=scale, validate_args=False).expand((2,))
        return wishart.log_prob(value)

    scale = 0.3 * torch.eye(4).double() + 0.1
    value = torch.stack([scale, 2 * scale])
    traced = torch.jit.trace(log_prob, scale, check_trace=False)
    torch.testing.assert_close(traced(scale), log_prob(scale), rtol=1e-14, atol=0.0)
