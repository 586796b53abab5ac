"""The coordinates in which EM extrapolates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes.emissions import charts
from tests import seeds

_DRAWS = torch.randn(4, 5, 5, generator=seeds.generator(60), dtype=torch.float64)
_MATRICES = _DRAWS @ _DRAWS.mT + 0.1 * torch.eye(5).double()
_UNITS = torch.tensor([1e-6, 1.0, 1e3, 1e6, 0.01]).double()

CHARTS = {
    "rows": (
        charts.ROWS,
        torch.tensor([[0.25, 0.75, 0.0], [1e-300, 0.5, 0.5]], dtype=torch.float64),
    ),
    "scale": (charts.SCALE, torch.tensor([1e-9, 2.0, 1e9]).double()),
    "matrix": (charts.MATRIX, _MATRICES),
    "factor": (charts.FACTOR, torch.linalg.cholesky(_MATRICES)),
    "one by one": (charts.MATRIX, _MATRICES[:, :1, :1]),
}


@pytest.mark.parametrize("chart, cells", CHARTS.values(), ids=CHARTS.keys())
def test_the_inverse_is_the_inverse(chart, cells):
    assert_close(chart.of(chart.to(cells)), cells, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("chart, cells", CHARTS.values(), ids=CHARTS.keys())
def test_every_point_is_admissible(chart, cells):
    point = chart.to(cells)
    far = torch.randn(point.shape, generator=seeds.generator(61), dtype=torch.float64) * 3
    held: Tensor = chart.of(point + far)
    assert held.isfinite().all()
    if chart is charts.ROWS:
        assert (held >= 0).all()
        assert_close(held.sum(-1), torch.ones(len(held)).double(), rtol=1e-12, atol=0.0)
    elif chart is charts.SCALE:
        assert (held > 0).all()
    elif chart is charts.MATRIX:
        assert torch.linalg.cholesky_ex(held).info.eq(0).all()
    else:
        assert (held.diagonal(dim1=-2, dim2=-1) > 0).all() and held.triu(1).eq(0).all()


@pytest.mark.parametrize("name", ["scale", "matrix", "factor"])
def test_differences_do_not_depend_on_units(name):
    chart, cells = CHARTS[name]
    unit = _UNITS[: len(cells)] if name == "scale" else _UNITS
    if name == "matrix":
        unit = unit.unsqueeze(-1) * unit
    elif name == "factor":
        unit = unit.unsqueeze(-1)
    other = cells.flip(0)
    if name == "scale":
        unit = unit[0]
    expected = chart.to(cells) - chart.to(other)
    assert_close(chart.to(unit * cells) - chart.to(unit * other), expected, rtol=1e-8, atol=1e-8)


def test_a_matrix_that_is_not_positive_definite_has_no_coordinates():
    assert charts.MATRIX.to(-_MATRICES[:1]).isnan().all()


def test_an_extrapolated_probability_stays_near_that_of_ems_step():
    assert charts.ROWS.within is not None
    after = torch.tensor([[0.5, 0.5, 0.0], [1e-300, 0.5, 0.5]], dtype=torch.float64)
    found = torch.tensor([[1.0, 1e-20, 0.0], [0.0, 0.25, 0.75]], dtype=torch.float64)
    within = charts.ROWS.within(found, after)
    wanted = torch.tensor([1.0, 0.005, 0.0], dtype=torch.float64) / 1.005
    assert_close(within[0], wanted, rtol=1e-12, atol=0.0)
    assert 1e-303 < within[1, 0] < 1e-301
