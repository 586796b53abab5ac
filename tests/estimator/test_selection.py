"""Selection of a model: the criteria by hand, what they choose, and what is said of failures."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.special import logsumexp, xlogy
from scipy.stats import multivariate_normal

from pyro_regimes import RegimeModel, select
from pyro_regimes.estimator import selection_result, validation
from pyro_regimes.estimator.candidates import Candidate, Family
from pyro_regimes.estimator.criteria import information_criteria
from pyro_regimes.estimator.held_out import held_out_scores
from pyro_regimes.estimator.likelihood_ratio import RatioTest
from tests import seeds
from tests.estimator.emission_cases import ALL, TRANSITIONS

MEANS = np.array([[0.5, 0.0], [-2.0, 3.0]])
COVARIANCES = np.array([[[1.0, 0.3], [0.3, 0.5]], [[9.0, -2.0], [-2.0, 16.0]]])


def true_model() -> RegimeModel:
    return RegimeModel.from_parameters(None, TRANSITIONS, MEANS, COVARIANCES)


def draw(seed: int, num_steps: int = 300) -> np.ndarray:
    return true_model().sample(num_steps, random_state=seeds.rng(seed))[0]


def test_criteria_by_hand():
    found = information_criteria(-100.0, 3, 20, 2.5)
    expected = (206.0, 206.0 + 24 / 16, 200 + 3 * math.log(20), 205 + 3 * math.log(20))
    assert found == pytest.approx(expected)
    assert information_criteria(-1.0, 19, 20, 0.0).aicc == math.inf


@pytest.mark.parametrize("sizes", [[6], [4, 2]])
def test_the_entropy_is_that_of_all_paths(sizes):
    x = draw(1, 6)
    x[2] = np.nan
    hmm = true_model()._hmm()
    initial, matrix = hmm.parameters.initial_probs, hmm.parameters.transition_matrix
    densities = np.stack(
        [multivariate_normal(m, c).logpdf(x) for m, c in zip(MEANS, COVARIANCES)], -1
    )
    densities[2] = 0.0
    firsts, joint = {0, *np.cumsum(sizes)}, []
    for path in itertools.product(range(2), repeat=6):
        steps = [
            initial[q] if t in firsts else matrix[path[t - 1], q] for t, q in enumerate(path)
        ]
        joint.append(np.log(steps).sum() + densities[range(6), path].sum())
    probs = np.exp(joint - logsumexp(joint))
    entropy = -xlogy(probs, probs).sum()
    assert hmm.path_entropy(x, sizes) == pytest.approx(entropy, rel=1e-9)


def test_a_candidate_is_the_model_of_a_fit_with_its_settings():
    x, settings = draw(2), {"n_init": 2, "random_state": 3, "max_iter": 30}
    found = select(x, (1, 2), covariance_type=("full", "tied"), **settings)
    alone = select(x, 2, covariance_type="tied", **settings)
    for each in found.candidates:
        kind = each.family.covariance_type
        model = RegimeModel(each.n_regimes, kind, **settings).fit(x)
        assert each.log_likelihood == model.log_likelihood_
        assert each.criteria.aic == model.aic() and each.criteria.bic == model.bic()
        assert each.n_parameters == model.n_parameters_
    assert alone.candidates[0].value("held_out") == found.candidates[3].value("held_out")


def test_the_criteria_find_regimes_far_apart():
    found = select(draw(4, 500), range(1, 4), n_init=3, random_state=seeds.seed(0))
    assert found.best() is found.best("icl") is found.candidates[1].model
    assert found.candidates[1].held_out > found.candidates[0].held_out
    assert found.best("held_out").n_regimes > 1


def test_a_held_out_block_is_scored_given_the_other_rows_by_a_fit_without_it():
    """By the public methods, with the block missing."""
    x, sizes = draw(5, 90), [60, 30]
    settings = {"n_init": 1, "max_iter": 20, "regularization": 0.0, "random_state": 0}
    (found,) = select(x, 1, lengths=sizes, folds=3, **settings).candidates
    for fold, block in enumerate(np.array_split(np.arange(90), 3)):
        rest = x.copy()
        rest[block] = np.nan
        kept = np.delete(x, block, 0)
        mean, covariance = kept.mean(0), np.cov(kept.T, bias=True)
        expected = multivariate_normal(mean, covariance).logpdf(x[block]).sum()
        assert found.block_scores[fold] == pytest.approx(expected, rel=1e-6)


def test_held_out_scores_of_several_regimes_are_those_of_the_public_methods():
    x = draw(6, 240)
    found = select(x, 2, folds=4, n_init=6, random_state=0, max_iter=5000, tol=1e-8)
    for fold, block in enumerate(np.array_split(np.arange(240), 4)):
        rest = x.copy()
        rest[block] = np.nan
        model = RegimeModel(2, n_init=8, random_state=1, max_iter=5000, tol=1e-8).fit(rest)
        start = "stationary" if fold == 0 else "fitted"
        expected = model.score(x, start=start) - model.score(rest, start=start)
        assert found.candidates[0].block_scores[fold] == pytest.approx(expected, abs=1e-2)


def test_no_row_of_a_block_is_seen_by_its_fit():
    """Other values in a block change the scores of other blocks, and of it as its density does."""
    x = draw(7, 120)
    other = x.copy()
    other[80:] = x[80:][::-1]  # so that the units of the computation stay
    own = validation.read_settings(RegimeModel(2, n_init=2, max_iter=20))
    spec, fits = true_model()._fitted_spec(), []
    for data in (x, other):
        rng = np.random.RandomState(0)
        fits.append(held_out_scores(data, [120], spec, own, 3, rng)[1])
    for one, two in zip(fits[0].parameters[:2], fits[1].parameters[:2]):
        np.testing.assert_allclose(one[2], two[2], rtol=1e-6)
        assert not np.allclose(one[0], two[0], rtol=1e-6)


@ALL
def test_one_regime_of_every_emission(case):
    x, _ = case.sample(8, 60)
    found = select(
        x, (1, 2), case.emission, case.covariance_type, n_init=1, folds=2, random_state=0,
        max_iter=10, **case.settings,
    )  # fmt: skip
    assert [each.error for each in found.candidates] == ["", ""]
    assert all(math.isfinite(each.value("icl")) for each in found.candidates)
    one = found.candidates[0]
    assert one.criteria.icl == pytest.approx(one.criteria.bic)


def test_the_test_of_one_regime_more():
    x = draw(9, 250)
    settings = {"n_init": 2, "folds": 0, "bootstrap": 9, "random_state": 0}
    found = select(x, (1, 2, 3), **settings)
    first, second, third = (each.ratio for each in found.candidates)
    models = [each.model for each in found.candidates]
    assert first.statistic == 2 * (models[1].history_[-1] - models[0].history_[-1])
    assert first.p_value == pytest.approx(0.1) and first.statistic > first.replicates.max()
    assert second.p_value == (1 + (second.replicates >= second.statistic).sum()) / 10
    assert third is None and found.best("p_value", level=0.5).n_regimes >= 2
    again = select(x, (1, 2), **settings).candidates[0].ratio
    assert (again.replicates == first.replicates).all()


@pytest.mark.slow
def test_the_ratio_of_one_regime_against_itself_has_uniform_p_values():
    """Data of one regime: the test keeps its level (20 data sets)."""
    rng, p_values = seeds.rng(10), []
    for each in range(20):
        x = rng.standard_normal((150, 1))
        found = select(x, (1, 2), n_init=2, folds=0, bootstrap=19, random_state=each)
        p_values.append(found.candidates[0].ratio.p_value)
    assert sum(p <= 0.1 for p in p_values) <= 8  # 2 expected; P < 1e-3
    assert min(p_values) >= 0.05 and np.mean(p_values) > 0.25


def test_missing_rows_do_not_count():
    x = draw(11, 200)
    x[50:60] = np.nan
    found = select(x, (1, 2), n_init=1, random_state=0, folds=4, bootstrap=3)
    for each in found.candidates:
        assert each.criteria.bic - each.criteria.aic == pytest.approx(
            each.n_parameters * (math.log(190) - 2)
        )
        assert math.isfinite(each.value("held_out"))
    assert "190 rows" in found.title


def test_a_candidate_that_fails_is_named_and_the_others_stay():
    x = np.repeat([[1.0, 0.0], [2.0, 5.0]], 20, axis=0)[seeds.rng(12).permutation(40)]
    found = select(x[:, :1], (1, 2, 3), n_init=2, folds=0, random_state=0)
    failed = found.candidates[2]
    assert failed.model is None and "3 distinct observations" in failed.error
    assert f"3 regimes (gaussian, full) not fitted: {failed.error}." in found.notes
    collapsed = found.candidates[1]
    assert collapsed.is_collapsed and "collapsed" in str(found)
    assert found.best("aic").n_regimes == 1
    assert math.isnan(found.to_frame().loc[2, "bic"])
    assert found.plot() is not None
    with pytest.raises(ValueError, match="no candidate can be fitted; 3 regimes"):
        select(x[:, :1], 3, folds=0)


def test_a_fold_that_cannot_be_fitted_is_named():
    x = draw(13, 40)
    x[:20, 1] = np.nan
    found = select(x, 1, folds=2)
    assert math.isnan(found.candidates[0].held_out)
    text = "no held-out score: expected values in every column with rows 20 to 39"
    assert any(text in note for note in found.notes)
    with pytest.raises(ValueError, match="value of held_out, got none; set folds in select"):
        found.best("held_out")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_regimes": "3"}, "n_regimes to be integers"),
        ({"n_regimes": (0, 1)}, "each of n_regimes to be at least 1, got 0"),
        ({"n_regimes": ()}, "n_regimes to hold at least one number"),
        ({"emission": "normal"}, "each emission to be one of 'gaussian'"),
        ({"emission": ()}, "at least one emission and one covariance_type"),
        ({"covariance_type": "ful"}, "each covariance_type to be one of"),
        ({"emission": "gaussian_mixture", "covariance_type": "tied"}, "one of full, diag"),
        ({"emission": ("gaussian", "poisson")}, "column 0 a density .* and a probability"),
        ({"emission": ("von_mises", "gaussian")}, "a density of an angle .* and a density"),
        ({"emission": ({0: "gaussian", 1: "poisson"}, "gaussian")}, "for column 1 a probability"),
        ({"emission": {0: "gaussian"}}, "family of each column"),
        ({"folds": 1}, "folds to be 0 or at least 2, got 1"),
        ({"folds": 40}, "folds of at least 2 rows of X"),
        ({"bootstrap": -1}, "bootstrap to be at least 0"),
        ({"n_int": 3}, "parameters of RegimeModel, got 'n_int'"),
        ({"n_components": 3}, "give the numbers of regimes as n_regimes"),
        ({"stickiness": 3.0}, "no stickiness in select, as it is a prior"),
        ({"inference": "svi"}, "no inference in select, as it is not EM"),
        ({"transition_mask": np.eye(2)}, "no transition_mask in select"),
        ({"random_state": -1}, "random_state"),
        ({"n_init": 0}, "n_init to be at least 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        select(draw(14, 60), **{"n_regimes": 1, **arguments})


def test_families_of_the_same_kind_compare():
    counts = seeds.rng(15).poisson(4.0, (80, 1))
    found = select(counts, 1, ("poisson", "negative_binomial"), covariance_type=("full", "diag"))
    assert [each.family.name for each in found.candidates] == ["poisson", "negative_binomial"]
    assert found.best("aic").emission in ("poisson", "negative_binomial")


def test_nothing_of_the_callers_changes():
    x = draw(16, 80)
    before, state = x.copy(), np.random.get_state()[1].copy()
    rng = np.random.RandomState(0)
    heard = []
    select(x, (1, 2), n_init=1, bootstrap=2, folds=2, random_state=rng,
           callback=lambda *each: heard.append(each))  # fmt: skip
    assert (x == before).all() and (np.random.get_state()[1] == state).all()
    assert [each[1:] for each in heard] == [(k, 5) for k in range(1, 6)]


def made(values: dict[int, float], p_values: dict[int, float]) -> selection_result.Selection:
    """A selection with these values of BIC and of the test."""
    candidates = []
    for k, bic in values.items():
        ratio = RatioTest(1.0, np.zeros(1), p_values[k], 0) if k in p_values else None
        criteria = information_criteria(0.0, 1, 1, 0.0)._replace(bic=bic)
        model = RegimeModel(k)
        candidates.append(
            Candidate(k, Family("gaussian", "full"), model, criteria=criteria, ratio=ratio)
        )
    return selection_result.Selection(candidates, "title", [])


def test_the_best_by_tests_is_the_first_that_is_not_rejected():
    values = {1: 5.0, 2: 4.0, 3: 3.0}
    assert made(values, {1: 0.01, 2: 0.3}).best("p_value").n_regimes == 2
    assert made(values, {1: 0.01, 2: 0.03}).best("p_value").n_regimes == 3
    for level in (np.float32(0.02), np.float64(0.02), np.array(0.02)):
        assert made(values, {1: 0.01, 2: 0.03}).best("p_value", level).n_regimes == 2
    assert made(values, {1: 0.01, 2: 0.03}).best("p_value", level=0.02).n_regimes == 2
    assert made(values, {}).best("bic").n_regimes == 3
    with pytest.raises(ValueError, match="set bootstrap in select"):
        made(values, {}).best("p_value")
    with pytest.raises(ValueError, match="level to be a number between 0 and 1"):
        made(values, {1: 0.1}).best("p_value", level=5)
    with pytest.raises(ValueError, match="criterion to be one of 'aic'"):
        made(values, {}).best("hqc")


def test_the_table():
    found = select(draw(17, 200), (1, 2), covariance_type=("full", "diag"), n_init=1,
                   folds=2, random_state=0)  # fmt: skip
    text = str(found)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "gaussian, diag" in text and text.count("*") >= 5
    html = found._repr_html_()
    assert html.count("<tr>") == 1 + 2 + 4 and "held-out" in html
    frame = found.to_frame()
    assert list(frame["n_regimes"]) == [1, 2, 1, 2]
    assert frame["bic"].tolist() == [each.value("bic") for each in found.candidates]
    assert "2 regimes, the most that were fitted, are the best by" in text


def test_components_are_those_of_mixtures_alone():
    found = select(draw(19, 200), 1, ("gaussian", "gaussian_mixture"), n_components=3, n_init=1,
                   folds=0, random_state=0)  # fmt: skip
    assert [each.model.n_components for each in found.candidates] == [None, 3]
    assert found.candidates[1].model.weights_.shape == (1, 3)


def test_the_plot_shows_differences_from_the_best():
    from matplotlib.figure import Figure

    found = select(draw(18, 200), (1, 2, 3), covariance_type=("full", "diag", "tied"), n_init=1,
                   folds=2, random_state=0)  # fmt: skip
    figure = found.plot()
    assert len(figure.axes) == 3
    assert [axes.get_legend() for axes in figure.axes] == [None] * 3  # it would cover data
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 4
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    frame = found.to_frame()
    bic = frame["bic"] - frame["bic"].min()
    np.testing.assert_allclose(lines["BIC"], bic[:3])
    held = -2 * (frame["held_out"] - frame["held_out"].max())
    np.testing.assert_allclose(lines["−2 × held-out"], held[:3], atol=1e-9)
    ax = Figure().subplots()
    assert found.plot(ax=ax) is ax.figure and len(ax.get_legend().get_texts()) == 12
    with pytest.raises(ValueError, match="one for each of 3 families"):
        found.plot(ax=Figure().subplots(1, 2))


def test_dollars_in_names_of_columns_are_letters():
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    family = Family({"US$": "gaussian", "EUR$": "student_t"}, "full")
    first = made({1: 5.0, 2: 4.0}, {})
    others = [each._replace(family=family) for each in first.candidates]
    for candidates, ax in ((others, None), (first.candidates + others, Figure().subplots())):
        figure = first._replace(candidates=candidates).plot(ax=ax)
        named = [each for each in figure.findobj(Text) if "$" in each.get_text()]
        assert named and not any(each.get_parse_math() for each in named)


def test_the_tests_do_not_choose_a_number_that_none_was_made_of():
    values = {1: 5.0, 2: 4.0, 4: 3.0}
    assert made(values, {1: 0.3}).best("p_value").n_regimes == 1
    with pytest.raises(ValueError, match="got none of 3, against which 2 are to be tested"):
        made(values, {1: 0.01}).best("p_value")


def test_a_callback_is_a_function():
    with pytest.raises(ValueError, match="expected callback to be a function or None, got 3"):
        select(draw(3, 50), [1], n_init=1, folds=0, callback=3)
