"""Paths of regimes that do not change for single rows."""

from itertools import groupby

import numpy as np
import pytest

from pyro_regimes import RegimeModel
from pyro_regimes.datasets import load_sector_returns

RETURNS = load_sector_returns().values[:600, :3]


@pytest.fixture(scope="module")
def model() -> RegimeModel:
    return RegimeModel(3, n_init=2, random_state=0).fit(RETURNS)


def stays(path: np.ndarray) -> list[int]:
    return [len(list(each)) for _, each in groupby(path)]


def log_prob(model: RegimeModel, path: np.ndarray) -> float:
    """log p(x, q) of the fitted model, row by row."""
    return model.score(RETURNS, states=path, start="fitted")


def test_stays_have_the_least_duration_and_cost_little(model: RegimeModel) -> None:
    plain = model.predict(RETURNS)
    assert min(stays(plain)[1:-1]) < 10
    before = log_prob(model, plain)
    for least in (2, 10, 40):
        path = model.predict(RETURNS, min_duration=least)
        assert min(stays(path)[1:-1], default=least) >= least
        assert log_prob(model, path) <= before
        before = log_prob(model, path)  # longer stays are among those of shorter ones


def test_a_penalty_is_that_of_the_transition_matrix(model: RegimeModel) -> None:
    """log p(x, q) less c for each change is highest at the path, against others of this model."""
    plain, path = model.predict(RETURNS), model.predict(RETURNS, jump_penalty=3.0)
    num_changes = [np.count_nonzero(np.diff(each)) for each in (plain, path)]
    assert num_changes[1] < num_changes[0]
    scores = [log_prob(model, each) - 3.0 * n for each, n in zip((plain, path), num_changes)]
    assert scores[1] > scores[0]
    for least in (5, 20):
        other = model.predict(RETURNS, min_duration=least)
        assert scores[1] >= log_prob(model, other) - 3.0 * np.count_nonzero(np.diff(other)) - 1e-6


def test_neither_is_viterbi(model: RegimeModel) -> None:
    plain = model.decode(RETURNS)[1]
    assert (model.predict(RETURNS, min_duration=1, jump_penalty=0) == plain).all()
    assert len(set(model.predict(RETURNS, jump_penalty=1e6))) == 1


def test_several_sequences_each_have_their_own_first_stay(model: RegimeModel) -> None:
    parts = [RETURNS[:200], RETURNS[200:230], RETURNS[230:]]
    together = model.predict(parts, min_duration=15, start="stationary")
    alone = [model.predict(part, min_duration=15, start="stationary") for part in parts]
    assert (together == np.concatenate(alone)).all()


def test_both_with_gaps_and_known_states(model: RegimeModel) -> None:
    gaps = np.where(np.arange(600) % 7, 1, 3)
    states = np.full(600, -1)
    states[300:330] = 2
    path = model.predict(RETURNS, min_duration=10, jump_penalty=1.0, gaps=gaps, states=states)
    assert (path[300:330] == 2).all() and min(stays(path)[1:-1]) >= 10


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"min_duration": 0}, "min_duration to be at least 1, got 0"),
        ({"min_duration": 2.5}, "min_duration to be an integer, got 2.5"),
        ({"jump_penalty": -1.0}, "jump_penalty to be a non-negative finite number, got -1.0"),
        ({"jump_penalty": np.nan}, "jump_penalty to be a non-negative finite number"),
    ],
)
def test_wrong_arguments(model: RegimeModel, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.predict(RETURNS, **arguments)


def test_a_stay_that_no_data_hold_is_as_long_as_the_data(model: RegimeModel) -> None:
    rows = RETURNS[:50]
    longest = model.predict(rows, min_duration=50)
    for least in (51, 10**15):
        assert (model.predict(rows, min_duration=least) == longest).all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("penalty", [1e5, 1e39])
def test_a_large_penalty_of_changes_that_must_be_leaves_their_order(
    dtype: str, penalty: float
) -> None:
    matrix = np.array([[0.0, 0.8, 0.2], [0.2, 0.0, 0.8], [0.8, 0.2, 0.0]])
    ring = RegimeModel.from_parameters(
        None, matrix, np.zeros(3), np.ones(3), covariance_type="diag", dtype=dtype
    )
    rows = np.zeros((8, 1))
    path = ring.predict(rows, start=[1.0, 0.0, 0.0])
    assert path.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    if penalty == 1e39:  # beyond the digits of float64 only the possible changes are told apart
        assert (np.diff(ring.predict(rows, jump_penalty=penalty)) != 0).all()
        return
    assert (ring.predict(rows, start=[1.0, 0.0, 0.0], jump_penalty=penalty) == path).all()
