"""
How many regimes?
=================

*"With hmmlearn I loop over* ``n_components`` *and compare* ``bic``. *The largest model often
wins. How many regimes are really in my data?"*

:func:`~pyro_regimes.select` fits all candidates to the same rows, and compares them by
information criteria and by the likelihood of held-out rows.
"""

import matplotlib.pyplot as plt

from pyro_regimes import RegimeModel, select
from pyro_regimes.datasets import load_sector_returns

# %%
# Data with a known answer
# ------------------------
#
# First 800 days that are simulated from two regimes:

true = RegimeModel.from_parameters(
    None,
    [[0.97, 0.03], [0.06, 0.94]],
    [[0.06, 0.05], [-0.05, -0.08]],
    [[[0.6, 0.2], [0.2, 0.8]], [[4.0, 2.0], [2.0, 5.0]]],
)
simulated, _ = true.sample(800, random_state=1)
settings = {"n_init": 3, "max_iter": 500, "random_state": 0}
print(select(simulated, range(1, 5), **settings))

# %%
# The likelihood rises with every regime, because each has more parameters. BIC and the held-out
# score charge for them, and both choose two.
#
# Real returns
# ------------
#
# Now three sectors over five years, with Gaussian regimes and with Student-t ones, whose tails
# are heavier:

returns = load_sector_returns().to_frame()
returns = returns.loc["2015":"2019", ["InfoTech", "Financials", "Energy"]]
selection = select(returns, range(1, 5), ("gaussian", "student_t"), **settings)
columns = ["emission", "n_regimes", "log_likelihood", "n_parameters", "bic", "held_out"]
print(selection.to_frame()[columns].round(1).to_string(index=False))

# %%
# The plot shows how far each candidate is from the best. Lower is better, and 0 is the best of
# all candidates, of both families.

figure, axes = plt.subplots(1, 2, figsize=(9, 4.5), sharey=True, layout="constrained")
selection.plot(ax=axes)
plt.show()

# %%
# By BIC the best Gaussian model has three regimes, the best Student-t model two: part of what the
# third Gaussian regime describes is not a period, but single extreme days. The best model by BIC
# is already fitted:

best = selection.best("bic")
print(best.emission, best.n_regimes)
print(best.summary())

# %%
# Criteria do not decide alone. A regime is useful if it lasts, has many days, and has a meaning.
# :doc:`/choosing` defines the criteria, compares how often each is right, and adds a bootstrap
# test. :doc:`/diagnosis` tests whether the chosen model fits.
