"""
Regimes of stock sectors
========================

*"I fit hmmlearn's* ``GaussianHMM(3, "full")`` *to daily returns and call* ``predict``. *The
numbers of the states change from run to run, the data must be an array without dates, and I draw
the plots myself. How do I get calm and turbulent periods with their names?"*

:class:`~pyro_regimes.RegimeModel` has the same methods, ``fit``, ``predict``, ``predict_proba``
and ``score``. It takes a table with dates, fits from several starts, and sorts and names the
regimes.
"""

import matplotlib.pyplot as plt

from pyro_regimes import RegimeModel
from pyro_regimes.datasets import load_sector_returns

# %%
# The data
# --------
#
# The package has daily returns of seven US sectors from 1990 to 2022, in percent. The sectors
# contain only companies that survived, so their mean returns are too high. This does not matter
# much here, because regimes differ in volatility more than in mean.

returns = load_sector_returns().to_frame()
print(returns.tail(3).round(2).T)

# %%
# The fit
# -------
#
# The likelihood has several maxima. ``n_init=4`` runs EM from four starts and keeps the best one;
# the last line of the summary says how many starts reached it. We ask for heavy tails with
# ``emission="student_t"``, for reasons that :doc:`04_heavy_tails` explains.

model = RegimeModel(n_regimes=2, emission="student_t", n_init=4, random_state=0)
model.fit(returns)
print(model.summary())

# %%
# Volatilities and means are annualised, and regimes are sorted by volatility.
#
# The regimes over time
# ---------------------
#
# ``plot`` draws the cumulative return over the most likely path of the regimes, and the smoothed
# probabilities below it. The collapse of technology stocks in 2000 to 2002, the financial crisis
# of 2008, and March 2020 are turbulent.

figure, axes = plt.subplots(
    2, 1, figsize=(9, 6), sharex=True, height_ratios=[2, 1], layout="constrained"
)
model.plot(returns, ax=axes, unit="%")
plt.show()

# %%
# How the regimes follow one another
# ----------------------------------
#
# A circle has the daily probability of staying in its regime, and an arrow that of a change. A
# probability of staying p gives an expected duration of :math:`1 / (1 - p)` days.

figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
model.plot_transitions(ax=axis)
plt.show()

# %%
# In turbulent times, sectors fall together
# -----------------------------------------
#
# Each regime has its own covariance matrix, so correlations may differ between regimes.

figure, axes = plt.subplots(1, 2, figsize=(10, 6), layout="constrained")
model.plot_correlations(ax=axes)
plt.show()

# %%
# The last day
# ------------
#
# Filtered probabilities use the data up to each day only. The last row tells today's regime, and
# ``forecast`` the probabilities of the regimes in a month.

today = model.predict_proba(returns, kind="filtered")[-1]
later = model.forecast(returns, 21).regime_probs[-1]
print(f"{'':12}{'today':>8}{'in 21 days':>12}")
for name, now, then in zip(model.regime_names_, today, later):
    print(f"{name:12}{now:8.3f}{then:12.3f}")

# %%
# See also: :doc:`/quickstart`, :doc:`/coming_from` for the names of hmmlearn, :doc:`03_how_many`,
# and :doc:`02_backtest` for what the model would have said at the time.
