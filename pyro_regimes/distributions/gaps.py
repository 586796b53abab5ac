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

from pyro_regimes.emissions.logs import safe_log
from pyro_regimes.kernels import ops


class Gaps:
    """The number of steps between successive rows.

    :param gaps: positive integers ``(..., T-1)``.
    :param lengths: of padded sequences; gaps after them are ignored.
    """

    def __init__(self, gaps: Tensor, lengths: Tensor | None = None) -> None:
        if lengths is not None:
            time = torch.arange(1, gaps.shape[-1] + 1, device=gaps.device)
            gaps = torch.where(time < lengths.to(gaps.device).unsqueeze(-1), gaps, 1)
        #: The different numbers of steps, ``(G,)``, and which of them each one is, ``(..., T-1)``.
        self.distinct, self.index = torch.unique(gaps.long(), return_inverse=True)

    @classmethod
    def of(cls, gaps: Tensor | None, lengths: Tensor | None) -> Gaps | None:
        """None if every row follows the one before at once."""
        found = None if gaps is None else cls(gaps, lengths)
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
                return safe_log(powers).to(step_logits.dtype)
            square = square @ square
