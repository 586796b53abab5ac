"""The random points at which parameters are recognised are far away, and on both sides."""

import pytest
import torch
from pyro.distributions import constraints as pyro_constraints
from torch.distributions import constraints

from pyro_regimes.emissions import draws
from pyro_regimes.emissions.draws import random_value
from tests import seeds


@pytest.mark.parametrize("seed", range(20))
def test_two_draws_of_a_location_lie_on_both_sides(seed):
    value = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
    one, other = (
        random_value(value, draws.location, constraints.real, seed=base + seed)
        for base in (0, 1_000)
    )
    assert (one.sign() == -other.sign()).all()
    assert (one.abs() >= 100).all() and (other.abs() >= 100).all()


@pytest.mark.parametrize("seed", range(20))
def test_two_draws_of_a_scale_lie_on_both_sides(seed):
    value = torch.tensor([0.5, 2.0], dtype=torch.float64)
    one, other = (
        random_value(value, draws.positive, constraints.positive, seed=base + seed)
        for base in (0, 1_000)
    )
    assert (one >= 100 * value).all() and (0 < other).all() and (other <= value / 100).all()


@pytest.mark.parametrize(
    "draw, constraint, shape",
    [
        (draws.rows, constraints.simplex, (3,)),
        (draws.rows, constraints.simplex, (2, 3)),
        (draws.rows, constraints.positive, (2, 3)),
        (draws.matrices, constraints.positive_definite, (2, 4, 4)),
        (draws.factors, constraints.lower_cholesky, (2, 4, 4)),
        (draws.matrices, constraints.positive_definite, (4, 4)),
        (draws.positive, constraints.interval(0.1, 3.0), (2,)),
        (draws.location, pyro_constraints.ordered_vector, (4,)),
        (None, constraints.unit_interval, (2,)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("mild", [False, True])
def test_draws_are_admissible_and_elsewhere(draw, constraint, shape, mild):
    transform = torch.distributions.transform_to(constraint)
    generator = seeds.generator(7)
    unconstrained = transform.inverse_shape(torch.Size(shape))
    value = transform(torch.randn(unconstrained, generator=generator, dtype=torch.float64))
    drawn = random_value(value, draw, constraint, seed=0, mild=mild)
    assert drawn.shape == value.shape and drawn.dtype == value.dtype
    assert constraint.check(drawn).all() and not torch.equal(drawn, value)
