"""The log-probability of sequences whose rows are split among the ranks of a process group."""

from __future__ import annotations

from functools import reduce
from typing import Any

from torch import Tensor

from pyro_regimes.distributions import RegimeHMM
from pyro_regimes.infer.em.ranks import ranks_of
from pyro_regimes.kernels import ops


def log_prob_of_pieces(hmm: RegimeHMM, value: Tensor, process_group: Any = None) -> Tensor:
    r"""log p(x) of sequences of which each rank has consecutive rows, those of rank 0 first.

    .. math:: p(x) = \pi B_1 M_2 M_3 \cdots M_R \mathbf 1

    with :math:`\pi B_1` the message after the rows of the first rank, and
    :math:`M_r(i, j) = p(x_{s_r}, \dots, x_{e_r}, q_{e_r} = j \mid q_{s_r - 1} = i)` the transfer
    matrix of those of another one. Each rank computes its own and gathers the others.

    All ranks get the same value. Its gradient on a rank is the part that comes from the rows of
    this rank (initial probabilities have none on other ranks than the first): add up the gradients
    of all ranks for that of log p(x). (Averages, as those of ``DistributedDataParallel``, have to
    be multiplied by the number of ranks.) A rank needs as much arithmetic as for K filters of its
    rows.

    :param hmm: the same on all ranks, with transitions that are constant in time.
    :param value: the rows of this rank, ``(..., T_r) + event_shape``, at least one.
    :param process_group: a ``torch.distributed`` group; None for the default one. Without one, or
        in a group of one rank, this is ``hmm.log_prob(value)``.
    :return: ``(...)``.
    :raises ValueError: if transitions vary in time, sequences have ``lengths`` or ``gaps``, or
        ranks have pieces of other batch shapes.
    """
    ranks = ranks_of(process_group)
    if ranks is None:
        found: Tensor = hmm.log_prob(value)
        return found
    _check(hmm)
    initial, transition, observation, _ = hmm.chain(value)
    if ranks.is_first:
        last = ops.first_message(initial, transition, observation)
        own = last.unsqueeze(-2).expand(last.shape[:-1] + 2 * last.shape[-1:])
    else:
        own = ops.transfer(transition, observation)
    shape = {"the batch shape of the pieces": repr(tuple(own.shape[:-2]))}
    ranks.check_same(shape, "give every rank consecutive rows of all sequences")
    blocks = [each for (each,) in ranks.gather([own])]
    blocks[ranks.rank] = own  # with its gradient
    whole = reduce(ops.combine_transfers, blocks)
    dtype = ops.promoted_dtype(initial, transition, observation)
    return ops.logsumexp(whole[..., 0, :], -1).to(dtype)


def _check(hmm: RegimeHMM) -> None:
    """:raises ValueError: if rows of one rank need more of the others than the state before."""
    if hmm.transition_logits.shape[-3] != 1:
        raise ValueError(
            "expected transitions that are constant in time where ranks have pieces of a sequence, "
            f"got {hmm.transition_logits.shape[-3]} slices"
        )
    for name in ("lengths", "packed_lengths", "gaps"):
        if getattr(hmm, name) is not None:
            raise ValueError(
                f"expected {name}=None where ranks have pieces of a sequence, got some"
            )
