"""EM over observations that are several steps apart, against missing rows between them."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, infer_regimes
from pyro_regimes.distributions import stationary_probs
from tests import seeds

K = 3
EXACT = dict(rtol=1e-10, atol=1e-10)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed), dtype=torch.float64)


def some_gaps(*shape: int, most: int = 6) -> Tensor:
    return torch.randint(1, most + 1, shape, generator=seeds.generator(9))


def explicit(x: Tensor, gaps: Tensor) -> Tensor:
    """Sequences of one length, with missing rows in the gaps."""
    places = torch.cat([torch.zeros_like(gaps[:, :1]), gaps.cumsum(1)], 1)
    whole = torch.full((len(x), int(places.max()) + 1), torch.nan, dtype=x.dtype)
    return whole.scatter(1, places, x)


def make_model(
    logits: bool = False, stationary: bool = False, restarts: int = 1
):  # type: ignore[no-untyped-def]
    """Arguments of the chain as probabilities or as logits."""

    def model(x: Tensor, **settings) -> None:
        lead = (restarts, 1) if restarts > 1 else ()
        time = (1,) if lead else ()
        rows = draw(*lead, *time, K, K, seed=2)
        if logits:
            chain = {"transition_logits": pyro.param("rows", rows)}
        else:
            probs = pyro.param("rows", rows.softmax(-1), constraint=constraints.simplex)
            chain = {"transition_probs": probs}
        if stationary:
            matrix = chain["transition_probs"]
            chain["initial_probs"] = stationary_probs(matrix.squeeze(-3) if lead else matrix)
        else:
            first = draw(*lead, K, seed=1).softmax(-1)
            chain["initial_probs"] = pyro.param("initial", first, constraint=constraints.simplex)
        hmm = RegimeHMM(
            observation_dist=dist.Normal(
                pyro.param("loc", draw(*lead, *time, K, seed=3)),
                pyro.param(
                    "scale", draw(*lead, *time, K, seed=4).exp(), constraint=constraints.positive
                ),
            ),
            **chain, **settings,
        )  # fmt: skip
        with pyro.plate("restarts", restarts, dim=-2), pyro.plate("sequences", len(x), dim=-1):
            pyro.sample("x", hmm, obs=x)

    return model


def parameters() -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def fit(model, x: Tensor, num_steps: int, **settings):  # type: ignore[no-untyped-def]
    pyro.clear_param_store()
    em = EM(model)
    result = em.run(x, num_steps=num_steps, tol=None, **settings)
    return em, result, parameters()


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize(
    "form", [{}, {"logits": True}, {"stationary": True}, {"restarts": 3}], ids=str
)
def test_steps_are_those_with_missing_rows(form, num_steps):
    x, gaps = draw(5, 12, seed=5), some_gaps(5, 11)
    whole = explicit(x, gaps)
    lengths = gaps.sum(-1) + 1
    model = make_model(**form)
    em, one, found = fit(model, x, num_steps, gaps=gaps)
    _, other, expected = fit(model, whole, num_steps, lengths=lengths, missing="marginalise")
    assert_close(one.restart_history, other.restart_history, **EXACT)
    if form.get("logits"):  # of which a row is known up to a constant
        found["rows"], expected["rows"] = (
            each["rows"].log_softmax(-1) for each in (found, expected)
        )
    for name, value in expected.items():
        assert_close(found[name], value, **EXACT)
    assert "not equally spaced" in str(em.plan)
    assert (one.restart_history.diff(dim=0) < 1e-9).all()


def test_the_check_of_convergence_agrees():
    """Warnings are errors: the model's own gradient is that of the expected counts."""
    x, gaps = draw(6, 30, seed=5) + 3 * (torch.arange(30) // 10 % 2), some_gaps(6, 29)
    pyro.clear_param_store()
    result = EM(make_model()).run(x, num_steps=2000, tol=1e-6, gaps=gaps)
    assert result.converged and not result.unconfirmed


def test_an_optimiser_moves_the_rest():
    """A transition matrix without a closed form, by the gradient through the powers."""
    x, gaps = draw(4, 20, seed=5) + 3 * (torch.arange(20) // 5 % 2), some_gaps(4, 19)

    def model(x: Tensor) -> None:
        stay = pyro.param("stay", torch.tensor(0.7).double(), constraint=constraints.unit_interval)
        matrix = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
        hmm = RegimeHMM(
            initial_probs=torch.tensor([0.5, 0.5]).double(), transition_probs=matrix,
            observation_dist=dist.Normal(pyro.param("loc", torch.tensor([0.0, 3]).double()), 1.0),
            gaps=gaps,
        )  # fmt: skip
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm, obs=x)

    pyro.clear_param_store()
    em = EM(model, optim=pyro.optim.Adam({"lr": 0.05}))
    result = em.run(x, num_steps=300, tol=1e-4)
    assert result.history[-1] < result.history[0]
    stay = pyro.param("stay").detach().clone().requires_grad_()
    pyro.get_param_store()["stay"] = stay.detach()
    loss = em.evaluate_loss(x)
    for moved in (-0.02, 0.02):
        pyro.get_param_store()["stay"] = (stay + moved).detach().clamp(0.001, 0.999)
        assert em.evaluate_loss(x) > loss - 1e-3


def test_regimes_of_a_model_with_gaps():
    x, gaps = draw(5, 12, seed=5), some_gaps(5, 11)
    model = make_model()
    fit(model, x, 3, gaps=gaps)
    probs = infer_regimes(model, None, x, gaps=gaps)["x"]
    found = infer_regimes(
        model, None, explicit(x, gaps), lengths=gaps.sum(-1) + 1, missing="marginalise"
    )["x"]
    places = torch.cat([torch.zeros_like(gaps[:, :1]), gaps.cumsum(1)], 1)
    index = places.unsqueeze(-1).expand(5, 12, K)
    assert_close(probs.reshape(5, 12, K), found.reshape(5, -1, K).gather(1, index), **EXACT)
