"""The fused engine serves missing entries: against the iterations on tensors."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.infer.em.engines.fused import FusedEngine
from tests import seeds
from tests.infer.fused import both_engines, spy
from tests.infer.models import INITIAL, LENGTHS, TRANSITION, YS, X, Y
from tests.infer.test_fused_models import SPREADS, gaussian_model, run

pytestmark = pytest.mark.usefixtures("filled_buffers")


def holes(value: Tensor, share: float = 0.3) -> Tensor:
    """Entries, and the whole of some rows, missing."""
    gone = torch.rand(value.shape, generator=seeds.generator(31)) < share
    gone = gone | (torch.rand(value.shape[:-1], generator=seeds.generator(32)) < 0.1).unsqueeze(-1)
    gone[..., 3, :] = True
    return value.masked_fill(gone, torch.nan)


def model_of(**settings):
    return gaussian_model(missing="marginalise", **settings)


@pytest.mark.parametrize("restarts", [0, 3], ids=["one", "restarts"])
@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS.keys())
def test_spreads(spread, restarts):
    both_engines(run(model_of(spread=spread, restarts=restarts, data=holes(Y))))


@pytest.mark.parametrize("spread", ["full", "tied", "diagonal", "spherical"])
def test_sequences_with_lengths_and_a_floor(spread):
    model = model_of(spread=SPREADS[spread], data=holes(YS), lengths=LENGTHS)
    both_engines(run(model, min_eigenvalue=0.9))


@pytest.mark.parametrize("spread", ["full", "diagonal"])
def test_float32(spread):
    model = model_of(spread=SPREADS[spread], data=holes(Y).float())
    both_engines(run(model), history=2e-6, values=2e-4)


@pytest.mark.parametrize("spread", ["full", "diagonal"])
def test_whole_rows_and_a_single_series(spread):
    gone = torch.rand(len(Y), generator=seeds.generator(33)) < 0.3
    rows = Y.masked_fill(gone[:, None], torch.nan)
    both_engines(run(model_of(spread=SPREADS[spread], data=rows)))

    def model() -> None:
        loc = pyro.param("loc", torch.tensor([-0.6, 0.9]).double())
        hmm = RegimeHMM(
            initial_probs=INITIAL, transition_probs=TRANSITION,
            observation_dist=dist.Normal(loc, 1.0), missing="marginalise",
        )  # fmt: skip
        pyro.sample("x", hmm, obs=X.masked_fill(gone, torch.nan))

    pyro.clear_param_store()
    both_engines(run(model))


def test_models_with_data_of_their_own():
    """Each model sorts its own rows, and those that go on keep theirs."""
    apart = torch.stack([holes(Y), holes(Y.flip(0)), holes(Y.flip(1), 0.5)])
    model = model_of(spread=SPREADS["full"], data=apart, restarts=3)
    with pytest.MonkeyPatch.context() as patch:
        found = spy(patch)
        result = EM(model).run(num_steps=60, tol=1e-2)
        assert isinstance(found[0], FusedEngine), found
    for n, data in enumerate(apart):
        pyro.clear_param_store()
        alone = run_alone(data, n)
        at = result.converged_at[n]
        at = 60 if at is None else at  # all steps
        ours, own = result.restart_history[: at + 1, n], alone.restart_history[: at + 1].flatten()
        assert torch.equal(ours, own)  # to the last digit, whatever the neighbours


def run_alone(data: Tensor, n: int):
    """Restart n of three, alone: its start is moved as the others move theirs."""
    from tests.infer import test_fused_models as models

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "SHIFTS", models.SHIFTS[n : n + 1])
        model = model_of(spread=SPREADS["full"], data=data.unsqueeze(0), restarts=1)
        return EM(model).run(num_steps=60, tol=1e-2)
