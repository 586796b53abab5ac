"""The same answers on a CUDA device as on the CPU; skipped where there is none."""

import numpy as np
import pytest
import torch

from pyro_regimes import RegimeModel
from pyro_regimes.kernels import ops
from tests.kernels.cases import CASES, Case
from tests.regimes import simulate

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_recursions(case: Case) -> None:
    there = Case(*(None if part is None else part.cuda() for part in case))
    for actual, expected in zip(ops.expectations(*there), ops.expectations(*case), strict=True):
        assert actual.is_cuda
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-10, atol=1e-13)
    assert torch.equal(ops.viterbi(*there).cpu(), ops.viterbi(*case))
    assert ops.sample_posterior(*there).is_cuda


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical", "tied"])
def test_estimator(covariance_type: str) -> None:
    x, _ = simulate(covariance_type, 300)
    fits = [
        RegimeModel(3, covariance_type, n_init=3, device=device, random_state=0).fit(x)
        for device in ("cpu", "cuda")
    ]
    assert fits[1].log_likelihood_ == pytest.approx(fits[0].log_likelihood_, rel=1e-9)
    np.testing.assert_allclose(fits[1].means_, fits[0].means_, rtol=1e-5, atol=1e-6)
    assert (fits[1].predict(x) == fits[0].predict(x)).all()
