"""Marks of parametrised tests."""

from typing import Any

import pytest


def slow(*values: Any) -> list[Any]:
    """Parameters whose tests the quick run, ``-m "not slow"``, leaves out."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]
