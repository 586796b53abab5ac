"""
Gaps and late listings
======================

*"One of my sectors is listed only since 2016, and markets have different holidays. hmmlearn
refuses NaN. So I drop half of my rows, or fill the gaps with zeros. What does that do to the
regimes?"*

Leave the gaps in the table. :class:`~pyro_regimes.RegimeModel` takes NaN as missing, and
integrates it out of the likelihood exactly.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np

from pyro_regimes import RegimeModel
from pyro_regimes.datasets import load_sector_returns

# %%
# A table with gaps
# -----------------
#
# We remove values from complete data, so that the results can be compared with the complete ones.
# Energy starts in 2016, InfoTech lacks a day in ten, and in a fortnight of 2020 there is nothing
# at all.

complete = load_sector_returns().to_frame().loc["2012":]
complete = complete[["InfoTech", "Financials", "Energy"]]
table = complete.copy()
rng = np.random.default_rng(0)
table.loc[:"2015", "Energy"] = np.nan
table.loc[rng.random(len(table)) < 0.1, "InfoTech"] = np.nan
table.loc["2020-06-01":"2020-06-14"] = np.nan
print(table.isna().mean().round(3))

# %%
# Three ways
# ----------
#
# Keeping the gaps, filling them with zeros, and dropping every row with a gap, against the
# complete table:


def volatilities(data):
    model = RegimeModel(2, n_init=4, random_state=0).fit(data)
    daily = np.sqrt(np.diagonal(model.covariances_, axis1=1, axis2=2))  # (K, D)
    return model, daily[:, 2]


whole, of_whole = volatilities(complete)
ways = {"gaps kept": table, "zeros": table.fillna(0.0), "rows dropped": table.dropna()}
print(f"{'':14}{'rows':>6}  daily volatility of Energy")
print(f"{'complete':14}{len(complete):6}  {of_whole[0]:.2f} calm, {of_whole[1]:.2f} turbulent")
models = {}
for name, data in ways.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        models[name], found = volatilities(data)
    print(f"{name:14}{len(data):6}  {found[0]:.2f} calm, {found[1]:.2f} turbulent", end="")
    collapsed = any("collapsed" in str(each.message) for each in caught)
    print("  (a warning: a regime collapsed)" if collapsed else "")

# %%
# With zeros, the calm regime collapses onto the days on which Energy is always zero, and the
# model warns of it. Dropping rows loses four years of the other sectors. With the gaps kept, the
# volatility of Energy is that of the years since 2016, which were more volatile than the four
# before.
#
# The regimes with gaps
# ---------------------
#
# Days on which some sectors are missing get their regime from the others, and days without any
# value from their neighbours.

model = models["gaps kept"]
same = np.mean(model.predict(table) == whole.predict(complete))
print(f"{same:.1%} of the days in the regime of the complete table")

figure, axes = plt.subplots(
    2, 1, figsize=(9, 6), sharex=True, height_ratios=[2, 1], layout="constrained"
)
model.plot(table, ax=axes, unit="%")
plt.show()

# %%
# What were the missing values?
# -----------------------------
#
# ``impute`` returns the mean and the variance of each missing value, given all that was observed.
# We know the truth:

found = model.impute(table)
shown = table.index.slice_indexer("2015-07-01", "2015-09-30")
mean, spread = found.mean[shown, 2], 1.96 * np.sqrt(found.variance[shown, 2])
figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
days = table.index[shown]
axis.fill_between(
    days, mean - spread, mean + spread, alpha=0.25, linewidth=0, label="95 % interval"
)
axis.plot(days, mean, label="estimate")
axis.plot(days, complete["Energy"].iloc[shown], "k.", label="truth")
axis.set_ylabel("return of Energy, %")
axis.legend(frameon=False, ncols=3, loc="upper left")
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# See also: :doc:`/missing_data` for the assumption behind this, which is that values are missing
# at random.
