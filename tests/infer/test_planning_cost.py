"""The work that EM does around its iterations, counted in operators and not in seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_regimes import EM, RegimeHMM
from tests import seeds

T, K, D = 2500, 3, 10
SPREAD = torch.eye(D, dtype=torch.float64).expand(K, D, D) * 1.5
ROWS = torch.full((K, K), 0.05, dtype=torch.float64) + 0.85 * torch.eye(K, dtype=torch.float64)


class Counting(TorchDispatchMode):
    """Counts operators, also those of a backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def count(function: Callable[[], object]) -> int:
    """The number of operators of one call, after one that compiles and caches."""
    function()
    with Counting() as counting:
        function()
    return counting.count


def probs_model(x: Tensor, loc: Tensor) -> None:
    pi = pyro.param("initial", lambda: ROWS[0].clone(), constraints.simplex)
    transition = pyro.param("transition", lambda: ROWS.clone(), constraints.simplex)
    chain = {"initial_probs": pi, "transition_probs": transition}
    covariance = pyro.param("spread", lambda: SPREAD.clone(), constraints.positive_definite)
    observation = dist.MultivariateNormal(pyro.param("loc", loc.clone), covariance)
    pyro.sample("x", RegimeHMM(observation_dist=observation, **chain), obs=x)


def logits_model(x: Tensor, loc: Tensor) -> None:
    pi = pyro.param("initial", lambda: ROWS[0].log())
    transition = pyro.param("transition", lambda: ROWS.log())
    factor = pyro.param("spread", lambda: SPREAD.clone(), constraints.lower_cholesky)
    observation = dist.MultivariateNormal(pyro.param("loc", loc.clone), scale_tril=factor)
    pyro.sample("x", RegimeHMM(pi, transition, observation), obs=x)


@pytest.fixture()
def data() -> tuple[Tensor, Tensor]:
    generator = seeds.generator(3)
    x = torch.randn((T, D), generator=generator, dtype=torch.float64)
    return x, torch.randn((K, D), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    "model, num_steps, most", [(probs_model, 1, 2.7), (logits_model, 0, 3.0)]
)
def test_plan_first_run_and_last_check_cost_few_gradients(
    model: Callable[[Tensor, Tensor], None],
    num_steps: int,
    most: float,
    data: tuple[Tensor, Tensor],
) -> None:
    """In operators, as multiples of one gradient of the model; the last check needs a step."""

    def fit() -> None:
        with pyro.get_param_store().scope():
            EM(model).run(*data, num_steps=num_steps, tol=None)

    def differentiate() -> None:
        with pyro.get_param_store().scope():
            Trace_ELBO().loss_and_grads(model, lambda *args: None, *data)

    assert count(fit) <= most * count(differentiate)


@pytest.mark.parametrize("model", [probs_model, logits_model])
def test_arguments_that_are_parameters_need_no_backward_pass(
    model: Callable[[Tensor, Tensor], None],
    data: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Autograd's graph shows that they are views of their parameters, and of nothing else."""

    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.autograd, "grad", refused)
    with pyro.get_param_store().scope():
        EM(model).run(*data, num_steps=1, tol=None)
