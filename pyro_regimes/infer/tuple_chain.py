"""A :class:`.SwitchingAutoregression` as the rest of :mod:`pyro_regimes.infer` reads an HMM.

Its states are the tuples of the regimes at p + 1 rows, and its observations are rows
:math:`(x_t, x_{t-1}, \\dots, x_{t-p})`, so that a family and the kernels see all that they need.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_regimes.chain.counts import ChainCounts
from pyro_regimes.distributions import SwitchingAutoregression
from pyro_regimes.distributions.autoregressive_arguments import first_tuple, rows
from pyro_regimes.emissions.base import Arguments
from pyro_regimes.infer.hidden_chain import Logits, chain_logits
from pyro_regimes.kernels import ops
from pyro_regimes.observed.lagged_normal import LaggedNormal


class TupleChain:
    """The chain of tuples of regimes, with the attributes of a :class:`.RegimeHMM`."""

    lengths = packed_lengths = packing = allowed_states = gaps = _gaps = None
    missing = "refuse"
    event_dim = 2  #: of time, and of p + 1 rows

    def __init__(self, model: SwitchingAutoregression) -> None:
        self.model = model
        self.batch_shape, self.state_dim = model.batch_shape, model.state_dim
        self.observation_dist = LaggedNormal(model.loc, model.coefficients, model.scale)
        self.arguments = {
            "initial_probs": model.initial_probs,
            "transition_probs": model.transition_probs,
        }

    def rows(self, value: Tensor) -> Tensor:
        """Each observation with the p before it, the latest first: ``(..., T, p + 1)``."""
        return rows(self.model.history, value)

    @property
    def transition_logits(self) -> Tensor:
        """Log transition probabilities of the regimes, ``(..., 1 or p+T-1, K, K)``."""
        return chain_logits(self.arguments)[1]

    def chain(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """The kernels' logits; see :meth:`.RegimeHMM.chain`.

        :param value: rows ``(..., T, p + 1)``.
        """
        density = self.observation_dist.log_prob(value.unsqueeze(-2))  # (..., T, S)
        shape = ops.broadcast(self.batch_shape, density.shape[:-2])
        return *self.logits(self.arguments), density.expand(shape + density.shape[-2:]), None

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-likelihood of rows."""
        return self.model.log_prob(value[..., 0])

    def logits(self, arguments: Arguments) -> tuple[Tensor, Tensor]:
        """Those of the first tuple, ``(..., S)``, and of the steps of a regime."""
        initial, transition = chain_logits(arguments)
        length = self.model.order + 1
        return first_tuple(initial, transition, length), transition

    def expectations(self, logits: Logits) -> ops.Expectations:
        """The E-step; it adds up the steps between the T rows."""
        initial, transition, density = logits
        shape = density.shape[:-2]

        def flat(part: Tensor, own: int) -> Tensor:
            lead = part.shape[: part.dim() - own]
            if lead.numel() == 1:
                return part.reshape((1,) + part.shape[part.dim() - own :])
            return part.expand(shape + part.shape[len(lead) :]).flatten(0, -1 - own)

        varies = transition.shape[-3] > 1
        steps = transition[..., self.model.order :, :, :] if varies else transition
        given = flat(initial, 1), flat(steps, 3)
        found = ops.lagged_expectations(*given, density.flatten(0, -3) if shape else density[None])
        value, smoothed, moved = (part.reshape(shape + part.shape[1:]) for part in found)
        return ops.Expectations(value, smoothed, moved if varies else moved.squeeze(-3))

    def starts(self, found: ops.Expectations) -> Tensor:
        """Those of the first tuple."""
        return found.smoothed_probs[..., 0, :]

    def counts(self, arguments: Arguments, found: ops.Expectations) -> ChainCounts:
        """The initial regime is the oldest of the first tuple, in which there are p more steps."""
        num_states, moved, first = self.state_dim, found.expected_transitions, []
        tuples = found.smoothed_probs[..., 0, :]  # the oldest regime varies slowest
        initial = tuples.unflatten(-1, (num_states, -1)).sum(-1)
        for _ in range(self.model.order):
            first.append(tuples.unflatten(-1, (num_states, num_states, -1)).sum(-1))
            tuples = tuples.unflatten(-1, (num_states, -1)).sum(-2)
        before = torch.stack(first, -3)
        if arguments["transition_probs"].shape[-3] > 1:
            return ChainCounts(initial, torch.cat([before, moved], -3))
        return ChainCounts(initial, (before.sum(-3) + moved).unsqueeze(-3))

    def of_regimes(self, densities: Tensor) -> Tensor:
        """Those of the tuples of one regime alone."""
        step = (densities.shape[-1] - 1) // (self.state_dim - 1) if self.state_dim > 1 else 1
        return densities[..., ::step]

    def exchanged(self, i: int, j: int) -> list[int]:
        """With the two regimes changed at every row."""
        place = list(range(self.state_dim))
        place[i], place[j] = j, i
        order = [0]
        for _ in range(self.model.order + 1):
            order = [before * self.state_dim + now for before in order for now in place]
        return order
