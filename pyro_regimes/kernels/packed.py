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
needs no batches. Without a packing these functions are called as they are.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from pyro_regimes.kernels import dispatch, likelihoods, paths
from pyro_regimes.kernels.arguments import check, flatten
from pyro_regimes.kernels.likelihoods import Expectations, Filtered, Posterior
from pyro_regimes.kernels.packing import Batch, Packing


def _select(values: Tensor, dim: int, steps: Tensor) -> Tensor:
    """``values`` at some steps; ``dim`` becomes the dims of these."""
    return values.index_select(dim, steps.reshape(-1)).unflatten(dim, steps.shape)


def _transition(transition_logits: Tensor, batch: Batch) -> Tensor:
    """Those of a padded batch, ``(..., n or 1, 1 or t-1, K, K)``."""
    if transition_logits.shape[-3] == 1:
        return transition_logits.unsqueeze(-4)
    last = transition_logits.shape[-3] - 1  # padding may come after the last transition
    return _select(transition_logits, -3, batch.steps[:, :-1].clamp(max=last))


def _run(
    run: Callable[..., Any],
    packing: Packing,
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    path: Tensor | None = None,
    **options: Any,
) -> list[Any]:
    """Call a function on each padded batch."""
    packing.check(observation_logits)
    found = []
    for batch in packing.batches:
        chain = (
            initial_logits.unsqueeze(-2),
            _transition(transition_logits, batch),
            _select(observation_logits, -2, batch.steps),
        )
        own = () if path is None else (_select(path, -1, batch.steps),)
        found.append(run(*chain, *own, batch.lengths, **options))
    return found


def _total(values: list[Tensor]) -> Tensor:
    """The sum over all sequences of results ``(..., n)``."""
    return torch.cat(values, -1).sum(-1)


def _moved(packing: Packing, transition_logits: Tensor, parts: list[Tensor]) -> Tensor:
    """Expected transitions: their sum, or of each step, 0 from one sequence to the next."""
    if transition_logits.shape[-3] == 1:
        sums = [part.sum(-3, dtype=torch.float64) for part in parts]
        return torch.stack(sums).sum(0).to(parts[0].dtype)
    padded = []
    for part, batch in zip(parts, packing.batches, strict=True):
        part = part.unsqueeze(-3) if batch.steps.shape[1] == 2 else part  # one slice has no dim
        padded.append(torch.nn.functional.pad(part, (0, 0, 0, 0, 0, 1)))
    return packing.join(padded, -3)[..., :-1, :, :]


def _compiled(
    packing: Packing, chain: tuple[Tensor, Tensor, Tensor], both: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The results of the CPU kernel, which needs no padded batches; None if it does not serve."""
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
    return value.reshape(shape[:-2]), smoothed, moved


def log_likelihood(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | Packing | None = None,
) -> Tensor:
    """:func:`.likelihoods.log_likelihood`; of packed sequences the sum."""
    chain = initial_logits, transition_logits, observation_logits
    if not isinstance(lengths, Packing):
        return likelihoods.log_likelihood(*chain, lengths)
    found = _compiled(lengths, chain, both=False)
    if found is not None:
        return found[0]
    return _total(_run(likelihoods.log_likelihood, lengths, *chain))


def expectations(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | Packing | None = None,
) -> Expectations:
    """:func:`.likelihoods.expectations`; of packed sequences the sum of the expected transitions,
    unless A varies in time."""
    chain = initial_logits, transition_logits, observation_logits
    if not isinstance(lengths, Packing):
        return likelihoods.expectations(*chain, lengths)
    found = _compiled(lengths, chain, both=True)
    if found is not None:
        return Expectations(*found)
    value, smoothed, moved = zip(*_run(likelihoods.expectations, lengths, *chain), strict=True)
    return Expectations(
        _total(list(value)),
        lengths.join(list(smoothed), -2),
        _moved(lengths, transition_logits, list(moved)),
    )


def posterior(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | Packing | None = None,
) -> Posterior:
    """:func:`.likelihoods.posterior`, with sums as in :func:`expectations`."""
    chain = initial_logits, transition_logits, observation_logits
    if not isinstance(lengths, Packing):
        return likelihoods.posterior(*chain, lengths)
    parts = _run(likelihoods.posterior, lengths, *chain)
    value, filtered, smoothed, moved = zip(*parts, strict=True)
    return Posterior(
        _total(list(value)),
        lengths.join(list(filtered), -2),
        lengths.join(list(smoothed), -2),
        _moved(lengths, transition_logits, list(moved)),
    )


def filter_probs(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | Packing | None = None,
) -> Filtered:
    """:func:`.likelihoods.filter_probs`; the log-likelihood of packed sequences is the sum."""
    chain = initial_logits, transition_logits, observation_logits
    if not isinstance(lengths, Packing):
        return likelihoods.filter_probs(*chain, lengths)
    value, filtered = zip(*_run(likelihoods.filter_probs, lengths, *chain), strict=True)
    return Filtered(_total(list(value)), lengths.join(list(filtered), -2))


def filter_logits(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | Packing | None = None,
) -> Tensor:
    """:func:`.likelihoods.filter_logits`."""
    chain = initial_logits, transition_logits, observation_logits
    if not isinstance(lengths, Packing):
        return likelihoods.filter_logits(*chain, lengths)
    return lengths.join(_run(likelihoods.filter_logits, lengths, *chain), -2)


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
    return _total(_run(likelihoods.complete_log_likelihood, lengths, *chain, path))


def viterbi(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | Packing | None = None,
) -> Tensor:
    """:func:`.paths.viterbi`."""
    chain = initial_logits, transition_logits, observation_logits
    if not isinstance(lengths, Packing):
        return paths.viterbi(*chain, lengths)
    return lengths.join(_run(paths.viterbi, lengths, *chain), -1)


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
    drawn = _run(paths.sample_posterior, lengths, *chain, sample_shape=sample_shape)
    return lengths.join(drawn, -1)


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
