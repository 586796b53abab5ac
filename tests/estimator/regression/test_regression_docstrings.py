"""The docstrings of RegimeRegression name every argument, result and error."""

from __future__ import annotations

import inspect
import re

import pytest

from pyro_regimes import RegimeRegression
from pyro_regimes.estimator.regression.described_regression import DescribedRegression
from pyro_regimes.estimator.regression.fitted_regression import FittedRegression
from pyro_regimes.estimator.regression.tabled_regression import TabledRegression

OWN = {}
for each in (TabledRegression, FittedRegression, DescribedRegression, RegimeRegression):
    OWN |= vars(each)
METHODS = [
    name for name, value in OWN.items() if not name.startswith("_") and inspect.isfunction(value)
]


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    method = getattr(RegimeRegression, name)
    found = re.findall(r"^:(param \w+|return|raises)", inspect.getdoc(method), flags=re.MULTILINE)
    expected = [f"param {each}" for each in inspect.signature(method).parameters if each != "self"]
    expected += ["return"] * (inspect.signature(method).return_annotation != "None")
    assert list(dict.fromkeys(found)) == [*expected, "raises"]


def test_the_class():
    found = re.findall(r"^:param (\w+):", inspect.getdoc(RegimeRegression), flags=re.MULTILINE)
    assert found == list(inspect.signature(RegimeRegression).parameters)
