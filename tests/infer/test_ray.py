"""EM under Ray Train is EM in one process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests import seeds
from tests.infer import ranks

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_two_workers_of_ray(tmp_path):
    seed = seeds.seed(3)
    command = [sys.executable, "-m", "tests.infer.ray_fit", str(tmp_path), str(seed)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_TRAIN_V2_ENABLED": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    expected = ranks.fit("gaussian", ranks.data("gaussian", seed))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert_close(found["history"], expected["history"], rtol=1e-10, atol=0.0)
        assert_close(found["loc"], expected["loc"], rtol=1e-10, atol=1e-12)
