"""
Earthquakes: a Poisson model with published numbers
===================================================

*"I learn HMMs from Zucchini and MacDonald's book, in R. In Python, hmmlearn has* ``PoissonHMM``,
*but I do not get the numbers of the book: it has no stationary start. Can I trust this package?"*

The counts are the numbers of earthquakes of magnitude 7 or more in each year from 1900 to 2006
(data of the USGS; table 1.1 of the book).
"""

import matplotlib.pyplot as plt
import pandas as pd

from pyro_regimes import RegimeModel

NUMBERS = """
13 14 8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14 8 11 14 23 18 17 19 20 22 19
13 26 13 14 22 24 21 22 26 21 23 24 27 41 31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15
22 18 15 20 15 22 19 16 30 27 29 23 20 16 21 21 25 16 18 15 18 14 10 15 8 15 6 11 8 7
18 16 13 12 13 20 15 16 12 18 15 16 13 15 16 11 11
"""
counts = pd.DataFrame(
    {"earthquakes": [int(number) for number in NUMBERS.split()]},
    index=pd.date_range("1900", periods=107, freq="YS"),
)
values = counts.to_numpy()
print(f"{len(counts)} years, mean {values.mean():.2f}, variance {values.var(ddof=1):.2f}")

# %%
# The variance is far larger than the mean, so one Poisson distribution does not fit.
#
# The numbers of the book
# -----------------------
#
# Table 6.1 of Zucchini and MacDonald (2009) has the negative log-likelihood, AIC and BIC of
# stationary Poisson HMMs. ``initial="stationary"`` starts the chain from its stationary
# distribution, as the book does. The fits start from k-means and random starts, not from the
# solution.

book = {2: 342.3183, 3: 329.4603, 4: 327.8316}
models = {}
print("regimes     book     here      AIC      BIC")
for n_regimes, published in book.items():
    model = RegimeModel(
        n_regimes,
        emission="poisson",
        initial="stationary",
        n_init=20,
        max_iter=3000,
        tol=1e-8,
        random_state=0,
    ).fit(counts)
    models[n_regimes] = model
    found = -model.log_likelihood_
    assert abs(found - published) < 1e-4
    print(f"{n_regimes:7}{published:9.4f}{found:9.4f}{model.aic():9.3f}{model.bic():9.3f}")

# %%
# All three agree to the last printed digit. AIC and BIC choose three regimes, as in the book.
#
# Three regimes of seismic activity
# ---------------------------------

model = models[3]
print(model.summary())

# %%
# The longest active period is that of the 1940s, and a quiet one began about 1980:

figure, axes = plt.subplots(
    2, 1, figsize=(9, 6), sharex=True, height_ratios=[2, 1], layout="constrained"
)
model.plot(counts, ax=axes, unit="earthquakes a year", rows_per_band=1)
plt.show()

# %%
# The counts and the fitted distributions, in the colours of the regimes above. Bars are counts,
# weighted by the probability of each regime, and grey for all years together; points are the fitted
# probabilities, and dashes their sum.

figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
model.plot_distributions(counts, ax=axis, unit="earthquakes a year")
plt.show()

# %%
# The coming years
# ----------------
#
# The forecast is a mixture of Poisson distributions. For counts, quantiles are integers.

forecast = model.forecast(counts, 3)
low, high = forecast.interval(0.9)
for year, mean, least, most in zip((2007, 2008, 2009), forecast.mean, low, high):
    print(f"{year}: {mean[0]:.1f} expected, 90 % interval {least[0]:.0f} to {most[0]:.0f}")

# %%
# The tests of the package compare more numbers of this book, of Stata's manual and of others to
# their last digits. See also: :doc:`/emissions` for all emissions, :doc:`/states_weights` for the
# start of the chain, and :doc:`07_animal_track`.
