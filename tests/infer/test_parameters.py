"""Which parameters EM takes, and which it refuses by name."""

import copy
import re
from typing import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from pyro_regimes import EM, RegimeHMM
from tests.infer.models import (
    INITIAL,
    LEFT_TO_RIGHT,
    LOC,
    SCALE,
    TRANSITION,
    X,
    loc,
    observe,
    positive,
    probs,
    real,
)
from tests.infer.table import left_to_right


class Recorder:
    """Parametrises a test with the functions that it decorates."""

    def __init__(self) -> None:
        self.cases: list = []

    def __call__(self, *named: str) -> Callable:
        def add(model: Callable) -> Callable:
            self.cases.append(pytest.param(model, named, id=model.__name__))
            return model

        return add


refused = Recorder()


@refused("loc")
def tanh_at_zero() -> None:
    observe(loc=real("loc", torch.zeros(2)).tanh())


@refused("loc")
def sin_of_loc() -> None:
    observe(loc=real("loc", torch.zeros(2)).sin())


@refused("loc")
def loc_clamped_inside_bounds() -> None:
    observe(loc=loc().clamp(-50.0, 50.0))


@refused("scale")
def scale_clamped_inside_bounds() -> None:
    observe(scale=positive("scale", SCALE).clamp(1e-3, 1e3))


@refused("scale")
def scale_clamped_below() -> None:
    observe(scale=positive("scale", SCALE).clamp(min=1e-2))


@refused("transition")
def probs_clamped_inside_bounds() -> None:
    observe(transition_probs=probs("transition", TRANSITION).clamp(1e-3, 1 - 1e-3))


@refused("transition")
def softened_probs() -> None:
    soft = probs("transition", TRANSITION).clamp(min=1e-5)
    observe(transition_probs=soft / soft.sum(-1, keepdim=True))


@refused("logits")
def cubes_of_logits() -> None:
    observe(transition_logits=real("logits", TRANSITION.log()) ** 3)


@refused("loc")
def second_likelihood() -> None:
    value = loc()
    observe(loc=value)
    pyro.sample("y", dist.Laplace(value, 1.0).to_event(1), obs=torch.zeros(2).double())


@refused("loc")
def factor() -> None:
    value = loc()
    observe(loc=value)
    pyro.factor("penalty", -value.abs().sum())


@refused("loc")
def factor_without_slope_here() -> None:
    value = real("loc", torch.zeros(2))
    observe(loc=value)
    pyro.factor("penalty", -(value**2).sum())


@refused("loc")
def factor_from_a_second_read() -> None:
    observe(loc=loc())
    pyro.factor("penalty", -(loc() ** 2).sum())


@refused("transition")
def initial_is_two_steps_after_a_state() -> None:
    matrix = probs("transition", TRANSITION)
    observe(initial_probs=matrix[0] @ matrix, transition_probs=matrix)


@refused("x.loc")
def detached() -> None:
    observe(loc=loc().detach())


@refused("x.scale")
def detached_scale_from_loc() -> None:
    value = loc()
    observe(loc=value, scale=1 + value.detach() ** 2)


@refused("loc")
def half_detached() -> None:
    value = loc()
    observe(loc=torch.stack([value[0], value[1].detach()]))


@refused("loc")
def half_of_it_detached() -> None:
    value = loc()
    observe(loc=0.5 * value + 0.5 * value.detach())


@refused("x.value")
def data_shifted_by_a_copy() -> None:
    value = loc()
    observe(loc=value, obs=X - value.detach().mean())


@refused("x.scale")
def scaled_by_a_copy() -> None:
    value = loc()
    with poutine.scale(scale=value.detach().square().sum().item() + 1):
        observe(loc=value)


@refused("x.observation_dist.mask")
def masked_by_a_copy() -> None:
    value = loc()
    far = (X - value.detach().mean()).abs().unsqueeze(-1) < 3
    observe(observation_dist=dist.Normal(value, 1.0).mask(far))


@refused("penalty.log_prob")
def factor_of_a_copy() -> None:
    value = loc()
    observe(loc=value)
    pyro.factor("penalty", -value.detach().square().sum())


@refused("loc")
def sorted_means() -> None:
    observe(loc=loc().sort().values)


@refused("p")
def one_minus_a_square() -> None:
    p = pyro.param("p", torch.tensor(0.9).double(), constraint=constraints.unit_interval)
    stay = torch.stack([p**2, 1 - p**2])
    observe(transition_probs=torch.stack([stay, stay.flip(0)]))


@refused("shift")
def shifted_data() -> None:
    observe(obs=X - real("shift", torch.tensor(0.0)))


@refused("weight")
def scaled_by_a_parameter() -> None:
    with poutine.scale(scale=positive("weight", torch.tensor(1.0))):
        observe()


@refused("loc", "residual")
def residual_network_on_loc() -> None:
    value = loc()
    observe(loc=value + real("residual", torch.zeros(2, 2)) @ value.tanh())


@refused("both")
def loc_and_scale() -> None:
    both = positive("both", torch.tensor([0.5, 1.5]))
    observe(loc=both, scale=both)


@refused("both")
def probabilities_here_and_logits_there() -> None:
    both = real("both", TRANSITION)
    observe(transition_probs=both)
    observe(name="y", transition_logits=both)


@refused("net$$$weight")
def module_weights() -> None:
    net = pyro.module("net", NETWORK)
    observe(loc=net(torch.ones(1).double()).tanh())


@refused("loc")
def a_product_that_is_one_here() -> None:
    value = real("loc", torch.ones(2))
    observe(loc=value * value)


@refused("loc")
def family_without_closed_form() -> None:
    observe(observation_dist=dist.Cauchy(loc(), 1.0))


