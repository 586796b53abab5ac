"""The public functions for packed sequences, which follow one another along time.

With a :class:`Packing` in the place of ``lengths``, the T time steps are those of S sequences, one
after the other, and none is padded. It is one chain that begins anew: at the first step of each
sequence the state has the initial distribution, whatever came before. So the log-likelihood and the
expected transitions are sums over the sequences, and everything else is as for one sequence of T
steps. (A transition that leads to the first step of a sequence counts for nothing.)

Sequences of similar lengths form a padded batch, in which the longest has at most 1.5 times the
steps of the shortest, and each batch is computed by the function of the same name in
:mod:`.likelihoods` or :mod:`.paths`. Hence every device, derivative and transform is supported, and
memory is in proportion to the number of steps. The compiled E-step of the CPU, without derivatives,
needs no batches. Without a packing those functions are called as they are. :func:`_for_packed`
makes the functions of this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any, Callable, Protocol, TypeVar

import torch
from torch import Tensor

from pyro_regimes.kernels import dispatch, likelihoods, paths
from pyro_regimes.kernels.arguments import check, flatten
from pyro_regimes.kernels.likelihoods import Expectations
from pyro_regimes.kernels.packing import Batch, Packing

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
Parts = Sequence[Tensor]  #: a result of each padded batch
Join = Callable[[Packing, Tensor, Parts], Tensor]  #: the second are the transition logits
Logits = tuple[Tensor, Tensor, Tensor]  #: initial, transition and observation logits


class OfChain(Protocol[Result_co]):
    """A function of the chain, and of how its steps are those of sequences."""

    def __call__(
        self,
        initial_logits: Tensor,
        transition_logits: Tensor,
        observation_logits: Tensor,
        lengths: Tensor | Packing | None = None,
    ) -> Result_co: ...


def _select(values: Tensor, dim: int, steps: Tensor) -> Tensor:
    """``values`` at some steps; ``dim`` becomes the dims of these."""
    return values.index_select(dim, steps.reshape(-1)).unflatten(dim, steps.shape)


def _transition(transition_logits: Tensor, batch: Batch) -> Tensor:
    """Those of a padded batch, ``(..., n or 1, 1 or t-1, K, K)``."""
    if transition_logits.shape[-3] == 1:
        return transition_logits.unsqueeze(-4)
    last = transition_logits.shape[-3] - 1  # padding may come after the last transition
    return _select(transition_logits, -3, batch.steps[:, :-1].clamp(max=last))


def _on_batches(
    function: Callable[..., Any],
    packing: Packing,
    chain: Logits,
    path: Tensor | None = None,
    **options: Any,
) -> list[Any]:
    """The results of a function on each padded batch."""
    initial_logits, transition_logits, observation_logits = chain
    packing.check(observation_logits)
    found = []
    for batch in packing.batches:
        arguments = [
            initial_logits.unsqueeze(-2),
            _transition(transition_logits, batch),
            _select(observation_logits, -2, batch.steps),
        ]
        if path is not None:
            arguments.append(_select(path, -1, batch.steps))
        found.append(function(*arguments, batch.lengths, **options))
    return found


def _sum(packing: Packing, transition_logits: Tensor, parts: Parts) -> Tensor:
    """The sum over all sequences of results ``(..., n)``."""
    return torch.cat(list(parts), -1).sum(-1)


def _states(packing: Packing, transition_logits: Tensor, parts: Parts) -> Tensor:
    """``(..., T)``, of results ``(..., n, t)``."""
    return packing.join(parts, -1)


def _rows(packing: Packing, transition_logits: Tensor, parts: Parts) -> Tensor:
    """``(..., T, K)``, of results ``(..., n, t, K)``."""
    return packing.join(parts, -2)


def _transitions(packing: Packing, transition_logits: Tensor, parts: Parts) -> Tensor:
    """Expected transitions: their sum, or of each step, 0 from one sequence to the next."""
    if transition_logits.shape[-3] == 1:
        sums = [part.sum(-3, dtype=torch.float64) for part in parts]
        return torch.stack(sums).sum(0).to(parts[0].dtype)
    padded = []
    for part, batch in zip(parts, packing.batches, strict=True):
        part = part.unsqueeze(-3) if batch.steps.shape[1] == 2 else part  # one slice has no dim
        padded.append(torch.nn.functional.pad(part, (0, 0, 0, 0, 0, 1)))
    return packing.join(padded, -3)[..., :-1, :, :]


def _for_packed(
    function: Callable[[Tensor, Tensor, Tensor, Tensor | None], Result],
    *joins: Join,
    compiled: Callable[[Packing, Logits], Result | None] | None = None,
) -> OfChain[Result]:
    """The function of the same name that takes a :class:`Packing` in the place of ``lengths``.

    :param function: of padded sequences; its result is a tensor or a NamedTuple of tensors.
    :param joins: for each of these tensors, how those of the batches become that of all T steps.
    :param compiled: needs no batches; it returns None where it does not serve.
    """

    @wraps(function)
    def run(
        initial_logits: Tensor,
        transition_logits: Tensor,
        observation_logits: Tensor,
        lengths: Tensor | Packing | None = None,
    ) -> Result:
        chain = initial_logits, transition_logits, observation_logits
        if not isinstance(lengths, Packing):
            return function(*chain, lengths)
        found = None if compiled is None else compiled(lengths, chain)
        if found is not None:
            return found
        parts = _on_batches(function, lengths, chain)
        if len(joins) == 1:
            return joins[0](lengths, transition_logits, parts)  # type: ignore[return-value]
        fields = zip(joins, zip(*parts, strict=True), strict=True)
        joined = (join(lengths, transition_logits, field) for join, field in fields)
        return type(parts[0])(*joined)

    return run


def _compiled(packing: Packing, chain: Logits, both: bool) -> Expectations | None:
    """The results of the CPU kernel, which needs no padded batches; None if it does not serve.

    :param both: whether to run both sweeps; otherwise only the log-likelihood is computed.
    """
    checked = check(*chain, None)
    kernel = dispatch.decoder(*checked)
    if kernel is None or checked.transition_logits.shape[-3] != 1:
        return None
    packing.check(checked.observation_logits)
    shape, dtype = checked.observation_logits.shape, checked.observation_logits.dtype
    value, smoothed, moved = kernel.packed_expectations(
        *flatten(checked)[:3], packing.lengths, both
    )
    if both:
        smoothed = smoothed.to(dtype).reshape(shape)
        moved = moved.to(dtype).reshape(shape[:-2] + shape[-1:] * 2)
    return Expectations(value.reshape(shape[:-2]), smoothed, moved)


def _compiled_log_likelihood(packing: Packing, chain: Logits) -> Tensor | None:
    found = _compiled(packing, chain, both=False)
    return None if found is None else found.log_likelihood


def _compiled_expectations(packing: Packing, chain: Logits) -> Expectations | None:
    return _compiled(packing, chain, both=True)


log_likelihood = _for_packed(likelihoods.log_likelihood, _sum, compiled=_compiled_log_likelihood)
expectations = _for_packed(
    likelihoods.expectations, _sum, _rows, _transitions, compiled=_compiled_expectations
)
posterior = _for_packed(likelihoods.posterior, _sum, _rows, _rows, _transitions)
filter_probs = _for_packed(likelihoods.filter_probs, _sum, _rows)
filter_logits = _for_packed(likelihoods.filter_logits, _rows)
viterbi = _for_packed(paths.viterbi, _states)


def predict_probs(
    initial_logits: Tensor,
    transition_logits: Tensor,
    filtered_probs: Tensor,
    packing: Packing | None = None,
) -> Tensor:
    """:func:`.likelihoods.predict_probs`; at the first step of a sequence the initial ones."""
    probs = likelihoods.predict_probs(initial_logits, transition_logits, filtered_probs)
    if packing is None:
        return probs
    packing.check(filtered_probs)
    is_first = torch.zeros(packing.num_steps, dtype=torch.bool, device=probs.device)
    is_first[packing.firsts] = True
    first = initial_logits.softmax(-1).to(probs.dtype).unsqueeze(-2)
    return torch.where(is_first.unsqueeze(-1), first, probs)


def complete_log_likelihood(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    path: Tensor,
    lengths: Tensor | Packing | None = None,
) -> Tensor:
    """:func:`.likelihoods.complete_log_likelihood`; of packed sequences the sum."""
    chain = initial_logits, transition_logits, observation_logits
    if not isinstance(lengths, Packing):
        return likelihoods.complete_log_likelihood(*chain, path, lengths)
    parts = _on_batches(likelihoods.complete_log_likelihood, lengths, chain, path)
    return _sum(lengths, transition_logits, parts)


def sample_posterior(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | Packing | None = None,
    sample_shape: torch.Size = torch.Size(),  # noqa: B008 (immutable)
) -> Tensor:
    """:func:`.paths.sample_posterior`."""
    chain = initial_logits, transition_logits, observation_logits
    if not isinstance(lengths, Packing):
        return paths.sample_posterior(*chain, lengths, sample_shape)
    drawn = _on_batches(paths.sample_posterior, lengths, chain, sample_shape=sample_shape)
    return _states(lengths, transition_logits, drawn)


def sample_prior(
    initial_logits: Tensor,
    transition_logits: Tensor,
    num_steps: int,
    shape: torch.Size,
    packing: Packing | None = None,
) -> Tensor:
    """:func:`.paths.sample_prior`."""
    if packing is None:
        return paths.sample_prior(initial_logits, transition_logits, num_steps, shape)
    drawn = [
        paths.sample_prior(
            initial_logits.unsqueeze(-2),
            _transition(transition_logits, batch),
            batch.steps.shape[1],
            torch.Size(shape) + batch.lengths.shape,
        )
        for batch in packing.batches
    ]
    return packing.join(drawn, -1)
