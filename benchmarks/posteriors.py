"""The posteriors of variational guides against that of NUTS, on simulated data.

200 observations, of which 160 are fitted, of three regimes whose means are 2 standard deviations
apart. This computes the last table of
docs/em_or_svi.md. All methods start at the same k-means clustering.

    python -m benchmarks.posteriors
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyro.distributions as dist
import torch
from rich.console import Console

from pyro_regimes import RegimeHMM
from pyro_regimes.comparison import PRIOR_METHODS, compare_on_returns
from pyro_regimes.comparison.tables import tables


def simulate() -> npt.NDArray[np.float64]:
    """A series ``(200, 3)`` of unit variance around the means; regimes last 20 steps on average."""
    eye = torch.eye(3, dtype=torch.float64)
    hmm = RegimeHMM(
        initial_probs=torch.full((3,), 1 / 3, dtype=torch.float64),
        transition_probs=0.025 + 0.925 * eye,
        observation_dist=dist.Normal(2**0.5 * eye, 1.0).to_event(1),
        duration=200,
    )
    torch.manual_seed(0)
    return hmm.sample().numpy()


def main() -> None:
    """Run and print."""
    series = simulate()
    comparison = compare_on_returns(
        series, n_regimes=3, methods=[*PRIOR_METHODS, "NUTS"], nuts_steps=200
    )
    console = Console(width=80)
    for table in tables(comparison, "200 steps, means 2 standard deviations apart"):
        console.print(table)


if __name__ == "__main__":
    main()
