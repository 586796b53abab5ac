"""EM refuses the models that ``Trace_ELBO`` refuses under validation, and no others."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.estimator.pyro_model import pyro_model
from pyro_regimes.estimator.spec import find_spec
from tests.infer.models import INITIAL, LOC, LOCS, SCALE, TRANSITION, XS, X, Y, observe, real


def lr() -> pyro.optim.PyroOptim:
    return pyro.optim.Adam({"lr": 0.01})


def hmm(loc: Tensor, scale: Tensor | float = 1.0) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.Normal(loc, scale),
    )


def column() -> None:
    observe(loc=real("loc", LOC), obs=X.unsqueeze(-1))


def no_plate() -> None:
    observe(loc=real("loc", LOC), obs=XS)


def no_to_event() -> None:
    observe(loc=real("loc", LOCS[:, :2]), obs=Y[:, :2])


def no_to_event_of_one_state() -> None:
    observe(loc=real("loc", LOCS[:1, :2]), obs=Y[:, :2])


def plate_of_another_size() -> None:
    with pyro.plate("sequences", 3):
        observe(loc=real("loc", LOC), obs=XS)


def other_batch_beside_a_plate() -> None:
    """Pyro's check of plates allows any size at dimension -1 here; the sizes are no batch."""
    with pyro.plate("restarts", 1, dim=-2):
        observe(loc=real("loc", LOC.expand(3, 1, 2)), obs=XS)


def restarts_outside() -> None:
    observe(loc=real("loc", LOC.expand(2, 1, 2)))


def mask_outside() -> None:
    with poutine.mask(mask=torch.tensor([True, False, True])):
        observe(loc=real("loc", LOC))


def scale_of_time() -> None:
    with poutine.scale(scale=torch.linspace(0.5, 1.0, 64)):
        observe(loc=real("loc", LOC))


def scale_of_time_outside() -> None:
    with poutine.scale(scale=torch.linspace(0.5, 1.0, 64).unsqueeze(-1)):
        with pyro.plate("sequences", 4):
            observe(loc=real("loc", LOC), obs=XS)


def scale_of_time_and_sequences() -> None:
    with pyro.plate("sequences", 4), poutine.scale(scale=torch.ones(4, 64)):
        observe(loc=real("loc", LOC), obs=XS)


def mask_of_time_and_sequences() -> None:
    with pyro.plate("sequences", 4), poutine.mask(mask=torch.ones(4, 64, dtype=torch.bool)):
        observe(loc=real("loc", LOC), obs=XS)


def another_site() -> None:
    observe(loc=real("loc", LOC))
    pyro.sample("y", dist.Normal(torch.zeros(3), 1.0), obs=torch.zeros(3))


def latent_outside() -> None:
    prior = dist.Normal(torch.zeros(2).double(), torch.ones(2).double())
    observe(loc=pyro.sample("loc", prior))


def delta_of_latent_outside() -> None:
    pyro.sample("loc", dist.Delta(pyro.param("point", LOC.clone())))


def latent_event() -> None:
    observe(loc=pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 1.0).to_event(1)))


def delta_of_another_event() -> None:
    with pyro.plate("states", 2):
        pyro.sample("loc", dist.Delta(pyro.param("point", LOC.clone())))


REFUSED = {
    each.__name__: (each, None)
    for each in (
        column,
        no_plate,
        no_to_event,
        no_to_event_of_one_state,
        plate_of_another_size,
        restarts_outside,
        mask_outside,
        scale_of_time,
        scale_of_time_outside,
        another_site,
    )
} | {
    "latent": (latent_outside, delta_of_latent_outside),
    "event dims": (latent_event, delta_of_another_event),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_svi_refuses(name) -> None:
    model, guide = REFUSED[name]
    with pytest.raises(ValueError):
        SVI(model, guide or (lambda: None), lr(), Trace_ELBO()).step()
    check_refused(name)


@pytest.mark.parametrize("off", [pyro.validation_enabled, pyro.infer.util.validation_enabled])
@pytest.mark.parametrize("name", REFUSED)
def test_refuses_without_validation_too(name, off) -> None:
    with off(False):
        check_refused(name)


def check_refused(name: str) -> None:
    model, guide = REFUSED[name]
    message = "a plate for every batch dim of si"
    if name == "event dims":
        message = "event_dims disagree"
    elif name.startswith(("scale", "mask")):
        message = "of site 'x' .* to broadcast to .*, one value for each sequence"
    for call in ("step", "run", "evaluate_loss"):
        pyro.clear_param_store()
        with pytest.raises(ValueError, match=message):
            getattr(EM(model, guide), call)()


@pytest.mark.parametrize("validates", [True, False])
def test_refuses_a_batch_that_does_not_broadcast(validates) -> None:
    message = r"the data of site 'x' to have a batch shape that broadcasts .*\(1, 3\), got \(4,\)"
    for call in ("step", "run", "evaluate_loss"):
        pyro.clear_param_store()
        with pyro.validation_enabled(validates), pytest.raises(ValueError, match=message):
            getattr(EM(other_batch_beside_a_plate), call)()


def test_says_what_to_do_about_a_scale_or_a_mask_of_time_steps() -> None:
    """SVI ends in an error of torch's about sizes."""
    models = {"scale": scale_of_time_and_sequences, "mask": mask_of_time_and_sequences}
    for kind, model in models.items():
        message = (
            rf"the {kind} of site 'x' \(poutine.{kind}\) to broadcast to \(4,\).* "
            r"got shape \(4, 64\).*observation_dist.mask"
        )
        for call in ("step", "run", "evaluate_loss"):
            pyro.clear_param_store()
            with pytest.raises(ValueError, match=message):
                getattr(EM(model), call)()


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 4), (4, 1)])
@pytest.mark.parametrize("kind", ["scale", "mask"])
def test_a_scale_may_have_leading_dims_of_size_1(kind, shape) -> None:
    """Of a single sequence, or of four in a plate, as for SVI."""
    scale = torch.linspace(0.5, 2.0, max(shape)).reshape(shape).double()
    handler = poutine.scale(scale=scale) if kind == "scale" else poutine.mask(mask=scale > 1.2)

    def model() -> None:
        with handler:
            if shape == (4, 1):
                with pyro.plate("restarts", 4, dim=-2), pyro.plate("sequences", 4):
                    observe(loc=real("loc", LOC), obs=XS)
            elif shape == (1, 4):
                with pyro.plate("sequences", 4):
                    observe(loc=real("loc", LOC), obs=XS)
            else:
                observe(loc=real("loc", LOC))

    loss = SVI(model, lambda: None, lr(), Trace_ELBO()).evaluate_loss()
    assert EM(model).evaluate_loss() == pytest.approx(loss, rel=1e-9)
    result = EM(model).run(num_steps=5, tol=None)
    assert result.history[0] == pytest.approx(loss, rel=1e-9)
    end = SVI(model, lambda: None, lr(), Trace_ELBO()).evaluate_loss()
    assert result.history[-1] == pytest.approx(end, rel=1e-9)


