"""Names of hmmlearn and statsmodels lead to those of this package."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from pyro_regimes import RegimeModel
from pyro_regimes.estimator.other_names import _OURS


@pytest.fixture
def model() -> RegimeModel:
    return RegimeModel.from_parameters(
        [0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], means=[[0.0], [1.0]], covariances=np.ones((2, 1, 1))
    )


@pytest.mark.parametrize("name", _OURS)
def test_the_error_names_what_there_is(model, name) -> None:
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'; use ") as caught:
        getattr(model, name)
    ours = str(caught.value).split("; use ")[1].split(",")[0].split("(")[0].split(" and")[0]
    if ours not in ("rates_", "probabilities_"):  # of other emissions
        assert hasattr(model, ours)
    assert not hasattr(model, name)


def test_other_errors_are_those_of_python(model) -> None:
    with pytest.raises(AttributeError) as caught:
        model.nothing
    assert str(caught.value) == "'RegimeModel' object has no attribute 'nothing'"
    with pytest.raises(NotFittedError):  # which is an AttributeError, too
        RegimeModel().stationary_distribution_
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    np.testing.assert_array_equal(again.means_, model.means_)
