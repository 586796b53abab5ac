"""Nothing in a row of a walk depends on later rows, and each row is what its refit says."""

import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from pyro_regimes import RegimeModel
from pyro_regimes.datasets import load_sector_returns
from pyro_regimes.estimator import WalkForward, walk_forward
from pyro_regimes.estimator.all_starts import fit_starts
from pyro_regimes.estimator.crps import crps_of_mixture
from pyro_regimes.estimator.divergence import symmetric_divergence
from pyro_regimes.estimator.windows import _rounded
from tests import seeds

matplotlib.use("Agg")


def two_regimes(num_rows: int, num_series: int, seed: int = 0) -> np.ndarray:
    """Returns that change between a calm and a wild regime; the same in every run."""
    rng = np.random.RandomState(seed)
    wild = (np.cumsum(rng.random_sample(num_rows) < 0.05) % 2)[:, None]
    return rng.standard_normal((num_rows, num_series)) * (1 + 2 * wild) + 0.2 - 0.4 * wild


DATA = two_regimes(160, 2)
HOLES = np.where(np.random.RandomState(1).random_sample(DATA.shape) < 0.05, np.nan, DATA)
MODEL = RegimeModel(2, n_init=2, random_state=0)
SETTINGS = [
    {"refit_every": 12},
    {"refit_every": 12, "window": 50, "horizon": 3},
    {"refit_every": 7, "horizon": 2},
]


def walk(data: np.ndarray, number: int) -> WalkForward:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is made of the rows after the cut
        return walk_forward(MODEL, data, min_train=60, **SETTINGS[number])


@pytest.fixture(scope="module")
def walks() -> list[WalkForward]:
    return [walk(DATA, number) for number in range(len(SETTINGS))]


@pytest.fixture(scope="module")
def with_missing() -> list[WalkForward]:
    return [walk(HOLES, number) for number in range(len(SETTINGS))]


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=True)


