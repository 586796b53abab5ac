"""Regimes of a Parquet file that need not fit in memory, and today's regime from a live stream.

    python examples/stream_parquet.py --out stream_parquet
    torchrun --nproc-per-node=2 examples/stream_parquet.py --out stream_parquet

The script writes a Parquet file of simulated returns, piece by piece. `RegimeModel` is fitted to it
without reading it whole: every iteration of EM reads it anew, a piece at a time, and the result is
that of a fit in memory. Then rows arrive one by one. An `OnlineFilter` gives the probability of
each regime after each row, and its state is saved as JSON, from which another process goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed

from pyro_regimes import Chunks, OnlineFilter, RegimeModel

NAMES = ["stocks", "bonds"]
SPREADS = np.array([[0.6, 0.3], [2.0, 0.5]])  # of a calm and a turbulent regime


def simulate(num_rows: int, rows: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Returns in percent, piece by piece."""
    state = 0
    for begin in range(0, num_rows, rows):
        count = min(rows, num_rows - begin)
        changes = rng.random(count) < np.array([0.005, 0.02])[state]
        states = (state + changes.cumsum()) % 2
        state = int(states[-1])
        yield rng.normal(size=(count, 2)) * SPREADS[states]


def main(args: argparse.Namespace) -> None:
    rng = np.random.default_rng(args.seed)
    rank, size, alone = 0, 1, None
    if torch.distributed.is_torchelastic_launched():
        torch.distributed.init_process_group("gloo")
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        alone = torch.distributed.new_group([0])

    # 1. A file that is written as it would be by another system, in pieces.
    path = args.out / "returns.parquet"
    if rank == 0:
        args.out.mkdir(parents=True, exist_ok=True)
        schema = pa.schema([(name, pa.float64()) for name in NAMES])
        with pq.ParquetWriter(path, schema) as writer:
            for piece in simulate(args.num_rows, args.chunk, rng):
                writer.write_table(pa.table(dict(zip(NAMES, piece.T)), schema))
    if size > 1:
        torch.distributed.barrier()

    # 2. The fit reads it again in every iteration. The pieces are those of one sequence.
    chunks = Chunks.parquet(path, NAMES, rows=args.chunk, continues=True, part=(rank, size))
    model = RegimeModel(n_regimes=2, n_init=2, random_state=args.seed, max_iter=args.max_iter)
    model.fit(chunks)
    if rank == 0:
        print(model.summary(), "\n")

        # 3. The same in memory, for comparison.
        table = pq.read_table(path).to_pandas()
        whole = RegimeModel(n_regimes=2, n_init=2, random_state=args.seed, max_iter=args.max_iter)
        whole.fit(table, process_group=alone)
        gap = abs(model.log_likelihood_ - whole.log_likelihood_)
        print(f"in pieces and in memory: log-likelihoods differ by {gap:.2g} nats")
        follow(model, next(simulate(args.live, args.live, rng)), args.out)
    if alone is not None:
        torch.distributed.destroy_process_group()


def follow(model: RegimeModel, rows: np.ndarray, out: Path) -> None:
    """Filter rows that come after the fit."""
    # 4. Rows as they arrive.
    online = OnlineFilter(model, start="stationary")
    live = pd.DataFrame(rows, columns=NAMES)
    for row in rows[: len(rows) // 2]:
        found = online.update(row)
    (out / "state.json").write_text(online.to_json())

    # 5. Later, in another process.
    online = OnlineFilter.from_json(model, (out / "state.json").read_text())
    for row in rows[len(rows) // 2 :]:
        found = online.update(row)
    expected = model.predict_proba(live, "filtered", start="stationary")[-1]
    regimes = ", ".join(
        f"{name} {p:.3f}" for name, p in zip(model.regime_names_, found.probs)
    )
    print(f"after {online.n_rows} rows: {regimes}")
    print(f"the filter of all rows at once differs by {abs(found.probs - expected).max():.1g}")
    print(f"volatility of the next row: {online.forecast().deviation[0].round(2)}")
    model.save(out / "model.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-rows", type=int, default=500_000, help="rows of the file")
    parser.add_argument("--chunk", type=int, default=100_000, help="rows of a piece")
    parser.add_argument("--live", type=int, default=1000, help="rows that arrive one by one")
    parser.add_argument("--max-iter", type=int, default=200, help="iterations of EM")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--out", type=Path, default=Path("stream_parquet"), help="output directory")
    main(parser.parse_args())
