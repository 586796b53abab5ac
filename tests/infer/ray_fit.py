"""EM under Ray Train, two workers: ``python -m tests.infer.ray_fit FOLDER SEED``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


def train(config: dict[str, Any]) -> None:
    """One worker: Ray has initialised the process group."""
    import torch
    import torch.distributed

    from tests.infer import ranks

    torch.set_num_threads(1)
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    x = ranks.shard("gaussian", ranks.data("gaussian", config["seed"]), rank, size)
    torch.save(ranks.fit("gaussian", x), Path(config["folder"]) / f"{rank}.pt")


def main() -> None:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    folder, seed = sys.argv[1], int(sys.argv[2])
    environment = {"PYTHONPATH": os.environ["PYTHONPATH"], "OMP_NUM_THREADS": "1"}
    ray.init(
        num_cpus=3, include_dashboard=False, runtime_env={"env_vars": environment}
    )
    TorchTrainer(
        train,
        train_loop_config={"folder": folder, "seed": seed},
        torch_config=TorchConfig(backend="gloo", timeout_s=60),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=str(Path(folder) / "results")),
    ).fit()
    ray.shutdown()


if __name__ == "__main__":
    main()
