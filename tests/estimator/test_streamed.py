"""Fits of RegimeModel to chunks have the optimum of fits in memory."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyro_regimes import Chunks, RegimeModel
from pyro_regimes.estimator import streamed, survey
from tests import seeds

SETTINGS: dict[str, Any] = {"n_init": 2, "random_state": 0, "tol": 1e-9, "max_iter": 2000}


def data(num_rows: int = 1500, num_series: int = 2) -> np.ndarray:
    wild = np.arange(num_rows) // 60 % 2
    draws = seeds.rng(0).normal(size=(num_rows, num_series))
    return draws * (1 + 2 * wild)[:, None] - 0.3 * wild[:, None]


def shifted(num_rows: int = 1500) -> np.ndarray:
    """Regimes that differ in their means alone."""
    wild = np.arange(num_rows) // 60 % 2
    return seeds.rng(3).normal(size=(num_rows, 2)) + 3.0 * wild[:, None]


def heavy(num_rows: int = 1500) -> np.ndarray:
    """Tails that determine degrees of freedom, whatever the seed of the suite."""
    wild = np.arange(num_rows) // 60 % 2
    return np.random.RandomState(1).standard_t(4, (num_rows, 1)) * (1 + 2 * wild)[:, None]


def counts(num_rows: int = 1500) -> np.ndarray:
    rates = np.where(np.arange(num_rows) // 60 % 2, 7.0, 2.0)
    return seeds.rng(1).poisson(rates[:, None], (num_rows, 1)).astype(float)


def with_gaps(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[seeds.rng(2).random_sample(x.shape) < 0.1] = np.nan
    x[[3, 700]] = np.nan
    return x


CASES: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "gaussian": (data(), {}),
    "tied": (shifted(), {"covariance_type": "tied"}),
    "gaps": (with_gaps(data()), {}),
    "student_t": (heavy(), {"emission": "student_t"}),
    "poisson": (counts(), {"emission": "poisson"}),
    "stationary": (data(), {"initial": "stationary"}),
    "sticky": (data(), {"stickiness": 20.0}),
    "masked": (data(), {"transition_mask": [[1, 1], [1, 1]]}),
}


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts from a part of the rows, so that EM on all of them has something to do."""
    monkeypatch.setattr(survey, "_BLOCK", 50)
    whole = survey.Survey
    monkeypatch.setattr(streamed, "Survey", lambda *args: whole(*args, most_rows=500))


def assert_same(ours: RegimeModel, theirs: RegimeModel, rtol: float = 1e-4) -> None:
    """The log-likelihood to 1e-10; parameters as well as a flat maximum determines them."""
    assert ours.converged_ and theirs.converged_
    assert ours.log_likelihood_ == pytest.approx(theirs.log_likelihood_, rel=1e-10)
    assert ours.regime_names_ == theirs.regime_names_
    for name in ("transition_matrix_", "share_of_time_", "means_", "rates_"):
        if hasattr(theirs, name):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol, 1e-6)
    assert ours.n_samples_fit_ == theirs.n_samples_fit_
    np.testing.assert_array_equal(ours.n_missing_, theirs.n_missing_)
    assert ours.n_missing_rows_ == theirs.n_missing_rows_
    assert ours.n_parameters_ == theirs.n_parameters_


@pytest.mark.parametrize("name", CASES)
def test_the_optimum_is_that_in_memory(name, small_sample):
    x, settings = CASES[name]
    ours = RegimeModel(2, **SETTINGS, **settings)
    ours.fit(Chunks(np.split(x, [400, 401, 1000]), continues=True))
    theirs = RegimeModel(2, **SETTINGS, **settings).fit(x)
    assert_same(ours, theirs)
    assert ours.n_iter_ > 1
    np.testing.assert_array_equal(ours.training_start_, theirs.training_start_)
    assert ours.history_[-1] == pytest.approx(theirs.history_[-1], rel=1e-9)


def test_whole_sequences(small_sample):
    x = data()
    tables = np.split(x, [300, 320, 321, 900])
    chunks = Chunks([tables[:2], tables[2], tables[3:]], continues=False)
    ours = RegimeModel(2, **SETTINGS).fit(chunks)
    theirs = RegimeModel(2, **SETTINGS).fit(tables)
    assert_same(ours, theirs)
    assert ours.training_start_ is None


def test_float32(small_sample):
    x = data()
    settings = SETTINGS | {"tol": 1e-2, "dtype": "float32"}
    ours = RegimeModel(2, **settings).fit(Chunks(np.split(x, [700]), continues=True))
    theirs = RegimeModel(2, **settings).fit(x)
    assert ours.log_likelihood_ == pytest.approx(theirs.log_likelihood_, rel=1e-5)


