"""What EM says of wrong data, wrong arguments and callbacks that interfere."""

from __future__ import annotations

import pickle
from typing import Any, Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, chain, emissions
from tests.infer.models import (
    COVARIANCES,
    INITIAL,
    LENGTHS,
    LOC,
    LOCS,
    TRANSITION,
    XS,
    YS,
    X,
    Y,
    covariance,
    loc,
    normal_hmm,
    observe,
    positive,
    probs,
    real,
)

INF = float("inf")


# ---- parameters of a subsampled plate ----------------------------------------------------------


def of_sequences(index: Tensor) -> None:
    width = positive("scale", torch.ones(2))
    transition = probs("transition", TRANSITION)
    with pyro.plate("n", len(XS), subsample=index):
        start = XS.mean(-1)[:, None, None] + LOC
        center = pyro.param("loc", start, event_dim=2)
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=transition,
            observation_dist=dist.Normal(center, width),
        )
        pyro.sample("x", hmm, obs=XS[index])


def test_parameter_of_each_sequence_of_a_subsampled_plate_is_refused() -> None:
    message = (
        r"scale: x\.scale holds a value for each sequence of a subsampled plate \(perhaps.*\n"
        r"  loc: x\.loc holds a value for each sequence of a subsampled plate"
    )
    with pytest.raises(ValueError, match=message):
        EM(of_sequences).step(torch.tensor([0, 1]))


def test_parameter_of_each_sequence_of_a_subsampled_plate_is_moved_by_an_optimiser() -> None:
    em = EM(of_sequences, optim=pyro.optim.Adam({"lr": 0.05}))
    first = em.evaluate_loss(torch.arange(4))
    before = pyro.param("loc").detach().clone()
    em.step(torch.tensor([0, 1]))
    moved = (pyro.param("loc").detach() != before).flatten(1).any(-1)
    assert moved.tolist() == [True, True, False, False]
    for number in range(20):
        em.step(torch.tensor([[0, 1], [2, 3]][number % 2]))
    assert em.evaluate_loss(torch.arange(4)) < first - 5


def in_turn(by_place: bool) -> Callable[[], None]:
    """Two of four sequences, one after another, at sites named by sequence or by place."""

    def model() -> None:
        hmm = with_chain(dist.Normal(loc(), 1.0))
        for place, index in enumerate(pyro.plate("n", 4, subsample_size=2)):
            pyro.sample(f"x{place if by_place else index}", hmm, obs=XS[index])

    return model


@pytest.mark.parametrize("seed", range(4))
def test_sequential_subsampled_plate_is_refused_with_the_remedy(seed: int) -> None:
    pyro.set_rng_seed(seed)
    message = "to observe the same sites at every step, got .*Vectorise the plate, or name its sit"
    with pytest.raises(ValueError, match=message):
        EM(in_turn(by_place=False)).run(num_steps=20)


def test_sequential_subsampled_plate_with_sites_named_by_place_is_fitted() -> None:
    def log_prob() -> float:
        with torch.no_grad():
            return float(with_chain(dist.Normal(loc(), 1.0)).log_prob(XS).sum())

    first = log_prob()
    result = EM(in_turn(by_place=True)).run(num_steps=20)
    assert result.num_steps == 20 and log_prob() > first


@pytest.mark.parametrize("what", ["site", "batch"])
def test_model_that_becomes_another_within_a_step_is_refused(what: str) -> None:
    """At every moment at which EM runs the model."""
    refused = []
    for number in (3, 4, 5, 8, 10, 11):
        pyro.clear_param_store()
        calls = []

        def model() -> None:
            calls.append(1)  # noqa: B023
            is_other = len(calls) >= number  # noqa: B023
            with pyro.plate("n", 3 if is_other and what == "batch" else 4) as index:
                hmm = with_chain(dist.Normal(loc() + real("moved", torch.zeros(())).tanh(), 1.0))
                pyro.sample("y" if is_other and what == "site" else "x", hmm, obs=XS[index])

        try:
            EM(model, optim=pyro.optim.Adam({"lr": 0.01})).run(num_steps=3, tol=None)
        except ValueError as error:
            assert str(error).startswith("expected a model"), error
            refused.append(number)
    assert refused


# ---- data that are not finite ------------------------------------------------------------------


class Own(dist.Laplace):
    """A distribution of no family."""


EMISSIONS: dict[str, Callable[[], dist.TorchDistribution]] = {
    "Normal": lambda: dist.Normal(real("loc", LOCS), 1.0).to_event(1),
    "MultivariateNormal": lambda: dist.MultivariateNormal(real("loc", LOCS), covariance()),
    "Own": lambda: Own(real("loc", LOCS), torch.ones(()).double()).to_event(1),
}


def with_chain(emission: dist.TorchDistribution, lengths: Tensor | None = None) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=probs("transition", TRANSITION),
        observation_dist=emission,
        lengths=lengths,
    )


def infinite(value: Tensor, *steps: Any) -> Tensor:
    value = value.clone()
    for step in steps:
        value[step] = INF
    return value


