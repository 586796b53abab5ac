"""
A backtest without look-ahead
=============================

*"My hmmlearn strategy sells when* ``predict`` *says crisis, and the backtest is wonderful. Then I
read that* ``predict`` *uses future rows, and so do the parameters. How good is the signal
really?"*

:func:`~pyro_regimes.walk_forward` refits the model as time goes on. What it says at a row depends
on that row and the earlier ones only.
"""

import matplotlib.pyplot as plt

from pyro_regimes import RegimeModel, walk_forward
from pyro_regimes.datasets import load_sector_returns

# %%
# Refits as time goes on
# ----------------------
#
# The first fit has the first 1000 days, and each year the model is fitted again to all days so
# far.

returns = load_sector_returns().to_frame().loc["2012":, ["InfoTech", "Financials", "Energy"]]
model = RegimeModel(n_regimes=2, random_state=0)
walk = walk_forward(model, returns, min_train=1000, refit_every="year")
print(walk.refits[["rows", "log-likelihood", "converged"]].round(1))

# %%
# The regimes as they were known on each day:

figure, axes = plt.subplots(
    2, 1, figsize=(9, 6), sharex=True, height_ratios=[2, 1], layout="constrained"
)
walk.plot(ax=axes, unit="%")
plt.show()

# %%
# With and without the future
# ---------------------------
#
# For comparison, a model that was fitted to all rows, with smoothed probabilities. Both use later
# days. What was known on the day jumps from day to day, because a single large return may or may
# not begin a turbulent period. With hindsight, the days that follow decide.

known = walk.filtered_probs["Turbulent"]
fitted = RegimeModel(n_regimes=2, n_init=4, random_state=0).fit(returns)
hindsight = fitted.regimes(returns)["smoothed_Turbulent"].loc[known.index]

shown = slice("2020-01", "2020-07")
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
axis.plot(hindsight[shown], color="0.6", linewidth=3, label="all data, smoothed")
axis.plot(known[shown], color="tab:red", linewidth=1.3, label="known on the day")
axis.set_ylabel("probability of Turbulent")
axis.legend(loc="lower right", frameon=False)
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# What this does to a rule
# ------------------------
#
# A simple rule holds the average of the sectors on the day after a day that is probably calm, and
# nothing otherwise. ``shift`` makes the position that of the day before, in both cases.

market = returns.mean(axis=1).loc[known.index]
results = {"always invested": market}
for name, probs in {"known on the day": known, "with hindsight": hindsight}.items():
    results[name] = market * (probs.shift() < 0.5)

figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
for (name, daily), color in zip(results.items(), ["0.6", "tab:red", "tab:blue"]):
    axis.plot(daily.cumsum(), color=color, label=name)
    mean, volatility = 252 * daily.mean(), 252**0.5 * daily.std()
    print(f"{name:18}{mean:6.1f} % a year, volatility {volatility:5.1f} %")
axis.set_ylabel("sum of returns, %")
axis.legend(loc="upper left", frameon=False)
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The rule looks better with hindsight than it could have been. The rule ignores costs, and the
# data contain only companies that survived: this page compares two ways of testing, and
# recommends no rule.
#
# Were the risks right?
# ---------------------
#
# On each day the model forecast the distribution of the next one. If the forecasts were right,
# losses exceed the value at risk of 5 % on 5 % of the days. ``lower`` and ``upper`` are a 95 %
# interval of the share, and the p-value is that of a binomial test.

columns = ["exceedances", "share", "lower", "upper", "p-value"]
print(walk.exceedances([0.05])[columns].round(3))

# %%
# Energy had larger losses than its past suggested. See also: :doc:`/backtest` explains each
# table, and :doc:`05_risk` the forecast of a single day.