@given(
    number=st.sampled_from(range(len(SETTINGS))),
    cut=st.integers(60, 158),
    kind=st.sampled_from(["other", "missing", "some missing", "huge", "large", "constant"]),
    seed=st.integers(0, 10_000),
    has_missing=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_rows_up_to_a_cut_do_not_depend_on_those_after_it_to_the_bit(
    walks: list[WalkForward],
    with_missing: list[WalkForward],
    number: int,
    cut: int,
    kind: str,
    seed: int,
    has_missing: bool,
) -> None:
    rng, data = np.random.RandomState(seed), (HOLES if has_missing else DATA).copy()
    other = rng.standard_normal(data[cut + 1 :].shape)
    data[cut + 1 :] = {
        "other": other,
        "missing": np.nan,
        "some missing": np.where(rng.random_sample(other.shape) < 0.3, np.nan, other),
        "huge": 1e150 * other,
        "large": 1e6 * other,
        "constant": 0.25,
    }[kind]
    walked = with_missing if has_missing else walks
    before, after, num_rows = walked[number], walk(data, number), cut + 1 - 60
    for name, value in before.walk._asdict().items():
        assert same(value[:num_rows], getattr(after.walk, name)[:num_rows]), name
    tables = ["filtered_probs", "forecasts", "scores"]
    for name in tables:
        assert same(getattr(before, name)[:num_rows], getattr(after, name)[:num_rows]), name
    for one, two in zip(before.fits, after.fits, strict=True):
        if one.window.end <= cut + 1:
            assert two.model is not None
            assert same(one.model.means_, two.model.means_)
            assert same(one.model.covariances_, two.model.covariances_)
            assert one.start == two.start and one.problems == two.problems


def test_rows_up_to_the_end_of_a_shorter_table_are_the_same(walks: list[WalkForward]) -> None:
    short = walk(DATA[:121], 0)
    for name, value in short.walk._asdict().items():
        assert value == pytest.approx(
            getattr(walks[0].walk, name)[: len(value)], rel=1e-9, nan_ok=True
        ), name


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_each_row_is_what_the_model_of_its_refit_says(
    walks: list[WalkForward], number: int
) -> None:
    found, horizon = walks[number], SETTINGS[number].get("horizon", 1)
    for row in range(60, 160, 9):
        fit = found.fits[found.walk.refit[row - 60]]
        assert fit.window.end <= row
        seen = DATA[fit.window.first : row + 1]
        probs = fit.model.predict_proba(seen, kind="filtered", start="fitted")[-1]
        assert found.walk.filtered[row - 60] == pytest.approx(probs, rel=1e-7, abs=1e-12)
        forecast = fit.model.forecast(seen, horizon, start="fitted")
        assert found.walk.mean[row - 60] == pytest.approx(forecast.mean[-1], rel=1e-7, abs=1e-10)
        assert found.walk.deviation[row - 60] == pytest.approx(forecast.deviation[-1], rel=1e-7)
        if row + horizon >= 160:
            continue
        came, weights = DATA[row + horizon], forecast.regime_probs[-1]
        means, covariances = fit.model.means_, fit.model.covariances_
        density = torch.distributions.MultivariateNormal(
            torch.tensor(means), torch.tensor(covariances)
        ).log_prob(torch.tensor(came))
        score = float((torch.tensor(weights).log() + density).logsumexp(-1))
        target = row + horizon - 60
        assert found.walk.log_score[target] == pytest.approx(score, rel=1e-7)
        deviations = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
        pit = weights @ norm.cdf(came, means, deviations)
        assert found.walk.pit[target] == pytest.approx(pit, rel=1e-7)
        own = crps_of_mixture(came, weights, means.T, deviations.T)
        assert found.walk.crps[target] == pytest.approx(own, rel=1e-7)
    assert np.isnan(found.walk.log_score[:horizon]).all()
    assert not np.isnan(found.walk.log_score[horizon:]).any()


def test_the_first_refit_is_an_ordinary_fit(walks: list[WalkForward]) -> None:
    alone = RegimeModel(2, n_init=2, random_state=0).fit(DATA[:60])
    for found in walks[::2]:
        first = found.fits[0].model
        assert same(first.means_, alone.means_) and first.n_samples_fit_ == 60
        assert first.log_likelihood_ == alone.log_likelihood_


def test_fits_in_one_batch_are_those_of_each_alone_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, walks: list[WalkForward]
) -> None:
    sizes = []

    def counted(starts, *args, **kwargs):
        sizes.append(len(starts.initial_probs))
        return fit_starts(starts, *args, **kwargs)

    from pyro_regimes.estimator import windows

    monkeypatch.setattr(windows, "fit_starts", counted)
    walk(DATA, 0)
    assert max(sizes) >= 6
    sizes.clear()
    monkeypatch.setattr(windows, "_MOST_WINDOWS", 1)
    alone = walk(DATA, 0)
    assert max(sizes) == 2
    for name, value in alone.walk._asdict().items():
        assert same(value, getattr(walks[0].walk, name)), name


