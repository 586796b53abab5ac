"""A forecast as text and as a DataFrame; results that show themselves in a line or a table."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_regimes import RegimeModel
from pyro_regimes.estimator.parameters import Array
from pyro_regimes.text_tables import fixed
from tests import seeds
from tests.estimator.emission_cases import ALL, Case


@pytest.fixture
def data() -> Array:
    rng = seeds.rng(0)
    return np.concatenate([rng.normal(0, 1, (150, 2)), rng.normal(0, 4, (100, 2))])


@pytest.fixture
def model(data: Array) -> RegimeModel:
    return RegimeModel(n_regimes=2, n_init=2, random_state=0).fit(data)


def test_a_frame_has_the_numbers_of_the_methods(data, model) -> None:
    forecast = model.forecast(data, 3)
    frame = forecast.to_frame(level=0.01)
    assert list(frame.index) == [1, 2, 3] and frame.index.name == "step"
    np.testing.assert_array_equal(frame["probability"], forecast.regime_probs)
    assert list(frame["probability"]) == ["Calm", "Turbulent"]
    np.testing.assert_array_equal(frame["deviation"], forecast.deviation)
    np.testing.assert_array_equal(frame["upper"], forecast.quantile(0.99))
    np.testing.assert_array_equal(frame["value_at_risk"], forecast.value_at_risk(0.01))
    np.testing.assert_array_equal(frame["expected_shortfall"], forecast.expected_shortfall(0.01))
    with pytest.raises(ValueError, match="expected level to be above 0 and at most 0.5, got 0.9"):
        forecast.to_frame(level=0.9)


@ALL
def test_every_emission_is_printed(case: Case) -> None:
    model = case.true()
    forecast = model.forecast(case.sample(1, 30)[0], 2)
    text = str(forecast)
    assert text == repr(forecast)
    assert text.splitlines()[0].split() == ["probability", *" ".join(model.regime_names_).split()]
    assert "\n\nmean" in text and "nan" not in text
    assert len(forecast.to_frame()) == 2


def test_results_are_shown_in_a_prompt_as_they_are_printed(data, model) -> None:
    for result in (model.summary(), model.starts_, model.residuals(data).tests()):
        assert repr(result) == str(result)
    assert repr(model.residuals(data)) == (
        "<Residuals: 250 rows of 2 series, kind='forecast', by='series'>"
    )


def test_integers_have_no_decimals() -> None:
    assert fixed([[0.0, 10.0], [2.0, float("inf")]]) == [["0", "10"], ["2", "inf"]]
    assert fixed([[0.5, 10.0]]) == [["0.50", "10.00"]]
