"""RegimeModel.regimes: a table with the index of the data."""

import numpy as np
import pandas as pd
import pytest

from pyro_regimes.datasets import Returns
from tests import seeds
from tests.estimator.emission_cases import CASES

MODEL = CASES[0].true(regime_names=["Calm", "Wild"])
X = MODEL.sample(60, random_state=seeds.rng(2))[0]
COLUMNS = [
    "viterbi", "viterbi_number", "filtered_Calm", "filtered_Wild", "smoothed_Calm", "smoothed_Wild",
]  # fmt: skip


def test_the_columns_are_the_path_and_the_probabilities():
    table = MODEL.regimes(X)
    assert list(table) == COLUMNS and table.index.equals(pd.RangeIndex(60))
    path = MODEL.predict(X)
    np.testing.assert_array_equal(table["viterbi_number"], path)
    assert list(table["viterbi"]) == [["Calm", "Wild"][k] for k in path]
    for kind in ("filtered", "smoothed"):
        probs = table[[f"{kind}_Calm", f"{kind}_Wild"]].to_numpy()
        np.testing.assert_array_equal(probs, MODEL.predict_proba(X, kind))


@pytest.mark.parametrize(
    "index",
    [
        pd.date_range("2020-01-01", periods=60, name="day"),
        pd.period_range("2020-01", periods=60, freq="M"),
        pd.Index([f"row {i}" for i in range(60)]),
    ],
    ids=["dates", "periods", "text"],
)
def test_the_index_is_that_of_the_data(index):
    assert MODEL.regimes(pd.DataFrame(X, index)).index.equals(index)
    assert MODEL.regimes(pd.DataFrame(X, index)).index.name == index.name


def test_returns_of_the_reader_have_their_dates():
    dates = np.arange("2020-01-01", "2020-03-01", dtype="datetime64[D]")
    named = CASES[0].true(feature_names=["a", "b"])
    table = named.regimes(Returns(X, dates, ("a", "b")))
    np.testing.assert_array_equal(table.index.to_numpy().astype("datetime64[D]"), dates)


def test_several_sequences_have_their_keys_in_front():
    frame = pd.DataFrame(X, pd.date_range("2020-01-01", periods=60))
    both = {"one": frame[:20], "two": frame[20:]}
    table = MODEL.regimes(both)
    assert table.index.names[0] == "sequence" and len(table) == 60
    alone = MODEL.regimes(frame[20:])
    pd.testing.assert_frame_equal(
        table.loc["two"], alone, check_names=False, check_freq=False, check_index_type=False
    )
    listed = MODEL.regimes([X[:20], X[20:]])
    assert list(listed.index) == [(0, i) for i in range(20)] + [(1, i) for i in range(40)]
    given = MODEL.regimes(X, [20, 40])
    np.testing.assert_array_equal(given.to_numpy(), listed.to_numpy())
    assert given.index.equals(pd.RangeIndex(60))


def test_after_and_rows_of_probability_zero():
    from pyro_regimes import RegimeModel

    table = MODEL.regimes(X, after=[0.0, 1.0])
    expected = MODEL.predict_proba(X, "filtered", after=[0.0, 1.0])
    np.testing.assert_array_equal(table[["filtered_Calm", "filtered_Wild"]], expected)
    never = RegimeModel.from_parameters(
        None, np.eye(2) * 0.8 + 0.1, emission="bernoulli", probabilities=np.zeros((2, 1))
    )
    table = never.regimes(np.ones((3, 1)))
    assert list(table["viterbi"]) == [""] * 3 and list(table["viterbi_number"]) == [-1] * 3