def test_fits_of_data_with_missing_values_are_those_of_each_alone_to_the_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one batch too, from the first window with a missing value on."""
    from pyro_regimes.estimator import windows

    data, rng, sizes = DATA.copy(), seeds.rng(8), []
    data[78:][rng.random_sample(data[78:].shape) < 0.1] = np.nan
    data[100] = np.nan

    def counted(starts, *args, **kwargs):
        sizes.append(len(starts.initial_probs))
        return fit_starts(starts, *args, **kwargs)

    monkeypatch.setattr(windows, "fit_starts", counted)
    together = walk(data, 0)
    assert max(sizes) >= 6
    monkeypatch.setattr(windows, "_MOST_WINDOWS", 1)
    alone = walk(data, 0)
    for name, value in alone.walk._asdict().items():
        assert same(value, getattr(together.walk, name)), name


def test_a_batch_with_a_fit_that_leaves_the_compiled_engine_is_fitted_alone() -> None:
    """A window of which one half hardly varies, beside an ordinary one."""
    data = DATA.copy()
    data[121:] *= 1e-7
    with_it, without = walk(data, 1), walk(DATA, 1)
    assert same(with_it.walk.filtered[:61], without.walk.filtered[:61])


def test_refits_have_at_least_the_likelihood_of_a_fit_from_their_own_start() -> None:
    data = two_regimes(300, 3, seed=1)
    model = RegimeModel(2, n_init=4, random_state=0)
    found = walk_forward(model, data, min_train=150, refit_every=50)
    for fit in found.fits[1:]:
        rows = data[: fit.window.end]
        warm = RegimeModel(2, init_params=found.fits[0].model, initial="free").fit(rows)
        assert fit.model.log_likelihood_ > warm.log_likelihood_ - 1e-2
        assert fit.model.score(rows, start="fitted") == pytest.approx(fit.model.log_likelihood_)


def test_missing_values_in_fits_and_scores() -> None:
    data, rng = DATA.copy(), seeds.rng(3)
    data[rng.random_sample(data.shape) < 0.1] = np.nan
    data[100] = np.nan
    found = walk_forward(MODEL, data, min_train=60, refit_every=25)
    assert np.isnan(found.walk.log_score[40]) and not np.isnan(found.walk.filtered).any()
    assert np.isnan(found.walk.crps[1:]).sum() == np.isnan(data[61:]).sum()
    row = 90
    fit = found.fits[found.walk.refit[row - 60]]
    probs = fit.model.predict_proba(data[: row + 1], kind="filtered", start="fitted")[-1]
    assert found.walk.filtered[row - 60] == pytest.approx(probs, rel=1e-7, abs=1e-12)


def test_dates_and_refits_of_each_month() -> None:
    frame = load_sector_returns().to_frame().iloc[2000:2400]
    found = walk_forward(
        RegimeModel(2, n_init=2, random_state=0), frame, min_train=250, refit_every="month"
    )
    assert found.filtered_probs.index.equals(frame.index[250:])
    begins = found.refits.index
    assert begins[0] == frame.index[250]
    months = begins[1:].to_period("M")
    assert months.is_unique and len(months) == 8
    for begin in begins[1:]:
        before = frame.index[frame.index < begin][-1]
        assert before.month != begin.month
    assert list(found.refits["rows"]) == [(frame.index < begin).sum() for begin in begins]
    assert list(found.filtered_probs.columns) == ["Calm", "Turbulent"]
    assert found.forecasts["mean"].shape == (150, 7)
    assert list(found.scores.columns[:2]) == [("log score", ""), ("CRPS", "InfoTech")]
    quarter = walk_forward(
        RegimeModel(2, n_init=2, random_state=0), frame, min_train=250, refit_every="quarter"
    )
    assert len(quarter.fits) == 4  # and the first
    assert found.parameters["means"].shape == (9, 14)
    place = found.parameters["covariances", "Calm, InfoTech, Energy"].iloc[0]
    assert place == found.models[0].covariances_[0, 0, 3]


def test_names_stay_with_the_nearest_densities() -> None:
    """Fits that number their regimes at random do not change names."""
    data = two_regimes(400, 2, seed=2)
    found = walk_forward(MODEL, data, min_train=200, refit_every=20)
    volatility = [model.covariances_.trace(axis1=1, axis2=2) for model in found.models]
    assert all(each[0] < each[1] for each in volatility)
    assert {tuple(model.regime_names_) for model in found.models} == {("Calm", "Turbulent")}


def test_symmetric_divergence_of_gaussians_is_that_of_draws() -> None:
    model = RegimeModel(2, n_init=2, random_state=0).fit(DATA)
    other = RegimeModel(2, n_init=2, random_state=0).fit(DATA[:100])
    found = symmetric_divergence(model._hmm(), other._hmm())
    rng = np.random.RandomState(0)
    for i in range(2):
        for j in range(2):
            total = 0.0
            for one, k, two, m in ((model, i, other, j), (other, j, model, i)):
                x = rng.multivariate_normal(one.means_[k], one.covariances_[k], size=100_000)
                p, q = (
                    torch.distributions.MultivariateNormal(
                        torch.tensor(each.means_[n]), torch.tensor(each.covariances_[n])
                    ).log_prob(torch.tensor(x))
                    for each, n in ((one, k), (two, m))
                )
                total += float((p - q).mean())
            assert found[i, j] == pytest.approx(total, rel=0.05, abs=0.01)
    assert symmetric_divergence(model._hmm(), model._hmm()).diagonal() == pytest.approx(0, abs=1e-9)


def test_symmetric_divergence_of_other_emissions() -> None:
    counts = seeds.rng(5).poisson(np.where(np.arange(300) % 100 < 50, 2, 9))[:, None]
    model = RegimeModel(2, emission="poisson", n_init=2, random_state=0).fit(counts)
    found = symmetric_divergence(model._hmm(), model._hmm())
    low, high = model.rates_[:, 0]
    exact = (low - high) * np.log(low / high)
    assert found == pytest.approx(np.array([[0, exact], [exact, 0]]), rel=0.1, abs=1e-12)


def test_value_at_risk_and_exceedances(walks: list[WalkForward]) -> None:
    found = walks[1]
    quantiles = found.quantiles([0.05, 0.5])
    row = 40
    fit = found.fits[found.walk.refit[row - 3]]
    weights = found.walk.ahead[row - 3]
    deviations = np.sqrt(np.diagonal(fit.model.covariances_, axis1=1, axis2=2))
    for level in (0.05, 0.5):
        for series in range(2):
            value = quantiles[level, series].iloc[row]
            below = weights @ norm.cdf(value, fit.model.means_[:, series], deviations[:, series])
            assert below == pytest.approx(level, rel=1e-9)
    assert quantiles.iloc[:3].isna().all(axis=None)
    table = found.exceedances([0.05])
    below = (found.data[3:] < quantiles[0.05].to_numpy()[3:]).sum(0)
    assert list(table["exceedances"]) == list(below) and set(table["rows"]) == {97}
    number = int(below[0])
    chances = binom.pmf(np.arange(98), 97, 0.05)
    wanted = chances[chances <= chances[number] * (1 + 1e-7)].sum()
    assert table["p-value"].iloc[0] == pytest.approx(wanted)
    assert (found.value_at_risk([0.05])[0.05] == -quantiles[0.05]).iloc[3:].all(axis=None)
    pd.testing.assert_frame_equal(found.quantiles(0.05), found.quantiles([0.05]))
    pd.testing.assert_frame_equal(found.exceedances(np.array(0.05)), found.exceedances([0.05]))
    for wrong in ([0.0], [1.0], ["x"], [], "0.05", 1.0, None):
        with pytest.raises(ValueError, match="expected levels to be numbers between 0 and 1"):
            found.quantiles(wrong)
    for method in (found.value_at_risk, found.exceedances):
        with pytest.raises(ValueError, match="levels to be numbers between 0 and 0.5, got .0.95"):
            method([0.95])


def test_hit_rate_counts_signs(walks: list[WalkForward]) -> None:
    found = walks[0]
    signs = np.sign(found.walk.mean[:-1]) == np.sign(found.data[1:])
    assert found.hit_rate().to_numpy() == pytest.approx(signs.mean(0))


@pytest.mark.parametrize(
    "emission", ["student_t", "gaussian_mixture", "poisson", "gamma", "von_mises"]
)
def test_other_emissions(emission: str) -> None:
    rng = seeds.generator(1)
    data = torch.randn(200, 1, generator=rng).double().numpy()
    data *= np.where(np.arange(200) % 60 < 30, 1.0, 3.0)[:, None]
    if emission == "poisson":
        data = np.round(np.exp(np.abs(data)).clip(max=30))
    elif emission == "gamma":
        data = np.exp(data / 3)
    elif emission == "von_mises":
        data = np.mod(data / 4 + np.pi, 2 * np.pi) - np.pi
    model = RegimeModel(2, emission=emission, n_init=2, random_state=0, max_iter=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 20 iterations are few
        found = walk_forward(model, data, min_train=120, refit_every=40)
        cut = data.copy()
        cut[161:] = data[:39]
        other = walk_forward(model, cut, min_train=120, refit_every=40)
    for name, value in found.walk._asdict().items():
        assert same(value[:41], getattr(other.walk, name)[:41]), name
    fit = found.fits[-1]
    rows = data[: fit.window.end + 5]
    scores = fit.model.score_samples(rows, start="fitted")
    mine = found.walk.log_score[fit.window.end + 1 - 120 : fit.window.end + 5 - 120]
    assert mine == pytest.approx(scores[-4:], rel=1e-6)
    pits = found.walk.pit[1:]
    assert ((pits >= 0) & (pits <= 1)).all()
    # Directions have no CRPS, and neither has a distribution without a mean.
    has_mean = [
        emission != "student_t" or bool((each.model.degrees_of_freedom_ > 1).all())
        for each in found.fits
    ]
    # The density of a row is that of the fit before it.
    known = np.array(has_mean)[found.walk.refit[:-1]] & (emission != "von_mises")
    assert (np.isnan(found.walk.crps[1:]).ravel() == ~known).all()
    assert (found.walk.crps[1:][known] >= 0).all()


def test_a_window_that_cannot_be_fitted_leaves_the_model_before_it() -> None:
    data = DATA.copy()
    data[130:, 1] = 1e200
    with pytest.warns(UserWarning, match="refits failed, and the parameters before them stay"):
        found = walk_forward(MODEL, data, min_train=60, refit_every=40)
    assert [model is None for model in found.models] == [False, False, True]
    assert "finite variance" in found.refits["warnings"].iloc[-1]
    assert (found.walk.refit[80:] == 1).all()
    assert not np.isnan(found.walk.filtered).any()
    assert found.walk.log_score[75] == -np.inf
    assert np.isnan(found.parameters.iloc[-1]).all()


def test_settings_of_the_model_are_kept_and_it_is_not_changed() -> None:
    fixed = {"means": np.array([[0.2, 0.2], [-0.2, -0.2]])}
    model = RegimeModel(
        2, n_init=2, random_state=0, init_params=fixed, fixed=["means"], initial="stationary"
    )
    before = dict(vars(model))
    found = walk_forward(model, DATA, min_train=80, refit_every=30)
    assert vars(model) == before
    for each in found.models:
        assert sorted(each.means_[:, 0]) == [-0.2, 0.2]
        probs, matrix = each.initial_probs_, each.transition_matrix_
        assert probs @ matrix == pytest.approx(probs)
    masked = RegimeModel(2, n_init=2, random_state=0, transition_mask=[[1, 1], [0, 1]])
    for each in walk_forward(masked, DATA, min_train=80, refit_every=40).models:
        assert each.transition_matrix_[1, 0] == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"min_train": 160}, "min_train to be less than the 160 rows of X, got 160"),
        ({"min_train": 1}, "min_train to be at least 2"),
        ({"refit_every": 0}, "refit_every to be at least 1"),
        ({"refit_every": "week"}, "refit_every to be one of 'month', 'quarter', 'year'"),
        ({"refit_every": "month"}, "X with dates where refit_every='month'"),
        ({"window": 61}, "window to be at most min_train=60, got 61"),
        ({"horizon": 0}, "horizon to be at least 1"),
        ({"X": [DATA, DATA]}, "X to be one sequence, got a collection of 2"),
        ({"model": "gaussian"}, "model to be a RegimeModel, got 'gaussian'"),
        ({"model": RegimeModel(0)}, "n_regimes"),
        ({"X": np.zeros((160, 2))}, "distinct observations, got 1 .in the first 60 rows"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    wanted = {"model": MODEL, "X": DATA, "min_train": 60, "refit_every": 12} | arguments
    with pytest.raises(ValueError, match=message):
        walk_forward(wanted.pop("model"), wanted.pop("X"), **wanted)


def test_a_series_that_begins_after_the_first_refit_is_named_with_the_remedy() -> None:
    late = DATA.copy()
    late[:70, 1] = np.nan
    with pytest.raises(ValueError, match="first one of series 1 in row 70 .70.; increase"):
        walk_forward(MODEL, late, min_train=60, refit_every=50)
    assert walk_forward(MODEL, late, min_train=100, refit_every=50).models[0] is not None


def test_a_category_that_is_not_known_at_first_is_refused() -> None:
    data = (np.arange(160) % 3)[:, None]
    data[150] = 4
    model = RegimeModel(2, emission="categorical", n_init=2, random_state=0)
    with pytest.raises(ValueError, match="min_train=60 rows of X to hold the largest category"):
        walk_forward(model, data, min_train=60, refit_every=50)


def test_plot_has_both_panels(walks: list[WalkForward]) -> None:
    figure = walks[0].plot(unit="%")
    assert len(figure.axes) == 2
    assert "%" in figure.axes[0].get_ylabel()
    assert "filtered probability" in figure.axes[1].get_ylabel()
    legend = figure.axes[0].get_legend().get_title().get_text()
    assert "(filtered)" in legend and "Viterbi" not in legend


def test_rounded_is_the_next_power_of_four() -> None:
    assert _rounded(5.0) == 16.0 and _rounded(4.0**-20) == 4.0**-20 and _rounded(0.0) == 0.0


@pytest.mark.slow
def test_no_name_moves_in_twenty_years_of_monthly_refits() -> None:
    """The acceptance of the estimator: three regimes of sector returns, all rows before each month.

    No two regimes exchange their order by volatility, and no exchange of names would bring the
    densities of two refits nearer.
    """
    frame = load_sector_returns().to_frame()
    first = int((frame.index < pd.Timestamp("2003-01-01")).sum())
    found = walk_forward(
        RegimeModel(3, random_state=0), frame, min_train=first, refit_every="month"
    )
    assert len(found.fits) == 240 and found.refits["converged"].all()
    for one, two in zip(found.models[:-1], found.models[1:]):
        apart = symmetric_divergence(one._hmm(), two._hmm())
        other = [apart[[0, 1, 2], list(order)].sum() for order in
                 ([0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0])]
        assert np.trace(apart) < min(other)
        volatility = np.sqrt(np.diagonal(two.covariances_, axis1=1, axis2=2)).mean(1)
        assert (np.diff(volatility) > 0).all()


def walk_of(data: pd.DataFrame, **settings: object) -> WalkForward:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = RegimeModel(2, n_init=1, random_state=0, max_iter=5, **settings)
        return walk_forward(model, data, min_train=120, refit_every=20)


def test_parameters_have_the_names_of_their_dims_though_sizes_are_equal() -> None:
    frame = pd.DataFrame(DATA, columns=["SPY", "TLT"])
    regimes = ["Calm", "Turbulent"]
    pairs = [f"{old}, {new}" for old in regimes for new in regimes]
    found = walk_of(frame).parameters
    assert list(found["transition_matrix"].columns) == pairs
    assert list(found["means"].columns)[:2] == ["Calm, SPY", "Calm, TLT"]
    tied = walk_of(frame, covariance_type="tied").parameters["covariances"]
    assert list(tied.columns) == ["SPY, SPY", "SPY, TLT", "TLT, SPY", "TLT, TLT"]
    mixture = walk_of(frame, emission="gaussian_mixture").parameters
    assert list(mixture["weights"].columns) == [f"{k}, {m}" for k in regimes for m in (0, 1)]


def test_a_level_that_is_given_twice_has_two_rows() -> None:
    assert len(walk_of(pd.DataFrame(DATA)).exceedances([0.05, 0.05])) == 4


def test_a_change_of_the_data_after_the_walk_changes_nothing() -> None:
    data = DATA.copy()
    found = walk_of(data)
    before = found.exceedances()
    data[:] = -1e9
    pd.testing.assert_frame_equal(found.exceedances(), before)


def test_counts_have_no_losses() -> None:
    found = walk_of(np.random.RandomState(3).poisson(3.0, (160, 1)), emission="poisson")
    for method in (found.value_at_risk, found.exceedances):
        with pytest.raises(ValueError, match=f"expected {method.__name__} of returns, got Poisson"):
            method()
    assert not found.quantiles([0.5]).iloc[-1].isna().any()


def test_a_horizon_of_many_steps_is_that_of_the_long_run() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = walk_forward(MODEL, DATA, min_train=120, refit_every=50, horizon=10**12)
    expected = found.models[0].stationary_distribution_
    np.testing.assert_allclose(found.walk.ahead, [expected] * 40, rtol=1e-9)


def test_a_window_may_lack_the_largest_category() -> None:
    rng = np.random.RandomState(4)
    data = rng.randint(0, 2, (200, 1))
    data[:20], data[170:] = rng.randint(0, 3, (20, 1)), rng.randint(0, 3, (30, 1))
    data[0] = 2
    model = RegimeModel(2, n_init=2, random_state=0, emission="categorical")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names of regimes
        found = walk_forward(model, data, min_train=60, window=60, refit_every=40)
    fits = [each for each in found.models if each is not None]
    assert [each.probabilities_.shape for each in fits] == [(2, 1, 3)] * 4
    assert (fits[2].probabilities_[..., 2] < 1e-12).all()  # of rows 80 to 139
    unseen = (data[60:, 0] == 2) & (found.walk.refit == 2)
    assert unseen.any() and (found.walk.log_score[unseen] < -20).all()


def test_angles_among_other_series_have_no_quantiles() -> None:
    data = np.stack([DATA[:, 0], np.random.RandomState(5).vonmises(0.0, 2.0, 160)], 1)
    found = walk_of(data, emission={0: "gaussian", 1: "von_mises"}).quantiles([0.1, 0.9])
    assert found[0.1, 1].isna().all() and found[0.1, 0].iloc[1:].notna().all()
    with pytest.raises(ValueError, match="got angles, which have no quantiles"):
        walk_of(data[:, 1:], emission="von_mises").quantiles([0.1])


def test_names_that_contradict_the_volatility_are_explained_by_the_refit_before() -> None:
    """``order_by`` is no remedy in a walk."""
    rows, noise = np.arange(300), seeds.rng(9).standard_normal(300)
    is_high, is_late = rows // 20 % 2 > 0, rows >= 120
    deviations = np.where(is_high, 1.0, np.where(is_late, 3.0, 0.2))
    data = (np.where(is_high, 20.0, -20.0) + deviations * noise)[:, None]
    with pytest.warns(UserWarning, match="nearest density from refit to refit") as caught:
        found = walk_forward(MODEL, data, min_train=120, refit_every=40, window=120)
    (told,) = {str(each.message) for each in caught}
    assert "order_by" not in told
    texts = found.refits["warnings"]
    wrong = texts.str.contains("Calm is more volatile than Turbulent in this refit")
    assert told.count("more volatile") == 1 and wrong.sum() > 1  # once, with a count
    assert f" {wrong.sum()} refits, the first of 120 rows: Calm is more volatile" in told