@refused("loc")
def loc_of_itself_sorted_elsewhere() -> None:
    value = loc()
    observe(loc=torch.where(value[0] < value[1], value, value.flip(0)))


NETWORK = nn.Linear(1, 2).double()


@pytest.mark.parametrize("model, named", refused.cases)
def test_refused_by_name(model: Callable[[], None], named: tuple[str, ...]) -> None:
    network = copy.deepcopy(NETWORK.state_dict())
    em = EM(model)
    with pytest.raises(ValueError, match="set in closed form") as error:
        em.step()
    listed = re.findall(r"\n  (\S+): ", str(error.value))
    assert set(named) <= set(listed), str(error.value)
    assert em.plan is None
    if model is module_weights:  # still the store's, for an optimiser to move
        assert NETWORK.weight is pyro.get_param_store()._params["net$$$weight"]
    for name, value in network.items():
        assert torch.equal(value, NETWORK.state_dict()[name])


# What needs another kind of error, or no parameter to name.


def _latent() -> None:
    observe(loc=LOC.double() + pyro.sample("offset", dist.Normal(0.0, 1.0)))


def _no_hmm() -> None:
    pyro.sample("y", dist.Normal(loc(), 1.0).to_event(1), obs=torch.zeros(2).double())


def _no_parameters() -> None:
    observe()


def _only_an_unused_parameter() -> None:
    loc()
    observe()


def _not_observed() -> None:
    hmm = RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=dist.Normal(loc(), 1.0)
    )
    pyro.sample("x", hmm)


@pytest.mark.parametrize(
    "model, message",
    [
        (_latent, "latent site 'offset'"),
        (_no_hmm, r"an observed RegimeHMM site in the model, got sites \['y'\]"),
        (_no_parameters, "at least one pyro.param, got none"),
        (_only_an_unused_parameter, r"depends on, got only \['loc'\]"),
        (_not_observed, "latent site 'x'|duration"),
    ],
)
def test_not_a_model_for_em(model: Callable[[], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EM(model).step()


def test_module_that_reads_past_the_store() -> None:
    """A PyroModule's parameter goes through pyro.param: taken. A plain module's does not."""

    class Regimes(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc = PyroParam(LOC.clone().double())
            self.scale = PyroParam(SCALE.clone().double(), constraints.positive)

        def forward(self) -> None:
            observe(loc=self.loc, scale=self.scale)

    module = Regimes()
    em = EM(module)
    losses = em.run(num_steps=20, tol=None).history
    assert {each.name for each in em.plan.assignments} == {"loc", "scale"}
    assert_rises(losses)
    assert not torch.equal(module.loc.detach(), LOC)


def test_module_that_keeps_its_parameters() -> None:
    """With Pyro's setting there is no store that EM could read and write."""

    class Regimes(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc = PyroParam(LOC.clone().double())

        def forward(self) -> None:
            observe(loc=self.loc)

    with pyro.settings.context(module_local_params=True):
        module = Regimes()
        with pytest.raises(ValueError, match=r"got \['loc'\].*module_local_params"):
            EM(module).step()
    assert torch.equal(module.loc.detach(), LOC.double())


def assert_rises(losses) -> None:
    losses = torch.as_tensor(losses, dtype=torch.float64)
    rise = losses[:-1] - losses[1:]
    assert (rise >= -1e-9 * (1 + losses[:-1].abs())).all(), rise.min()
    assert (losses[0] - losses[-1] > 1e-3).all(), "nothing was learned"


def objective(model: Callable[[], None]) -> Tensor:
    """Minus the log joint, differentiable in the store's unconstrained tensors."""
    trace = poutine.trace(model).get_trace()
    return -trace.log_prob_sum()


def test_structural_zeros_stay() -> None:
    model = left_to_right
    em = EM(model)
    em.run(num_steps=10, tol=None)
    matrix = pyro.param("transition").detach()
    assert (matrix[LEFT_TO_RIGHT == 0] == 0).all()
    assert (matrix[LEFT_TO_RIGHT > 0] > 0).all()
    assert not torch.equal(matrix, LEFT_TO_RIGHT)


def test_fixed_arguments_stay() -> None:
    """A tensor that is no parameter is read, and neither moved nor tracked."""
    fixed = SCALE.clone().double()

    def model() -> None:
        observe(loc=loc(), scale=fixed)

    EM(model).run(num_steps=5, tol=None)
    assert torch.equal(fixed, SCALE.double())
    assert not fixed.requires_grad


def test_unused_parameter_is_left_alone() -> None:
    def model() -> None:
        real("idle", torch.ones(3))
        observe(loc=loc())

    em = EM(model)
    em.step()
    assert em.plan.unused == ["idle"]
    assert "idle" in str(em.plan)
    assert torch.equal(pyro.param("idle").detach(), torch.ones(3).double())


def test_parameter_that_underflows_is_not_lost() -> None:
    """The initial probabilities of one sequence tend to 0 and 1, and are never written as 0."""

    def model() -> None:
        initial = probs("initial", INITIAL)
        observe(initial_logits=initial.log(), loc=loc())

    EM(model).run(num_steps=200, tol=None)
    initial = pyro.param("initial").detach()
    assert initial.min() > 0
    assert initial.max() > 1 - 1e-6
    gradient = torch.autograd.grad(
        objective(model), list(dict(pyro.get_param_store().named_parameters()).values())
    )
    assert all(part.isfinite().all() for part in gradient)


def test_plan_is_made_anew_when_the_model_changes() -> None:
    """A model that reads its parameter in another way later is found out."""
    how = {"f": torch.Tensor.clone}

    def model() -> None:
        observe(loc=how["f"](loc()))

    em = EM(model)
    em.step()
    how["f"] = torch.Tensor.tanh
    with pytest.raises(ValueError, match=r"\n  loc: "):
        em.step()
