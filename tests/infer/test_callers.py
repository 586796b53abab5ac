"""EM within what the caller has opened: handlers, plates, inference mode, another run of EM."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_regimes import EM
from tests.infer.models import LOC, TRANSITION, X, normal_hmm, observe, real, scale


def regression(x: Tensor, covariate: Tensor) -> None:
    slope, base = real("slope", torch.zeros(1)), real("base", LOC)
    observe(loc=base + covariate.unsqueeze(-1) * slope, obs=x)


def history(steps: int = 3) -> list[float]:
    return EM(normal_hmm).run(X, num_steps=steps, tol=None).history


def svi_loss() -> float:
    optim = pyro.optim.Adam({"lr": 0.01})
    return SVI(normal_hmm, lambda data: None, optim, Trace_ELBO()).step(X)


HANDLERS = {
    "plate": lambda: pyro.plate("around", 3),
    "scale": lambda: poutine.scale(scale=2.0),
    "mask": lambda: poutine.mask(mask=torch.tensor(False)),
    "condition": lambda: poutine.condition(data={"x": X + 1}),
    "block": lambda: poutine.block(),
    "enum": lambda: poutine.enum(first_available_dim=-2),
}


@pytest.mark.parametrize("name", HANDLERS)
def test_handlers_of_the_caller_apply_as_to_svi(name) -> None:
    with HANDLERS[name]():
        expected = svi_loss()
    pyro.clear_param_store()
    with HANDLERS[name]():
        losses = history()
        assert EM(normal_hmm).evaluate_loss(X) == pytest.approx(losses[-1], rel=1e-12)
    assert losses[0] == pytest.approx(expected, rel=1e-12)
    assert all(later <= now for now, later in zip(losses, losses[1:]))


@pytest.mark.parametrize("call", ["step", "run"])
def test_a_trace_around_is_refused(call) -> None:
    with pytest.raises(ValueError, match="no poutine.trace around EM .*put a poutine.block"):
        with poutine.trace():
            getattr(EM(normal_hmm), call)(X)
    pyro.clear_param_store()
    expected = history()
    pyro.clear_param_store()
    with poutine.trace(), poutine.block():
        assert history() == expected


def test_em_within_a_model_is_refused_and_within_a_callback_is_not() -> None:
    def inner() -> None:
        EM(lambda: observe(name="y", loc=real("other", LOC))).run(num_steps=2)

    def model(data: Tensor) -> None:
        inner()
        normal_hmm(data)

    with pytest.raises(ValueError, match="no poutine.trace around EM"):
        EM(model).run(X, num_steps=2)
    pyro.clear_param_store()
    expected = history()
    pyro.clear_param_store()
    with_callback = EM(normal_hmm).run(X, num_steps=3, tol=None, callback=lambda *_: inner())
    assert with_callback.history == expected
    assert not torch.equal(pyro.param("other").detach(), LOC)


def test_inference_mode() -> None:
    """Around EM, and around what its model is given."""
    expected = history()
    pyro.clear_param_store()
    seen = []
    with torch.inference_mode():
        start, rows = LOC * 1, TRANSITION * 1

        def model(data: Tensor) -> None:
            observe(
                loc=pyro.param("loc", start), scale=scale(), obs=data, transition_probs=rows
            )

        em = EM(normal_hmm)
        losses = em.run(
            X * 1, num_steps=3, tol=None, callback=lambda *_: seen.append(torch.is_grad_enabled())
        ).history
        assert torch.is_inference_mode_enabled() and em.step(X) == pytest.approx(losses[-1])
    # Another engine serves inference tensors, with other rounding errors.
    assert losses == pytest.approx(expected, rel=1e-14) and seen == [False] * 3
    assert not any(leaf.is_inference() for _, leaf in pyro.get_param_store().named_parameters())
    pyro.clear_param_store()
    EM(model).run(X, num_steps=2)


def test_inference_tensors_that_do_not_serve_are_refused() -> None:
    with torch.inference_mode():
        covariate = torch.linspace(-2, 2, 64).double()
    with pytest.raises(ValueError, match="one that the model reads .* clone"):
        EM(regression).run(X, covariate)
    pyro.clear_param_store()
    with torch.inference_mode():
        pyro.param("loc", LOC.clone())
    with pytest.raises(ValueError, match=r"set in place, got \['loc'\], which were made under"):
        EM(normal_hmm).step(X)
