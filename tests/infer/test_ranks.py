"""EM over the ranks of a process group: the numbers of one process."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from tests import seeds
from tests.infer import ranks


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_as_in_one_process(size, tmp_path):
    """Every family and case in one launch: trace and parameters, on every rank; twice alike."""
    seed = seeds.seed(3)
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.infer.ranks", str(rank), str(size), tmp_path, str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        printed = [worker.communicate(timeout=300)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * size, "\n".join(printed)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(size)]
    for name in ranks.CASES:
        wanted = ranks.fit(name, ranks.data(name, seed))
        assert wanted["history"][-1] < wanted["history"][0] - 0.1
        for each in found:
            assert each[name].keys() == wanted.keys()
            for key, value in wanted.items():
                got = each[name][key]
                assert_close(
                    torch.as_tensor(got),
                    torch.as_tensor(value),
                    rtol=1e-10,
                    atol=1e-12,
                    msg=lambda text, what=f"{name} {key}": f"{what}: {text}",
                )
                again = torch.as_tensor(each[f"{name} again"][key])
                assert torch.equal(torch.as_tensor(got), again)
                assert torch.equal(torch.as_tensor(got), torch.as_tensor(found[0][name][key]))
    if size > 1:
        for each in found:
            assert "starting value of parameter 'rate'" in each["difference"]
