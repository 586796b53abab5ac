"""Every Triton kernel, as the launchers launch it, compiles for GPUs that are not here.

The interpreter accepts what the compiler refuses. So the launchers run on CPU tensors with their
launches replaced by a compilation of the same kernel for the same arguments. That needs a process
in which ``TRITON_INTERPRET`` is not set.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# Shared memory that one program may have, by compute capability.
SHARED_MEMORY = {80: 166_912, 90: 232_448}
DOUBLE, SINGLE = torch.float64, torch.float32
# (dtype, N, T, K, slices of A): one block, blocks, groups of blocks; states within a thread, across
# threads, and by matrix products; sizes of 1, which Triton compiles as constants.
PROBLEMS = [
    (DOUBLE, 40_000, 3, 3, 1),
    (DOUBLE, 1, 32_000, 3, 1),
    (DOUBLE, 2, 600, 4, 599),
    (DOUBLE, 2, 3, 17, 2),
    (DOUBLE, 1, 600, 17, 1),
    (DOUBLE, 1, 1, 1, 1),
    (SINGLE, 1, 600, 3, 1),  # float32 is loaded and stored: no arithmetic is done in it
]
# These take longer to compile, and differ from K = 17 in the size of a tile only.
LARGE = [(DOUBLE, 2, 600, 64, 1), (DOUBLE, 2, 3, 128, 1)]


def compile_launches(
    capability: int, problems: list[tuple[torch.dtype, int, int, int, int]]
) -> int:
    """Compile all that the launchers launch for these problems; how many kernels that was."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pyro_regimes.kernels.cuda import launch

    names = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "*i32"}
    names[torch.int64] = "*i64"
    done = set()

    def compile_instead(
        problem: Any, kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any
    ) -> None:
        warps = options.pop("num_warps")
        options.update(K=problem.num_states, KP=problem.padded)
        signature, constants, attributes = {}, {}, {}
        for place, name in enumerate(kernel.arg_names):
            value = args[place] if place < len(args) else options[name]
            if isinstance(value, torch.Tensor):
                signature[name] = names[value.dtype]
                attributes[(place,)] = [["tt.divisibility", 16]]
            elif place >= len(args) or value is None or value == 1:
                signature[name], constants[name] = "constexpr", value
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
        key = (kernel.__name__, tuple(signature.items()), tuple(constants.items()), warps)
        if key in done:
            return
        done.add(key)
        compiled = triton.compile(
            ASTSource(kernel, signature, constants, attributes),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": warps, "enable_fp_fusion": True},
        )
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= SHARED_MEMORY[capability], key

    launch._Problem.launch = compile_instead  # type: ignore[method-assign]
    for dtype, count, num_steps, num_states, slices in problems:
        arguments = (
            torch.zeros(1, num_states, dtype=dtype),
            torch.zeros(count, slices, num_states, num_states, dtype=dtype),
            torch.zeros(count, num_steps, num_states, dtype=dtype),
            torch.ones(count, dtype=torch.int64) if count > 1 else None,
        )
        launch.expectations(*arguments)
        launch.log_likelihood(*arguments)
    return len(done)


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("problems", ["PROBLEMS", "LARGE"])
def test_kernels_compile(capability, problems, tmp_path):
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)  # so that nothing compiled before counts
    command = [sys.executable, "-m", "tests.kernels.cuda.test_compile", str(capability), problems]
    root = Path(__file__).parents[3]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout.split()[0]) >= 10


if __name__ == "__main__":
    print(compile_launches(int(sys.argv[1]), globals()[sys.argv[2]]), "kernels compiled")
