"""A run of EM that goes on from its checkpoint is the run without an interruption."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch.testing import assert_close

from pyro_regimes import EM, Chunks
from pyro_regimes.infer.em import checkpoint
from tests import seeds
from tests.infer import ranks

STOP = 6  # before any restart has converged


class Stop(Exception):
    """An interruption."""


def stop(number: int, loss: float) -> None:
    if number == STOP:
        raise Stop


def start(name: str) -> EM:
    pyro.clear_param_store()
    return EM(ranks.CASES[name].model)


def parameters() -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def interrupted(name: str, x: Any, path: Path, **settings: Any) -> None:
    with pytest.raises(Stop):
        start(name).run(x, callback=stop, checkpoint=path, checkpoint_every=5, **settings)


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("name", ["normal", "student_t", "gaussian", "restarts"])
def test_it_goes_on(name, in_chunks, tmp_path, monkeypatch):
    name = "converged" if name == "normal" else name
    x = ranks.data(name, seeds.seed(5))
    given = Chunks([x[:4], x[4:]], continues=False) if in_chunks else x
    settings = {"num_steps": 30, "tol": 1e-5 if name == "restarts" else None, "check": False}
    whole = start(name).run(given, **settings)
    expected = parameters()
    path = tmp_path / "run.pt"
    interrupted(name, given, path, **settings)
    assert len(torch.load(path, weights_only=True)["losses"]) == 6
    seen = []
    again = start(name).run(
        given, checkpoint=path, callback=lambda *step: seen.append(step), **settings
    )
    assert [number for number, _ in seen] == list(range(6, again.num_steps + 1))
    assert_close(again.history, whole.history, rtol=1e-12, atol=0.0)
    assert_close(again.restart_history, whole.restart_history, rtol=1e-12, atol=1e-12)
    found = parameters()
    if name == "student_t":  # the likelihood is nearly flat in df, which has half as many digits
        assert_close(found.pop("df"), expected.pop("df"), rtol=1e-6, atol=0.0)
    assert_close(found, expected, rtol=1e-8, atol=1e-10)
    for field in ("converged", "stop_reason", "num_steps", "num_e_steps", "converged_at"):
        assert getattr(again, field) == getattr(whole, field)
    # The file is that of the last step now: nothing is left to do.
    once_more = start(name).run(given, checkpoint=path, callback=stop, **settings)
    assert once_more.num_steps == whole.num_steps
    assert_close(once_more.history, whole.history, rtol=1e-12, atol=0.0)
    assert os.listdir(tmp_path) == ["run.pt"]


def test_an_error_in_writing_leaves_the_file_before(tmp_path, monkeypatch):
    x, path = ranks.data("poisson", seeds.seed(5)), tmp_path / "run.pt"
    interrupted("poisson", x, path, tol=None)
    before = path.read_bytes()

    def fail(content: Any, file: Any) -> None:
        file.write(b"some")
        raise OSError("no space")

    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        start("poisson").run(x, checkpoint=path, tol=None)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.pt"]


def test_files_of_other_runs_are_refused(tmp_path):
    x, path = ranks.data("poisson", seeds.seed(5)), tmp_path / "run.pt"
    interrupted("poisson", x, path, tol=None)
    em = start("poisson")
    with pytest.raises(ValueError, match="of this model and these data, but the losses"):
        em.run(x[:-1], checkpoint=path)
    assert_close(pyro.param("rate").detach(), ranks.LOC.exp())  # as it was
    with pytest.raises(ValueError, match="but parameter 'loc' is another one"):
        start("converged").run(x, checkpoint=path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="to be a checkpoint of EM.run, got another file"):
        start("poisson").run(x, checkpoint=path)
    assert path.read_bytes() == b"no checkpoint"


def test_wrong_arguments(tmp_path):
    x, path = ranks.data("poisson", 0), tmp_path / "run.pt"
    for every in (0, 1.5, True, "2"):
        with pytest.raises(ValueError, match="expected checkpoint_every"):
            start("poisson").run(x, checkpoint=path, checkpoint_every=every)
    with pytest.raises(ValueError, match="expected checkpoint to be the name of a file"):
        start("poisson").run(x, checkpoint=3)
    with pytest.raises(ValueError, match="no acceleration with checkpoint"):
        start("poisson").run(x, checkpoint=path, acceleration="squarem")
    em = EM(ranks.poisson, optim=pyro.optim.SGD({"lr": 0.1}))
    with pytest.raises(ValueError, match="no optim with checkpoint"):
        em.run(x, checkpoint=path)
    assert not path.exists()
