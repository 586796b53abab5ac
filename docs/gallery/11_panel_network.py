"""
A panel with a neural network
=============================

*"I have several series with regimes of their own. When a regime ends should depend on covariates,
but I do not know in which form. Can a small neural network be part of the model?"*

Yes: :class:`~pyro_regimes.RegimeHMM` is differentiable, so its arguments may be the outputs of a
``torch.nn.Module``. Here the series are seven sectors. Each has its own means and volatilities, and
its own path of regimes. One network gives the transition probabilities of all of them, from
two covariates of the market that are known the day before.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.datasets import load_sector_returns

returns = load_sector_returns().to_frame()
market = returns.mean(axis=1)
covariates = pd.DataFrame(
    {"return of 5 days": market.rolling(5).sum(), "volatility": np.log(market.rolling(20).std())}
).dropna()
fitted, later = covariates.loc["2001":"2012"], covariates.loc["2013":]


def tensors(days):
    """The returns ``(N, T)`` of N sectors, and the standardised covariates ``(T, 2)``."""
    standard = (days - fitted.mean()) / fitted.std()
    return torch.tensor(returns.loc[days.index].to_numpy().T), torch.tensor(standard.to_numpy())


x, z = tensors(fitted)

# %%
# The model
# ---------
#
# The network has one hidden layer of eight units and two outputs, the log-odds that the calm and
# the turbulent regime end. Its last weights are 0 at first, so that it starts from constant
# probabilities. The transition after day t uses the covariates of day t, so there are T - 1.


def make_network():
    torch.manual_seed(0)
    last = torch.nn.Linear(8, 2)
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, -3.0)
    return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), last).double()


def transition_logits(odds):
    """The logarithms of the transition matrices, ``(..., 2, 2)``, of log-odds ``(..., 2)``."""
    ends, stays = -torch.nn.functional.softplus(-odds), -torch.nn.functional.softplus(odds)
    calm = torch.stack([stays[..., 0], ends[..., 0]], -1)
    turbulent = torch.stack([ends[..., 1], stays[..., 1]], -1)
    return torch.stack([calm, turbulent], -2)


def panel(x, transitions):
    """Sectors with parameters of their own and these transitions."""
    deviation = x.std(1)[:, None, None]  # (N, 1, 1): one for all days
    loc = pyro.param("loc", x.new_zeros(len(x), 1, 2))
    scale = pyro.param(
        "scale", deviation * x.new_tensor([0.7, 1.6]), constraint=constraints.positive
    )
    first = pyro.param("first", x.new_tensor([0.5, 0.5]), constraint=constraints.simplex)
    with pyro.plate("sectors", len(x)):
        observation = dist.Normal(loc, scale)
        hmm = RegimeHMM(initial_probs=first, observation_dist=observation, **transitions)
        pyro.sample("returns", hmm, obs=x)


network = make_network()


def with_network(x, z):
    module = pyro.module("network", network)
    panel(x, {"transition_logits": transition_logits(module(z[:-1]))})


def with_constants(x, z):
    start = x.new_tensor([[0.95, 0.05], [0.05, 0.95]])
    matrix = pyro.param("matrix", start, constraint=constraints.simplex)
    panel(x, {"transition_probs": matrix})


def no_guide(x, z):
    """There are no latent variables but the regimes, which RegimeHMM sums over."""


def log_likelihood(model, x, z):
    return -Trace_ELBO().loss(model, no_guide, x, z)


# %%
# Constant transition probabilities, by EM
# ----------------------------------------
#
# The baseline has a closed form for each parameter.

result = EM(with_constants).run(x, z)
last_days, z_later = tensors(later)
years = range(2013, 2023)
sizes = [len(later.loc[:f"{year}"]) for year in years]
baseline = [log_likelihood(with_constants, last_days[:, :n], z_later[:n]) for n in sizes]
constant = pyro.param("matrix").detach()
print(f"constant: {-result.history[-1]:.1f} in {result.num_steps} steps")

# %%
# The network, by SVI
# -------------------
#
# Without latent variables in the guide, SVI maximises the likelihood by its gradient.

pyro.clear_param_store()
svi = SVI(with_network, no_guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
losses = [svi.step(x, z) for _ in range(150)]
print(f"SVI: {-losses[0]:.1f} -> {-losses[-1]:.1f} in {len(losses)} steps")

# %%
# The network by Adam, the rest by EM
# -----------------------------------
#
# :class:`~pyro_regimes.EM` takes an optimiser for parameters that it cannot set itself. From the
# parameters of SVI, each step sets the means, the volatilities and the first probabilities exactly,
# and the last bias of the network by Newton's method, as the log-odds are linear in it. The
# optimiser moves the other weights. ``em.plan`` says which is which.

em = EM(with_network, optim=pyro.optim.Adam({"lr": 0.003}))
result = em.run(x, z, num_steps=30, tol=None)
print(f"EM: {-result.history[0]:.1f} -> {-result.history[-1]:.1f} in {result.num_steps} steps")
print("\n".join(str(em.plan).splitlines()[:5]))

# %%
# What the network has learnt
# ---------------------------
#
# A calm regime of a sector is most likely to end when the market has been volatile and has
# fallen, a turbulent one when the market has risen. Neither effect is a straight line. In a
# volatile market the regimes last days, where they last weeks or months with the constant
# probabilities (dashed).

grid = np.linspace(-8, 8, 81)
quantiles = fitted["volatility"].quantile([0.1, 0.5, 0.9])
colors = ["#7fb3d5", "#2471a3", "#1b2631"]
titles = ["A calm regime ends", "A turbulent regime ends"]
figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharex=True, layout="constrained")
for value, color in zip(quantiles, colors):
    days = pd.DataFrame({"return of 5 days": grid, "volatility": value})
    standard = torch.tensor(((days - fitted.mean()) / fitted.std()).to_numpy())
    with torch.no_grad():
        odds = network(standard)
    for axis, chance in zip(axes, odds.sigmoid().T):
        axis.plot(grid, chance, color=color, label=f"{np.exp(value):.1f} % a day")
for regime, (axis, title) in enumerate(zip(axes, titles)):
    axis.axhline(constant[regime, 1 - regime], color="0.5", linestyle="--", linewidth=1)
    axis.set_title(title, loc="left")
    axis.set(xlabel="return of the market in the last 5 days, %", ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("probability, the next day")
axes[0].legend(title="market volatility, last 20 days", frameon=False)
plt.show()

# %%
# Does it help later?
# -------------------
#
# The parameters are those of 2001 to 2012. The bars are the differences of the log-likelihood of
# both models in the years after, each given the days before it. The network is better over the ten
# years and in the first five of them, but worse in four later ones: what it has learnt from one
# period does not hold in every other.

network_later = [log_likelihood(with_network, last_days[:, :n], z_later[:n]) for n in sizes]
gain = np.diff(np.array(network_later) - np.array(baseline), prepend=0.0)
print(f"{gain.sum():.0f} nats in {sizes[-1]} days of 7 sectors, above 0 in {sum(gain > 0)} years")

figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
bars = axis.bar(years, gain, color=np.where(gain > 0, "#2471a3", "#c0563f"))
axis.bar_label(bars, fmt="%.0f", padding=2)
axis.axhline(0, color="0.3", linewidth=0.8)
axis.set_title("Log-likelihood above that of constant probabilities", loc="left")
axis.set(ylabel="nats", xticks=years)
axis.margins(y=0.12)
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The sectors share a network, but not a path: given the covariates, each changes its regime by
# itself. See also: :doc:`/any_model` for what EM can set, and :doc:`08_pyro_model` for a model with
# priors.
