"""Questions of hmmlearn's own tests that concern RegimeHMM and EM.

Each test names the case of hmmlearn's ``tests/test_base.py`` or ``tests/test_gaussian_hmm.py``
whose question it asks. The code is our own.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes import EM, RegimeHMM
from tests import seeds


def uniform(*shape: int, seed: int = 0) -> Tensor:
    generator = seeds.generator(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def gaussian(data: Tensor, initial: Tensor, transition: Tensor, loc: Tensor, scale: Tensor) -> None:
    """A Gaussian HMM of which everything is learnt."""
    hmm = RegimeHMM(
        initial_probs=pyro.param("initial", initial, constraint=constraints.simplex),
        transition_probs=pyro.param("transition", transition, constraint=constraints.simplex),
        observation_dist=dist.Normal(
            pyro.param("loc", loc), pyro.param("scale", scale, constraint=constraints.positive)
        ).to_event(1),
    )
    pyro.sample("x", hmm, obs=data)


def test_a_chain_without_memory_is_a_mixture():
    """``TestBaseConsistentWithGMM``: K = 8, T = 10; posteriors, and the path."""
    density = uniform(10, 8).log()
    hmm = RegimeHMM(
        torch.zeros(8).double(),
        torch.zeros(8, 8).double(),
        dist.Delta(torch.zeros(10, 8).double(), log_density=density),
    )
    data = torch.zeros(10).double()
    expected = density.softmax(-1)
    posterior = hmm.posterior(data)
    torch.testing.assert_close(posterior.smoothed_probs, expected, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(posterior.filtered_probs, expected, rtol=1e-12, atol=0.0)
    assert torch.equal(hmm.viterbi(data), expected.argmax(-1))


@pytest.mark.parametrize("argument", ["initial_probs", "transition_probs"])
@pytest.mark.parametrize(
    "spoil",
    [lambda rows: 2 * rows, lambda rows: rows[..., :0], lambda rows: torch.zeros(18, 2).double()],
    ids=["sum to 2", "empty", "another shape"],
)
def test_wrong_probabilities(argument, spoil):
    """``test_base_hmm_attributes``: 20 states."""
    rows = uniform(20, 20)
    arguments = {
        "initial_probs": rows[0] / rows[0].sum(),
        "transition_probs": rows / rows.sum(-1, keepdim=True),
        "observation_dist": dist.Normal(torch.zeros(20).double(), 1.0),
    }
    hmm = RegimeHMM(**arguments)
    for name in ("initial_probs", "transition_probs"):
        actual = getattr(hmm, name).reshape(arguments[name].shape)
        torch.testing.assert_close(actual, arguments[name], rtol=1e-14, atol=0.0)
    arguments[argument] = spoil(arguments[argument])
    with pytest.raises(ValueError, match=f"expected .*{argument}"):
        RegimeHMM(**arguments)


def test_an_outlier_that_no_state_explains():
    """``test_underflow_from_scaling``: an observation of 10,000 beside states at 0 and 5.

    hmmlearn's scaled recursion must raise there, and its logarithmic one fits.
    """
    generator = seeds.generator(10)
    data = torch.randn(400, generator=generator, dtype=torch.float64)
    data = data + torch.tensor([0.0, 5.0, 0.0, 5.0]).double().repeat_interleave(100)
    data[40] = 10_000.0
    start = (
        torch.tensor([0.0, 1.0]).double(),
        torch.tensor([[0.4, 0.6], [0.6, 0.4]]).double(),
        torch.tensor([[0.0], [5.0]]).double(),
        torch.ones(2, 1).double(),
    )
    em = EM(gaussian, min_eigenvalue=0.1)
    result = em.run(data.unsqueeze(-1), *start, num_steps=100)
    history = torch.tensor(result.history)
    assert history.isfinite().all()
    assert history[0] == pytest.approx(0.5 * 9_995**2, rel=1e-3)
    assert (history.diff() < 1e-6).all()
    assert pyro.param("initial").tolist() == [0.0, 1.0]


def test_left_to_right():
    """``test_fit_left_right``: sequences of 10, 8 and 1 steps; zeros of the chain stay zeros."""
    lengths = torch.tensor([10, 8, 1])
    data = uniform(3, 10, 3)
    transition = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]).double()
    start = torch.tensor([1.0, 0.0, 0.0]).double()

    def model() -> None:
        hmm = RegimeHMM(
            initial_probs=pyro.param("initial", start, constraint=constraints.simplex),
            transition_probs=pyro.param("transition", transition, constraint=constraints.simplex),
            observation_dist=dist.Normal(
                pyro.param("loc", uniform(3, 3, seed=1)),
                pyro.param("scale", torch.ones(3, 3).double(), constraint=constraints.positive),
            ).to_event(1),
            lengths=lengths,
        )
        with pyro.plate("sequences", 3):
            pyro.sample("x", hmm, obs=data)

    history = torch.tensor(EM(model, min_eigenvalue=1e-3).run(num_steps=10, tol=None).history)
    assert (history.diff() < 1e-9).all()
    assert torch.equal(pyro.param("initial").detach(), start)
    fitted = pyro.param("transition").detach()
    assert torch.equal(fitted == 0, transition == 0)
    hmm = RegimeHMM(
        initial_probs=start,
        transition_probs=fitted,
        observation_dist=dist.Normal(pyro.param("loc"), pyro.param("scale")).to_event(1),
        lengths=lengths,
    )
    assert hmm.log_prob(data).isfinite().all()
    for path, length in zip(hmm.viterbi(data).tolist(), lengths.tolist(), strict=True):
        steps = [after - before for before, after in zip(path[: length - 1], path[1:length])]
        assert path[0] == 0 and set(steps) <= {0, 1}


def test_going_on_from_a_state():
    """``test_generate_samples``: a draw that starts in the last state of another.

    hmmlearn's ``sample`` returns states and takes ``currstate``. Here the initial distribution is
    all at that state.
    """
    torch.manual_seed(seeds.seed(0))
    apart = dist.Normal(torch.tensor([-100.0, 100.0]), 1.0)
    transition = torch.tensor([[0.7, 0.3], [0.3, 0.7]])
    first = RegimeHMM(torch.zeros(2), transition.log(), apart, duration=10)
    last = first.viterbi(first.sample((20,)))[:, -1]
    onwards = RegimeHMM(
        initial_probs=torch.nn.functional.one_hot(last, 2).float(),
        transition_probs=transition,
        observation_dist=apart,
        duration=10,
    )
    assert torch.equal(onwards.viterbi(onwards.sample())[:, 0], last)


@pytest.mark.parametrize("shape", ["full", "diag", "spherical", "tied"])
def test_far_apart(shape):
    """``test_score_samples_and_decode``: three states far apart, five observations of each."""
    generator = seeds.generator(10)
    loc = 20.0 * torch.randint(-20, 20, (3, 3), generator=generator).double()
    factor = torch.randn(3, 3, 3, generator=generator, dtype=torch.float64)
    covariance = factor @ factor.mT + torch.eye(3).double()
    observation_dist = {
        "full": dist.MultivariateNormal(loc, covariance),
        "tied": dist.MultivariateNormal(loc, covariance[0]),
        "diag": dist.Normal(loc, covariance.diagonal(dim1=-2, dim2=-1)).to_event(1),
        "spherical": dist.Normal(loc, covariance[:, :1, 0]).to_event(1),
    }[shape]
    states = torch.arange(3).repeat_interleave(5)
    data = loc[states] + torch.randn(15, 3, generator=generator, dtype=torch.float64)
    hmm = RegimeHMM(torch.zeros(3).double(), torch.zeros(3, 3).double(), observation_dist)
    smoothed = hmm.posterior(data).smoothed_probs
    torch.testing.assert_close(smoothed.sum(-1), torch.ones(15).double(), rtol=1e-12, atol=0.0)
    assert torch.equal(smoothed.argmax(-1), states)
    assert torch.equal(hmm.viterbi(data), states)