def test_what_a_fit_to_chunks_can_do(tmp_path):
    x = data()
    model = RegimeModel(2, **SETTINGS).fit(Chunks(np.split(x, 5), continues=True))
    assert "Calm" in str(model.summary())
    model.save(tmp_path / "model.json")
    again = RegimeModel.load(tmp_path / "model.json")
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    assert model.score(x) == pytest.approx(model.log_likelihood_, rel=1e-10)
    with pytest.raises(ValueError, match="averages"):
        model.partial_fit(x)


def test_the_callback_and_the_data(small_sample):
    x, seen = data(), []
    parts = np.split(x, 3)
    before = [part.copy() for part in parts]
    settings = SETTINGS | {"tol": None, "max_iter": 5, "regularization": 0.0}
    model = RegimeModel(2, **settings)
    model.fit(Chunks(parts, continues=True), callback=lambda *given: seen.append(given))
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5]
    assert seen[-1][1] == pytest.approx(model.log_likelihood_, rel=1e-10)
    for part, copy in zip(parts, before):
        np.testing.assert_array_equal(part, copy)


def test_the_sample_is_spaced_evenly():
    model = RegimeModel()
    x = np.arange(20_500.0)[:, None]
    found = survey.Survey(model, Chunks(np.array_split(x, 7), continues=True), most_rows=6_000)
    rows, sizes = found.sample()
    firsts = rows[np.cumsum([0, *sizes[:-1]]), 0]
    np.testing.assert_array_equal(firsts, np.arange(0, 20_500, 4_000))
    assert sizes == [1000] * 5 + [500]
    whole = survey.Survey(model, Chunks(np.array_split(x, 7), continues=True))
    assert whole.sample()[1] == [20_500] and whole.num_rows == 20_500


def test_what_is_refused():
    x = data(200)
    chunks = Chunks(np.split(x, 2), continues=True)
    for name in ("lengths", "states", "sample_weight", "gaps"):
        with pytest.raises(ValueError, match=f"expected {name}=None where X is Chunks"):
            RegimeModel(2).fit(chunks, **{name: [1]})
    fitted = RegimeModel(2, **SETTINGS).fit(x)
    with pytest.raises(ValueError, match="expected order_by='volatility' or 'mean'"):
        RegimeModel(2, order_by=fitted).fit(chunks)
    with pytest.raises(ValueError, match="expected inference='em'"):
        RegimeModel(2, inference="svi").fit(chunks)
    with pytest.raises(ValueError, match="chunk 2: .* 1 features.* expecting 2"):
        RegimeModel(2).fit(Chunks([x, x[:, :1]], continues=True))
    with pytest.raises(ValueError, match="chunk 1: expected one table"):
        RegimeModel(2).fit(Chunks([[x, x]], continues=True))
    with pytest.raises(ValueError, match="at least one row"):
        RegimeModel(2).fit(Chunks([x[:0]], continues=True))


def test_a_failed_fit_keeps_the_last_one():
    x = data(200)
    model = RegimeModel(2, **SETTINGS).fit(x)
    means = model.means_
    with pytest.raises(ValueError, match="infinity"):
        model.fit(Chunks([x, np.full((3, 2), np.inf)], continues=True))
    assert model.means_ is means


