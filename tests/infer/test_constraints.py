"""A maximum outside a parameter's constraint is refused by name, and nothing is written."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from pyro_regimes import EM, RegimeHMM
from tests import seeds

#: about -2, which is outside of every interval below
X = torch.randn(60, generator=seeds.generator(0), dtype=torch.float64) - 2


def make_model(name: str, start: torch.Tensor, constraint: constraints.Constraint):
    def model() -> None:
        value = pyro.param(name, start, constraint=constraint)
        other = {"loc": torch.tensor([-1.0, 1.0]), "scale": torch.ones(2)}
        other = {key: tensor.double() for key, tensor in other.items()} | {name: value}
        free = pyro.param("transition", torch.full((2, 2), 0.5).double(), constraints.simplex)
        hmm = RegimeHMM(
            initial_probs=torch.tensor([0.6, 0.4]).double(),
            transition_probs=free,
            observation_dist=dist.Normal(other["loc"], other["scale"]),
        )
        pyro.sample("x", hmm, obs=X)

    return model


@pytest.mark.parametrize(
    "name, start, constraint",
    [
        ("loc", [0.5, 1.0], constraints.positive),
        ("loc", [0.4, 0.6], constraints.unit_interval),
        ("loc", [0.4, 0.6], constraints.interval(0.3, 0.7)),
        ("scale", [3.0, 4.0], constraints.greater_than(2.5)),
    ],
    ids=str,
)
def test_refused_by_name_before_anything_is_written(name, start, constraint):
    em = EM(make_model(name, torch.tensor(start).double(), constraint))
    loss = em.evaluate_loss()
    before = {key: value.detach().clone() for key, value in pyro.get_param_store().items()}
    with pytest.raises(ValueError, match=f"expected parameter '{name}' to have its maximum within"):
        em.run(num_steps=20)
    for key, value in pyro.get_param_store().items():
        assert value.isfinite().all()
        if key == name:
            torch.testing.assert_close(value, before[key], rtol=1e-12, atol=0.0)
    assert em.evaluate_loss() <= loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thousands_of_cells_are_told_apart(dtype):
    """In float32 a near neighbour of a cell is within the tolerance of equality."""
    count = 1500
    x = torch.randn(count, 5, generator=seeds.generator(1), dtype=dtype)

    def model() -> None:
        loc = pyro.param("loc", torch.randn(count, 1, 2, dtype=dtype))
        hmm = RegimeHMM(
            initial_probs=torch.tensor([0.6, 0.4], dtype=dtype),
            transition_probs=torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=dtype),
            observation_dist=dist.Normal(loc, torch.ones((), dtype=dtype)),
        )
        with pyro.plate("sequences", count):
            pyro.sample("x", hmm, obs=x)

    pyro.set_rng_seed(seeds.seed(0))
    em = EM(model)
    first = em.step()
    assert em.evaluate_loss() < first
    assert torch.equal(em.plan.assignments[0].uses[0].cells, torch.arange(2 * count))


def test_a_mask_of_single_entries_is_refused():
    def model() -> None:
        loc = pyro.param("loc", torch.zeros(2, 2).double())
        masked = dist.Normal(loc, 1.0).mask(torch.tensor([True, False])).to_event(1)
        hmm = RegimeHMM(torch.zeros(2).double(), torch.zeros(2, 2).double(), masked)
        pyro.sample("x", hmm, obs=X.reshape(30, 2))

    with pytest.raises(ValueError, match="loc: used in the observation distribution of site x"):
        EM(model).step()
