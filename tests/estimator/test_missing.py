"""Data with missing entries: the likelihood is that of the entries that are there."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro import poutine
from scipy.stats import multivariate_normal

from pyro_regimes import RegimeModel
from pyro_regimes.estimator import missing, problems
from pyro_regimes.estimator.spec import COVARIANCE_TYPES
from tests import seeds
from tests.regimes import COVARIANCES, MEANS, TRANSITIONS

K, D, T = 2, 3, 240
kinds = pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
NAN = np.nan


def data(num_rows: int = T, seed: int = 0) -> np.ndarray:
    """Two regimes of dependent series that differ in their spread and their means."""
    rng = seeds.rng(seed)
    wild = (np.arange(num_rows) // 20 % 2)[:, None]
    common = rng.standard_normal((num_rows, 1))
    x = 0.6 * common + 0.8 * rng.standard_normal((num_rows, D))
    return np.where(wild, 3 * x - 1.0, x + 0.5)


def holes(x: np.ndarray, share: float = 0.25, seed: int = 1) -> np.ndarray:
    """Entries at random, some whole rows and the first three rows of the first column missing."""
    gone = seeds.rng(seed).random_sample(x.shape) < share
    gone[np.arange(len(x)), np.arange(len(x)) % D] = False  # a row has one, but for
    gone[[7, 8, len(x) // 2]] = True
    gone[:3, 0] = True
    return np.where(gone, NAN, x)


def quick(covariance_type: str = "full", **settings) -> RegimeModel:
    defaults = dict(n_regimes=K, covariance_type=covariance_type, n_init=2, random_state=0)
    return RegimeModel(**{**defaults, "max_iter": 30, "tol": None, **settings})


def log_likelihood(model: RegimeModel, x: np.ndarray) -> tuple[float, np.ndarray]:
    """Of one sequence, and the filtered probabilities, by the marginal density of each row."""
    spec = model._fitted_spec()
    moments = spec.moments({"means": model.means_, "covariances": model.covariances_})
    probs, total, filtered = model.initial_probs_, 0.0, []
    for row in x:
        seen = np.flatnonzero(~np.isnan(row))
        density = np.ones(K)
        if len(seen):
            density = np.array([
                multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)]).pdf(row[seen])
                for mean, covariance in zip(moments.means, moments.matrices(), strict=True)
            ])  # fmt: skip
        joint = probs * density
        total += np.log(joint.sum())
        filtered.append(joint / joint.sum())
        probs = filtered[-1] @ model.transition_matrix_
    return total, np.array(filtered)


@kinds
@pytest.mark.parametrize("inference", ["em", "svi"])
def test_a_fit_is_that_of_the_marginal_likelihood(covariance_type, inference):
    x = holes(data())
    model = quick(covariance_type, inference=inference).fit(x)
    expected, filtered = log_likelihood(model, x)
    assert model.log_likelihood_ == pytest.approx(expected, rel=1e-11)
    assert model.score(x) == pytest.approx(expected, rel=1e-11)
    np.testing.assert_allclose(model.predict_proba(x, "filtered"), filtered, atol=1e-10)
    scores = model.score_samples(x)
    assert scores.sum() == pytest.approx(expected, rel=1e-11)
    assert np.isfinite(scores).all() and np.abs(scores[[7, 8, T // 2]]).max() < 1e-12
    assert (np.diff(model.history_) >= -1e-8).all() or inference == "svi"
    assert model.n_samples_fit_ == T - 3 and model.n_missing_rows_ == 3
    np.testing.assert_array_equal(model.n_missing_, np.isnan(x).sum(0))


@kinds
def test_all_methods_take_missing_entries(covariance_type, tmp_path):
    x = holes(data())
    x[-1] = NAN
    model = quick(covariance_type).fit(x)
    log_prob, path = model.decode(x)
    assert np.isfinite(log_prob) and set(path) == {0, 1}
    assert model.fit_predict(x).tolist() == path.tolist()
    forecast = model.forecast(x, 2)
    np.testing.assert_allclose(
        forecast.regime_probs[0], model.predict_proba(x)[-1] @ model.transition_matrix_, rtol=1e-10
    )
    assert not np.isnan(model.sample(50)[0]).any()
    assert model.bic(x) == pytest.approx(model.bic(), rel=1e-12)
    model.save(tmp_path / "model.json")
    loaded = RegimeModel.load(tmp_path / "model.json")
    assert loaded.score(x) == model.score(x)
    assert str(loaded.summary()) == str(model.summary())
    np.testing.assert_array_equal(loaded.training_start_, model.training_start_)
    assert loaded.n_missing_.tolist() == model.n_missing_.tolist()
    line, *_ = model.summary().notes
    assert " ".join(line.split()) in " ".join(str(model.summary()).split())
    count = int(np.isnan(x).sum())
    assert line.startswith(f"missing: {count} of {x.size} values, {count / x.size:.1%} (series 1 ")
    assert line.endswith("; 4 of 240 rows have no value")
    assert "missing" not in str(quick().fit(data()).summary())


def test_the_beginning_is_known_by_what_is_missing_in_it():
    """Else the start of the training data would be taken for another sequence."""
    x = holes(data())
    model = quick().fit(x)
    assert model.score(x) == model.score(x, start="fitted") != model.score(x, start="stationary")
    other = np.where(np.isnan(x), 0.0, x)
    assert model.score(other) == model.score(other, start="stationary")


def test_what_is_missing_may_be_written_in_many_ways():
    x = holes(data())
    expected = quick().fit(x).log_likelihood_
    gone = np.isnan(x)
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    for same in (
        np.ma.masked_array(np.where(gone, 999.0, x), gone),
        frame.convert_dtypes(),
        frame.astype(object).where(~gone, None),
        x.tolist(),
    ):
        assert quick().fit(same).log_likelihood_ == expected
    whole = np.ma.masked_array(data(), False)
    assert quick().fit(whole).log_likelihood_ == quick().fit(data()).log_likelihood_
    numbers = np.ma.masked_array(np.rint(10 * np.where(gone, 0.0, x)).astype(int), gone)
    floats = np.where(gone, NAN, np.rint(10 * x))
    assert quick().fit(numbers).log_likelihood_ == quick().fit(floats).log_likelihood_


def test_rows_without_any_value_are_steps_without_observation():
    """At the ends of a sequence they change nothing but its length."""
    x = holes(data())
    model = quick(initial="stationary").fit(x)
    nothing = np.full((5, D), NAN)
    longer = np.concatenate([nothing, x, nothing])
    at = dict(start="stationary")
    assert model.score(longer, **at) == pytest.approx(model.score(x, **at), rel=1e-12)
    probs = model.predict_proba(longer, **at)[5:-5]
    np.testing.assert_allclose(probs, model.predict_proba(x, **at), atol=1e-12)
    assert model.score(nothing) == pytest.approx(0, abs=1e-12)
    again = quick(initial="stationary").fit(longer)
    assert again.log_likelihood_ == pytest.approx(model.log_likelihood_, abs=1e-2)


def test_several_sequences():
    x, y = holes(data(150)), holes(data(90, seed=2), seed=3)
    listed = quick().fit([x, y])
    placed = quick().fit(np.concatenate([x, y]), lengths=[150, 90])
    assert listed.log_likelihood_ == placed.log_likelihood_
    each = [listed.score(part, start="fitted") for part in (x, y)]
    assert listed.log_likelihood_ == pytest.approx(sum(each), rel=1e-12)
    assert listed.n_samples_fit_ == 240 - 6
    empty = np.full((3, D), NAN)
    assert listed.score([x, empty]) == pytest.approx(each[0], rel=1e-12)


def test_what_cannot_be_learnt_is_refused_by_name():
    frame = pd.DataFrame(holes(data()), columns=["a", "b", "c"])
    empty = frame.assign(b=NAN)
    message = r"only missing ones in column 'b'; drop it \(X.dropna\(axis=1, how='all'\)\)"
    with pytest.raises(ValueError, match=message):
        quick().fit(empty)
    with pytest.raises(ValueError, match="in columns 0, 2; drop them"):
        quick().fit(empty.assign(a=NAN, c=NAN, b=frame["b"]).to_numpy())
    model = quick().fit(frame)
    assert np.isfinite(model.score(empty))  # a fitted model needs no value of a series
    infinite = frame.copy()
    infinite.iloc[5, 0] = np.inf
    for call in (quick().fit, model.predict, model.score):
        with pytest.raises(ValueError, match="contains infinity"):
            call(infinite)
    few = np.full((50, D), NAN)
    few[:2] = data(2)
    with pytest.raises(ValueError, match="at least 3 observations for n_regimes=3, got 2 samples"):
        quick(n_regimes=3).fit(few)
    with pytest.raises(ValueError, match="column 'b' .*|constant 1.5 in column 'b'"):
        quick().fit(frame.assign(b=frame["b"] * 0 + 1.5))
    twice = frame.assign(d=frame["a"] - 2 * frame["b"])
    with pytest.raises(ValueError, match="a combination of the columns 'a', 'b', 'd'"):
        quick().fit(twice)


def test_doubts_about_the_data_leave_out_what_is_missing():
    level = 100 * np.exp(np.cumsum(0.01 * seeds.rng(4).standard_normal((T, 1)), 0))
    gone = seeds.rng(5).random_sample((T, 1)) < 0.2
    (found,) = problems.of_data(np.where(gone, NAN, level), [T], ["spx"])
    assert "Column 'spx' of X looks like a level" in str(found)
    x = data()
    x[np.arange(T) % 7 >= 5] = 0
    x = np.where(seeds.rng(6).random_sample(x.shape) < 0.2, NAN, x)
    x[::7] = NAN
    rows = ~np.isnan(x).all(1)
    zeros = int((rows & ((x == 0) | np.isnan(x)).all(1)).sum())
    (found,) = problems.of_data(x, [T], None)
    assert f"{zeros} of {rows.sum()} rows of X are 0 in every column" in str(found)
    assert problems.of_data(holes(data()), [T], None) == []


def test_units_of_the_series_do_not_matter():
    x, unit = holes(data()), np.array([1e-4, 1.0, 1e5])
    model, other = quick().fit(x), quick().fit(x * unit + 1e3 * unit)
    counts = T - np.isnan(x).sum(0)
    expected = model.log_likelihood_ - counts @ np.log(unit)
    assert other.log_likelihood_ == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "covariance_type, inference, dtype",
    [*((kind, "em", "float64") for kind in COVARIANCE_TYPES),
     ("diag", "em", "float32"), ("diag", "svi", "float64")],
)  # fmt: skip
def test_a_fit_is_within_a_standard_error_of_that_of_complete_data(
    covariance_type, inference, dtype
):
    """With 30 % of the entries missing; root mean square over all means and variances.

    The data do not shift with the seeds of the suite: of all data, some must be beyond.
    """
    chain = np.full(3, 1 / 3), TRANSITIONS
    settings = dict(covariance_type=covariance_type, random_state=0)
    truth = RegimeModel.from_parameters(*chain, MEANS, COVARIANCES[covariance_type], **settings)
    x, _ = truth.sample(1500)
    gaps = np.where(np.random.RandomState(2).random_sample(x.shape) < 0.3, NAN, x)
    settings = dict(n_regimes=3, inference=inference, dtype=dtype, tol=1e-3, max_iter=1500)
    whole = quick(covariance_type, **settings).fit(x)
    model = quick(covariance_type, order_by=whole, **settings).fit(gaps)
    assert model.converged_
    spec = whole._fitted_spec()
    ours, others = (
        spec.moments({"means": each.means_, "covariances": each.covariances_})
        for each in (model, whole)
    )
    count = (whole.share_of_time_ * len(x))[:, None]
    of_means = (ours.means - others.means) / np.sqrt(others.variances / count)
    of_variances = (ours.variances - others.variances) / (others.variances * np.sqrt(2 / count))
    both = np.concatenate([of_means.ravel(), of_variances.ravel()])
    assert np.sqrt(np.square(both).mean()) < 1


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_imputed_values_are_calibrated(covariance_type):
    """z-scores of 30 % held-out values have mean 0 and standard deviation 1, in 3 errors of these.

    The data do not shift with the seeds of the suite: of all data, one set in a few hundred must be
    beyond.
    """
    rng = np.random.RandomState(1)
    wild = (np.arange(3000) // 30 % 2)[:, None]
    root = np.linalg.cholesky(0.6 + 0.4 * np.eye(4) if covariance_type == "full" else np.eye(4))
    x = rng.standard_normal((3000, 4)) @ root.T * np.where(wild, 3.0, 1.0) - 0.5 * wild
    gone = rng.random_sample(x.shape) < 0.3
    model = quick(covariance_type, max_iter=200, tol=1e-4).fit(np.where(gone, NAN, x))
    mean, variance = model.impute(np.where(gone, NAN, x))
    scores = (x - mean)[gone] / np.sqrt(variance[gone])
    assert abs(scores.mean()) < 3 * scores.std() / np.sqrt(len(scores))
    squares = scores**2
    assert abs(squares.mean() - 1) < 3 * squares.std() / np.sqrt(len(scores))
    within = (np.abs(scores) < 1.96).mean()
    assert abs(within - 0.95) < 0.01
    better = np.std((x - mean)[gone]) / np.std(x[gone])
    assert better < (0.85 if covariance_type == "full" else 1.0)


@kinds
def test_imputation_in_the_units_of_the_data(covariance_type):
    x = holes(data())
    model = quick(covariance_type).fit(x)
    found = model.impute(x)
    gone = np.isnan(x)
    assert found.mean.shape == found.variance.shape == x.shape
    np.testing.assert_array_equal(found.mean[~gone], x[~gone])
    assert (found.variance[~gone] == 0).all() and (found.variance[gone] > 0).all()
    # a row without any value, in the middle: the mixture of the regimes
    probs = model.predict_proba(x)[8]
    moments = model._fitted_spec().moments(
        {"means": model.means_, "covariances": model.covariances_}
    )
    mean = probs @ moments.means
    np.testing.assert_allclose(found.mean[8], mean, rtol=1e-9, atol=1e-9)
    spread = probs @ (moments.variances + np.square(moments.means - mean))
    np.testing.assert_allclose(found.variance[8], spread, rtol=1e-9)
    parts = [x[:100], x[100:]]
    listed = model.impute(parts)
    at = model.impute(x[100:], start="stationary")
    np.testing.assert_allclose(listed.mean[100:], at.mean, rtol=1e-9)
    complete = model.impute(data())
    np.testing.assert_array_equal(complete.mean, data())
    assert (complete.variance == 0).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_filled_rows_resemble_the_data(share):
    x = np.rint(data(3000))
    gone = seeds.rng(3).random_sample(x.shape) < share
    given = np.where(gone, NAN, x)
    made = missing.filled(given)
    if not share:
        assert made is given
        return
    kept = given[missing.observed_rows(given)]
    assert not np.isnan(made).any() and len(made) == len(kept)
    np.testing.assert_array_equal(made[~np.isnan(kept)], kept[~np.isnan(kept)])
    for column, own in zip(made.T, kept.T, strict=True):  # nothing outside the support
        assert set(column) <= set(own[~np.isnan(own)])
    np.testing.assert_allclose(made.std(0), x.std(0), rtol=0.15)
    if share == 0.3:
        np.testing.assert_allclose(np.corrcoef(made.T), np.corrcoef(x.T), atol=0.12)


def test_the_pyro_model_marginalises():
    x = holes(data())
    model = quick().fit(x)
    with pyro.get_param_store().scope():
        trace = poutine.trace(model.model).get_trace(torch.from_numpy(x))
        assert float(trace.log_prob_sum().detach()) == pytest.approx(model.score(x), rel=1e-12)


def test_plots_and_warnings():
    pytest.importorskip("matplotlib")
    x = holes(data())
    model = quick().fit(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = model.plot(x)
    (line,) = figure.axes[0].get_lines()
    drawn = np.diff(line.get_ydata())
    assert np.isfinite(drawn).all() and drawn[7] == 0