def test_warnings(small_sample):
    x = data()
    with pytest.warns(Warning, match="did not converge in 1 iterations"):
        RegimeModel(2, **SETTINGS | {"max_iter": 1}).fit(Chunks(np.split(x, 2), continues=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RegimeModel(2, **SETTINGS).fit(Chunks(np.split(x, 2), continues=True))


def test_dates_ascend_over_the_chunks():
    x, index = data(200), pd.date_range("2020-01-31", periods=200, freq="ME", tz="Asia/Tokyo")
    frame = pd.DataFrame(x, index=index)
    first, second = frame[:120], frame[120:]
    for parts in ([second, first], [first, frame[119:]], [first, frame[100:]]):
        with pytest.raises(ValueError, match="chunk 2: expected rows in order of time.*sort"):
            RegimeModel(2).fit(Chunks(parts, continues=True))
    with pytest.raises(ValueError, match="chunk 2: expected dates of the kind of the chunk before"):
        RegimeModel(2).fit(Chunks([first, second.tz_localize(None)], continues=True))
    RegimeModel(2, **SETTINGS).fit(Chunks([second, first], continues=False))


@pytest.mark.parametrize("continues", [True, False])
def test_the_frequency_is_that_of_the_dates(continues):
    index = pd.date_range("2020-01-31", periods=200, freq="ME")
    frame = pd.DataFrame(data(200), index=index)
    chunks = Chunks([frame[:1], frame[1:120], frame[120:]][not continues :], continues=continues)
    assert RegimeModel(2, **SETTINGS).fit(chunks).periods_per_year_ == 12
    without = RegimeModel(2, **SETTINGS).fit(Chunks([data(200)], continues=True))
    assert without.periods_per_year_ == 252


def test_values_outside_of_the_sample(small_sample):
    """The sample of the starts has every second block of 50 rows and fewer."""
    x = counts(3000)
    x[1077] = 30
    chunks = Chunks(np.array_split(x, 7), continues=True)
    streamed = RegimeModel(2, emission="categorical", **SETTINGS).fit(chunks)
    whole = RegimeModel(2, emission="categorical", **SETTINGS).fit(x)
    assert streamed.probabilities_.shape == whole.probabilities_.shape == (2, 1, 31)
    assert streamed.log_likelihood_ == pytest.approx(whole.log_likelihood_, rel=1e-8)
    x[1077] = -1
    for emission, what in (("categorical", "categories"), ("poisson", "counts")):
        with pytest.raises(ValueError, match=f"chunk 3: expected X to hold {what}.*got -1"):
            RegimeModel(2, emission=emission).fit(Chunks(np.array_split(x, 7), continues=True))


def test_columns_of_a_file_by_name(tmp_path):
    x = np.concatenate([data(300, 1), counts(300)], 1)
    frame = pd.DataFrame(x, columns=["r", "n <$"])
    frame.to_parquet(tmp_path / "x.parquet")
    chunks = Chunks.parquet(tmp_path / "x.parquet", rows=120)
    emission = {"n <$": "poisson", "r": "gaussian"}
    model = RegimeModel(2, emission=emission, **SETTINGS).fit(chunks)
    whole = RegimeModel(2, emission=emission, **SETTINGS).fit(frame)
    assert model.log_likelihood_ == pytest.approx(whole.log_likelihood_, rel=1e-8)
    assert list(model.feature_names_in_) == ["r", "n <$"]


def test_levels_are_told():
    x = 100 * np.exp(np.cumsum(0.01 * seeds.rng(5).normal(size=(600, 1)), 0))
    with pytest.warns(UserWarning, match="looks like a level"):
        RegimeModel(2, **SETTINGS).fit(Chunks(np.split(x, 3), continues=True))


def test_rows_that_come_and_go_are_refused():
    x, number = data(300), iter(range(100))
    chunks = Chunks(lambda: [x[: 150 - next(number)], x[150:]], continues=True)
    with pytest.raises(ValueError, match="same chunks in every pass, got 29. rows .* 300 "):
        RegimeModel(2, **SETTINGS).fit(chunks)
    once = iter(np.split(x, 3))
    with pytest.raises(ValueError, match="same chunks in every pass, got 0 rows"):
        RegimeModel(2, **SETTINGS).fit(Chunks(lambda: once, continues=True))


def test_sequences_of_one_row():
    x = shifted(400)
    parts = [[row[None] for row in part] for part in np.split(x, 4)]
    model = RegimeModel(2, **SETTINGS).fit(Chunks([*parts, [], x[:0]], continues=False))
    whole = RegimeModel(2, **SETTINGS).fit([row[None] for row in x])
    assert model.log_likelihood_ == pytest.approx(whole.log_likelihood_, rel=1e-8)


def test_arrays_of_one_series():
    x = shifted(400)[:, 0]
    for continues in (True, False):
        table = RegimeModel(2, **SETTINGS).fit(Chunks(np.split(x[:, None], 2), continues=continues))
        flat = RegimeModel(2, **SETTINGS).fit(Chunks(np.split(x, 2), continues=continues))
        assert flat.log_likelihood_ == table.log_likelihood_ and flat.n_features_in_ == 1


def test_other_methods_say_what_takes_chunks():
    x = data(200)
    model, chunks = RegimeModel(2, **SETTINGS).fit(x), Chunks([x], continues=True)
    for method in ("predict", "predict_proba", "decode", "score", "bic", "impute", "partial_fit"):
        with pytest.raises(ValueError, match="expected X in memory, got Chunks.*OnlineFilter"):
            getattr(model, method)(chunks)
    with pytest.raises(ValueError, match="got one .*fitted to Chunks"):
        RegimeModel(2, **SETTINGS).fit(chunks).partial_fit(x)