@pytest.mark.parametrize("call", ["step", "run", "evaluate_loss"])
@pytest.mark.parametrize("name", EMISSIONS)
def test_data_that_are_not_finite_are_refused(name: str, call: str) -> None:
    def model(y: Tensor) -> None:
        pyro.sample("y", with_chain(EMISSIONS[name]()), obs=y)

    em = EM(model, optim=pyro.optim.Adam({"lr": 0.01}))
    message = (
        r"expected the data of site 'y' to be finite.*got 2 observations that are not, at "
        r"\[\(3,\), \(7,\)\]"
    )
    with pytest.raises(ValueError, match=message):
        getattr(em, call)(infinite(Y, (3, 0), (7, 2)))


@pytest.mark.parametrize("name", EMISSIONS)
def test_data_that_do_not_count_may_be_anything(name: str) -> None:
    """Padding, masked observations, masked sequences, and sequences of weight 0."""
    mask = torch.ones(4, 32, 1, dtype=torch.bool)
    mask[0, 5] = False

    def model(y: Tensor) -> None:
        emission = EMISSIONS[name]().expand((4, 32, 2)).mask(mask)
        with pyro.plate("n", 4), poutine.mask(mask=torch.tensor([True, True, True, False])):
            pyro.sample("y", with_chain(emission, LENGTHS), obs=y)

    def fitted(y: Tensor) -> Tensor:
        pyro.clear_param_store()
        em = EM(model, optim=pyro.optim.Adam({"lr": 0.01}))
        return torch.tensor([*em.run(y, num_steps=3, tol=None).history, em.evaluate_loss(y)])

    assert_close(fitted(infinite(YS, (0, 5), (1, 25), 3)), fitted(YS))


def test_missing_values_that_the_distribution_knows_are_no_fault() -> None:
    def model() -> None:
        transition = probs("transition", TRANSITION)
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=transition,
            observation_dist=dist.NanMaskedNormal(LOC, torch.ones(2).double()),
        )
        x = X.clone()
        x[3] = torch.nan
        pyro.sample("x", hmm, obs=x)

    assert EM(model).run().converged


def test_data_that_are_no_tensor_are_refused() -> None:
    message = r"the data of site 'x' to be a tensor, got ndarray: use torch.as_tensor\(...\)"
    for call in (EM(normal_hmm).run, EM(normal_hmm).step, EM(normal_hmm).evaluate_loss):
        with pytest.raises(ValueError, match=message):
            call(X.numpy())


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.uint16, torch.int8, torch.long])
def test_data_of_integers_are_those_numbers(dtype: torch.dtype) -> None:
    data = (X > 0).to(dtype)
    for call in ("run", "step", "evaluate_loss"):
        found = []
        for each in (data, data.double()):
            pyro.clear_param_store()
            result = getattr(EM(normal_hmm, min_eigenvalue=0.1), call)(each)
            found.append(torch.tensor(result.history if call == "run" else result))
        assert_close(*found, rtol=1e-12, atol=0.0)


def test_data_on_a_device_without_values_are_refused() -> None:
    for call in (EM(normal_hmm).run, EM(normal_hmm).step, EM(normal_hmm).evaluate_loss):
        with pytest.raises(ValueError, match="expected value on the device of the arguments, cpu"):
            call(X.to("meta"))


@pytest.mark.parametrize("sign, num_digits", [(1, 400), (1, 5000), (-1, 5000)])
def test_integers_of_hundreds_of_digits(sign: int, num_digits: int) -> None:
    """Too large for a float, and from 4,300 digits on for a message."""
    value = sign * 10**num_digits
    for name in ("num_steps", "tol") if value < 0 else ("tol",):
        with pytest.raises(ValueError, match=f"expected {name} to be .*integer of [0-9]* bits"):
            EM(normal_hmm).run(X, **{name: value})
    with pytest.raises(ValueError, match="min_eigenvalue of at least 0, got .*integer of .* bits"):
        EM(normal_hmm, min_eigenvalue=value)


# ---- probabilities of 0 ------------------------------------------------------------------------


def masked_logits(
    off: Tensor, function: Callable[[Tensor], Tensor] = torch.clone
) -> Callable[[], None]:
    def model() -> None:
        size = len(off)
        logits = function(real("logits", torch.eye(size))) + off
        hmm = RegimeHMM(
            initial_probs=torch.full((size,), 1 / size).double(),
            transition_logits=logits,
            observation_dist=dist.Normal(torch.linspace(-1, 1, size).double(), 1.0),
        )
        pyro.sample("x", hmm, obs=X)

    return model


def test_a_row_with_one_state_left_is_a_constant() -> None:
    off = torch.tensor([[0.0, -INF], [0.0, 0.0]]).double()
    result = EM(masked_logits(off)).run()
    assert result.converged

    def model() -> None:
        row = probs("row", torch.eye(2).double()[1].softmax(-1))
        hmm = RegimeHMM(
            initial_probs=torch.full((2,), 0.5).double(),
            transition_probs=torch.stack([torch.tensor([1.0, 0.0]).double(), row]),
            observation_dist=dist.Normal(torch.tensor([-1.0, 1.0]).double(), 1.0),
        )
        pyro.sample("x", hmm, obs=X)

    assert_close(result.history, EM(model).run().history)


