"""
EM and SVI on one model
=======================

*"hmmlearn uses EM, Pyro people tell me to use SVI. Both maximise a likelihood: does it matter?"*

Often it does, but not always in favour of EM. :func:`~pyro_regimes.comparison.compare` fits one
Pyro model by several methods from one start.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.comparison import compare
from pyro_regimes.datasets import load_sector_returns

METHODS = ["EM", "EM, SQUAREM", "Adam", "L-BFGS"]


# %%
# One model
# ---------
#
# K Gaussian regimes with full covariances. The start is rough: means of zero, and covariances of
# three sizes.


def model(x, K=2):
    simplex, positive = constraints.simplex, constraints.positive_definite
    sticky = 0.9 * torch.eye(K, dtype=x.dtype) + 0.1 / K
    sizes = torch.linspace(0.5, 2.0, K, dtype=x.dtype)[:, None, None]
    shift = torch.linspace(-0.2, 0.2, K, dtype=x.dtype)[:, None]
    scatter = x.T.cov(correction=0).reshape(x.shape[1], x.shape[1])
    hmm = RegimeHMM(
        initial_probs=pyro.param("initial", x.new_full((K,), 1 / K), constraint=simplex),
        transition_probs=pyro.param("transition", sticky, constraint=simplex),
        observation_dist=dist.MultivariateNormal(
            pyro.param("loc", x.mean(0) + shift * x.std(0)),
            pyro.param("covariance", sizes * scatter, constraint=positive),
        ),
    )
    pyro.sample("x", hmm, obs=x)


def show(comparison, axis, title):
    """How far each method is below the best log-likelihood, by passes over the data."""
    best = comparison.best()
    for run in comparison.runs:
        below = [max(best - value, 1e-6) for value in run.values]
        axis.plot(run.passes, below, label=run.name)
        reached = next((n for n, gap in zip(run.passes, below) if gap < 0.1), None)
        last = f"{run.log_likelihood:11.2f}"
        print(f"{run.name:14}{last}   within 0.1 nats: {reached or 'never':>5} passes")
    axis.set(xscale="log", yscale="log", xlabel="passes over the data")
    axis.set_title(title, loc="left")
    axis.axhline(0.1, color="0.7", linestyle=":")
    axis.spines[["top", "right"]].set_visible(False)


# %%
# Regimes that are easy to tell apart
# -----------------------------------
#
# Sector returns of ten years, in units of their standard deviations, as Adam's step does not
# depend on the unit of the data. A pass is one forward and backward recursion, which every method
# needs for a step.

returns = load_sector_returns().to_frame().loc["2010":"2019"]
x = torch.tensor(((returns - returns.mean()) / returns.std()).to_numpy())
easy = compare(model, x, methods=METHODS, svi_steps=600, learning_rates=[0.01, 0.1])

# %%
# Regimes that overlap
# --------------------
#
# Two regimes whose means differ by half a standard deviation. EM's steps are small, because the
# data hardly tell which regime a row belongs to.

pyro.set_rng_seed(1)
truth = RegimeHMM(
    initial_probs=torch.tensor([0.5, 0.5]).double(),
    transition_probs=torch.tensor([[0.95, 0.05], [0.05, 0.95]]).double(),
    observation_dist=dist.Normal(torch.tensor([[0.0], [0.5]]).double(), 1.0).to_event(1),
    duration=1500,
)
hard = compare(
    model, truth.sample(), methods=METHODS, em_steps=600, svi_steps=600, learning_rates=[0.01, 0.1]
)
figure, axes = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
show(easy, axes[0], "Sectors")
show(hard, axes[1], "Overlapping regimes")
axes[0].set_ylabel("nats below the best log-likelihood")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
plt.show()

# %%
# How to read this
# ----------------
#
# On the sectors, EM needs few passes and has no learning rate. Where regimes overlap, EM and
# SQUAREM, which extrapolates EM's steps, come near the optimum as soon, but the last digits take
# plain EM many passes; L-BFGS is the first there. Adam comes close with a good learning rate, but
# the good rate differs from model to model, and a run tells only at its end whether it was good.
#
# These are passes, not seconds: the steps of the methods differ in cost, and times depend on the
# machine. :doc:`/em_or_svi` has measured times, more data and more methods, and says what SVI can
# do that EM cannot.
#
# The two can also be mixed. All methods use the same parameter store, so one continues where the
# other stopped:

pyro.clear_param_store()
svi = pyro.infer.SVI(
    model, lambda x: None, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO()
)
losses = [svi.step(x) for _ in range(20)]
result = EM(model).run(x)
print(f"SVI {-losses[0]:.2f} -> {-losses[-1]:.2f}")
print(f"EM  {-result.history[0]:.2f} -> {-result.history[-1]:.2f} in {result.num_steps} steps")
