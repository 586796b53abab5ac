"""What RegimeHMM and EM refuse, they refuse by a ValueError that names the argument."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_regimes import EM, RegimeHMM
from tests.properties.strategies import PROPERTY

METHODS = ("log_prob", "posterior", "viterbi", "filter", "sample_posterior")

MANY = settings(PROPERTY, max_examples=200)

#: Of any sizes, or of sizes that often fit.
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple) | st.lists(
    st.integers(1, 2), min_size=1, max_size=4
).map(tuple)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
ANY = INTEGERS + (torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.float32)


def broadcast(*sizes: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return tuple(torch.broadcast_shapes(*sizes))
    except RuntimeError:
        return None


def names(error: pytest.ExceptionInfo[ValueError], *arguments: str) -> bool:
    return any(each in str(error.value) for each in arguments)


@MANY
@given(initial=shapes, transition=shapes, observed=shapes, by_probs=st.booleans())
def test_shapes_of_arguments(
    initial: tuple[int, ...],
    transition: tuple[int, ...],
    observed: tuple[int, ...],
    by_probs: bool,
) -> None:
    """The rule of the docstring says which shapes match; all others are refused by name."""
    kind = "probs" if by_probs else "logits"
    arguments = {f"initial_{kind}": initial, f"transition_{kind}": transition}
    tensors = {
        name: torch.zeros(shape).softmax(-1) if by_probs else torch.zeros(shape)
        for name, shape in arguments.items()
    }

    def make() -> RegimeHMM:
        locations = torch.zeros(observed)
        return RegimeHMM(observation_dist=dist.Normal(locations, 1.0), **tensors)

    num_states = observed[-1] if observed else 0
    steps = {size for size in (observed[-2:-1] or (1,)) if size != 1}
    if len(transition) > 2 and transition[-3] != 1:
        steps.add(transition[-3] + 1)
    batch = broadcast(initial[:-1], transition[:-3], observed[:-2])
    matches = (
        num_states > 0
        and initial[-1:] == (num_states,)
        and transition[-2:] == (num_states, num_states)
        and len(steps) <= 1
        and 0 not in steps
        and batch is not None
    )
    if not matches:
        with pytest.raises(ValueError) as error:
            make()
        assert names(error, *arguments, "observation_dist", "transitions")
        return
    hmm = make()
    assert hmm.batch_shape == batch and hmm.state_dim == num_states


@MANY
@given(data=st.data(), shape=shapes, event=st.booleans(), method=st.sampled_from(METHODS))
def test_shapes_of_values(
    data: st.DataObject, shape: tuple[int, ...], event: bool, method: str
) -> None:
    batch = data.draw(st.sampled_from([(), (1,), (3,), (2, 3), (0,)]))
    loc = torch.zeros((2, 3) if event else (2,))
    observed = dist.Normal(loc, 1.0).to_event(int(event))
    hmm = RegimeHMM(torch.zeros(batch + (2,)), torch.zeros(2, 2), observed)
    value = torch.zeros(shape)
    after = (3,) if event else ()
    num_steps = shape[-1 - event] if len(shape) > event else 0
    lead = shape[: max(0, len(shape) - 1 - event)]
    found = broadcast(batch, lead)
    if num_steps < 1 or shape[len(shape) - event :] != after or found is None:
        with pytest.raises(ValueError) as error:
            getattr(hmm, method)(value)
        assert names(error, "expected value")
    else:
        getattr(hmm, method)(value)


@MANY
@given(
    numbers=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 9), max_size=4),
    dtype=st.sampled_from(ANY),
    method=st.sampled_from(METHODS),
    validates=st.booleans(),
    device=st.sampled_from(["cpu", "cpu", "cpu", "meta"]),
)
def test_lengths(
    numbers: list[int], dtype: torch.dtype, method: str, validates: bool, device: str
) -> None:
    """Whatever they hold, and whether arguments are validated or not."""
    lengths = torch.tensor(numbers, dtype=torch.long).to(dtype).to(device)
    value = torch.zeros(len(numbers), 5)

    def call() -> object:
        observed = dist.Normal(torch.tensor([-1.0, 1.0]), 1.0)
        hmm = RegimeHMM(
            torch.zeros(2), torch.zeros(2, 2), observed, validates, lengths=lengths
        )  # fmt: skip
        return getattr(hmm, method)(value)

    good = device == "cpu" and dtype in INTEGERS
    if good and all(1 <= each <= 5 for each in lengths.tolist()):
        call()
    else:
        with pytest.raises(ValueError) as error:
            call()
        assert names(error, "expected lengths")


@MANY
@given(
    lengths=st.one_of(
        st.none(),
        st.integers(-(10**400), 10**400),
        st.lists(st.integers(-(10**400), 10**400), max_size=3),
        st.floats(),
        st.text(max_size=3),
    ),
    duration=st.one_of(
        st.none(), st.integers(-(10**400), 10**400), st.floats(), st.booleans(), st.text(max_size=3)
    ),
)
def test_lengths_and_durations_of_any_kind(lengths: object, duration: object) -> None:
    observed = dist.Normal(torch.tensor([-1.0, 1.0]), 1.0)
    is_size = type(duration) is int and 1 <= duration < 2**63
    wrong = [] if duration is None or is_size else ["expected duration"]
    wrong += [] if lengths is None else ["expected lengths"]

    def make() -> RegimeHMM:
        start, moves = torch.zeros(2), torch.zeros(2, 2)
        return RegimeHMM(start, moves, observed, duration=duration, lengths=lengths)

    if not wrong:
        assert make().duration == duration
        return
    with pytest.raises(ValueError) as error:
        make()
    assert names(error, *wrong)


def model_of(value: Tensor, loc: Tensor, plates: dict[int, int]) -> None:
    hmm = RegimeHMM(
        initial_probs=torch.tensor([0.5, 0.5]),
        transition_probs=pyro.param(
            "transition", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraints.simplex
        ),
        observation_dist=dist.Normal(pyro.param("loc", loc), 1.0),
    )
    entered = [pyro.plate(f"p{dim}", size, dim=dim) for dim, size in plates.items()]
    for plate in entered:
        plate.__enter__()
    try:
        pyro.sample("x", hmm, obs=value)
    finally:
        for plate in reversed(entered):
            plate.__exit__(None, None, None)


@MANY
@given(
    lead=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    batch=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    plates=st.dictionaries(st.sampled_from([-1, -2]), st.integers(1, 3)),
    validates=st.booleans(),
)
def test_em_accepts_the_shapes_that_svi_accepts(
    lead: tuple[int, ...], batch: tuple[int, ...], plates: dict[int, int], validates: bool
) -> None:
    """Whether Pyro validates or not; what both accept has one loss."""
    value = torch.linspace(-2, 2, 6).cos().expand(lead + (6,))
    loc = torch.tensor([-1.0, 1.0]).expand(batch + (1, 2)).clone()
    arguments = (value, loc, plates)
    pyro.clear_param_store()
    try:
        with pyro.validation_enabled(True):
            svi = SVI(model_of, lambda *_: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
            loss = svi.evaluate_loss(*arguments)
    except ValueError:
        loss = None
    pyro.clear_param_store()
    with pyro.validation_enabled(validates):
        if loss is None:
            with pytest.raises(ValueError):
                EM(model_of).step(*arguments)
        else:
            assert EM(model_of).step(*arguments) == pytest.approx(loss, rel=1e-5)
