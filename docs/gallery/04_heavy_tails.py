"""
Heavy tails: Student-t against Gaussian regimes
===============================================

*"My Gaussian HMM flips to the crisis state for single days and back. I added a sticky prior, and
a filter on top. Is there a better way?"*

Often the tails are the reason. In a calm Gaussian regime a day of four standard deviations is
nearly impossible, so the model must leave the regime for that day. A Student-t regime has extreme
days of its own. In :class:`~pyro_regimes.RegimeModel` this is one argument.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pyro_regimes import RegimeModel
from pyro_regimes.datasets import load_sector_returns

# %%
# Two fits that differ in the emission
# ------------------------------------
#
# We hold out the last years, to see which model predicts them better.

returns = load_sector_returns().to_frame().loc["2000":]
train, test = returns.loc[:"2017"], returns.loc["2018":]
models = {
    "Gaussian": RegimeModel(3, n_init=4, max_iter=500, random_state=0),
    "Student-t": RegimeModel(3, emission="student_t", n_init=4, max_iter=500, random_state=0),
}
rows = {}
for name, model in models.items():
    model.fit(train)
    path = model.predict(train)
    now = model.predict_proba(train, kind="filtered")[-1]
    rows[name] = {
        "switches a year": 252 * np.mean(np.diff(path) != 0),
        "parameters": model.n_parameters_,
        "log-likelihood": model.log_likelihood_,
        "BIC": model.bic(),
        "held-out log-likelihood": model.score(test, after=now),
    }
print(pd.DataFrame(rows).round(1))

# %%
# With three more parameters, the Student-t model has a higher likelihood on the training data and
# on the held-out years, and far fewer switches.
#
# The paths
# ---------
#
# The same years with both models:

shown = returns.loc["2006":"2010"]
figure, axes = plt.subplots(2, 1, figsize=(9, 7), layout="constrained")
for axis, (name, model) in zip(axes, models.items()):
    model.plot(shown, ax=axis, unit="%", rows_per_band=1)
    axis.set_title(f"{name} regimes", loc="left", pad=22)
plt.show()

# %%
# The tails
# ---------
#
# Degrees of freedom say how heavy the tails are: 30 is nearly Gaussian, and below 4 the kurtosis
# is infinite.

student_t = models["Student-t"]
print(dict(zip(student_t.regime_names_, student_t.degrees_of_freedom_.round(1).tolist())))

# %%
# Residuals compare each day with the forecast of the day before. If the forecasts have the right
# distribution, residuals are standard normal and lie in the band. The training years, Financials:

figure, axes = plt.subplots(1, 2, figsize=(9, 4.5), layout="constrained")
for axis, (name, model) in zip(axes, models.items()):
    model.residuals(train).plot("Financials", ax=axis)
    axis.set_title(name, loc="left")
plt.show()

# %%
# See also: :doc:`/emissions` has the density of the Student-t regimes and all other emissions,
# and :doc:`/diagnosis` more tests of residuals.
