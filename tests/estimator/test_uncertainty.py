"""Standard errors and confidence intervals of RegimeModel."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyro
import pytest
import torch

from pyro_regimes import RegimeModel
from pyro_regimes.estimator import ParameterErrors
from pyro_regimes.estimator.parameter_errors import by_name
from tests import seeds
from tests.estimator.emission_cases import CASES, Case
from tests.infer.test_published_regimes import column
from tests.infer.test_uncertainty import hessian

GAUSSIAN = CASES[0]
(POISSON,) = [case for case in CASES if case.name == "poisson-full"]
NUMBERS = ["estimate", "standard error", "lower", "upper"]


def separated(num_steps: int = 400, seed: int = 0) -> np.ndarray:
    """Two series with two regimes that are easy to tell apart."""
    true = RegimeModel.from_parameters(
        [0.5, 0.5], [[0.95, 0.05], [0.1, 0.9]], [[0.0, 1.0], [4.0, -2.0]],
        [np.eye(2), [[2.0, 0.5], [0.5, 1.0]]],
    )  # fmt: skip
    return true.sample(num_steps, random_state=seeds.rng(seed))[0]


def fitted(x: Any, **settings: Any) -> RegimeModel:
    own: dict[str, Any] = dict(n_init=2, random_state=0, tol=1e-9, max_iter=500)
    beside = ("lengths", "states", "sample_weight", "gaps")
    fit = {name: settings.pop(name) for name in beside if name in settings}
    return RegimeModel(2, **(own | settings)).fit(x, **fit)


def free_names(case: Case) -> list[tuple[str, tuple[int, ...]]]:
    """The entries of the attributes that move on their own, with a stationary start."""
    found: list[tuple[str, tuple[int, ...]]] = [
        ("transition_matrix", (0, 1)), ("transition_matrix", (1, 0))
    ]  # fmt: skip
    for name, value in case.values.items():
        for index in np.ndindex(value.shape):
            if name != "covariances" or index[-2] >= index[-1]:
                found.append((name, index))
    return found


@pytest.mark.parametrize(
    "case", [pytest.param(GAUSSIAN, marks=pytest.mark.slow), POISSON], ids=["gaussian", "poisson"]
)
def test_covariances_are_those_of_a_finite_difference_hessian(case):
    x = case.sample(1, 80)[0]
    model = case.true(initial="stationary")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the true parameters are no maximum of x
        errors = model.standard_errors(x)
    places = free_names(case)

    def value(u: np.ndarray) -> float:
        values = {"transition_matrix": model.transition_matrix_.copy()}
        values |= {name: np.array(each) for name, each in case.values.items()}
        for (name, index), step in zip(places, u, strict=True):
            values[name][index] += step
            if name == "transition_matrix":
                values[name][index[0], index[0]] -= step
            elif name == "covariances" and index[-2] != index[-1]:
                values[name][(index[0], index[2], index[1])] += step
        matrix = values.pop("transition_matrix")
        other = RegimeModel.from_parameters(
            None, matrix, emission=case.emission, initial="stationary", **values
        )
        return case.score(x, other)

    at = [errors.names.index(f"{n}[{', '.join(map(str, i))}]") for n, i in places]
    covariance = errors.covariance[np.ix_(at, at)]
    scale = np.sqrt(np.diagonal(covariance)) / 3
    expected = np.linalg.inv(-hessian(value, scale))
    relative = np.outer(scale, scale)
    np.testing.assert_allclose(covariance / relative, expected / relative, rtol=0, atol=2e-4)


QUICK = ("gaussian-full", "poisson-full", "columns-full")


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.name, marks=[pytest.mark.slow] * (c.name not in QUICK)) for c in CASES],
)
def test_intervals_of_every_emission(case):
    x = case.sample(2, 500)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = case.model(initial="stationary", tol=1e-8, max_iter=1000, n_init=2).fit(x)
        table = model.conf_int(x).to_frame()
        errors = model.standard_errors(x)
    assert list(table.columns) == NUMBERS
    assert table.index.names == ["property", "of", "regime"]
    assert table.index.is_unique
    every = table.to_numpy()
    if not errors.notes:
        assert np.isfinite(every).all()
    known = np.isfinite(every).all(1)
    assert (table["lower"][known] <= table["estimate"][known]).all()
    assert (table["estimate"][known] <= table["upper"][known]).all()
    shares = table[table.index.get_level_values("property").str.contains("transition|share")]
    bounds = shares[["lower", "upper"]].dropna()
    assert ((bounds > 0) & (bounds < 1)).all().all()
    assert (table.loc["expected duration"]["lower"].dropna() >= 1).all()
    for name, value in errors.standard_errors.items():
        assert value.shape == getattr(model, f"{name}_").shape


@pytest.mark.filterwarnings("ignore:Column 0 of X looks like a level")
def test_the_printed_standard_errors_of_the_federal_funds_model():
    x = column("fedfunds.csv", "fedfunds").numpy()[:, None]
    model = fitted(x, initial="stationary", covariance_type="tied", order_by="mean")
    errors = model.standard_errors(x)
    low = int(model.means_.argmin())
    order = [low, 1 - low]
    assert errors.notes == []
    found = errors.standard_errors
    # regularization adds a millionth to the variance
    assert found["means"][order, 0] == pytest.approx([0.1767083, 0.2999889], rel=1e-4)
    assert found["transition_matrix"][order, low] == pytest.approx([0.0104002, 0.0268434], rel=1e-4)


def test_intervals_are_symmetric_on_their_scales():
    x = separated()
    model = fitted(x, initial="stationary")
    table = model.conf_int(x, level=0.9).to_frame()
    z = 1.6448536269514722
    for kind, forward, slope in (
        ("means", lambda v: v, lambda v: 1.0),
        ("annualised volatility", np.log, lambda v: 1 / v),
        ("stationary share", lambda p: np.log(p / (1 - p)), lambda p: 1 / (p * (1 - p))),
        ("expected duration", lambda d: np.log(d - 1), lambda d: 1 / (d - 1)),
    ):
        rows = table.loc[kind]
        half = z * rows["standard error"] * slope(rows["estimate"])
        for end, sign in (("lower", -1), ("upper", 1)):
            np.testing.assert_allclose(
                forward(rows[end]), forward(rows["estimate"]) + sign * half, rtol=1e-9
            )
    matrix = model.transition_matrix_
    durations = table.loc["expected duration"]
    assert durations["estimate"].to_numpy() == pytest.approx(1 / (1 - np.diagonal(matrix)))
    stays = model.standard_errors(x).standard_errors["transition_matrix"].diagonal()
    assert durations["standard error"].to_numpy() == pytest.approx(
        stays / (1 - np.diagonal(matrix)) ** 2
    )
    annual = table.loc["annualised mean"].to_numpy()
    assert annual == pytest.approx(252 * table.loc["means"].to_numpy())


def test_units_of_the_data_do_not_matter():
    x = separated()
    factors, shift = np.array([1e-4, 1e5]), np.array([1e-3, -3e6])
    one = fitted(x, initial="stationary")
    errors = one.standard_errors(x).standard_errors
    moved = x * factors + shift
    other = fitted(moved, initial="stationary").standard_errors(moved).standard_errors
    assert other["means"] == pytest.approx(errors["means"] * factors, rel=1e-4)
    squares = np.outer(factors, factors)
    assert other["covariances"] == pytest.approx(errors["covariances"] * squares, rel=1e-4)
    assert other["transition_matrix"] == pytest.approx(errors["transition_matrix"], rel=1e-4)


def test_what_a_fit_holds_has_no_error():
    x = separated()
    means = [[0.0, 1.0], [4.0, -2.0]]
    model = fitted(x, init_params={"means": means}, fixed=["means"], initial="uniform")
    errors = model.standard_errors(x)
    assert errors.notes == []
    assert (errors.standard_errors["means"] == 0).all()
    assert (errors.standard_errors["initial_probs"] == 0).all()
    assert (errors.standard_errors["covariances"] > 0).all()
    table = model.conf_int(x).to_frame().loc["means"]
    assert (table["lower"] == table["estimate"]).all() and (table["standard error"] == 0).all()
    drawn = model.conf_int(x, method="bootstrap", n_bootstrap=5).to_frame().loc["means"]
    assert (drawn["lower"] == drawn["upper"]).all()


def test_forbidden_transitions_have_no_error_and_are_not_named():
    mask = [[True, True, False], [False, True, True], [True, False, True]]
    true = RegimeModel.from_parameters(
        None, [[0.9, 0.1, 0], [0, 0.9, 0.1], [0.1, 0, 0.9]], [[0.0], [4.0], [9.0]],
        np.ones((3, 1, 1)), initial="stationary",
    )  # fmt: skip
    x = true.sample(400, random_state=seeds.rng(4))[0]
    model = RegimeModel(
        3, transition_mask=mask, initial="stationary", tol=1e-9, n_init=3, random_state=0
    ).fit(x)
    errors = model.standard_errors(x)
    assert errors.notes == []
    of = errors.standard_errors["transition_matrix"]
    assert (of[~np.array(mask)] == 0).all() and (of[np.array(mask)] > 0).all()


def test_a_first_regime_that_is_certain_is_named():
    x = separated()
    model = fitted(x)
    errors = model.standard_errors(x)
    assert errors.notes == [
        "on a bound, without a standard error: initial_probs[0], initial_probs[1]"
    ]
    assert np.isnan(errors.standard_errors["initial_probs"]).all()
    table = model.conf_int(x).to_frame()
    assert table.loc["initial probability"].drop(columns="estimate").isna().all().all()
    assert table.drop("initial probability", level="property").notna().all().all()


def test_a_weight_of_two_is_the_sequence_twice():
    parts = [separated(60, seed) for seed in range(4)]
    weights = [2, 1, 2, 1]
    twice = [*parts, parts[0], parts[2]]
    model = fitted(twice, initial="stationary")
    one = model.standard_errors(twice)
    two = model.standard_errors(parts, sample_weight=weights)
    np.testing.assert_allclose(one.covariance, two.covariance, rtol=1e-6, atol=1e-12)
    with pytest.raises(ValueError, match="expected no sample_weight for method='sandwich'"):
        model.standard_errors(parts, sample_weight=weights, method="sandwich")


def test_gaps_are_missing_rows():
    x = separated(200)
    gaps = np.ones(200, np.int64)
    gaps[[20, 90]] = [3, 2]
    long = np.insert(x, [20, 20, 90], np.nan, axis=0)
    model = fitted(long, initial="stationary")
    one, two = model.standard_errors(long), model.standard_errors(x, gaps=gaps)
    np.testing.assert_allclose(one.covariance, two.covariance, rtol=1e-6, atol=1e-12)
    table = model.conf_int(x, gaps=gaps, method="bootstrap", n_bootstrap=20).to_frame()
    assert table.loc["means"].notna().all().all()


def test_missing_values_widen_the_intervals():
    x = separated()
    gaps = x.copy()
    gaps[::2, 1] = np.nan
    model = fitted(x, initial="stationary")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of rows that are not those of the fit
        one, two = (model.standard_errors(each).standard_errors["means"] for each in (x, gaps))
    ratio = two / one
    assert (ratio[:, 1] > 1.2).all() and (ratio[:, 0] < 1.2).all()


def test_known_states_give_the_errors_of_separate_samples():
    x = separated()
    states = (x[:, 0] > 2).astype(int)
    model = fitted(x, states=states)
    errors = model.standard_errors(x, states=states).standard_errors
    for regime in (0, 1):
        own = x[states == regime]
        assert errors["means"][regime] == pytest.approx(own.std(0) / len(own) ** 0.5, rel=1e-5)
        moves = states[1:][states[:-1] == regime]
        p = (moves != regime).mean()
        assert errors["transition_matrix"][regime] == pytest.approx(
            [(p * (1 - p) / len(moves)) ** 0.5] * 2, rel=1e-5
        )


def test_a_prior_narrows_the_errors():
    x = separated()
    model = fitted(x, initial="uniform", stickiness=50.0)
    errors = model.standard_errors(x)
    assert errors.notes == []
    counts = model.standard_errors(x).standard_errors["transition_matrix"]
    plain = fitted(x, initial="uniform").standard_errors(x).standard_errors["transition_matrix"]
    assert (counts < plain).all()


def test_all_intervals_are_printed_within_a_line_of_80_letters():
    pandas = pytest.importorskip("pandas")
    names = ["InfoTech", "Materials"]
    frame = pandas.DataFrame(separated(200), columns=names)
    found = fitted(frame, initial="stationary").conf_int(frame, level=0.9)
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80 and "..." not in str(found)
    assert lines[0] == "Confidence intervals, 90 %, method 'observed'"
    table = found.to_frame()
    assert len(lines) == 3 + len(table) + table.index.get_level_values("property").nunique()
    start = lines.index("annualised volatility")
    for line, of, regime in zip(lines[start + 1 :], names, ["Calm", "Calm"]):
        label, *numbers = line.rsplit(maxsplit=4)
        assert label == f"  {of}, {regime}"
        wanted = table.loc["annualised volatility", of, regime]
        assert [float(number) for number in numbers] == pytest.approx([*wanted], rel=2e-2)
    assert "  to Turbulent" in "\n".join(lines)
    page = found._repr_html_()
    assert page.count("<tr>") == len(lines) - 2
    assert "InfoTech, Calm" in page
    narrow = found.to_string(60).splitlines()
    assert max(map(len, narrow)) <= 60


def test_the_bootstrap_is_near_the_asymptotic_errors():
    x = separated(500)
    model = fitted(x, initial="stationary")
    one = model.conf_int(x).to_frame()
    two = model.conf_int(x, method="bootstrap", n_bootstrap=200, random_state=seeds.seed(1))
    two = two.to_frame()
    assert (two.index == one.index).all() and (two["estimate"] == one["estimate"]).all()
    rows = ["means", "covariances", "transition from Calm", "annualised volatility"]
    ratio = two.loc[rows]["standard error"] / one.loc[rows]["standard error"]
    # 200 draws have a relative error of a twentieth; five of these
    assert ratio.between(0.75, 1.25).all()


def test_a_bootstrap_refits_in_one_batch_what_single_fits_find():
    from pyro_regimes.estimator.bootstrap import bootstrap
    from pyro_regimes.estimator.replicates import simulate
    from pyro_regimes.estimator.validation import read_settings

    x = separated(300)
    x[40:60, 0] = np.nan
    parts = [150, 150]
    model = fitted(x, lengths=parts, initial="stationary")
    hmm = model._hmm()
    found = bootstrap(hmm, model._held(), read_settings(model), x, parts, 3, seeds.rng(2))
    rng = seeds.rng(2)
    for number in range(3):
        own = simulate(hmm.parameters, hmm.spec, x, parts, rng)
        assert np.isnan(own[40:60, 0]).all() and np.isnan(own).sum() == 20
        alone = fitted(own, lengths=parts, initial="stationary", init_params=model)
        expected = dict(by_name(alone._hmm().parameters))
        for name, value in by_name(found.parameters.select(number)).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-4)


def test_probabilities_averaged_over_the_parameters():
    x = separated()
    model = fitted(x)
    errors = model.standard_errors(x)
    arrays = {name: value for name, value in vars(model).items() if isinstance(value, np.ndarray)}
    before = {name: value.copy() for name, value in arrays.items()}
    found = model.average_proba(x, errors, n_draws=20, random_state=3)
    assert found.shape == (400, 2)
    np.testing.assert_allclose(found.sum(1), 1.0)
    seed = int(np.random.RandomState(3).randint(2**31))
    total = np.zeros((400, 2))
    for parameters in errors.draw(20, seed):
        matrix, emission = parameters.transition_matrix, parameters.emission
        drawn = RegimeModel.from_parameters(
            parameters.initial_probs, matrix, emission["means"], emission["covariances"]
        )
        total += drawn.predict_proba(x, start="fitted") / 20
    np.testing.assert_allclose(found, total, atol=1e-9)
    np.testing.assert_allclose(found, model.predict_proba(x), atol=0.5)
    for name, value in before.items():
        assert np.array_equal(value, getattr(model, name)), name
    filtered = model.average_proba(x, errors, kind="filtered", n_draws=2, random_state=3)
    assert not np.allclose(filtered, found)


def test_nothing_of_the_callers_changes():
    x = separated()
    model = fitted(x, initial="stationary")
    pyro.param("loc", torch.zeros(1))
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    copy = x.copy()
    with torch.inference_mode():
        model.standard_errors(x)
        model.conf_int(x, method="bootstrap", n_bootstrap=3)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert list(pyro.get_param_store().keys()) == ["loc"]
    assert np.array_equal(x, copy)


def test_other_data_than_those_of_the_fit_are_said():
    x = separated()
    model = fitted(x, initial="stationary")
    with pytest.warns(UserWarning, match="Give the rows of the fit"):
        model.standard_errors(x[:200] + 0.5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"level": 95}, "expected level to be a number between 0 and 1, got 95"),
        ({"level": "a"}, "expected level to be a number between 0 and 1"),
        ({"method": "profile"}, "expected method to be one of 'observed', 'sandwich', 'bootstrap'"),
        ({"method": "bootstrap", "n_bootstrap": 1}, "expected n_bootstrap to be at least 2, got 1"),
        ({"method": "bootstrap", "states": [0] * 100}, "expected no states for method='bootstrap'"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    x = separated(100)
    model = fitted(x)
    with pytest.raises(ValueError, match=message):
        model.conf_int(x, **change)
    with pytest.raises(ValueError, match="expected errors from standard_errors, got dict"):
        model.average_proba(x, {})
    assert isinstance(model.standard_errors(x), ParameterErrors)


def test_errors_of_another_model_are_refused():
    x = separated()
    model, other = fitted(x), fitted(x + 1.0)
    with pytest.raises(ValueError, match="expected errors of the parameters of this model"):
        other.average_proba(x, model.standard_errors(x))


def test_labels_are_of_what_a_dim_is_though_its_size_is_that_of_another():
    """K = 2 regimes of M = 2 components of D = 2 series, or of C = 2 categories."""
    pandas = pytest.importorskip("pandas")
    rng, names = seeds.rng(31), ["SPY", "TLT"]

    def labels(x: Any, attribute: str, **settings: Any) -> list[tuple[str, str]]:
        frame = pandas.DataFrame(x, columns=names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = fitted(frame, max_iter=5, **settings)
            return model.conf_int(frame).to_frame().loc[attribute].index.tolist()

    x = separated(150)
    mixture = {"emission": "gaussian_mixture"}
    assert [of for of, _ in labels(x, "weights", **mixture)] == ["0", "1"] * 2
    assert [of for of, _ in labels(x, "means", **mixture)] == [
        "0, SPY", "0, TLT", "1, SPY", "1, TLT"
    ] * 2  # fmt: skip
    counts = rng.randint(0, 2, (150, 2))
    assert [of for of, _ in labels(counts, "probabilities", emission="categorical")] == [
        "SPY, 0", "SPY, 1", "TLT, 0", "TLT, 1"
    ] * 2  # fmt: skip
    tied = labels(x, "covariances", covariance_type="tied")
    assert tied == [("SPY, SPY", "all"), ("TLT, SPY", "all"), ("TLT, TLT", "all")]
    each = {"emission": {"SPY": "gaussian", "TLT": "poisson"}}
    mixed = np.stack([x[:, 0], rng.poisson(3, 150)], 1)
    assert [of for of, _ in labels(mixed, "poisson rates", **each)] == ["TLT"] * 2


HELD = {"init_params": {"means": np.array([[0.0, 1.0], [4.0, -2.0]])}, "fixed": ["means"]}


@pytest.mark.parametrize("held", [{}, HELD], ids=["initial", "means"])
def test_the_sandwich_of_a_model_with_parts_that_are_held(held):
    x = separated(240)
    for lengths, kind in (([120, 120], "row"), ([12] * 20, "sequence")):
        model = fitted(x, lengths=lengths, covariance_type="spherical", initial="uniform", **held)
        found = model.standard_errors(x, lengths=lengths, method="sandwich")
        assert found.method == f"sandwich, by {kind}"
        observed = model.standard_errors(x, lengths=lengths).standard_errors
        for name, value in found.standard_errors.items():
            assert ((value > 0) == (observed[name] > 0)).all()
            assert (value <= 10 * observed[name]).all()


def test_fitted_arrays_may_be_read_only():
    """As those of a model that joblib maps from a file."""
    x = separated(100)
    model = fitted(x)
    for value in vars(model).values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    assert np.isfinite(model.standard_errors(x).covariance).any()
    assert model.forecast(x, 1, start="stationary").quantile(0.5).shape == (1, 2)


def test_another_default_device_of_torch_changes_nothing():
    x = separated(100)
    model = fitted(x)
    errors = model.standard_errors(x)

    def found() -> list[np.ndarray]:
        return [
            model.conf_int(x).to_frame().to_numpy(),
            model.average_proba(x, errors, n_draws=2, random_state=0),
            errors.delta(lambda parameters: parameters.emission["means"].ravel()),
        ]

    expected = found()
    with torch.device("meta"):
        changed = found()
    for one, other in zip(expected, changed, strict=True):
        np.testing.assert_array_equal(one, other)


def test_errors_do_not_depend_on_the_level_of_the_data():
    """Though the spread is 1e-11 of it."""
    x = separated(300)
    unit, level = 2.0**-10, 2.0**27
    moved = unit * np.round(x * 2**15) / 2**15 + level  # without rounding
    errors, intervals = [], []
    for data in (moved - level, moved):
        model = fitted(data, regularization=0.0, periods_per_year=1)  # levels have no year
        errors.append(model.standard_errors(data).standard_errors)
        intervals.append(model.conf_int(data).to_frame())
    for name, value in errors[0].items():
        np.testing.assert_allclose(errors[1][name], value, rtol=1e-3)
    np.testing.assert_allclose(
        intervals[1]["standard error"], intervals[0]["standard error"], rtol=1e-3
    )


def test_a_bootstrap_needs_values_in_every_column():
    x = seeds.rng(8).normal(size=(60, 2))
    model = RegimeModel(1).fit(x)
    x[:, 1] = np.nan
    with pytest.raises(ValueError, match="every column of X to have some values.*column 1"):
        model.conf_int(x, method="bootstrap", n_bootstrap=3)
