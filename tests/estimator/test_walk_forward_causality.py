"""No row of a walk depends on later rows: other emissions than the Gaussian, and missing values."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_regimes import RegimeModel
from pyro_regimes.estimator import WalkForward, walk_forward


def draws(emission: str, holes: float = 0.0) -> np.ndarray:
    """A calm and a wild regime, or a small and a large rate of counts; the same in every run."""
    rng = np.random.RandomState(0)
    wild = (np.cumsum(rng.random_sample(140) < 0.05) % 2)[:, None]
    if emission == "poisson":
        return rng.poisson(2.0 + 8.0 * wild, (140, 2)).astype(float)
    data = rng.standard_normal((140, 2)) * (1 + 2 * wild) + 0.2 - 0.4 * wild
    return np.where(rng.random_sample(data.shape) < holes, np.nan, data)


DATA = {
    ("student_t", "full"): draws("student_t"),
    ("student_t", "diag"): draws("student_t", 0.05),
    ("poisson", "full"): draws("poisson"),
    ("gaussian", "diag"): draws("gaussian", 0.05),
}


def walk(case: tuple[str, str], data: np.ndarray) -> WalkForward:
    emission, kind = case
    model = RegimeModel(
        2, emission=emission, covariance_type=kind, n_init=2, max_iter=15, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 15 iterations are few
        return walk_forward(model, data, min_train=60, refit_every=25, horizon=2)


@pytest.fixture(scope="module")
def walks() -> dict[tuple[str, str], WalkForward]:
    return {case: walk(case, data) for case, data in DATA.items()}


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=True)


@pytest.mark.parametrize("case", DATA, ids=" ".join)
@given(
    cut=st.integers(60, 138),
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["another order", "missing in places", "large"]),
)
@settings(max_examples=5, deadline=None)
def test_rows_up_to_a_cut_do_not_depend_on_those_after_it_to_the_bit(
    walks: dict[tuple[str, str], WalkForward],
    case: tuple[str, str],
    cut: int,
    seed: int,
    kind: str,
) -> None:
    rng, data = np.random.RandomState(seed), DATA[case].copy()
    later = data[cut + 1 :]
    rng.shuffle(later)
    if kind == "missing in places":
        later[rng.random_sample(later.shape) < 0.3] = np.nan
    elif kind == "large":
        later *= 1000
    before, after, num_rows = walks[case], walk(case, data), cut + 1 - 60
    for field, value in before.walk._asdict().items():
        assert same(value[:num_rows], getattr(after.walk, field)[:num_rows]), field
    for one, two in zip(before.fits, after.fits, strict=True):
        if one.window.end <= cut + 1:
            assert one.model is not None and two.model is not None
            for name in [*one.model._fitted_spec().attributes, "transition_matrix"]:
                assert same(getattr(one.model, f"{name}_"), getattr(two.model, f"{name}_")), name
            assert one.start == two.start and one.problems == two.problems
