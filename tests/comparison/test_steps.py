"""A compiled step of SVI is Pyro's step, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from pyro_regimes.comparison.methods.optimisers import Optimiser
from pyro_regimes.comparison.methods.steps import CompiledSteps, PyroSteps, make_steps
from pyro_regimes.comparison.scores import parameter_leaves, parameter_values
from pyro_regimes.comparison.task import Task, Workspace
from pyro_regimes.datasets import load_sector_returns
from pyro_regimes.estimator.pyro_model import prior_model, pyro_model, site_values, to_arguments
from pyro_regimes.estimator.spec import COVARIANCE_TYPES, find_spec
from pyro_regimes.estimator.starts import make_starts
from pyro_regimes.kernels.gaussian import operators

X = load_sector_returns().values[-150:, :3]
X = (X - X.mean(0)) / X.std(0)
DATA = torch.from_numpy(X)


def no_guide(data: Tensor) -> None:
    pass


def problem(covariance_type: str, guide: str) -> tuple[Any, Any, Task]:
    """A model, a guide and the task, as the comparison makes them of a table of returns."""
    spec = find_spec(covariance_type)
    start = make_starts(X, 2, 1, spec, 1e-6, np.random.RandomState(0)).select(0)
    arguments = to_arguments(start, spec)
    task = Task(DATA, None, None, 1, site_values(arguments, spec), 0, None, jit_compile=True)
    if not guide:
        return pyro_model(arguments, spec, missing="refuse"), no_guide, task
    zeros = torch.zeros(3, dtype=torch.float64)
    model = prior_model(2, spec, zeros, torch.ones_like(zeros), missing="refuse")
    guides: dict[str, Any] = {
        "AutoDelta": AutoDelta,
        "AutoNormal": AutoNormal,
        "AutoMultivariateNormal": AutoMultivariateNormal,
    }
    return model, guides[guide](model, init_loc_fn=task.start()), task


def run(kind: Any, covariance_type: str, guide: str, optim: str) -> tuple[list[float], Any]:
    """The losses and the final parameters of some steps."""
    workspace = Workspace(0, torch.device("cpu"))
    with workspace.entered():
        model, guide, task = problem(covariance_type, guide)
        with torch.random.fork_rng():
            guide(DATA)
            poutine.trace(model).get_trace(DATA)
            steps = kind(model, guide, Optimiser(optim, 0.05, 12), DATA)
        losses = [steps.step() for _ in range(12)]
        return [*losses, steps.loss()], parameter_values()


CASES = [
    *((kind, "", "Adam") for kind in COVARIANCE_TYPES),
    ("full", "", "ClippedAdam"),
    ("full", "", "DecayingAdam"),
    *(("full", guide, "Adam") for guide in ("AutoDelta", "AutoNormal", "AutoMultivariateNormal")),
    ("diag", "AutoNormal", "Adam"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(filter(None, case)))
def test_compiled_steps_are_those_of_pyro(case: tuple[str, str, str]) -> None:
    expected, at = run(PyroSteps, *case)
    found, parameters = run(CompiledSteps, *case)
    if case[1] in ("AutoNormal", "AutoMultivariateNormal"):
        # In a graph, the guide's terms are added in another order, and torch multiplies a size,
        # which is a tensor there, by log(2 pi) in float32.
        expected = [pytest.approx(value, rel=1e-7) for value in expected]
    assert found == expected
    assert found[-1] < found[0]
    assert parameters.keys() == at.keys()
    for name, value in at.items():
        assert torch.equal(parameters[name], value), name


def test_a_compiled_step_has_one_node_for_the_whole_chain() -> None:
    workspace = Workspace(0, torch.device("cpu"))
    with workspace.entered():
        model, guide, task = problem("full", "AutoNormal")
    steps = make_steps(model, guide, Optimiser("Adam", 0.05), task, workspace)
    assert isinstance(steps, CompiledSteps)
    nodes = steps._loss.recorded.graph.findAllNodes("prim::PythonOp")
    assert [node.pyname() for node in nodes] == ["LogLikelihood"]


def test_an_interrupt_inside_a_compiled_step_stays_one(monkeypatch) -> None:
    workspace = Workspace(0, torch.device("cpu"))
    with workspace.entered():
        model, guide, task = problem("full", "")
        steps = make_steps(model, guide, Optimiser("Adam", 0.05), task, workspace)

        def interrupt(*args: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(operators, "log_density", interrupt)
        with pytest.raises(KeyboardInterrupt):
            steps.step()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_steps_begin_at_the_start(jit_compile: bool) -> None:
    """What is compiled before them moves no parameter and draws no random number."""
    workspace = Workspace(0, torch.device("cpu"))
    with workspace.entered():
        model, guide, task = problem("full", "AutoNormal")
        with torch.random.fork_rng():
            guide(DATA)
        before, state = parameter_values(), torch.get_rng_state()
    task = task._replace(jit_compile=jit_compile)
    make_steps(model, guide, Optimiser("Adam", 0.05), task, workspace)
    with workspace.entered():
        assert torch.equal(torch.get_rng_state(), state)
        after = parameter_values()
        assert all(leaf.grad is None or not leaf.grad.any() for leaf in parameter_leaves().values())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
