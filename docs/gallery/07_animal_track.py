"""
An animal track: step lengths and turning angles
================================================

*"I use moveHMM in R: step lengths are gamma, turning angles von Mises, and the states are resting
and travelling. hmmlearn has neither distribution, and every column must have the same."*

In :class:`~pyro_regimes.RegimeModel`, ``emission`` may be a dict with a family for each column.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pyro_regimes import RegimeModel

# %%
# A simulated track
# -----------------
#
# An animal forages with short steps in all directions, and then travels with long steps straight
# ahead. There is one position an hour. We simulate it from known parameters, so that the result
# can be checked.

rng = np.random.default_rng(3)
travels = np.zeros(600, dtype=bool)
for hour in range(1, 600):
    travels[hour] = rng.random() < (0.9 if travels[hour - 1] else 0.08)
steps = np.where(travels, rng.gamma(9.0, 0.05, 600), rng.gamma(1.5, 0.06, 600))  # km
turns = np.where(travels, rng.vonmises(0.0, 6.0, 600), rng.vonmises(np.pi, 0.6, 600))  # radians
track = pd.DataFrame({"step": steps, "turn": turns})

# %%
# On real tracks some positions are missing. Each missing value is NaN, and is integrated out:
# here the angle is missing in a tenth of the rows, and both are missing for half a day.

track.loc[rng.random(600) < 0.1, "turn"] = np.nan
track.loc[300:311] = np.nan
print(track.describe().loc[["count", "mean", "min", "max"]].round(2))

# %%
# The fit
# -------
#
# Gamma distributions are parametrised by concentration (shape) and rate. The regimes are sorted
# by their mean step, and named.

model = RegimeModel(
    2, emission={"step": "gamma", "turn": "von_mises"}, n_init=5, random_state=0
).fit(track)
print(model.summary())

# %%
# The estimates are near the truth: concentrations of 1.5 and 9 for the steps, rates of 16.7 and
# 20, and concentrations of 0.6 and 6 for the angles.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
model.plot_distributions(track, ax=axes)
axes[0].set_xlabel("km")
axes[1].set_xlabel("radians")
plt.show()

# %%
# The path of the animal
# ----------------------
#
# Colours are the most likely regimes. Rows without a position have a regime as well, from their
# neighbours.

path = model.predict(track)
print(f"{np.mean(path == travels):.1%} of the hours in the true regime")

heading = np.cumsum(turns)
x, y = np.cumsum(steps * np.cos(heading)), np.cumsum(steps * np.sin(heading))
figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
axis.plot(x, y, color="0.8", linewidth=0.8, zorder=1)
for regime, (name, color) in enumerate([("forages", "tab:orange"), ("travels", "tab:blue")]):
    axis.scatter(x[path == regime], y[path == regime], s=8, color=color, label=name)
axis.set(xlabel="km", ylabel="km", aspect="equal")
axis.legend(frameon=False)
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# See also: :doc:`/emissions` lists the families, :doc:`/missing_data` the assumptions about
# missing values, and :doc:`/sequences` several animals in one model.