def test_a_mask_of_logits_within_the_model_is_told_from_other_functions() -> None:
    off = torch.tensor([[0.0, 0.0, -INF], [0.0, 0.0, 0.0], [-INF, 0.0, 0.0]]).double()
    message = "logits: .*holds -inf where the parameter does not.*start"
    with pytest.raises(ValueError, match=message):
        EM(masked_logits(off, torch.sinh)).run()


def test_logits_that_start_at_minus_infinity_stay_there() -> None:
    """The remedy that the message names; as a mask of logits, which EM sets by Newton's method."""
    off = torch.tensor([[0.0, 0.0, -INF], [0.0, 0.0, 0.0], [-INF, 0.0, 0.0]]).double()

    def model() -> None:
        hmm = RegimeHMM(
            initial_probs=torch.full((3,), 1 / 3).double(),
            transition_logits=real("logits", torch.eye(3).double() + off),
            observation_dist=dist.Normal(torch.linspace(-1, 1, 3).double(), 1.0),
        )
        pyro.sample("x", hmm, obs=X)

    result = EM(model).run()
    assert result.converged
    assert torch.equal(pyro.param("logits").detach() == -INF, off == -INF)
    pyro.clear_param_store()
    assert_close(EM(masked_logits(off)).run().history, result.history)


# ---- callbacks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("callback", [5, "print", int])
def test_callback_that_cannot_be_called_is_refused_before_anything_runs(callback: Any) -> None:
    def model() -> None:
        raise AssertionError("the model ran")

    with pytest.raises(ValueError, match="expected callback to be a function"):
        EM(model).run(callback=callback)


def tensors() -> EM:
    return EM(normal_hmm)


def retracing() -> EM:
    def model(x: Tensor) -> None:
        observe(loc=loc() + 0 * real("moved", torch.zeros(())).tanh(), obs=x)

    return EM(model, optim=pyro.optim.Adam({"lr": 0.01}))


@pytest.mark.parametrize("make", [tensors, retracing])
def test_callback_that_changes_parameters_is_refused(make: Callable[[], EM]) -> None:
    def change(number: int, loss: float) -> None:
        if number == 2:
            with torch.no_grad():
                pyro.get_param_store()._params["loc"].fill_(7.0)

    with pytest.raises(ValueError, match=r"callback that leaves.*got one that changed \['loc'\]"):
        make().run(X, num_steps=4, tol=None, callback=change)
    assert not bool((pyro.param("loc") == 7).any())


@pytest.mark.parametrize("make", [tensors, retracing])
def test_callback_that_clears_the_store_is_refused(make: Callable[[], EM]) -> None:
    with pytest.raises(ValueError, match=r"callback that leaves.*got one that removed.*'loc'"):
        make().run(X, callback=lambda number, loss: pyro.clear_param_store())


@pytest.mark.parametrize("make", [tensors, retracing])
def test_callback_may_read_and_add_parameters(make: Callable[[], EM]) -> None:
    seen = []

    def read(number: int, loss: float) -> None:
        pyro.param("mine", torch.zeros(()))
        pyro.get_param_store().get_state()
        seen.append(float(pyro.param("loc").detach()[0]))

    result = make().run(X, num_steps=3, tol=None, callback=read)
    assert result.num_steps == 3 and len(set(seen)) == 3


# ---- pickles -----------------------------------------------------------------------------------


def gaussian(y: Tensor) -> None:
    center = real("loc", LOCS)
    pyro.sample("y", with_chain(dist.MultivariateNormal(center, covariance(COVARIANCES))), obs=y)


def log_scales(y: Tensor) -> None:
    width = real("width", torch.zeros(2, 3)).exp()
    pyro.sample("y", with_chain(dist.Normal(real("loc", LOCS), width).to_event(1)), obs=y)


def test_arguments_are_pickled_by_reference() -> None:
    arguments = [*chain.ARGUMENTS.values()]
    for family in emissions.FAMILIES:
        arguments += family.arguments
    assert len(arguments) >= 10
    for each in arguments:
        assert pickle.loads(pickle.dumps(each)) is each
        for link in each.links:
            again = pickle.loads(pickle.dumps(link))
            assert again.name == link.name and again.is_identity == link.is_identity


@pytest.mark.parametrize("model", [gaussian, log_scales])
def test_em_goes_on_from_its_pickle(model: Callable[[Tensor], None]) -> None:
    em = EM(model)
    em.step(Y)
    again = pickle.loads(pickle.dumps(em))
    assert str(again.plan) == str(em.plan)
    result = again.run(Y, num_steps=3, tol=None)
    assert pickle.loads(pickle.dumps(result)).history == result.history
    assert str(pickle.loads(pickle.dumps(again.plan))) == str(again.plan)


def test_argument_of_an_unregistered_family_is_no_pickle() -> None:
    own = emissions.without_update("df")
    with pytest.raises(pickle.PicklingError, match="emissions.register"):
        pickle.dumps(own)
