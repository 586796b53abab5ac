"""What a user gives as X means what it says, or is refused."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_regimes.datasets import load_sector_returns
from pyro_regimes.estimator import RegimeModel, problems
from tests import seeds

SETTINGS = dict(n_regimes=2, covariance_type="tied", n_init=1, max_iter=5, tol=None, random_state=0)


LEVEL = r"Column {} of X looks like a level \(a price, an index, a yield\), not a change"


def quick() -> RegimeModel:
    return RegimeModel(**SETTINGS)


def data(num_rows: int = 60, num_series: int = 2, seed: int = 0) -> np.ndarray:
    rng = seeds.rng(seed)
    wild = np.arange(num_rows) // 10 % 2 == 1
    return rng.standard_normal((num_rows, num_series)) * np.where(wild, 3.0, 1.0)[:, None]


@settings(deadline=None)
@given(sizes=st.lists(st.integers(2, 30), min_size=1, max_size=6).filter(lambda s: sum(s) > 12))
def test_lengths_in_the_place_of_y_are_lengths(sizes):
    x = data(sum(sizes))
    named, placed = quick().fit(x, lengths=sizes), quick().fit(x, sizes)
    assert placed.log_likelihood_ == named.log_likelihood_
    assert placed.score(x, sizes) == named.score(x, lengths=sizes)
    assert placed.score(x, np.array(sizes)) == named.score(x, lengths=sizes)
    targets = np.zeros(len(x))
    assert quick().fit(x, targets).log_likelihood_ == quick().fit(x).log_likelihood_
    with pytest.raises(ValueError, match="expected lengths to sum to the .* rows of X"):
        quick().fit(x, [*sizes, 1])


@pytest.mark.parametrize("sizes", [[25, 35], np.array([25, 35]), (25, 35), [60], None])
def test_the_signatures_of_hmmlearn_serve(sizes):
    x = data()
    model = quick().fit(x, sizes)
    named = {"lengths": sizes}
    for name in ("predict", "predict_proba", "score", "score_samples", "aic", "bic"):
        call = getattr(model, name)
        np.testing.assert_array_equal(call(x, sizes), call(x, **named))
    np.testing.assert_array_equal(
        model.predict_proba(x, "filtered", sizes), model.predict_proba(x, "filtered", **named)
    )
    np.testing.assert_array_equal(
        model.predict_proba(x, sizes, kind="filtered"), model.predict_proba(x, "filtered", sizes)
    )
    for algorithm in ("viterbi", "smoothing"):
        expected = model.decode(x, algorithm, **named)
        for found in (
            model.decode(x, sizes, algorithm),
            model.decode(x, algorithm, sizes),
            model.decode(x, sizes, algorithm=algorithm),
        ):
            assert found[0] == expected[0]
            np.testing.assert_array_equal(found[1], expected[1])
    assert model.decode(x, sizes)[0] == model.decode(x, sizes, None)[0]
    assert model.decode(x, lengths=sizes, algorithm=None)[0] == model.decode(x, sizes)[0]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.decode(data(), [30, 30], [30, 30]), "expected lengths once, got \\[30, 30"),
        (lambda m: m.decode(data(), [30, 30], lengths=[30, 30]), "expected lengths once, got"),
        (lambda m: m.decode(data(), "viterbi", algorithm="viterbi"), "expected algorithm once"),
        (lambda m: m.predict_proba(data(), [30, 30], [30, 30]), "expected lengths once, got"),
        (lambda m: m.predict_proba(data(), [30, 31]), "expected lengths to sum to the 60 rows"),
        (lambda m: m.decode(data(), [30, 30.5]), "expected lengths to be a list of positive"),
        (lambda m: m.decode(data(), "viterbi", "viterbi"), "expected algorithm once, got"),
        (lambda m: m.decode(data(), 3), "expected algorithm to be one of 'viterbi', .*, got 3"),
        (lambda m: m.decode(data(), {}), "expected algorithm to be one of 'viterbi', .*, got {}"),
        (lambda m: m.predict(data(), "viterbi"), "expected lengths to be a list of positive"),
        (lambda m: m.bic(data(), 3), "expected lengths to be a list of positive"),
    ],
)
def test_positions_that_hold_something_else_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(quick().fit(data()))


@settings(deadline=None)
@given(sizes=st.lists(st.integers(2, 30), min_size=2, max_size=6).filter(lambda s: sum(s) > 12))
def test_one_dimensional_arrays_are_univariate_sequences(sizes):
    x = data(sum(sizes), 1)
    parts = np.split(x[:, 0], np.cumsum(sizes)[:-1])
    expected = quick().fit(x, lengths=sizes)
    for given_x in (parts, [pd.Series(part) for part in parts], dict(enumerate(parts))):
        model = quick().fit(given_x)
        assert model.n_features_in_ == 1
        assert model.log_likelihood_ == expected.log_likelihood_
    tables = {str(i): part[:, None] for i, part in enumerate(parts)}
    assert quick().fit(tables).log_likelihood_ == expected.log_likelihood_


def test_nested_lists_are_a_table_and_a_series_is_one_sequence():
    x = data()
    assert quick().fit(x.tolist()).log_likelihood_ == quick().fit(x).log_likelihood_
    series = pd.Series(x[:, 0], name="oil")
    model = quick().fit(series)
    assert model.n_features_in_ == 1 and list(model.feature_names_in_) == ["oil"]
    assert model.log_likelihood_ == quick().fit(x[:, :1]).log_likelihood_
    assert quick().fit(series.rename(None)).log_likelihood_ == model.log_likelihood_
    with pytest.raises(ValueError, match="a list of series or a list of tables, got some of each"):
        quick().fit([x, x[:, 0]])
    with pytest.raises(ValueError, match="at least one sequence, got an empty dict"):
        quick().fit({})


@pytest.mark.parametrize("use", ["fit", "predict", "score", "predict_proba"])
def test_dates_that_do_not_ascend_are_refused(use):
    days = pd.bdate_range("2023-01-02", periods=60)
    frame = pd.DataFrame(data(), index=days)
    model = quick().fit(frame)
    call = getattr(model, use)
    periods = frame.set_axis(pd.period_range("2001-01", periods=60, freq="M"))
    objects = frame.set_axis(days.date)
    for ordered in (frame, frame.tz_localize("UTC"), periods, objects):
        call(ordered)
        with pytest.raises(ValueError, match=r"order of time, .*; sort it by X.sort_index\(\)"):
            call(ordered[::-1])
        with pytest.raises(ValueError, match="one row of X for each date, got .* more than once"):
            call(ordered.iloc[[0, 1, 1, *range(2, 59)]])
        with pytest.raises(ValueError, match="order of time"):
            call([ordered, ordered.sample(frac=1, random_state=0)])
    call(frame.set_axis(range(60, 0, -1)))  # numbers may be anything


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6), volatility=st.floats(1e-4, 0.03), level=st.floats(0.5, 1e5),
)  # fmt: skip
def test_prices_are_noticed_and_returns_are_not(seed, volatility, level):
    returns = volatility * data(300, 1, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick().fit(returns)
        quick().fit(np.abs(returns) + 1e-9)  # positive, too
    trend = np.linspace(0, 200 * volatility, 300)[:, None]  # whatever the walk does
    prices = level * np.exp(np.cumsum(returns, axis=0) + trend)
    with pytest.warns(UserWarning, match=LEVEL.format("'spx'")):
        quick().fit(pd.DataFrame(prices, columns=["spx"]))


def test_prices_with_a_split_and_an_error_of_typing_are_noticed():
    """Of nearly all random walks; a few hardly move between the jumps."""
    noticed = 0
    for seed in range(200):
        prices = np.exp(np.cumsum(0.015 * data(300, 1, seed)) + np.linspace(0, 0.6, 300))
        prices[seed % 300 :] /= 4.0
        prices[(seed + 100) % 300] *= 100.0
        noticed += warned(prices)
    assert noticed > 180


def warned(series: np.ndarray) -> bool:
    found = problems.of_data(series[:, None], [len(series)], None)
    return any(re.match(LEVEL.format("0"), str(each)) for each in found)


def wandering(num_rows: int, share: float, rng: np.random.RandomState) -> np.ndarray:
    """Of unit variance; a step keeps this share of the last value."""
    noise = rng.standard_normal(num_rows)
    for t in range(1, num_rows):
        noise[t] = share * noise[t - 1] + np.sqrt(1 - share**2) * noise[t]
    return noise


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_levels_of_any_kind_are_noticed(seed):
    rng = seeds.rng(seed)
    volatility_index = 20 * np.exp(0.3 * wandering(1000, 0.97, rng))
    bond_yield = 4 + 0.5 * wandering(1000, 0.995, rng)
    assert warned(volatility_index) and warned(bond_yield.clip(0.01))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), stay=st.floats(0.5, 0.995), noise=st.floats(0.01, 0.3))
def test_positive_regimes_are_no_levels(seed, stay, noise):
    """However long they last and however far apart they are."""
    rng = seeds.rng(seed)
    states = np.zeros(1000, dtype=int)
    for t in range(1, 1000):
        states[t] = states[t - 1] if rng.uniform() < stay else rng.randint(3)
    levels = np.array([1.0, 3.0, 10.0])[states]
    assert not warned(levels * np.exp(noise * rng.standard_normal(1000)))
    assert not warned(np.abs(rng.standard_t(3, size=1000)) + 1e-6)  # absolute returns
    assert not warned(1.0 + rng.poisson(3.0, size=1000))  # counts
    assert not warned(np.exp(wandering(1000, 0.8, rng)))  # volumes


def test_series_of_one_step_and_of_none():
    """As of a rate that a central bank has set."""
    step = np.repeat([1.0, 2.0], 50)
    assert warned(step) and not warned(step[:50])


def test_the_warning_says_what_levels_are_and_what_to_fit():
    steps = seeds.rng(0).standard_normal((400, 2))
    frame = pd.DataFrame(100 * np.exp(0.01 * steps.cumsum(0)), columns=["VIX", "yield"])
    with pytest.warns(UserWarning) as caught:
        quick().fit(frame)
    (message,) = [str(each.message) for each in caught if "level" in str(each.message)]
    for part in ("Columns 'VIX', 'yield' of X look like levels", "yields", ".diff()", "pct_change"):
        assert part in message


def test_rows_of_zeros_are_told():
    x = data(140)
    x[np.arange(140) % 7 >= 5] = 0
    with pytest.warns(UserWarning, match="40 of 140 rows of X are 0 in every column"):
        quick().fit(x)


def test_series_with_names_are_sequences_of_one_series():
    x = data(90, 1)[:, 0]
    parts = {"A": pd.Series(x[:40], name="AAPL"), "B": pd.Series(x[40:], name="MSFT")}
    expected = quick().fit(x[:, None], lengths=[40, 50]).log_likelihood_
    assert quick().fit(parts).log_likelihood_ == expected
    assert quick().fit(list(parts.values())).log_likelihood_ == expected


def test_nothing_is_lost_of_a_series_on_its_way_to_a_table():
    """Neither the dates of one without a name, nor the mask of a 1-D array."""
    series = pd.Series(data(60, 1)[:, 0], pd.bdate_range("2023-01-02", periods=60))
    for wrong in (series[::-1], [series, series[::-1]], series.rename(3)[::-1]):
        with pytest.raises(ValueError, match="in order of time"):
            quick().fit(wrong)
    masked = np.ma.masked_greater(np.append(series, 999.0), 998.0)
    assert quick().fit([masked]).n_missing_rows_ == 1
    panel = pd.concat({"A": series.to_frame(), "B": series.to_frame()})
    with pytest.raises(ValueError, match="an index of several levels; a dict of tables"):
        quick().fit(panel)


def test_returns_as_they_were_read():
    returns = load_sector_returns().last(200)
    model = quick().fit(returns)
    assert list(model.feature_names_in_) == list(returns.names)
    assert model.log_likelihood_ == quick().fit(returns.to_frame()).log_likelihood_


@pytest.mark.parametrize(
    "freq, periods", [("B", 252), ("D", 365), ("W", 52), ("ME", 12), ("QE", 4), ("YE", 1)]
)
def test_the_summary_annualises_by_the_dates(freq, periods, tmp_path):
    x = data(60, 1, 0)
    frame = pd.DataFrame(x, index=pd.date_range("2000-01-31", periods=60, freq=freq))
    model = quick().fit(frame)
    own = model.summary().mean
    np.testing.assert_allclose(own, periods * model.means_)
    others = [[frame], {"a": frame[0]}]
    if freq != "B":  # pandas gives up periods of business days
        others.append(frame.set_axis(frame.index.to_period(), axis=0))
    for other in others:
        np.testing.assert_allclose(quick().fit(other).summary().mean, own)
    model.save(tmp_path / "model.json")
    np.testing.assert_array_equal(RegimeModel.load(tmp_path / "model.json").summary().mean, own)
    np.testing.assert_allclose(quick().fit(x).summary().mean, 252 * model.means_)
    given = quick().set_params(periods_per_year=10).fit(frame)
    np.testing.assert_allclose(given.summary().mean, 10 * model.means_)


@pytest.mark.parametrize("how", ["text", "dates", "dict", "array"])
def test_dates_and_text_among_the_columns_are_named(how):
    """As after ``pd.read_csv`` without ``index_col``: dates belong into the index."""
    index = pd.bdate_range("2020-01-01", periods=60, name="date")
    table = pd.DataFrame(data(), index=index, columns=["a", "b"])
    days = table.reset_index()
    if how == "array":
        with pytest.raises(ValueError, match="expected X to hold numbers, got others: could not"):
            quick().fit(np.array([["a"], ["b"]]))
        return
    if how != "dates":
        days["date"] = days["date"].astype(str)
    message = r"got 'date' with '?2020-01-01.*; dates belong into the index: X.set_index\('date'\)"
    with pytest.raises(ValueError, match=message):
        quick().fit({"one": days, "two": days} if how == "dict" else days)
    with pytest.raises(ValueError, match="got 'name' with 'x'; leave it out"):
        quick().fit(table.assign(name="x"))


def test_columns_of_one_name_are_refused():
    table = pd.DataFrame(data(), columns=["a", "a"])
    message = "expected X with a name of its own for each column, got 'a' more than once; rename"
    with pytest.raises(ValueError, match=message):
        quick().fit(table)


@pytest.mark.parametrize(
    "values, message",
    [
        (np.arange(100).astype("M8[D]"), "got dates of dtype datetime64.D.; leave them out"),
        (np.arange(100).astype("m8[s]"), "got durations of dtype timedelta64.s."),
        (pd.timedelta_range("1s", periods=100), "got 'x' with .*divide it by a unit of time"),
        (pd.period_range("2020", periods=100, freq="D"), "got 'x' with '2020-01-01'; dates belong"),
    ],
    ids=["dates", "durations", "timedelta", "period"],
)
def test_times_are_no_numbers(values, message):
    table = values[:, None] if isinstance(values, np.ndarray) else pd.DataFrame({"x": values})
    with pytest.raises(ValueError, match=message):
        RegimeModel(2).fit(table)


def test_groups_and_names_of_sequences_lead_to_a_dict():
    table = pd.DataFrame(data(60), columns=["a", "b"]).assign(person=["x", "y"] * 30)
    with pytest.raises(ValueError, match="got a DataFrameGroupBy; a dict holds the tables"):
        quick().fit(table.groupby("person")[["a", "b"]])
    with pytest.raises(ValueError, match="got 'person' with 'x'.* names sequences") as caught:
        quick().fit(table)
    remedy = str(caught.value).split("X is a dict: ")[1]
    parts = eval(remedy, {"table": table})
    assert sorted(parts) == ["x", "y"] and list(parts["x"]) == ["a", "b"]
    quick().fit(parts)


def test_an_infinite_value_is_named_by_its_place():
    dates = pd.date_range("2024-01-01", periods=50, name="date")
    table = pd.DataFrame(data(50), columns=["a", "b"], index=dates)
    table.iloc[3, 1] = -np.inf
    with pytest.raises(ValueError, match="infinity: -inf in row 2024-01-04, column 'b'"):
        quick().fit(table)
    with pytest.raises(ValueError, match="infinity: -inf in row 3, column 1"):
        quick().fit(table.to_numpy())
