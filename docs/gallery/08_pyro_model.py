"""
A regime model inside a Pyro model
==================================

*"My model is not among hmmlearn's: I want priors of my own on the durations and volatilities, and
a posterior at the end. In Pyro I can write it, but enumerating 750 time steps is slow. What
now?"*

:class:`~pyro_regimes.RegimeHMM` is a Pyro distribution of a whole sequence. It sums over the
regimes itself, so the model is short, and EM, SVI and NUTS all take the same function.
"""

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, init_to_value

from pyro_regimes import EM, RegimeHMM, infer_regimes
from pyro_regimes.datasets import load_sector_returns
from pyro_regimes.infer import point_values

pyro.set_rng_seed(0)
returns = load_sector_returns().to_frame().mean(axis=1).loc["2019":"2021"]
x = torch.tensor(returns.to_numpy())  # the mean of seven sectors on 757 days, in percent


# %%
# The model
# ---------
#
# The prior says that regimes last about 20 days or more, that means are small, and in which range
# volatilities may be. Priors on precisions and probabilities are conjugate, so EM has closed
# forms.


def model(x):
    stay = pyro.sample("stay", dist.Beta(x.new_tensor([19.0, 19.0]), 1.0).to_event(1))
    loc = pyro.sample("loc", dist.Normal(x.new_zeros(2), 0.2).to_event(1))
    precision = pyro.sample("precision", dist.Gamma(x.new_tensor([2.0, 2.0]), 1.0).to_event(1))
    hmm = RegimeHMM(
        initial_probs=x.new_tensor([0.5, 0.5]),
        transition_probs=torch.stack([torch.stack([stay[0], 1 - stay[0]]),
                                      torch.stack([1 - stay[1], stay[1]])]),
        observation_dist=dist.Normal(loc, precision.rsqrt()),
    )  # fmt: skip
    pyro.sample("returns", hmm, obs=x)


# %%
# The mode of the posterior, by EM
# --------------------------------
#
# With ``AutoDelta`` as the guide, EM finds the mode of the posterior. ``em.plan`` tells how each
# site is set.

first = {
    "stay": x.new_tensor([0.95, 0.95]),
    "loc": x.new_zeros(2),
    "precision": x.new_tensor([1.0, 0.1]),
}
guide = AutoDelta(model, init_loc_fn=init_to_value(values=first))
em = EM(model, guide)
result = em.run(x)
print(em.plan)
print(f"\n{result.num_steps} steps: {result.history[0]:.2f} -> {result.history[-1]:.2f}")
mode = point_values(guide, x)

# %%
# The posterior, by SVI and by NUTS
# ---------------------------------
#
# Both begin at the mode. The guide of SVI is a Gaussian in the unconstrained parameters. These
# runs are short, to keep this page quick: use more draws, and several chains, in earnest.

gaussian = AutoMultivariateNormal(model, init_loc_fn=init_to_value(values=mode), init_scale=0.05)
svi = SVI(model, gaussian, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
losses = [svi.step(x) for _ in range(400)]
with torch.no_grad():
    draws = [gaussian(x) for _ in range(400)]
by_svi = {name: torch.stack([draw[name] for draw in draws]) for name in mode}

nuts = NUTS(model, init_strategy=init_to_value(values=mode), jit_compile=False)
mcmc = MCMC(nuts, num_samples=150, warmup_steps=75, disable_progbar=True)
mcmc.run(x)
by_nuts = mcmc.get_samples()

for name, samples in [("SVI", by_svi), ("NUTS", by_nuts)]:
    volatility = samples["precision"].rsqrt()
    low, high = np.quantile(volatility.numpy(), [0.05, 0.95], axis=0)
    print(f"{name:4}  volatility {low[0]:.2f} to {high[0]:.2f}, {low[1]:.2f} to {high[1]:.2f}")

# %%
# The expected duration of the regimes is :math:`1 / (1 - p)` with the probability p of staying.
# EM gives the mode of p; the posterior says how little three years tell of it. (The duration at
# the mode of p is not the mode of the duration.)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for regime, (axis, name) in enumerate(zip(axes, ("calm", "turbulent"))):
    drawn = {
        label: 1 / (1 - samples["stay"][:, regime].numpy())
        for label, samples in (("SVI", by_svi), ("NUTS", by_nuts))
    }
    at_mode = 1 / (1 - float(mode["stay"][regime]))
    most = max(1.1 * at_mode, *(np.quantile(days, 0.98) for days in drawn.values()))
    bins = np.linspace(0, most, 41)
    for color, (label, days) in zip(("tab:blue", "tab:orange"), drawn.items()):
        shares = np.full(len(days), 1 / len(days))
        axis.hist(days, bins, weights=shares, alpha=0.5, color=color, label=label)
    axis.axvline(at_mode, color="black", label="EM, the mode")
    axis.set_title(f"{name} regime", loc="left")
    axis.set(xlabel="expected duration, days", yticks=[])
    axis.spines[["top", "right", "left"]].set_visible(False)
axes[1].legend(frameon=False)
plt.show()

# %%
# The regimes, averaged over the posterior
# ----------------------------------------

probs = infer_regimes(model, by_nuts, x)["returns"]
figure, axis = plt.subplots(figsize=(9, 3.5), layout="constrained")
axis.plot(returns.index, returns, color="0.6", linewidth=0.7)
axis.set_ylabel("return, %")
right = axis.twinx()
right.fill_between(returns.index, probs[:, 1].numpy(), color="tab:red", alpha=0.25, linewidth=0)
right.set(ylabel="probability of the turbulent regime", ylim=(0, 1))
plt.show()

# %%
# See also: :doc:`/any_model` describes which models EM can fit, and :doc:`09_em_and_svi` when to
# use which method.
