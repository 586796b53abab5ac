"""Peak memory of RegimeModel with ten starts on a million steps, in multiples of the data.

    python -m benchmarks.starts_memory COVARIANCE_TYPE

prints it, in a process that has made one small fit before. Five iterations suffice, because memory
does not grow with their number.
"""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from benchmarks.measure import can_measure_memory, extra_bytes
from pyro_regimes import RegimeModel

NUM_STEPS, NUM_SERIES, NUM_REGIMES = 10**6, 4, 3


def extra_multiples(covariance_type: str, num_steps: int = NUM_STEPS) -> float | None:
    """Peak memory of a fit beyond the data, over the size of the data, in a new process.

    None where the system has no ``/proc`` to read it from.
    """
    if not can_measure_memory():
        return None
    command = [sys.executable, "-m", "benchmarks.starts_memory", covariance_type, str(num_steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def _extra_multiples(covariance_type: str, num_steps: int) -> float:
    """The same in this process."""
    rng = np.random.RandomState(0)

    def fit(x: npt.NDArray[np.float64]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # five iterations are too few
            RegimeModel(
                NUM_REGIMES, covariance_type, n_init=10, max_iter=5, random_state=0
            ).fit(x)

    fit(rng.standard_normal((1000, NUM_SERIES)))  # compiles and loads what it needs
    states = np.arange(num_steps) // 100 % NUM_REGIMES
    x = rng.standard_normal((num_steps, NUM_SERIES))
    x *= np.array([0.5, 1.0, 2.0])[states][:, None]
    return extra_bytes(lambda: fit(x)) / x.nbytes


if __name__ == "__main__":
    print(_extra_multiples(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else NUM_STEPS))
