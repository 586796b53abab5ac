"""A fit leaves the caller's state, and other threads, alone."""

from __future__ import annotations

import copy
import functools
import pickle
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine import runtime
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

import pyro_regimes
from pyro_regimes.estimator import RegimeModel
from pyro_regimes.infer.isolation import PYRO_LOCK
from tests.regimes import simulate

SETTINGS: dict[str, Any] = dict(n_regimes=2, n_init=2, max_iter=12, tol=None, random_state=0)


def quick_fit(x: Any, **settings: Any) -> RegimeModel:
    """Twelve iterations, which are reported as not converged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return RegimeModel(**SETTINGS | settings).fit(x)


def everything(model: RegimeModel, x: np.ndarray, path: Path) -> dict[str, Any]:
    """All that a fitted model says, and that its file says."""
    forecast = model.forecast(x, 2)
    model.save(path)
    return {
        **{name: value for name, value in vars(model).items() if name.endswith("_")},
        "predict": model.predict(x),
        "filtered": model.predict_proba(x, "filtered"),
        "score": model.score([x[:40], x[40:]]),
        "decode": model.decode(x, "smoothing"),
        "forecast": forecast[:3],
        "sample": model.sample(5),
        "bic": model.bic(x),
        "loaded": RegimeModel.load(path).score(x),
    }


def assert_equal(found: Any, expected: Any) -> None:
    """Equal to the bit, and of the same types."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = tuple(found.values()), tuple(expected.values())
    if isinstance(expected, tuple):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        np.testing.assert_array_equal(found, expected)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def full() -> tuple[RegimeModel, np.ndarray]:
    x, _ = simulate("full", 300, seed=1)
    return RegimeModel(n_init=2, tol=1e-3, random_state=0).fit(x), x


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """What a fit says where nothing is in its way, computed once for all tests."""
    path = tmp_path_factory.mktemp("alone") / "model.json"

    @functools.cache
    def fit(data: str, **settings: Any) -> dict[str, Any]:
        x, _ = simulate(data, 80)
        return everything(quick_fit(x, **settings), x, path)

    return fit


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_the_callers_state_is_left_as_it_was(inference):
    x, _ = simulate("full", 100)
    copy = x.copy()
    with pyro.get_param_store().scope():
        mine = pyro.param("loc", torch.tensor([1.0, 2.0]))
        leaf = mine.unconstrained()
        random = np.random.get_state()[1].copy(), torch.get_rng_state()
        before = torch.get_default_dtype(), torch.distributions.Distribution._validate_args
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = RegimeModel(n_init=2, max_iter=3, inference=inference).fit(x)
        model.predict_proba(x)
        model.sample(5)
        model.forecast(x, 2)
        model.summary()
        np.testing.assert_array_equal(np.random.get_state()[1], random[0])
        assert torch.equal(torch.get_rng_state(), random[1])
        after = torch.get_default_dtype(), torch.distributions.Distribution._validate_args
        assert after == before
        assert list(pyro.get_param_store().keys()) == ["loc"]
        assert pyro.param("loc").unconstrained() is leaf and leaf.tolist() == [1.0, 2.0]
    np.testing.assert_array_equal(x, copy)


def test_the_fitted_models_function_does_not_write_to_the_fit(full):
    model, x = full
    function, means = pyro.poutine.trace(model.model), model.means_.copy()
    with pyro.get_param_store().scope():
        function(torch.tensor(x))
        with torch.no_grad():
            pyro.get_param_store()._params["loc"].zero_()
    np.testing.assert_array_equal(model.means_, means)
    with pyro.get_param_store().scope():
        function(torch.tensor(x))
        np.testing.assert_array_equal(pyro.param("loc").detach().numpy(), means)


