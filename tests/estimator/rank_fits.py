"""Fits of RegimeModel to tables in one process, or split among the ranks of a process group."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np
import pandas as pd
import torch.distributed

from pyro_regimes import Chunks, RegimeModel

NUM_TABLES = 10


class Fit(NamedTuple):
    settings: dict[str, Any]
    in_pieces: bool = False  # of one sequence, not tables of whole ones


FITS = {
    "tables": Fit({"n_init": 2, "tol": 1e-6, "max_iter": 500}),
    "pieces": Fit({"n_init": 2, "tol": 1e-6, "max_iter": 500}, in_pieces=True),
    "poisson": Fit({"emission": "poisson", "max_iter": 20, "tol": None}),
    "stationary": Fit({"initial": "stationary", "stickiness": 5.0, "max_iter": 20, "tol": None}),
    "random": Fit({"random_state": None, "max_iter": 20, "tol": None}, in_pieces=True),
}


def tables(name: str, seed: int) -> list[Any]:
    rng = np.random.RandomState(seed)
    found = []
    for number in range(NUM_TABLES):
        wild = np.arange(60 + 7 * number) // 20 % 2
        x = rng.normal(size=(len(wild), 2)) * (1 + 2 * wild)[:, None] + wild[:, None]
        if name == "poisson":
            x = rng.poisson(1 + 5 * wild)[:, None].astype(float)
        x[rng.random_sample(x.shape) < 0.02] = np.nan
        found.append(pd.DataFrame(x, columns=["a", "b"][: x.shape[1]]))
    return found


def fit(name: str, own: Any, **more: Any) -> RegimeModel:
    each = FITS[name]
    x = Chunks(own, continues=True) if each.in_pieces and isinstance(own, list) else own
    model = RegimeModel(2, **{"random_state": 0, "regularization": 0.0, **each.settings})
    return model.fit(x, **more)


def summary(model: RegimeModel) -> dict[str, Any]:
    """What a fit has found."""
    return {
        name: value
        for name, value in vars(model).items()
        if name.endswith("_") and isinstance(value, (int, float, np.ndarray, list, str))
    }


def work(rank: int, size: int, seed: int) -> dict[str, Any]:
    """The fits of one rank, and what it says of data that are not valid on another."""
    found = {}
    for name in FITS:
        own = tables(name, seed)[NUM_TABLES * rank // size : NUM_TABLES * (rank + 1) // size]
        found[name] = summary(fit(name, own))
    calls: list[Callable[[], Any]] = [
        lambda: fit("tables", tables("tables", seed)[:1] if rank == 0 else []),
        lambda: fit("tables", tables("tables" if rank == 0 else "poisson", seed)[:2]),
        lambda: fit("tables", tables("tables", seed)[:2], sample_weight=[1.0, 2.0]),
    ]
    for number, call in enumerate(calls):
        try:
            call()
        except ValueError as error:
            found[f"error {number}"] = str(error)
    groups = [torch.distributed.new_group([other]) for other in range(size)]
    alone = fit("poisson", tables("poisson", seed + rank)[:2], process_group=groups[rank])
    found["alone"] = summary(alone)
    return found
