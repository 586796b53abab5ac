"""Parametrisations with a floor."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import transform_to
from torch.testing import assert_close

from pyro_regimes.estimator.floors import EigenvaluesFrom, ScalesFrom
from tests import seeds


@pytest.mark.parametrize("floor", [1e-8, 0.3])
def test_covariances_there_and_back(floor) -> None:
    raw = torch.randn(5, 4, 4, generator=seeds.generator(0)).double()
    constraint = EigenvaluesFrom(floor)
    transform = transform_to(constraint)
    value = transform(raw) + floor * torch.eye(4).double()
    assert constraint.check(value).all()
    assert not constraint.check(value - value.diagonal().max() * torch.eye(4).double()).any()
    assert_close(transform(transform.inv(value)), value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("least", [1e-4, 0.5])
def test_scales_there_and_back(least) -> None:
    constraint = ScalesFrom(least)
    value = torch.tensor([least, 2 * least, 1.0, 1e3], dtype=torch.float64)
    assert constraint.check(value).all() and not constraint.check(0.9 * value[:1]).any()
    found = transform_to(constraint)(transform_to(constraint).inv(value))
    assert_close(found, value, rtol=1e-12, atol=0)


def test_one_dimension_is_the_square_of_a_scale() -> None:
    u = torch.linspace(-2, 3, 7).double()
    scales = transform_to(ScalesFrom(0.2))(u)
    covariances = transform_to(EigenvaluesFrom(0.04))(u[:, None, None])
    assert_close(covariances.flatten(), scales**2, rtol=1e-13, atol=0)


def test_the_floor_is_an_ordinary_maximum() -> None:
    """Of the density of data that are tighter than the floor: no gradient, and it curves down."""
    constraint, scatter = EigenvaluesFrom(0.5), torch.diag(torch.tensor([0.1, 2.0, 0.2])).double()

    def log_density(raw: torch.Tensor) -> torch.Tensor:
        sigma = transform_to(constraint)(raw)
        return -torch.logdet(sigma) - torch.linalg.solve(sigma, scatter).trace()

    best = torch.diag(torch.tensor([0.5, 2.0, 0.5])).double()
    raw = torch.diag(torch.tensor([0.0, 3.0**0.5, 0.0], dtype=torch.float64).arcsinh())
    assert_close(transform_to(constraint)(raw), best)
    gradient = torch.autograd.functional.jacobian(log_density, raw)
    assert_close(gradient, torch.zeros(3, 3).double(), rtol=0, atol=1e-12)
    hessian = torch.autograd.functional.hessian(log_density, raw)
    rows, columns = torch.tril_indices(3, 3)
    lower = hessian[rows, columns][:, rows, columns]
    assert torch.linalg.eigvalsh(lower).max() <= 1e-12
    assert (lower.diagonal()[rows == columns] < -0.1).all()
