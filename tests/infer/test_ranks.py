"""EM over the ranks of a process group: the numbers of one process."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch.testing import assert_close

from pyro_regimes import EM, Chunks, RegimeHMM, RegimeModel
from tests import seeds
from tests.estimator import rank_fits
from tests.infer import ranks
from tests.marks import slow


def launch(size: int, folder: Path, what: str) -> tuple[list[int], list[str]]:
    """The exit codes of the ranks, and what they print."""
    command = [sys.executable, "-m", "tests.infer.ranks"]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(folder), what],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        printed = [worker.communicate(timeout=600)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [worker.returncode for worker in workers], printed


def compare(name: str, wanted: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """What all ranks found with what one process does, and with what they found again."""
    assert wanted["history"][-1] < wanted["history"][0] - 0.1
    for each in found:
        assert each[name].keys() == wanted.keys()
        for key, value in wanted.items():
            got = torch.as_tensor(each[name][key])
            assert_close(
                got,
                torch.as_tensor(value),
                rtol=1e-10,
                atol=1e-12,
                msg=lambda text, what=f"{name} {key}": f"{what}: {text}",
            )
            assert torch.equal(got, torch.as_tensor(each[f"{name} again"][key]))
            assert torch.equal(got, torch.as_tensor(found[0][name][key]))


def compare_fits(found: list[dict[str, Any]], seed: int) -> None:
    """Fits of RegimeModel on all ranks with those of one process."""
    for name in rank_fits.FITS:
        tables = rank_fits.tables(name, seed)
        # Of several ranks the starts are those of a sample, as for chunks.
        if not rank_fits.FITS[name].in_pieces and len(found) > 1:
            tables = Chunks([tables], continues=False)
        wanted = None
        if name != "random":
            wanted = rank_fits.summary(rank_fits.fit(name, tables))
        for each in found:
            assert wanted is None or each[name].keys() == wanted.keys()
            for key, value in each[name].items():
                np.testing.assert_array_equal(value, found[0][name][key])
                if wanted is not None and isinstance(value, (list, str)):
                    assert value == wanted[key]
                elif wanted is not None and np.asarray(value).dtype != object:
                    np.testing.assert_allclose(value, wanted[key], 1e-10, 1e-10, err_msg=key)
    for rank, each in enumerate(found):
        tables = rank_fits.tables("poisson", seed + rank)[:2]
        for key, value in rank_fits.summary(rank_fits.fit("poisson", tables)).items():
            np.testing.assert_array_equal(each["alone"][key], value)
        if len(found) > 1:
            assert "rank 1: chunk 1: Found array with 0 feature" in each["error 0"]
            assert "expected the number of columns of X to be the same" in each["error 1"]
            assert "sample_weight=None where ranks have parts" in each["error 2"]


@pytest.mark.parametrize("size", [1, 2, *slow(4, 8)])
def test_as_in_one_process(size, tmp_path):
    """Every family and case in one launch: trace and parameters, on every rank; twice alike."""
    seed = seeds.seed(3)
    codes, printed = launch(size, tmp_path, str(seed))
    assert codes == [0] * size, "\n".join(printed)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(size)]
    for name in ranks.CASES:
        compare(name, ranks.fit(name, ranks.data(name, seed)), found)
    for name in ranks.PIECES:
        compare(f"{name} in pieces", ranks.fit(name, ranks.series(name, seed)), found)
    value, *gradients = ranks.differentiate(ranks.both(seed), RegimeHMM.log_prob)
    for each in found:
        assert_close(each["gradients"][0], value, rtol=1e-12, atol=0.0)
    for number, gradient in enumerate(gradients, 1):
        total = sum(each["gradients"][number] for each in found)
        assert_close(total, gradient, rtol=1e-10, atol=1e-12)
    compare_fits([each["fits"] for each in found], seed)
    for each in found:
        assert "constant in time where data come in" in each["predicted refused"]
    if size > 1:
        for each in found:
            value, use = each["differences"]
            assert "starting value of parameter 'rate'" in value
            assert "update of parameter 'rate'" in use


def under_torchrun(size: int, script: str, *arguments: str) -> list[str]:
    """The lines that an example prints."""
    path = Path(__file__).parents[2] / "examples" / script
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={size}", str(path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_the_example_of_a_panel():
    """Two ranks print the loss of one."""
    one, two = (
        under_torchrun(size, "torchrun_em.py", "--num-sequences=7", "--num-rows=60")[-1]
        for size in (1, 2)
    )
    assert one.startswith("1 ranks, ") and two.startswith("2 ranks, ")
    assert one[1:] == two[1:]


def test_the_example_of_a_file(tmp_path):
    """Two ranks, each of which reads its rows of a Parquet file, print the model of one."""
    settings = ["--num-rows=1500", "--chunk=400", "--live=20"]
    one, two = (
        under_torchrun(size, "stream_parquet.py", *settings, f"--out={tmp_path / str(size)}")
        for size in (1, 2)
    )
    assert len(one) > 15 and "Calm" in " ".join(one)
    differences = [lines.pop(number) for lines in (one, two) for number in (-4, -2)]
    assert one == two
    assert all(float(re.search(r"differs? by ([\d.e-]+)", each)[1]) < 1e-6 for each in differences)
    wanted, found = (RegimeModel.load(tmp_path / str(size) / "model.json") for size in (1, 2))
    for name in ("log_likelihood_", "means_", "covariances_", "transition_matrix_"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), 1e-8, err_msg=name)


@pytest.mark.slow
def test_a_killed_rank_ends_the_others(tmp_path):
    """kill -9 of one of four in mid-run: each of the others says so, and none hangs.

    All of them started again go on from the checkpoint, with the history of an uninterrupted run.
    """
    codes, printed = launch(4, tmp_path, "die")
    assert codes[2] == -signal.SIGKILL
    for rank in (0, 1, 3):
        assert codes[rank] == 1
        assert f"EM: rank {rank} of 4 could not add up its statistics" in printed[rank]
    kept = torch.load(tmp_path / "checkpoint", weights_only=True)
    assert len(kept["losses"]) == 1 + ranks.KILLED_IN // 10 * 10
    copy = shutil.copy(tmp_path / "checkpoint", tmp_path / "copy")
    (tmp_path / "rendezvous").unlink()
    codes, printed = launch(4, tmp_path, "go on")
    assert codes == [0] * 4, "\n".join(printed)
    pyro.clear_param_store()
    whole = EM(ranks.poisson).run(
        ranks.data("poisson", 0), num_steps=ranks.NUM_STEPS_IN_ALL, tol=None
    )
    for rank in range(4):
        history = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_close(history, whole.history, rtol=1e-12, atol=0.0)
    pyro.clear_param_store()
    alone = EM(ranks.poisson).run(  # from the file of four ranks
        ranks.data("poisson", 0), num_steps=ranks.NUM_STEPS_IN_ALL, tol=None, checkpoint=copy
    )
    assert_close(alone.history, whole.history, rtol=1e-12, atol=0.0)
