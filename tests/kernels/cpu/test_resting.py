"""Torch's idle threads."""

import sys
import threading
from pathlib import Path

import pytest
import torch

from pyro_regimes.kernels import ops
from pyro_regimes.kernels.cpu import resting

HAS_GOMP = any((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))


def number_of_threads():
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(not (HAS_GOMP and sys.platform == "linux"), reason="not GNU's OpenMP")
def test_the_threads_end_and_start_again():
    before, value = torch.get_num_threads(), torch.ones(1_000_000, dtype=torch.float64)
    found = []

    def work():  # a thread has threads of torch of its own
        torch.set_num_threads(2)
        alone = number_of_threads()
        total = value.exp().sum()
        assert number_of_threads() == alone + 1
        assert resting.rest_threads()
        assert number_of_threads() == alone
        assert torch.get_num_threads() == 2
        found.append(torch.equal(value.exp().sum(), total) and number_of_threads() == alone + 1)
        assert resting.rest_threads() and resting.rest_threads()

    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert found == [True]


def test_another_library_of_openmp_is_left_alone(monkeypatch):
    resting._pause.cache_clear()
    monkeypatch.setattr(torch, "__file__", "/nowhere/torch/__init__.py")
    try:
        assert not resting.rest_threads()
        ops.rest_threads()
    finally:
        resting._pause.cache_clear()
