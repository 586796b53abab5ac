"""Blocks of a sequence against the whole of it, and against every path of states."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes.kernels import ops
from tests import seeds
from tests.kernels.cases import Case, random_chain
from tests.oracles import path_weights

INF = math.inf


def left_to_right() -> Case:
    """States that are never entered again: rows of a transfer are not proportional."""
    initial, _, observation, _ = random_chain(40, 3, seed=3)
    transition = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.0, 0.0, 1.0]]).double()
    return Case(initial, transition.log().unsqueeze(0), observation)


def with_zeros() -> Case:
    initial, transition, observation, _ = random_chain(40, 3, seed=4)
    transition[..., 0, 1] = -INF
    observation[5, 0] = observation[17, 2] = observation[18, 1] = -INF
    return Case(initial, transition.log_softmax(-1), observation)


CASES = {
    "one": random_chain(40, 3, seed=1),
    "batch": random_chain(40, 2, (3,), seed=2),
    "one state": random_chain(40, 1, seed=5),
    "left to right": left_to_right(),
    "zeros": with_zeros(),
    "far apart": Case(*(part * 60 for part in random_chain(40, 3, seed=6)[:3])),
}
CUTS = [[40], [1, 39], [39, 1], [13, 1, 1, 25], [1] * 40]


def by_paths(transition: Tensor, observation: Tensor) -> Tensor:
    """The transfer of a few rows, path by path."""
    num_states = observation.shape[-1]
    found = torch.full((num_states, num_states), -INF, dtype=torch.float64)
    for before in range(num_states):
        moves = transition.expand(len(observation), -1, -1)
        weights = path_weights(transition[0, before], moves[1:], observation)
        for last in range(num_states):
            ends = [weight for path, weight in weights.items() if path[-1] == last]
            found[before, last] = torch.tensor(ends, dtype=torch.float64).logsumexp(0)
    return found


@pytest.mark.parametrize("num_rows", [1, 2, 5])
@pytest.mark.parametrize("name", ["one", "left to right", "far apart"])
def test_a_transfer_is_the_sum_over_paths(name, num_rows):
    _, transition, observation, _ = CASES[name]
    found = ops.transfer(transition, observation[:num_rows])
    assert_close(found, by_paths(transition, observation[:num_rows]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", CUTS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_transfers_combine_to_the_likelihood(name, sizes):
    initial, transition, observation, _ = CASES[name]
    first, *rest = observation.split(sizes, -2)
    message = ops.first_message(initial, transition, first)
    for block in rest:
        message = ops.forward_message(message, ops.transfer(transition, block))
    whole = ops.log_likelihood(initial, transition, observation)
    assert_close(message.logsumexp(-1), whole, rtol=1e-12, atol=1e-12)
    if len(rest) > 1:
        blocks = [ops.transfer(transition, block) for block in rest]
        pairs = zip(blocks, [torch.cat(rest[:k], -2) for k in range(1, len(rest) + 1)])
        combined = None
        for block, rows in itertools.islice(pairs, 4):
            combined = block if combined is None else ops.combine_transfers(combined, block)
            expected = ops.transfer(transition, rows)
            assert_close(combined, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["one", "left to right", "zeros"])
def test_gradients_of_transfers(name):
    given = [part.clone().requires_grad_() for part in CASES[name][:3]]

    def in_blocks(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
        first, *rest = observation.split([7, 20, 13], -2)
        message = ops.first_message(initial, transition, first)
        for block in rest:
            message = ops.forward_message(message, ops.transfer(transition, block))
        peak = message.detach().amax(-1)
        return (message - peak).exp().sum(-1).log() + peak

    ours = torch.autograd.grad(in_blocks(*given), given)
    whole = torch.autograd.grad(ops.log_likelihood(*given), given)
    for one, other in zip(ours, whole):
        assert one.isfinite().all()
        assert_close(one, other, rtol=1e-10, atol=1e-12)


def messages_of(transition: Tensor, blocks: list[Tensor]) -> list[Tensor | None]:
    """The messages from the rows after each block, by transfers."""
    after: list[Tensor | None] = [None]
    for block in reversed(blocks[1:]):
        transfer, last = ops.transfer(transition, block), after[0]
        last = transfer.new_zeros(transfer.shape[:-1]) if last is None else last
        after.insert(0, ops.backward_message(transfer, last))
    return after


@pytest.mark.parametrize("sizes", CUTS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_expectations_of_blocks_are_those_of_the_whole(name, sizes):
    initial, transition, observation, _ = CASES[name]
    blocks = list(observation.split(sizes, -2))
    before, found = None, []
    for block, after in zip(blocks, messages_of(transition, blocks)):
        found.append(ops.block_expectations(initial, transition, block, before, after))
        before = found[-1].filtered_logits
    value, smoothed, moved = ops.expectations(initial, transition, observation)
    assert_close(sum(each.log_likelihood for each in found), value, rtol=1e-12, atol=1e-12)
    rows = torch.cat([each.smoothed_probs for each in found], -2)
    assert_close(rows, smoothed, rtol=1e-9, atol=1e-13)
    assert_close(sum(each.expected_transitions for each in found), moved, rtol=1e-9, atol=1e-12)
    last = ops.filter_logits(initial, transition, observation)[..., -1, :]
    assert_close(before.exp(), last.exp(), rtol=1e-10, atol=1e-14)


def test_looking_ahead_decides_the_message():
    initial, transition, observation, _ = random_chain(3000, 3, (2,), seed=7)
    ahead = ops.look_ahead(transition, observation)
    assert ahead.transfer is None
    transfer = ops.transfer(transition, observation)
    expected = ops.backward_message(transfer, torch.zeros(2, 3).double())
    assert_close(ahead.message, expected, rtol=0.0, atol=1e-12)
    # Whatever follows.
    generator = seeds.generator(8)
    for scale in (1.0, 100.0):
        follows = scale * torch.randn((2, 3), generator=generator, dtype=torch.float64)
        expected = ops.backward_message(transfer, follows)
        assert_close(ahead.message, expected, rtol=0.0, atol=1e-12)


def test_rows_that_do_not_forget_give_their_transfer():
    _, transition, observation, _ = left_to_right()
    ahead = ops.look_ahead(transition, observation)
    assert ahead.message is None
    assert_close(ahead.transfer, ops.transfer(transition, observation))
    still = torch.eye(2).double().log().unsqueeze(0)
    rows = torch.randn((500, 2), generator=seeds.generator(9), dtype=torch.float64)
    assert ops.look_ahead(still, rows).message is None


def relative(block: Tensor) -> Tensor:
    """A transfer whose largest entry is 0."""
    return block - block.amax((-2, -1), keepdim=True)


@pytest.mark.parametrize("num_rows", [1, 40, 64, 65, 3000])
def test_an_outline_is_the_transfer_up_to_a_constant(num_rows):
    initial, transition, observation, _ = random_chain(num_rows, 3, (2,), seed=7)
    found = ops.outline(None, transition, observation)
    expected = relative(ops.transfer(transition, observation))
    assert_close(found, expected, rtol=0.0, atol=1e-11)
    found = ops.outline(initial, transition, observation)
    last = ops.first_message(initial, transition, observation)
    expected = relative(last.unsqueeze(-2).expand(2, 3, 3))
    assert_close(found, expected, rtol=0.0, atol=1e-11)


def test_an_outline_of_rows_that_do_not_forget():
    """Rows that forget at one end only, and rows that never do."""
    noisy = random_chain(500, 2, seed=12).observation
    still = torch.eye(2).double().log().unsqueeze(0)
    row = torch.arange(500).unsqueeze(-1)
    certain = torch.where(row < 250, noisy, 0.0)
    certain = certain.masked_fill((row == 3) & torch.tensor([True, False]), -INF)
    for observation in (noisy, 0 * noisy, certain, certain.flip(-2)):
        found = ops.outline(None, still, observation)
        assert_close(found, relative(ops.transfer(still, observation)), rtol=0.0, atol=1e-11)


def test_an_impossible_sequence():
    initial, transition, observation, _ = random_chain(20, 2, seed=10)
    observation[12] = -INF
    blocks = list(observation.split([10, 10], -2))
    after = messages_of(transition, blocks)
    first = ops.block_expectations(initial, transition, blocks[0], None, after[0])
    second = ops.block_expectations(
        initial, transition, blocks[1], first.filtered_logits, None
    )
    assert float(first.log_likelihood + second.log_likelihood) == -INF
    for each in (first, second):
        assert not each.smoothed_probs.any() and not each.expected_transitions.any()


def test_float32_logits_keep_their_dtype():
    initial, transition, observation, _ = random_chain(40, 3, seed=11, dtype=torch.float32)
    after = torch.zeros(3).double()
    found = ops.block_expectations(initial, transition, observation, after, after)
    assert found.smoothed_probs.dtype == found.expected_transitions.dtype == torch.float32
    assert found.log_likelihood.dtype == found.filtered_logits.dtype == torch.float64
