"""Under torch.jit.trace, where sizes are tensors of no dims."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, JitTrace_ELBO, Trace_ELBO

from pyro_regimes.distributions import RegimeHMM, checks

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    # torch's own distributions give them.
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

LOC = torch.tensor([-1.0, 1.0])
SERIES = torch.linspace(-2.0, 2.0, 18).reshape(3, 6)

METHODS = {
    "log_prob": lambda hmm, x: hmm.log_prob(x),
    "expand": lambda hmm, x: hmm.expand((x.shape[0],)).log_prob(x),
    "filter": lambda hmm, x: hmm.filter(x).logits,
    "posterior": lambda hmm, x: hmm.posterior(x).smoothed_probs,
    "viterbi": lambda hmm, x: hmm.viterbi(x),
    "sample_posterior": lambda hmm, x: hmm.sample_posterior(x).float().mean() * 0,
    "forecast": lambda hmm, x: hmm.forecast(x, x.shape[-1]).mixture_distribution.probs,
    "sample": lambda hmm, x: torch.zeros_like(hmm.sample((2,))),
}


@pytest.mark.parametrize(
    "method, slices",
    [(name, slices) for name in METHODS for slices in (1, 5) if (name, slices) != ("forecast", 5)],
)
def test_duration_is_a_size(method, slices):
    def compute(loc, transition, x):
        hmm = RegimeHMM(torch.zeros(2), transition, dist.Normal(loc, 1.0), duration=x.shape[-1])
        return METHODS[method](hmm, x)

    arguments = (LOC, torch.eye(2).expand(slices, 2, 2), SERIES)
    with pyro.validation_enabled(False):
        traced = torch.jit.trace(compute, arguments, check_trace=False)
        torch.testing.assert_close(traced(*arguments), compute(*arguments))


ROOT = torch.eye(3).double().expand(2, 3, 3)
VECTORS = {
    "shares": dist.Dirichlet(torch.tensor([[2.0, 3.0, 1.5], [1.0, 4.0, 2.5]]).double()),
    "student": dist.MultivariateStudentT(torch.tensor([3.0, 5.0]).double(), ROOT[..., 0], ROOT),
    "series": dist.Beta(torch.tensor([[2.0], [3.0]]).double(), 1.7).expand([2, 3]).to_event(1),
}


@pytest.mark.parametrize("kind", VECTORS)
def test_a_size_in_a_density_is_not_rounded(kind):
    """Times a number it would be a float32."""
    logits = torch.zeros(2).double()
    hmm = RegimeHMM(logits, torch.eye(2).double(), VECTORS[kind], validate_args=False)
    x = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]).double()
    with pyro.validation_enabled(False):
        traced = torch.jit.trace(hmm.log_prob, (x,), check_trace=False)
        torch.testing.assert_close(traced(x), hmm.log_prob(x), rtol=1e-13, atol=1e-13)


def test_a_size_is_read_without_a_warning():
    def compute(x):
        size = x.shape[-1]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert type(checks.positive_integer("duration", size)) is int
        return x + 1

    torch.jit.trace(compute, (SERIES,), check_trace=False)


def test_a_tensor_that_is_no_size():
    hmm = RegimeHMM(torch.zeros(2), torch.eye(2), dist.Normal(LOC, 1.0))
    assert hmm.forecast(SERIES, torch.tensor(2)).batch_shape == (3, 2)
    for wrong in (torch.tensor(2.0), torch.tensor(True), torch.tensor([2]), torch.tensor(0)):
        with pytest.raises(ValueError, match="expected num_steps to be a positive integer, got"):
            hmm.forecast(SERIES, wrong)


def model(x):
    loc = pyro.sample("loc", dist.Normal(LOC, 1.0).to_event(1))
    with pyro.plate("n", x.shape[0]):
        hmm = RegimeHMM(torch.zeros(2), torch.eye(2), dist.Normal(loc, 1.0), duration=x.shape[-1])
        pyro.sample("x", hmm, obs=x)


def test_jit_trace_elbo():
    def guide(x):
        loc = pyro.param("loc_of_loc", LOC.clone())
        pyro.sample("loc", dist.Delta(loc, event_dim=1))

    losses = []
    for elbo in (Trace_ELBO(), JitTrace_ELBO(ignore_jit_warnings=True)):
        pyro.clear_param_store()
        svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-2}), elbo)
        losses.append([svi.step(SERIES) for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_nuts():
    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True, max_tree_depth=2)
    mcmc = MCMC(kernel, num_samples=2, warmup_steps=1, disable_progbar=True)
    mcmc.run(SERIES)
    assert mcmc.get_samples()["loc"].isfinite().all()
