"""Bad input: each with the message that it gives."""

from __future__ import annotations

import copy
import warnings
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from pyro_regimes.estimator import RegimeModel
from pyro_regimes.estimator.spec import COVARIANCE_TYPES, find_spec
from tests import seeds
from tests.regimes import simulate

GOOD = seeds.rng(0).standard_normal((30, 2))
CONSTANT = GOOD * [1.0, 0.0] + [0.0, 3.0]
COLLINEAR = GOOD[:, [0, 1, 0]] + GOOD[:, [1, 0, 0]]
BAD_PARAMETERS = [
    (dict(n_regimes=0), "expected n_regimes to be at least 1, got 0"),
    (dict(n_regimes=2.0), "expected n_regimes to be an integer, got 2.0"),
    (dict(n_regimes=True), "expected n_regimes to be an integer, got True"),
    (dict(covariance_type="round"), "expected covariance_type to be one of 'full', .* got 'round'"),
    (dict(covariance_type=None), "expected covariance_type to be one of .* got None"),
    (dict(n_init=0), "expected n_init to be at least 1, got 0"),
    (dict(max_iter=-1), "expected max_iter to be at least 0, got -1"),
    (dict(tol=0), "expected tol to be a positive finite number, got 0"),
    (dict(tol=float("nan")), "expected tol to be a positive finite number, got nan"),
    (dict(regularization=-1.0), "expected regularization to be a non-negative finite number"),
    (dict(regularization="1"), "expected regularization to be a non-negative .* got '1'"),
    (dict(min_eigenvalue=float("inf")), "expected min_eigenvalue to be a non-negative finite"),
    (dict(inference="mcmc"), "expected inference to be one of 'em', 'svi', got 'mcmc'"),
    (
        dict(order_by="name"),
        "order_by to be one of 'volatility', 'mean' or a fitted model, got 'name'",
    ),
    (dict(periods_per_year=0), "expected periods_per_year to be a positive finite number, got 0"),
    (dict(dtype="float16"), "expected dtype to be 'float32' or 'float64', got 'float16'"),
    (dict(dtype=torch.int64), "expected dtype to be 'float32' or 'float64', got torch.int64"),
    (dict(device="abacus"), "expected device to be a torch device, got 'abacus'"),
    (dict(random_state="dice"), "expected random_state to be an integer, got 'dice'"),
    (dict(random_state=2**32), "expected random_state to be below"),
]
BAD_DATA = [
    ((GOOD[:2],), {}, "at least 3 observations for n_regimes=3, got 2 samples"),
    ((GOOD[:1],), {}, "got 1 sample"),
    ((GOOD[:0],), {}, "Found array with 0 sample"),
    ((GOOD[:, 0],), {}, "Expected 2D array, got 1D"),
    ((GOOD[None],), {}, "Found array with dim 3|expected X"),
    ((np.where(GOOD == GOOD.max(), np.inf, GOOD),), {}, "contains infinity"),
    (([["a", "b"]] * 30,), {}, "could not convert string|dtype='numeric'|Unable to convert"),
    ((GOOD * 1e200,), {}, "finite variance"),
    ((np.repeat(GOOD[:2], 9, axis=0),), {}, "at least n_regimes=3 distinct observations, got 2"),
    ((CONSTANT,), {}, "every column of X to vary, got the constant 3.0 in column 1"),
    ((pd.DataFrame(CONSTANT, columns=["a", "b"]),), {}, "constant 3.0 in column 'b'"),
    ((COLLINEAR,), {}, "linearly independent .* combination of the columns 0, 1 that does not"),
    ((np.eye(4),), {}, "more observations than the 4 columns of X for .*='full', got 4"),
    (
        (GOOD,),
        dict(lengths=[10, 10]),
        "expected lengths to sum to the 30 rows of X, got a sum of 20",
    ),
    ((GOOD,), dict(lengths=[31, -1]), "expected lengths to be a list of positive integers"),
    ((GOOD,), dict(lengths=[15.0, 15.0]), "expected lengths to be a list of positive integers"),
    (
        (GOOD,),
        dict(lengths=np.ma.masked_array([15, 15], [0, 1])),
        "expected lengths to be a list of positive integers",
    ),
    ((GOOD,), dict(lengths=[]), "expected lengths to be a list of positive integers"),
    ((GOOD,), dict(lengths=30), "expected lengths to be a list of positive integers"),
    (([GOOD, GOOD],), dict(lengths=[30, 30]), "expected lengths to be None where X is a list"),
    (([GOOD, GOOD[:, :1]],), {}, "X has 1 features, but RegimeModel is expecting 2"),
]


