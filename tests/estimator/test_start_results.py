"""How each start of a fit ended, beside fits of single starts and rules by hand."""

from __future__ import annotations

import json
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from pyro_regimes import RegimeModel
from pyro_regimes.estimator import StartResults
from tests import seeds
from tests.regimes import simulate


def results(**changed: Any) -> StartResults:
    made = StartResults(
        np.array([-10.0, -10.05, -10.2, 5.0, -np.inf]),
        np.array([3, 9, 4, 100, 0]),
        np.array([True, True, True, False, False]),
        np.array([False, False, False, True, True]),
        0,
    )
    return made._replace(**changed)


def test_which_starts_reached_the_best():
    """Within 0.1; a collapsed one is above all others, and not comparable."""
    assert results().reached_best.tolist() == [True, True, False, False, False]
    all_collapsed = results(collapsed=np.ones(5, np.bool_), best=3)
    assert all_collapsed.reached_best.tolist() == [False, False, False, True, False]


def test_the_line_of_the_summary():
    assert results().describe() == [
        "2 of 5 starts reached the best log-likelihood, within 0.1; 2 collapsed."
    ]
    alone = results(log_likelihood=np.array([-10.0, -11.0, -12.0, 5.0, -np.inf]))
    assert alone.describe()[0].endswith("2 collapsed; a larger n_init may find a better one.")
    single = StartResults(*(part[:1] for part in results()[:4]), 0)
    assert single.describe() == []


def test_results_are_those_of_the_history_of_the_fit():
    x = simulate("full", 300)[0]
    model = RegimeModel(3, n_init=4, random_state=seeds.seed(1) % 1000, max_iter=200).fit(x)
    starts = model.starts_
    assert starts is not None and len(starts.log_likelihood) == 4
    assert starts.log_likelihood[starts.best] == pytest.approx(model.history_[-1], rel=1e-12)
    assert starts.n_iter[starts.best] == model.n_iter_
    assert starts.converged[starts.best] == model.converged_
    sound = starts.log_likelihood[~starts.collapsed]
    assert starts.log_likelihood[starts.best] == sound.max() if len(sound) else True
    lines = str(model.summary()).splitlines()
    assert " ".join(starts.describe()) in " ".join(lines)


def test_each_start_ends_as_it_does_alone():
    """A fit of one start is the first one of a fit of several, from k-means."""
    x = 1e-3 * simulate("full", 300)[0]
    several = RegimeModel(3, n_init=5, random_state=0).fit(x).starts_
    alone = RegimeModel(3, n_init=1, random_state=0).fit(x).starts_
    assert several is not None and alone is not None
    assert alone.log_likelihood[0] == pytest.approx(several.log_likelihood[0], rel=1e-9)
    assert alone.n_iter[0] == several.n_iter[0]


def test_a_collapsed_start_is_named():
    """The dimension of the mean of three rows of equal values has no spread."""
    x = np.concatenate([seeds.rng(2).standard_normal((60, 1)), np.full((30, 1), 50.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = RegimeModel(2, n_init=3, random_state=0).fit(x)
    assert model.starts_ is not None and model.starts_.collapsed.any()
    assert "collapsed" in str(model.starts_)


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_starts_that_have_not_converged(inference):
    x = simulate("full", 200)[0]
    model = RegimeModel(3, n_init=3, random_state=0, max_iter=2, inference=inference)
    with pytest.warns(ConvergenceWarning):
        starts = model.fit(x).starts_
    assert starts is not None and not starts.converged.any() and (starts.n_iter == 2).all()
    assert str(starts).count("not converged") == 3


def test_table_and_frame():
    lines = str(results()).splitlines()
    assert lines[0] == "Starts of the fit; number 0 was kept"
    assert lines[4].split() == ["1", "-10.05", "0.05", "yes", "9", "converged"]
    assert lines[6].split() == ["3", "5.00", "-15.00", "no", "100", "collapsed"]
    frame = results().to_frame()
    assert frame.loc[1].tolist() == [-10.05, True, 9, True, False]
    page = results()._repr_html_()
    assert page.startswith("<div>") and "Starts of the fit" in page and ">-10.05<" in page


def test_a_saved_model_keeps_them(tmp_path):
    x = simulate("full", 200)[0]
    model = RegimeModel(3, n_init=3, random_state=0, max_iter=300).fit(x)
    model.save(tmp_path / "model.json")
    loaded = RegimeModel.load(tmp_path / "model.json")
    for other in (loaded, pickle.loads(pickle.dumps(model))):
        for found, expected in zip(other.starts_, model.starts_, strict=True):
            np.testing.assert_array_equal(found, expected)
        assert str(other.summary()) == str(model.summary())


def test_the_form_in_a_file():
    plain = json.loads(json.dumps(results().to_plain(), allow_nan=False))
    for found, expected in zip(StartResults.from_plain(plain), results(), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"log_likelihood": [1.0]},
        {"log_likelihood": [None] * 5},
        {"log_likelihood": [1.0, 2.0, "3", 4.0, 5.0]},
        {"n_iter": [1, 2, 3, 4, -5]},
        {"converged": [1, 0, 0, 0, 0]},
        {"collapsed": None},
        {"best": 5},
        {"best": True},
    ],
)
def test_files_that_hold_others(wrong):
    with pytest.raises(ValueError, match="starts_ does not hold the results of starts"):
        StartResults.from_plain(results().to_plain() | wrong)


def test_without_a_fit_there_are_none():
    model = RegimeModel.from_parameters(None, [[1.0]], [[0.0]], [[[1.0]]])
    assert model.starts_ is None
    assert "starts" not in str(model.summary())
