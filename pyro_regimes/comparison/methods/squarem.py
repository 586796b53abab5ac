"""EM with extrapolated steps."""

from __future__ import annotations

from pyro_regimes.comparison.methods.em import maximise_likelihood
from pyro_regimes.comparison.runs import MethodRun
from pyro_regimes.comparison.task import Model, Task

METHOD = "EM, SQUAREM"


def run_squarem(model: Model, task: Task, num_steps: int) -> MethodRun:
    """Run EM with ``acceleration="squarem"`` on the likelihood."""
    return maximise_likelihood(METHOD, model, task, num_steps, "squarem")
