"""
The risk of tomorrow
====================

*"I have an HMM of my returns. My risk report needs a value at risk and an expected shortfall of
the portfolio, tomorrow and for the week. hmmlearn stops at* ``predict_proba``."

The return of tomorrow is a mixture of the distributions of the regimes, weighted by their
probabilities given the data so far. :meth:`.RegimeModel.forecast` returns this mixture for each
of the next days.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pyro_regimes import RegimeModel
from pyro_regimes.datasets import load_sector_returns

# %%
# Two days to compare
# -------------------
#
# The model is fitted to the years before 2020. We look at the last day of 2019, when markets were
# calm, and at 2020-03-16, one of the worst days since 1987, with the same parameters.

returns = load_sector_returns().to_frame()
known = returns.loc["2008":"2019"]
model = RegimeModel(3, emission="student_t", n_init=3, max_iter=500, random_state=0).fit(known)
forecasts = {
    "2019-12-31": model.forecast(known, 5),
    "2020-03-16": model.forecast(returns.loc["2008":"2020-03-16"], 5),
}
for day, forecast in forecasts.items():
    print(day, dict(zip(model.regime_names_, forecast.regime_probs[0].round(3).tolist())))

# %%
# Value at risk and expected shortfall
# ------------------------------------
#
# ``weights`` is a portfolio; here all sectors have the same weight. Both figures are losses in
# percent: the value at risk of 1 % is exceeded with a probability of 1 %, and the shortfall is
# the mean loss of those cases.

weights = np.full(7, 1 / 7)
rows = {
    day: {
        "value at risk, 5 %": forecast.value_at_risk(0.05, weights=weights)[0],
        "value at risk, 1 %": forecast.value_at_risk(0.01, weights=weights)[0],
        "expected shortfall, 1 %": forecast.expected_shortfall(0.01, weights=weights)[0],
        "average of the sectors": weights @ forecast.value_at_risk(0.01)[0],
    }
    for day, forecast in forecasts.items()
}
print(pd.DataFrame(rows).round(2))

# %%
# The last row is the average value at risk of the single sectors (at 1 %). That of the portfolio
# is lower, because sectors do not fall together every time.
#
# The distribution of tomorrow, from ``cdf``. The vertical lines are the values at risk of 1 %.

x = np.linspace(-16, 16, 801)
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
for (day, forecast), color in zip(forecasts.items(), ["tab:blue", "tab:red"]):
    cdf = np.array([forecast.cdf(each, weights=weights)[0] for each in x])
    axis.plot(x, np.gradient(cdf, x), color=color, label=day)
    axis.axvline(-forecast.value_at_risk(0.01, weights=weights)[0], color=color, linestyle=":")
axis.set(xlabel="return of the portfolio on the next day, %", ylabel="density", ylim=(0, None))
axis.legend(frameon=False)
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# A week
# ------
#
# The sum of several days has no closed form, because they depend on each other through the
# regimes. ``sample_paths`` simulates regimes and returns of all days together. The shading has 50
# % and 90 % of the simulated weeks, and the line is the median.

figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
for axis, (day, forecast), color in zip(axes, forecasts.items(), ["tab:blue", "tab:red"]):
    paths = forecast.sample_paths(10_000, random_state=0).observations  # (10000, 5, 7)
    total = np.cumsum(paths @ weights, axis=1)
    low, lower, median, upper, high = np.quantile(total, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    days = np.arange(1, 6)
    axis.fill_between(days, low, high, color=color, alpha=0.15, linewidth=0)
    axis.fill_between(days, lower, upper, color=color, alpha=0.3, linewidth=0)
    axis.plot(days, median, color=color)
    axis.set_title(f"after {day}", loc="left")
    axis.set(xlabel="days ahead", xticks=days)
    axis.spines[["top", "right"]].set_visible(False)
    print(f"{day}: loses more than {-low[-1]:.1f} % in five days with a probability of 5 %")
axes[0].set_ylabel("sum of returns, %")
plt.show()

# %%
# How long does the regime last? The probability that the regime of the last row has ended:

for day, forecast in forecasts.items():
    print(day, forecast.change_probability().round(2))

# %%
# See also: :doc:`/risk` for other emissions and for a program that runs once a day, and
# :doc:`/uncertainty` for the part of the risk that these figures leave out: parameters are
# estimates.
