r"""Rows of a series that are several steps apart.

Between two rows g steps apart lie g - 1 rows of which nothing is known. The sum over their states
is a matrix power, so the transition from the one row to the other is :math:`A^g`, exactly:

.. math::
    \log p(x) = \log \sum_q \pi_{q_1} b_{q_1}(x_1)
        \prod_{t=2}^T (A^{g_t})_{q_{t-1} q_t} b_{q_t}(x_t)

The expected transitions within the gaps follow by Fisher's identity. With the expected transitions
:math:`\Xi_g` between rows that are g apart, the expected number of steps from i to j is

.. math::
    \xi(i, j) = A_{ij} \frac{\partial}{\partial A_{ij}} \sum_g \sum_{kl} \Xi_g(k, l)
        \log (A^g)_{kl}

with the entries of A taken as free.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_regimes.distributions import checks
from pyro_regimes.kernels import ops


class Gaps:
    """The number of steps between successive rows.

    :param gaps: positive integers ``(..., T-1)``.
    """

    def __init__(self, gaps: Tensor) -> None:
        #: The different numbers of steps, ``(G,)``, and which of them each one is, ``(..., T-1)``.
        self.distinct, self.index = torch.unique(gaps.long(), return_inverse=True)

    @classmethod
    def of(cls, gaps: Tensor | None) -> Gaps | None:
        """None if every row follows the one before at once."""
        found = None if gaps is None else cls(gaps)
        return None if found is None or bool((found.distinct == 1).all()) else found

    def transition_logits(self, step_logits: Tensor) -> Tensor:
        """The logits of the transitions from row to row, ``(..., T-1, K, K)``.

        :param step_logits: those of one step, ``(..., 1, K, K)``.
        """
        powers = self._powers(step_logits)  # (..., G, K, K)
        if self.index.dim() == 1:
            return powers.index_select(-3, self.index)
        shape = ops.broadcast(powers.shape[:-3], self.index.shape[:-1])
        states = powers.shape[-2:]
        index = self.index[..., None, None].expand(shape + self.index.shape[-1:] + states)
        return powers.expand(shape + powers.shape[-3:]).gather(-3, index)

    def expected_steps(self, step_logits: Tensor, moved: Tensor) -> Tensor:
        """The expected number of single steps from state to state, ``(..., 1, K, K)``.

        :param step_logits: the logits of one step, ``(..., 1, K, K)``.
        :param moved: the expected transitions from row to row, ``(..., T-1, K, K)``.
        """
        batch, states = moved.shape[:-3], moved.shape[-2:]
        index = self.index[..., None, None].expand(moved.shape)
        total = moved.new_zeros(batch + self.distinct.shape + states).double()
        total = total.scatter_add(-3, index, moved.double())  # by the number of steps
        with torch.enable_grad():
            free = step_logits.detach().double().expand(batch + (1,) + states)
            free = free.clone().requires_grad_()
            powers = self._powers(free)
            possible = total > 0
            q = (total * torch.where(possible, powers, 0.0)).sum()
            (counts,) = torch.autograd.grad(q, free)
        return counts.to(moved.dtype)

    def _powers(self, step_logits: Tensor) -> Tensor:
        """The logits of :math:`A^g` for each number of steps, ``(..., G, K, K)``.

        They are sums of products of probabilities, so no digits are lost.
        """
        square = step_logits.double().exp()  # A to the power of 1, 2, 4, ...
        identity = torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
        shape = square.shape[:-3] + self.distinct.shape + square.shape[-2:]
        powers, left = identity.expand(shape), self.distinct
        while True:
            is_odd = (left % 2 == 1)[:, None, None]
            powers = torch.where(is_odd, powers @ square, powers)
            left = left // 2
            if not bool((left > 0).any()):
                return ops.safe_log(powers).to(step_logits.dtype)
            square = square @ square


def check_gaps(
    given: Tensor | None,
    transition_slices: int,
    lengths: Tensor | None,
    packed: ops.Packing | None,
    is_checked: bool,
) -> Tensor | None:
    """Check the numbers of steps between observations.

    :param packed: how sequences follow one another, if there are several.
    :param is_checked: whether to check their values.
    :return: with 1 in the place of those that do not count, after or between sequences.
    """
    if given is None:
        return None
    if not isinstance(given, Tensor) or given.dtype not in checks.INTEGERS:
        came = f"dtype {given.dtype}" if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(
            f"expected gaps to be an integer tensor, got {came}: the number of steps from each "
            "observation to the next"
        )
    if not given.dim():
        raise ValueError("expected gaps of shape (..., T-1), got shape ()")
    if transition_slices != 1:
        raise ValueError(
            "expected transitions that are constant in time where there are gaps, got "
            f"{transition_slices} slices at dimension -3"
        )
    checks.has_values("gaps", given)
    if lengths is not None:
        time = torch.arange(1, given.shape[-1] + 1, device=lengths.device)
        given = torch.where(time < lengths.unsqueeze(-1), given, 1)
    if packed is not None and given.shape[-1] == packed.num_steps - 1:
        given = given.index_fill(-1, packed.firsts[1:] - 1, 1)
    wrong = given < 1
    if is_checked and bool(wrong.any()):
        where = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"expected gaps of at least 1 step, got {int(given[where])} at {where}"
        )
    return given