def test_names_the_site_and_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"site 'x', got log-densities of shape \(64,\) within.*"):
        EM(column).step()
    with pytest.raises(ValueError, match=r"under a pyro.plate; .*to_event\(1\).* not as \(T, 1\)"):
        EM(column).step()
    with pytest.raises(ValueError, match=r"\(4,\) within plates {'sequences': 3}"):
        EM(plate_of_another_size).step()


def test_at_every_run_of_the_model() -> None:
    """A model that is refused from its third run on."""
    calls = []

    def model() -> None:
        calls.append(1)
        observe(loc=real("loc", LOC), obs=X if len(calls) < 9 else X.unsqueeze(-1))

    em = EM(model)
    em.step()
    with pytest.raises(ValueError, match="a plate for every batch dim"):
        for _ in range(9):
            em.step()


@pytest.mark.parametrize("kind", ["scale", "mask"])
def test_scale_and_mask_of_a_batch_beside_a_batch_that_is_one_value(kind) -> None:
    """A plate of two portfolios, each the joint value of four independent sequences."""
    weight = torch.tensor([0.5, 2.0]).double()
    handler = poutine.scale(scale=weight) if kind == "scale" else poutine.mask(mask=weight > 1)

    def model() -> None:
        value = torch.stack([XS, XS + 1])
        with pyro.plate("portfolios", 2), handler:
            pyro.sample("x", hmm(real("loc", LOC)).expand([2, 4]).to_event(1), obs=value)

    loss = SVI(model, lambda: None, lr(), Trace_ELBO()).evaluate_loss()
    result = EM(model).run(num_steps=5, tol=None)
    assert result.history[0] == pytest.approx(loss, rel=1e-9)
    end = SVI(model, lambda: None, lr(), Trace_ELBO()).evaluate_loss()
    assert result.history[-1] == pytest.approx(end, rel=1e-9)


def test_accepts_what_svi_accepts() -> None:
    def model() -> None:
        with pyro.plate("states", 2):
            loc = pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 1.0))
        with pyro.plate("restarts", 2, dim=-2), pyro.plate("sequences", 4, dim=-1):
            pyro.sample("x", hmm(loc).expand([2, 4]), obs=XS)
        pyro.sample("z", hmm(loc).expand([4]).to_event(1), obs=XS)
        with pyro.plate("one", 1):
            pyro.sample("w", hmm(loc, SCALE), obs=X)

    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"loc": LOC.clone()}))
    svi = SVI(model, guide, lr(), Trace_ELBO())
    loss = svi.evaluate_loss()
    assert EM(model, guide).step() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("num_sequences", [0, 3])
def test_the_estimators_starts_pass(num_sequences) -> None:
    data = Y if not num_sequences else Y.expand(num_sequences, -1, -1)
    lead = (2,) + (1,) * (num_sequences > 0)
    start = {
        "initial_probs": INITIAL.expand(lead + (2,)),
        "transition_probs": TRANSITION.expand(lead + (1, 2, 2)),
        "loc": LOCS.expand(lead + (1, 2, 3)),
        "covariance_matrix": torch.eye(3).double().expand(lead + (1, 2, 3, 3)),
    }
    model = pyro_model(start, find_spec("tied"))
    loss = SVI(model, lambda *_: None, lr(), Trace_ELBO()).evaluate_loss(data)
    assert EM(model).step(data) == pytest.approx(loss, rel=1e-9)
    assert constraints.simplex.check(pyro.param("initial_probs").detach()).all()
