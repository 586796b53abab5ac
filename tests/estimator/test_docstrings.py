"""The docstrings of RegimeModel name every argument, result and error."""

from __future__ import annotations

import inspect
import re

import pytest

from pyro_regimes.estimator import RegimeModel
from pyro_regimes.estimator.fitted_model import FittedModel
from pyro_regimes.estimator.uncertain_model import UncertainModel

OWN = vars(FittedModel) | vars(UncertainModel) | vars(RegimeModel)
METHODS = [
    name
    for name, value in OWN.items()
    if not name.startswith("_") and isinstance(value, (classmethod, type(lambda: 0)))
]
PROPERTIES = [name for name, value in OWN.items() if isinstance(value, property)]


def fields(name: str) -> tuple[str, list[str]]:
    doc = inspect.getdoc(getattr(RegimeModel, name))
    return doc, re.findall(r"^:(param \w+|return|raises)", doc, flags=re.MULTILINE)


@pytest.mark.parametrize("name", METHODS)
def test_methods_document_their_arguments_results_and_errors(name):
    doc, found = fields(name)
    signature = inspect.signature(getattr(RegimeModel, name))
    expected = [f"param {each}" for each in signature.parameters if each != "self"]
    if signature.return_annotation != "None":
        expected.append("return")
    if name != "summary":
        expected.append("raises")
    assert list(dict.fromkeys(found)) == expected
    assert not expected or "\n\n" not in doc[doc.index(f"\n:{expected[0]}") + 1 :]


@pytest.mark.parametrize("name", PROPERTIES)
def test_properties_document_their_value(name):
    assert "return" in fields(name)[1]


def test_the_class_documents_its_parameters_in_one_list():
    doc = inspect.getdoc(RegimeModel)
    found = re.findall(r"^:param (\w+):", doc, flags=re.MULTILINE)
    assert found == list(inspect.signature(RegimeModel).parameters)
    assert "\n\n" not in doc[doc.index(":param n_regimes") : doc.index(":param initial:")]
