"""A batch of restarts is a loop of single runs, to the bit, whatever its neighbours do."""

from __future__ import annotations

import warnings
from typing import Any, Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_regimes import EM, EMResult, RegimeHMM
from pyro_regimes.infer.em.engines import fused_gaussian
from tests import seeds

K, D, T, R = 2, 3, 400, 5


def data() -> Tensor:
    generator = seeds.generator(0)
    draws = torch.randn((T, D), generator=generator, dtype=torch.float64)
    return draws * torch.where(torch.arange(T) // 40 % 2 == 0, 1.0, 2.5).double().unsqueeze(-1)


def starts(x: Tensor, far: bool) -> dict[str, Tensor]:
    """Some that converge soon, some late, and one whose likelihood is not finite.

    :param far: whether one is so far off that its scatter about the old location loses digits.
    """
    generator = seeds.generator(1)
    loc = torch.randn((R, 1, K, D), generator=generator, dtype=torch.float64)
    sizes = torch.tensor([1.0, 0.2, 3.0, 1.0, 1.0]).double()
    loc = sizes.reshape(R, 1, 1, 1) * loc
    if far:
        loc[2] += 1000.0
    loc[R - 1] = 1e200
    eye = torch.eye(D, dtype=torch.float64)
    covariance = (x.mT.cov() * eye).expand(R, 1, K, D, D).contiguous()
    rows = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    return {
        "initial": torch.tensor([0.5, 0.5]).double().expand(R, K).contiguous(),
        "transition": rows.expand(R, 1, K, K).contiguous(),
        "loc": loc,
        "covariance": covariance,
        "scale": covariance.diagonal(dim1=-2, dim2=-1).sqrt().contiguous(),
    }


def full(values: dict[str, Tensor]) -> dist.Distribution:
    covariance = pyro.param(
        "covariance", values["covariance"].clone(), constraint=constraints.positive_definite
    )
    return dist.MultivariateNormal(pyro.param("loc", values["loc"].clone()), covariance)


def diagonal(values: dict[str, Tensor]) -> dist.Distribution:
    scale = pyro.param("scale", values["scale"].clone(), constraint=constraints.positive)
    return dist.Normal(pyro.param("loc", values["loc"].clone()), scale).to_event(1)


def fit(
    build: Callable[..., Any], which: list[int], far: bool, **settings: Any
) -> tuple[EMResult, dict[str, Tensor]]:
    x = data()
    values = {name: value[which] for name, value in starts(x, far).items()}

    def model() -> None:
        simplex = constraints.simplex
        hmm = RegimeHMM(
            initial_probs=pyro.param("initial", values["initial"].clone(), constraint=simplex),
            transition_probs=pyro.param(
                "transition", values["transition"].clone(), constraint=simplex
            ),
            observation_dist=build(values),
        )
        with pyro.plate("restarts", len(which)):
            pyro.sample("x", hmm, obs=x.expand(len(which), T, D))

    with pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result = EM(model).run(**settings)
        return result, {
            name: value.detach().clone() for name, value in pyro.get_param_store().items()
        }


@pytest.mark.parametrize("engine", ["compiled", "tensors"])
@pytest.mark.parametrize("build", [full, diagonal])
def test_a_batch_is_a_loop_to_the_bit(build, engine, monkeypatch) -> None:
    far = engine == "tensors"  # the compiled engine leaves such a step, of all, to the tensors
    if engine == "tensors":
        monkeypatch.setattr(fused_gaussian, "find", lambda *args: "forbidden")
    settings = dict(num_steps=60, tol=1e-3, check=False)
    batch, fitted = fit(build, list(range(R)), far, **settings)
    history = batch.restart_history
    steps = []
    for restart in range(R):
        single, alone = fit(build, [restart], far, **settings)
        own = single.restart_history[:, 0]
        steps.append(single.num_steps)
        expected = history[: len(own), restart]
        np.testing.assert_array_equal(expected.numpy(), own.numpy())
        rest = history[len(own) :, restart]  # it has converged, and stays
        np.testing.assert_array_equal(rest.numpy(), np.full(len(rest), own[-1]))
        for name, value in alone.items():
            assert torch.equal(fitted[name][restart], value[0]), name
    assert len(set(steps)) > 2  # they end at different steps
    assert batch.num_steps == max(steps)