def test_random_state():
    x, _ = simulate("full", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        heard: list[list[float]] = [[], [], []]
        first, second, _ = [
            RegimeModel(n_init=2, max_iter=2, random_state=seed).fit(
                x, callback=lambda step, mean, each=each: each.append(mean)
            )
            for seed, each in zip((1, np.random.RandomState(1), 2), heard, strict=True)
        ]
    np.testing.assert_array_equal(first.means_, second.means_)
    # The best start may be the same from any seed; the mean of all starts is not.
    assert heard[0] == heard[1] != heard[2]


@pytest.mark.slow
@pytest.mark.parametrize("inference", ["em", "svi"])
def test_several_threads_fit_at_once(inference):
    data = [simulate("full", 120, seed)[0] for seed in range(4)]

    def fit(x):
        settings = dict(n_init=2, tol=1e-2, random_state=0, max_iter=300)
        return RegimeModel(2, inference=inference, **settings).fit(x)

    fits: dict[int, RegimeModel] = {}
    threads = [
        threading.Thread(target=lambda i=i: fits.update({i: fit(data[i])})) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, x in enumerate(data):
        np.testing.assert_allclose(fits[i].means_, fit(x).means_, rtol=1e-10)


# ---- torch's modes -----------------------------------------------------------------------------


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "default dtype": lambda: default_dtype(torch.float16),
}


@pytest.mark.parametrize("inference", ["em", "svi"])
@pytest.mark.parametrize("mode", MODES)
def test_the_modes_of_torch_change_nothing(mode, inference, alone, tmp_path) -> None:
    x, _ = simulate("full", 80)
    settings = dict(inference=inference, dtype="float32")  # which autocast would round further
    for covariance_type in ("full", "diag"):
        expected = alone("full", covariance_type=covariance_type, **settings)
        with MODES[mode]():
            model = quick_fit(x, covariance_type=covariance_type, device="cpu", **settings)
            found = everything(model, x, tmp_path / "two.json")
            modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            assert modes == {
                "no_grad": (False, False), "inference_mode": (False, True)
            }.get(mode, (True, False))  # fmt: skip
            assert torch.is_autocast_enabled("cpu") == (mode == "autocast")
            assert (torch.empty(0).device.type == "meta") == ("device" in mode)
        assert_equal(found, expected)


# ---- Pyro's handlers and store -----------------------------------------------------------------


def other_model() -> None:
    pyro.sample("observations", dist.Normal(torch.zeros(2), 1.0).to_event(1))


HANDLERS: dict[str, Callable[[], Any]] = {
    "trace": poutine.trace,
    "seed": lambda: poutine.seed(rng_seed=1),
    "block": poutine.block,
    "condition": lambda: poutine.condition(data={"loc": torch.zeros(2, 1, 2, 2)}),
    "substitute": lambda: poutine.substitute(data={"loc": torch.zeros(2, 1, 2, 2).double()}),
    "scale": lambda: poutine.scale(scale=2.0),
    "mask": lambda: poutine.mask(mask=False),
    "replay": lambda: poutine.replay(trace=poutine.trace(other_model).get_trace()),
    "plate": lambda: pyro.plate("outer", 3),
    "plate of the same name": lambda: pyro.plate("starts", 2, dim=-1),
    "plate further left": lambda: pyro.plate("outer", 3, dim=-4),
    "uncondition": poutine.uncondition,
    "lift": lambda: poutine.lift(prior=dist.Normal(0.0, 1.0)),
    "do": lambda: poutine.do(data={"observations": torch.zeros(2)}),
    "infer_config": lambda: poutine.infer_config(config_fn=lambda site: 1 / 0),
    "escape": lambda: poutine.escape(escape_fn=lambda site: True),
}


@pytest.mark.filterwarnings("ignore:pyro.module data did not find params")  # of substitute
@pytest.mark.parametrize("inference", ["em", "svi"])
@pytest.mark.parametrize("name", HANDLERS)
def test_a_fit_sees_no_handler_of_the_callers(name, inference, alone, tmp_path) -> None:
    x, _ = simulate("diag", 80)
    settings: dict[str, Any] = dict(covariance_type="diag", inference=inference)
    expected = alone("diag", **settings)
    handler = HANDLERS[name]()
    with pyro.get_param_store().scope():
        pyro.param("scale", torch.tensor(7.0))
        with handler:
            if name == "trace":
                pyro.sample("before", dist.Normal(0.0, 1.0))
            handlers, plates = list(runtime._PYRO_STACK), list(runtime._DIM_ALLOCATOR._stack)
            draws = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
            found = everything(quick_fit(x, **settings), x, tmp_path / "two.json")
            with pytest.raises(ZeroDivisionError):
                RegimeModel(**SETTINGS | settings).fit(x, callback=lambda step, value: 1 / 0)
            assert all(
                one is other for one, other in zip(runtime._PYRO_STACK, handlers, strict=True)
            )
            assert runtime._DIM_ALLOCATOR._stack == plates
            after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
            assert torch.equal(after[0], draws[0]) and after[1:] == draws[1:]
        if name == "trace":
            assert list(handler.trace.nodes) == ["before"]
        assert list(pyro.get_param_store()) == ["scale"]
    assert_equal(found, expected)


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_a_fit_may_be_the_start_of_a_parameter(inference) -> None:
    x, _ = simulate("diag", 80)
    expected = quick_fit(x, inference=inference)

    def model() -> torch.Tensor:
        with pyro.plate("outer", 2, dim=-1):
            value = pyro.param(
                "variances",
                lambda: torch.tensor(quick_fit(x, inference=inference).covariances_),
                constraint=dist.constraints.positive_definite,
            )
            pyro.sample("z", dist.Normal(0.0, 1.0), obs=torch.zeros(2))
        return value

    trace = poutine.trace(model).get_trace()
    assert list(trace.nodes) == ["_INPUT", "outer", "variances", "z", "_RETURN"]
    np.testing.assert_allclose(trace.nodes["_RETURN"]["value"].detach(), expected.covariances_)
    assert list(pyro.get_param_store()) == ["variances"]
    # The store has kept the constraint, which Pyro notes before it asks for the start.
    leaf = dict(pyro.get_param_store().named_parameters())["variances"]
    assert (pyro.param("variances").unconstrained() is leaf) and not torch.equal(
        leaf, pyro.param("variances")
    )


def test_a_callback_may_fit_another_model_and_use_the_callers_store() -> None:
    x, _ = simulate("diag", 80)
    expected = quick_fit(x).means_
    for inference in ("em", "svi"):
        inner = []

        def callback(step: int, value: float) -> None:
            assert not list(pyro.get_param_store())
            inner.append(quick_fit(x, max_iter=1, inference=inference))  # noqa: B023

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            RegimeModel(**SETTINGS | {"max_iter": 2, "inference": inference}).fit(
                x, callback=callback
            )
        assert len(inner) == 2
        np.testing.assert_array_equal(quick_fit(x).means_, expected)


# ---- all or nothing ----------------------------------------------------------------------------


PACKAGE = Path(pyro_regimes.__file__).parent
WATCHED = {
    str(PACKAGE / name)
    for name in (
        "estimator/regime_model.py",
        "estimator/fitting.py",
        "estimator/all_starts.py",
        "estimator/gradient_ascent.py",
        "estimator/isolated_em.py",
        "infer/isolation.py",
        "infer/em/em.py",
    )
}
#: At its end no signal is handled: the interpreter looks for one at calls and at jumps back.
LOCK = (str(PACKAGE / "infer" / "isolation.py"), "    with PYRO_LOCK, _remembered(is_nested):")


def run_lines(function: Callable[[], Any], last: int | None = None) -> list[tuple[str, int]]:
    """The lines that it runs, in order; with a KeyboardInterrupt before the last of them."""
    lines: list[tuple[str, int]] = []

    def tracer(frame: Any, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            lines.append((frame.f_code.co_filename, frame.f_lineno))
            if len(lines) == last:
                sys.settrace(None)
                raise KeyboardInterrupt
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        function()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return lines


def text_of(line: tuple[str, int]) -> str:
    return Path(line[0]).read_text().splitlines()[line[1] - 1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("inference, fitted_before", [("em", True), ("svi", False)])
def test_an_interrupt_at_any_line_leaves_all_or_nothing(inference, fitted_before) -> None:
    old = pd.DataFrame(simulate("diag", 40)[0], columns=["stocks", "bonds"])
    new = pd.DataFrame(simulate("diag", 30, seed=1)[0], columns=["oil", "gold"])
    settings = dict(n_regimes=2, covariance_type="diag", n_init=1, max_iter=1, tol=None)
    settings |= dict(inference=inference, random_state=0)
    first = RegimeModel(**settings)
    if fitted_before:
        first.fit(old)

    def state(model: RegimeModel) -> dict[str, Any]:
        return {name: str(value) for name, value in vars(model).items()}

    before, after = state(first), state(copy.copy(first).fit(new))
    pyro.param("loc", torch.tensor([1.0, 2.0]))
    mine = vars(pyro.get_param_store())
    outcomes = []
    with poutine.block(), pyro.plate("outer", 3):
        handlers, plates = list(runtime._PYRO_STACK), list(runtime._DIM_ALLOCATOR._stack)
        lines = run_lines(lambda: copy.copy(first).fit(new))
        last = {line: number for number, line in enumerate(lines, 1)}
        last = {line: at for line, at in last.items() if (line[0], text_of(line)) != LOCK}
        for number in sorted(last.values()):  # each line when it is run for the last time
            model = copy.copy(first)
            where = run_lines(lambda: model.fit(new), number)[-1]  # noqa: B023
            assert state(model) in (before, after), where
            outcomes.append(state(model) == before)
            assert runtime._PYRO_STACK == handlers, where
            assert runtime._DIM_ALLOCATOR._stack == plates, where
            assert vars(pyro.get_param_store()) is mine and list(mine["_params"]) == ["loc"], where
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled(), where
            assert not PYRO_LOCK._is_owned(), where
    assert len(outcomes) > 100 and outcomes == sorted(outcomes, reverse=True)


def test_an_error_in_a_thread_does_not_keep_the_lock() -> None:
    x, _ = simulate("diag", 40)
    with pytest.raises(ZeroDivisionError):
        RegimeModel(**SETTINGS).fit(x, callback=lambda step, value: 1 / 0)
    thread = threading.Thread(target=quick_fit, args=(x,), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_a_warning_that_is_an_error_leaves_the_model_as_it_was(inference) -> None:
    x, _ = simulate("diag", 80)
    model = RegimeModel(**SETTINGS | {"inference": inference, "tol": 1e-9, "max_iter": 2})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConvergenceWarning):
            model.fit(x)
    assert not [name for name in vars(model) if name.endswith("_")]


def test_a_refused_refit_leaves_the_model_as_it_was() -> None:
    frame = pd.DataFrame(simulate("diag", 80)[0], columns=["stocks", "bonds"])
    model = quick_fit(frame)
    before, summary = dict(vars(model)), str(model.summary())
    constant = frame.assign(oil=1.0)
    for wrong in (constant, constant[["stocks", "oil"]], frame.iloc[:1], frame * np.nan, "X"):
        with pytest.raises(ValueError):
            model.fit(wrong)
        assert {name: id(value) for name, value in vars(model).items()} == {
            name: id(value) for name, value in before.items()
        }
        assert str(model.summary()) == summary
    model.n_init = 0
    with pytest.raises(ValueError, match="n_init"):
        model.fit(frame)
    assert str(model.summary()) == summary


def test_a_refit_keeps_nothing_of_the_fit_before() -> None:
    x, _ = simulate("diag", 80)
    model = quick_fit(pd.DataFrame(x, columns=["a", "b"]))
    model.note = "mine"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x)
    assert not hasattr(model, "feature_names_in_") and model.note == "mine"
    del model.note
    assert_equal(vars(model), vars(quick_fit(x)))


def test_copies_of_a_fit_are_the_fit() -> None:
    x, _ = simulate("diag", 80)
    model = quick_fit(pd.DataFrame(x, columns=["a", "b"]))
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert_equal(vars(other), vars(model))
    assert not [name for name in vars(clone(model)) if name.endswith("_")]