@pytest.fixture(scope="module")
def fitted() -> RegimeModel:
    return RegimeModel(2, n_init=1, tol=1.0, random_state=0).fit(GOOD)


@pytest.mark.parametrize("parameters, message", BAD_PARAMETERS)
def test_bad_parameters(parameters, message):
    model = RegimeModel(**parameters)  # refused by fit, not before
    with pytest.raises(ValueError, match=message):
        model.fit(GOOD)


@pytest.mark.parametrize("arguments, keywords, message", BAD_DATA)
def test_bad_data(arguments, keywords, message):
    with pytest.raises(ValueError, match=message):
        RegimeModel(max_iter=2).fit(*arguments, **keywords)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.predict_proba(GOOD, kind="predicted"), "expected kind to be one of"),
        (lambda m: m.decode(GOOD, algorithm="map"), "expected algorithm to be one of"),
        (lambda m: m.predict(GOOD[:, :1]), "X has 1 features, but RegimeModel is expecting 2"),
        (lambda m: m.score(GOOD, lengths=[3]), "expected lengths to sum to the 30 rows"),
        (lambda m: m.bic(GOOD, lengths=[3]), "expected lengths to sum to the 30 rows"),
        (lambda m: m.sample(0), "expected n_samples to be at least 1, got 0"),
        (lambda m: m.sample(2.5), "expected n_samples to be an integer, got 2.5"),
        (lambda m: m.sample(2, random_state=-1), "expected random_state to be at least 0"),
        (lambda m: m.forecast(GOOD, 0), "expected n_steps to be at least 1, got 0"),
        (lambda m: m.forecast([GOOD, GOOD], 1), "expected X to be one sequence, got 2"),
    ],
)
def test_bad_calls(fitted, call, message):
    with pytest.raises(ValueError, match=message):
        call(fitted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_a_device_that_is_not_there(fitted):
    message = "expected device to be available to torch, got 'cuda'"
    with pytest.raises(ValueError, match=message):
        RegimeModel(2, device="cuda").fit(GOOD)
    with pytest.raises(ValueError, match=message):
        copy.deepcopy(fitted).set_params(device="cuda").score(GOOD)


def test_nothing_works_before_the_fit():
    model = RegimeModel()
    for call in (
        lambda: model.predict(GOOD),
        lambda: model.predict_proba(GOOD),
        lambda: model.score(GOOD),
        lambda: model.aic(GOOD),
        lambda: model.bic(GOOD),
        lambda: model.sample(),
        lambda: model.forecast(GOOD, 1),
        lambda: model.summary(),
        lambda: model.save("nowhere"),
    ):
        with pytest.raises(NotFittedError):
            call()
    for name in ("model", "n_parameters_"):
        assert not hasattr(model, name)


def test_data_without_spread_are_fitted_where_their_type_or_a_floor_allows_it():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        settings = dict(n_regimes=2, n_init=2, max_iter=3, random_state=0)
        RegimeModel(covariance_type="diag", **settings).fit(COLLINEAR)
        RegimeModel(covariance_type="spherical", **settings).fit(CONSTANT)
        for covariance_type in COVARIANCE_TYPES:
            model = RegimeModel(
                covariance_type=covariance_type, min_eigenvalue=0.01, regularization=0.0, **settings
            )
            for x in (CONSTANT, COLLINEAR):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", ".* binds: without it, the variance")
                    fitted = {"covariances": model.fit(x).covariances_}
                (least,) = find_spec(covariance_type).least_variances(fitted)[None].min(-1)
                assert least >= 0.01 * (1 - 1e-9)
        with pytest.warns(UserWarning, match="binds: without it"):
            RegimeModel(1, min_eigenvalue=0.01, max_iter=2).fit(np.ones((5, 1)))


def test_min_eigenvalue_is_in_the_datas_units():
    x, _ = simulate("full", 200)
    model = RegimeModel(
        2, n_init=1, tol=0.1, min_eigenvalue=20.0, regularization=0.0, random_state=0
    )
    with pytest.warns(UserWarning, match="min_eigenvalue=20 binds: without it, the variance of"):
        model.fit(10 + 3 * x)
    values = np.linalg.eigvalsh(model.covariances_)
    np.testing.assert_allclose(values.min(), 20.0, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_collapsed_covariance_can_still_be_inverted(covariance_type, dtype):
    z = (GOOD - GOOD.mean(0)) / GOOD.std(0) * [1.0, 1e-3]
    least = find_spec(covariance_type).collapsed_variance(z, dtype)
    assert 0 < least <= 2e-5
    torch.linalg.cholesky(torch.diag(torch.tensor([2.0, least], dtype=dtype)))


def test_a_callback_that_cannot_be_called_is_refused_first():
    x, _ = simulate("full", 40)
    with pytest.raises(ValueError, match="callback to be a function or None, got 3"):
        RegimeModel(2, max_iter=0).fit(x, callback=3)


HUGE, VAST = 10**400, 10**5000  # no float holds these, and Python does not print the second


@pytest.mark.parametrize("number", [HUGE, -HUGE, VAST, Fraction(HUGE)], ids=lambda _: "")
@pytest.mark.parametrize(
    "name",
    [
        "n_regimes", "n_init", "max_iter", "tol", "regularization", "min_eigenvalue",
        "periods_per_year", "random_state", "acceleration", "order_by", "dtype", "device",
        "covariance_type",
    ],
)  # fmt: skip
def test_numbers_that_no_float_holds_are_refused_by_name(name, number):
    with pytest.raises(ValueError, match=f"expected {name} to be") as caught:
        RegimeModel(**{name: number}).fit(GOOD)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "name, call",
    [
        ("X", lambda m: m.predict([[HUGE, 1], [2, 3]])),
        ("X", lambda m: m.predict(np.array([[VAST, 1], [2, 3]], dtype=object))),
        ("X", lambda m: m.fit([np.array([[HUGE, 1]] * 30, dtype=object), GOOD])),
        ("lengths", lambda m: m.predict(GOOD, lengths=[HUGE])),
        ("lengths", lambda m: m.predict(GOOD, lengths=[VAST])),
        ("start", lambda m: m.predict(GOOD, start=[HUGE, 0])),
        ("start", lambda m: m.predict(GOOD, start=VAST)),
        ("after", lambda m: m.predict(GOOD, after=[VAST, 0])),
        ("n_steps", lambda m: m.forecast(GOOD, HUGE)),
        ("n_samples", lambda m: m.sample(VAST)),
        ("random_state", lambda m: m.sample(1, random_state=VAST)),
        ("device", lambda m: m.set_params(device="meta").predict(GOOD)),
        ("device", lambda m: m.set_params(device=torch.device("meta")).score(GOOD)),
        ("device", lambda m: RegimeModel(2, device="meta").fit(GOOD)),
        ("device", lambda m: RegimeModel(2, device="hpu").fit(GOOD)),
    ],
)
def test_wrong_calls_that_leaked_an_error_name_the_argument(fitted, name, call):
    with pytest.raises(ValueError, match=f"expected {name} to") as caught:
        call(copy.deepcopy(fitted))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int16"])
def test_lengths_of_any_integer_type(fitted, dtype):
    many = np.tile(GOOD, (10, 1))
    sizes = np.array([120, 120, 60], dtype=dtype)  # a sum of 300, which eight bits do not hold
    expected = fitted.score(many, lengths=[120, 120, 60])
    assert fitted.score(many, lengths=sizes) == expected
    assert fitted.score(many, lengths=torch.from_numpy(sizes)) == expected
    assert fitted.score(many, sizes) == expected
    with pytest.raises(ValueError, match="expected lengths to sum to the 44 rows .* sum of 300"):
        fitted.score(many[:44], lengths=sizes)


@pytest.mark.parametrize("dtype, sizes", [("uint64", [2**63, 2**63]), ("int64", [2**62] * 4)])
def test_lengths_that_wrap_around_are_refused(fitted, dtype, sizes):
    wrapping = np.array([*sizes, 30], dtype=dtype)
    with pytest.raises(ValueError, match=f"sum to the 30 rows of X, got a sum of {2**64 + 30}"):
        fitted.score(GOOD, lengths=wrapping)
