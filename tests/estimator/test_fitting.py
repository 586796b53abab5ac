"""Many starts in one batch, by EM and by SVI."""

from __future__ import annotations

import gc
import threading
import warnings
from contextlib import nullcontext

import numpy as np
import pyro
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.datasets import load_sector_returns
from pyro_regimes.estimator import RegimeModel, all_starts, gradient_ascent
from pyro_regimes.estimator.all_starts import fit_starts
from pyro_regimes.estimator.parameters import Parameters
from pyro_regimes.estimator.pyro_model import pyro_model, to_arguments
from pyro_regimes.estimator.spec import COVARIANCE_TYPES, find_spec
from pyro_regimes.estimator.starts import make_starts
from pyro_regimes.infer.em.engines.relay import RelayEngine
from pyro_regimes.infer.isolation import PYRO_LOCK
from tests import seeds
from tests.marks import slow
from tests.regimes import simulate

FULL = find_spec("full")


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("inference", ["em", "svi"])
@pytest.mark.parametrize("ragged", [False, True])
def test_starts_in_one_batch_equal_each_alone(covariance_type, inference, ragged):
    x, _ = simulate(covariance_type, 120)
    spec = find_spec(covariance_type)
    starts = make_starts(x, 3, 3, spec, 1e-6, seeds.rng(0))
    data, lengths = torch.tensor(x), None
    if ragged:
        lengths = torch.tensor([60, 1, 59])
    settings = dict(inference=inference, max_iter=6, tol=None, min_eigenvalue=0.0, least=1e-6)
    batch = fit_starts(starts, spec, data, lengths, **settings)
    assert batch.history.shape == (7, 3)
    for i in range(3):
        one = Parameters.stack([starts.select(i)])
        alone = fit_starts(one, spec, data, lengths, **settings)
        np.testing.assert_allclose(batch.history[:, i], alone.history[:, 0], rtol=1e-10)
        both, single = batch.parameters.select(i), alone.parameters.select(0)
        for found, expected in [
            *zip(both[:2], single[:2], strict=True),
            *((both.emission[name], single.emission[name]) for name in spec.attributes),
        ]:
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_starts_in_several_batches_equal_one(covariance_type, at_once, monkeypatch):
    """As for data that are too long for all of them at once; one start collapses."""
    x, _ = simulate(covariance_type, 200)
    x[60:70] = 9.0
    spec = find_spec(covariance_type)
    starts = make_starts(x, 3, 5, spec, 1e-6, seeds.rng(0))
    starts.emission["means"][1, 0] = 9.0
    starts.emission["covariances"][1, 0] *= 1e-3
    heard = {}

    def fit(name):
        heard[name] = []
        return fit_starts(
            starts, spec, torch.tensor(x), None, inference="em",
            max_iter=40, tol=1e-2, min_eigenvalue=0.0, least=1e-3,
            callback=lambda step, loss: heard[name].append((step, loss)),
        )  # fmt: skip

    whole = fit("whole")
    monkeypatch.setattr(all_starts, "starts_at_once", lambda *args: at_once)
    parts = fit("parts")
    for one, other in zip(whole[1:], parts[1:], strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(whole.parameters[:2], parts.parameters[:2], strict=True):
        np.testing.assert_array_equal(one, other)
    for name, value in whole.parameters.emission.items():
        np.testing.assert_array_equal(value, parts.parameters.emission[name])
    assert [step for step, _ in heard["parts"]] == list(range(1, len(heard["parts"]) + 1))
    step, loss = heard["parts"][0]
    assert loss == pytest.approx(-whole.history[1, :at_once].mean() * 5)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_only_starts_whose_last_step_is_ems_have_converged(covariance_type):
    """At whatever step ``max_iter`` ends the run: an extrapolated step may be level by chance."""
    x, _ = simulate(covariance_type, 200)
    spec = find_spec(covariance_type)
    starts = make_starts(x, 3, 8, spec, 1e-6, seeds.rng(0))
    settings = dict(tol=0.5, min_eigenvalue=0.0, least=1e-6, acceleration="squarem")
    settings |= dict(spec=spec, x=torch.tensor(x), lengths=None, inference="em")
    whole = fit_starts(starts, max_iter=200, **settings)
    rises = np.diff(whole.history, axis=0)
    tried = 0
    for start, at in enumerate(whole.num_steps):
        assert rises[at - 1, start] < 0.5 and not rises[at:, start].any()
        for step in np.flatnonzero(rises[: at - 1, start] < 0.5):
            part = fit_starts(starts, max_iter=int(step) + 1, **settings)
            assert not part.converged[start] and part.num_steps[start] == step + 1
            tried += 1
    assert tried > 0


@pytest.mark.parametrize(
    "num_steps, size, expected", [(10_000, 7, 10), (1_000_000, 4, 1), (1_000_000, 200, 10)]
)
def test_starts_at_once_by_the_size_of_the_data(num_steps, size, expected):
    x = torch.empty(1, dtype=torch.float64).expand(num_steps, size)
    assert min(10, all_starts.starts_at_once(x, 3)) == expected


def test_a_collapsed_start_does_not_win():
    """On a repeated point the likelihood has no bound: a sound start is kept all the same."""
    rng = seeds.rng(0)
    x = np.concatenate(
        [rng.standard_normal((60, 1)), np.full((6, 1), 9.0), rng.standard_normal((60, 1))]
    )
    starts = make_starts(x, 2, 2, FULL, 1e-6, seeds.rng(0))
    # Start 0 is about to collapse onto the repeated point, start 1 splits the noise by its sign.
    starts.emission["means"][:] = [[[0.0], [9.0]], [[-1.0], [1.0]]]
    starts.emission["covariances"][:, :, 0, 0] = [[1.0, 0.01], [1.0, 9.0]]
    settings = dict(inference="em", max_iter=5, tol=None, min_eigenvalue=0.0, least=1e-6)
    fit = fit_starts(starts, FULL, torch.tensor(x), None, **settings)
    assert fit.degenerate.tolist() == [True, False]
    assert fit.history[-1, 0] > fit.history[-1, 1] and fit.best() == 1
    # A floor that the user asked for is the user's to reach.
    fit = fit_starts(starts, FULL, torch.tensor(x), None, **settings | {"min_eigenvalue": 1e-4})
    assert not fit.degenerate.any() and fit.best() == 0
    nan = fit._replace(history=np.array([[-1.0, np.nan], [np.nan, -5.0]]))
    assert nan.best() == 1
    with pytest.raises(ValueError, match="got none from any of 2 starts"):
        nan._replace(history=np.full((2, 2), np.nan)).best()


@pytest.mark.parametrize("covariance_type", ["full", *slow("tied", "diag", "spherical")])
@pytest.mark.parametrize("inference", ["em", "svi"])
def test_a_floor_binds(covariance_type, inference):
    """On data of which every regime is tighter than the floor: the constrained maximum.

    Ten starts, because EM and gradient ascent may climb different hills from one.
    """
    x, _ = simulate(covariance_type, 200)
    x = np.column_stack([x, 1e-2 * seeds.rng(0).standard_normal(200)])
    settings = dict(n_init=10, random_state=0, tol=1e-2, regularization=0.0, max_iter=600)
    model = RegimeModel(2, covariance_type, min_eigenvalue=0.5, inference=inference, **settings)
    said = pytest.warns(UserWarning, match="min_eigenvalue=0.5 binds: without it, the variance of")
    if covariance_type == "spherical":  # an average over series, which may be higher
        warnings.simplefilter("ignore", UserWarning)
        said = nullcontext()
    with said:
        model.fit(x)
    fitted = {"covariances": model.covariances_}
    (least,) = find_spec(covariance_type).least_variances(fitted)[None].min(-1)
    assert least >= 0.5 * (1 - 1e-12)
    if covariance_type != "spherical":
        np.testing.assert_allclose(least, 0.5, rtol=1e-3)
    # Both stop at some tenth of a nat from it: ten times tol.
    reference = RegimeModel(2, covariance_type, min_eigenvalue=0.5, **settings)
    with said:
        reference.fit(x)
    np.testing.assert_allclose(model.log_likelihood_, reference.log_likelihood_, rtol=0, atol=0.1)
    np.testing.assert_allclose(model.covariances_, reference.covariances_, rtol=0, atol=0.05)


@pytest.mark.parametrize("inference", ["em", "svi"])
@pytest.mark.parametrize("min_eigenvalue", [0.0, 1e-9])
def test_a_collapse_is_flagged(inference, min_eigenvalue):
    """Also where the user's floor is below the variance at which a regime counts as collapsed."""
    rng = seeds.fixed_rng(0)  # of other data the second start may collapse, too
    x = np.concatenate([rng.standard_normal((60, 1)), np.full((6, 1), 9.0)])
    starts = make_starts(x, 2, 2, find_spec("diag"), 1e-6, seeds.rng(0))
    starts.emission["means"][:] = [[[0.0], [9.0]], [[-1.0], [1.0]]]
    starts.emission["covariances"][:, :, 0] = [[1.0, 0.01], [1.0, 9.0]]
    fit = fit_starts(
        starts, find_spec("diag"), torch.tensor(x), None, inference=inference,
        max_iter=5 if inference == "em" else 250, tol=None, min_eigenvalue=min_eigenvalue,
        least=1e-6,
    )  # fmt: skip
    assert (fit.parameters.emission["covariances"] >= 1e-6 * (1 - 1e-12)).all()
    assert fit.degenerate.tolist() == [True, False]
    assert fit.history[-1, 0] > fit.history[-1, 1] and fit.best() == 1


def test_svi_raises_a_start_below_the_floor():
    """As EM does; were it left there, the batch would have no value at all."""
    x, _ = simulate("full", 60)
    starts = make_starts(x, 2, 2, FULL, 1e-6, seeds.rng(0))
    starts.emission["covariances"][0, 0] = 1e-7 * np.eye(2)
    for min_eigenvalue in (0.0, 0.3):
        fit = fit_starts(
            starts, FULL, torch.tensor(x), None, inference="svi",
            max_iter=3, tol=None, min_eigenvalue=min_eigenvalue, least=1e-6,
        )  # fmt: skip
        assert np.isfinite(fit.history).all()
        least = FULL.least_variances(fit.parameters.emission).min(-1)
        assert (least >= max(min_eigenvalue, 1e-6) * (1 - 1e-12)).all()
        assert (np.diff(fit.history[:, 1]) > 0).all()


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_svi_takes_the_steps_of_pyros_own(covariance_type):
    x, _ = simulate(covariance_type, 60)
    spec = find_spec(covariance_type)
    starts = make_starts(x, 3, 2, spec, 0.1, seeds.rng(0))
    data = torch.tensor(x)
    fit = fit_starts(
        starts, spec, data, None, inference="svi",
        max_iter=8, tol=None, min_eigenvalue=0.01, least=1e-6,
    )  # fmt: skip
    model = pyro_model(to_arguments(starts, spec), spec, 0.01)
    optim = pyro.optim.Adam({"lr": gradient_ascent.LEARNING_RATE})
    svi = pyro.infer.SVI(model, lambda x: None, optim, pyro.infer.Trace_ELBO())
    losses = [svi.step(data) for _ in range(8)] + [svi.evaluate_loss(data)]
    np.testing.assert_allclose(-fit.history.sum(-1), losses, rtol=1e-10)


@pytest.mark.parametrize("inference", ["em", "svi"])
@pytest.mark.parametrize("tol", [None, 0.5])
def test_the_history_ends_at_the_fit(inference, tol):
    """Whether all iterations were made, or the fit stopped before."""
    x, _ = simulate("full", 80)
    heard = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = RegimeModel(
            2, n_init=1, max_iter=150 if tol else 7, tol=tol, regularization=0.0,
            inference=inference, random_state=0,
        ).fit(x, callback=lambda step, value: heard.append(value))  # fmt: skip
    assert model.n_iter_ == 7 if tol is None else model.n_iter_ < 150
    assert len(model.history_) == model.n_iter_ + 1 == len(heard) + 1
    np.testing.assert_allclose(model.score(x), model.history_[-1], rtol=1e-12)
    np.testing.assert_allclose(heard, model.history_[1:], rtol=1e-12)


def test_svi_that_does_not_move_has_not_converged(monkeypatch):
    x, _ = simulate("full", 80)
    monkeypatch.setattr(gradient_ascent, "LEARNING_RATE", 1e-9)
    model = RegimeModel(2, n_init=1, max_iter=30, inference="svi", random_state=0)
    with pytest.warns(ConvergenceWarning, match="did not converge in 30 iterations"):
        model.fit(x)
    assert not model.converged_ and np.ptp(model.history_) < 1e-4


def test_svi_that_has_converged_has_nothing_left_for_em():
    x, _ = simulate("diag", 80)
    settings = dict(n_init=1, max_iter=500, inference="svi", random_state=0, regularization=0.0)
    model = RegimeModel(2, "diag", tol=1e-2, **settings).fit(x)
    assert model.converged_ and model.n_iter_ < 500
    em = EM(model.model)
    assert 0 <= em.step(torch.tensor(x)) - em.evaluate_loss(torch.tensor(x)) < 0.1


def test_the_store_is_restored_after_an_error():
    with pyro.get_param_store().scope():
        pyro.param("mine", torch.tensor(1.0))
        starts = make_starts(np.arange(6.0)[:, None], 2, 1, FULL, 1e-6, seeds.rng(0))
        with pytest.raises(ValueError):
            fit_starts(
                starts, FULL, torch.zeros(6, 5), None,
                inference="em", max_iter=1, tol=None, min_eigenvalue=0.0, least=0.0,
            )  # fmt: skip
        assert list(pyro.get_param_store().keys()) == ["mine"]


@pytest.mark.parametrize("covariance_type", ["full", *slow("tied", "diag")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("units", [[1e-2, 1.0, 20.0], [1e-3, 1.0, 1e4], [1e-9, 1.0, 1e9]])
def test_each_series_may_have_its_own_unit(covariance_type, dtype, units):
    """The same fit in other units: log p(x) moves by the log of each, T times."""
    x = np.column_stack([simulate("full", 200)[0], simulate("full", 200, seed=1)[0][:, 0]])
    units = np.array(units)
    settings = dict(dtype=dtype, n_init=2, tol=1e-2, regularization=0.0, random_state=0)
    first = RegimeModel(2, covariance_type, **settings).fit(x)  # a collapse would be an error
    second = RegimeModel(2, covariance_type, order_by="volatility", **settings).fit(x * units)
    moved = second.history_[-1] + 200 * np.log(units).sum()
    np.testing.assert_allclose(moved, first.history_[-1], rtol=1e-6)
    np.testing.assert_allclose(second.history_[-1], second.log_likelihood_, rtol=1e-5)
    order = np.argsort((second.means_ / units)[:, 0])
    reference = np.argsort(first.means_[:, 0])
    np.testing.assert_allclose((second.means_ / units)[order], first.means_[reference], rtol=1e-2)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_float32_model_is_as_good_far_from_zero(covariance_type):
    x, _ = simulate(covariance_type, 200)
    settings = dict(dtype="float32", n_init=1, tol=1e-1, random_state=0)
    near = RegimeModel(3, covariance_type, **settings).fit(x)
    far = RegimeModel(3, covariance_type, **settings).fit(x + 1e8)
    np.testing.assert_allclose(far.score(x + 1e8), near.score(x), rtol=1e-5)
    np.testing.assert_allclose(far.decode(x + 1e8)[0], near.decode(x)[0], rtol=1e-5)
    np.testing.assert_array_equal(far.predict(x + 1e8), near.predict(x))
    np.testing.assert_allclose(
        far.predict_proba(x + 1e8), near.predict_proba(x), rtol=0, atol=1e-3
    )
    np.testing.assert_allclose(
        far.forecast(x + 1e8, 2).regime_probs, near.forecast(x, 2).regime_probs, rtol=1e-3
    )


def test_four_threads_fit_what_they_fit_alone() -> None:
    """Each has a store of its own, and Pyro's is as it was."""
    data = [simulate("full", 300, seed=seed)[0] for seed in range(4)]

    def fit(number: int) -> list[float]:
        model = RegimeModel(2, n_init=3, max_iter=1_000, tol=1e-3, random_state=0)
        return model.fit(data[number]).history_.tolist()

    alone = [fit(number) for number in range(4)]
    pyro.param("mine", torch.tensor(1.0))
    results: dict[int, list[float]] = {}

    def work(number: int) -> None:
        results[number] = fit(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, expected in enumerate(alone):
        # k-means adds up in another order where torch and OpenMP count threads anew.
        assert results[number] == pytest.approx(expected, rel=1e-10)
    assert list(pyro.get_param_store()) == ["mine"]


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_the_lock_is_free_while_a_fit_computes(inference, monkeypatch) -> None:
    """Held while the model runs and not while a step is computed, which takes longer."""
    computed, stepped = [], []
    log_prob = RegimeHMM.log_prob

    def watched(self: RegimeHMM, value: torch.Tensor) -> torch.Tensor:
        computed.append(PYRO_LOCK._is_owned())
        return log_prob(self, value)

    monkeypatch.setattr(RegimeHMM, "log_prob", watched)
    x, _ = simulate("full", 80)
    model = RegimeModel(2, n_init=2, max_iter=5, tol=None, inference=inference, random_state=0)
    model.fit(x, callback=lambda step, value: stepped.append(PYRO_LOCK._is_owned()))
    assert stepped == [False] * 5
    if inference == "svi":
        assert computed[:5] == [False] * 5


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_accelerated_fits_end_at_the_same_optimum(covariance_type):
    x, _ = simulate(covariance_type, 500)
    settings = dict(n_init=4, max_iter=500, tol=1e-6, random_state=0)
    fast = RegimeModel(3, covariance_type, **settings).fit(x)
    plain = RegimeModel(3, covariance_type, acceleration=None, **settings).fit(x)
    assert fast.log_likelihood_ == pytest.approx(plain.log_likelihood_, abs=1e-3)
    assert fast.converged_
    assert (np.diff(fast.history_) >= -1e-9).all()


def test_an_unknown_acceleration_is_refused():
    expected = "expected acceleration to be None or 'squarem', got 'fast'"
    with pytest.raises(ValueError, match=expected):
        RegimeModel(acceleration="fast").fit(np.zeros((9, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("n_regimes", [2, 3, 4])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_default_converges_on_the_embedded_returns(n_regimes, covariance_type):
    """Without a warning, which would be an error here."""
    returns = load_sector_returns().values
    model = RegimeModel(n_regimes, covariance_type, random_state=0).fit(returns)
    assert model.converged_


def test_a_start_that_nearly_collapses_leaves_the_others_their_convergence():
    """Near a singular covariance the loss of the model differs from that of EM."""
    x = load_sector_returns().values[-500:]
    model = RegimeModel(random_state=0).fit(x)  # a warning is an error here
    assert model.converged_


def test_a_fit_leaves_no_engine_behind():
    """Its buffers are several times the data, and the next batch of starts needs its own."""
    x = seeds.rng(90).standard_normal((300, 2))
    model = RegimeModel(2, n_init=3, max_iter=5, tol=1e9, random_state=0)
    model.fit(x)
    gc.collect()
    gc.disable()
    try:
        model.fit(x)
        left = [each for each in gc.get_objects() if type(each) is RelayEngine]
    finally:
        gc.enable()
    assert not left
