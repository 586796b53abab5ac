"""A hidden Markov model as a Pyro distribution over whole observed sequences."""

from __future__ import annotations

import torch
from pyro.distributions import Categorical, MixtureSameFamily, TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.utils import lazy_property

from pyro_regimes.distributions.posterior import Posterior
from pyro_regimes.kernels import ops


class RegimeHMM(TorchDistribution):
    r"""Hidden Markov model with K discrete states and any observation distribution.

    .. math::
        \log p(x, q) = \log \pi_{q_1} + \sum_{t=2}^T \log A_{q_{t-1} q_t}
            + \sum_{t=1}^T \log b_{q_t}(x_t), \qquad
        \log p(x) = \log \sum_q \exp \log p(x, q).

    **The first observation is emitted by the initial state** (Rabiner 1989), as in hmmlearn,
    dynamax and the textbooks. Pyro's :class:`~pyro.distributions.DiscreteHMM` makes one
    transition *before* its first observation: the same arguments give another value there. A
    ``DiscreteHMM`` with T transition slices, slice 0 holding our ``initial_logits`` in every row,
    agrees exactly.

    Time and batch are never guessed: dimension -3 of the transitions and dimension -2 of
    ``observation_dist.batch_shape`` are always time, and size 1 there means constant in time.
    ``(K, K)`` and ``(K,)`` alone are promoted. With T observations, transitions that vary in time
    have T - 1 slices. The event is a whole sequence, ``event_shape = (T, *observation_dist
    .event_shape)``, with 1 in place of T where T is not known before the data come.

    :param Tensor initial_logits: unnormalised log initial probabilities, ``(..., K)``.
    :param Tensor transition_logits: unnormalised log transition probabilities, (old, new),
        ``(K, K)`` or ``(..., 1 or T-1, K, K)``.
    :param Distribution observation_dist: one component a state; batch shape ``(K,)`` or
        ``(..., 1 or T, K)``, any event shape.
    :param bool validate_args: whether to check arguments and values.
    :param int duration: T, where it is to be fixed before the data come. :meth:`sample` needs it
        unless transitions or observations vary in time.
    :param Tensor initial_probs: in place of ``initial_logits``; rows sum to 1.
    :param Tensor transition_probs: in place of ``transition_logits``; rows sum to 1. A zero is a
        transition that cannot happen; its derivative is taken to be zero.
    :param Tensor lengths: true lengths of padded sequences, integers from 1 to T, ``(...)``. What
        a sequence holds after its length is ignored, NaN included; a sample goes on to T.
    :raises ValueError: where arguments do not fit together, naming what was expected and what
        came.

    The arguments as the caller gave them are kept in :attr:`arguments`.
    """

    arg_constraints = {
        "initial_logits": constraints.independent(constraints.real, 1),
        "transition_logits": constraints.independent(constraints.real, 2),
        "initial_probs": constraints.simplex,
        "transition_probs": constraints.independent(constraints.simplex, 1),
    }

    def __init__(
        self,
        initial_logits: Tensor | None = None,
        transition_logits: Tensor | None = None,
        observation_dist: Distribution | None = None,
        validate_args: bool | None = None,
        duration: int | None = None,
        *,
        initial_probs: Tensor | None = None,
        transition_probs: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> None:
        if not isinstance(observation_dist, Distribution):
            raise ValueError(
                "expected observation_dist to be a distribution, got "
                f"{type(observation_dist).__name__}"
            )
        if len(observation_dist.batch_shape) < 1:
            raise ValueError(
                "expected observation_dist to have a batch shape that ends in the number of "
                f"states, got batch shape {tuple(observation_dist.batch_shape)}"
            )
        state_dim = observation_dist.batch_shape[-1]
        initial = _one_of("initial", initial_logits, initial_probs, (state_dim,))
        transition = _one_of("transition", transition_logits, transition_probs, (state_dim,) * 2)
        self.arguments: dict[str, Tensor] = dict([initial, transition])
        self.observation_dist = observation_dist
        self.lengths = lengths
        for name, value in self.arguments.items():
            if name.startswith("transition") and value.dim() == 2:
                value = value.unsqueeze(-3)
            if name.endswith("probs"):
                setattr(self, name, value / value.sum(-1, keepdim=True))
            else:
                setattr(self, name, value.log_softmax(-1))

        duration = self._agree_on_duration(duration)
        event_shape = torch.Size([duration or 1]) + observation_dist.event_shape
        super().__init__(self._broadcast_batches(), event_shape, validate_args=validate_args)
        self._duration = duration
        if self._validate_args:
            for name, value in self.arguments.items():
                if name.endswith("probs") and not constraints.simplex.check(value).all():
                    raise ValueError(
                        f"expected {name} to be non-negative with rows that sum to 1, got sums "
                        f"from {value.sum(-1).min():.6g} to {value.sum(-1).max():.6g} and a least "
                        f"entry of {value.min():.6g}"
                    )

    def _agree_on_duration(self, duration: int | None) -> int | None:
        """T from ``duration``, the transitions or the observations, which must not disagree."""
        found = {}
        if duration is not None:
            if not isinstance(duration, int) or duration < 1:
                raise ValueError(f"expected duration to be a positive integer, got {duration!r}")
            found["duration"] = duration
        slices = self._transition.shape[-3]
        if slices != 1:
            found["the time slices of the transitions (dimension -3) plus 1"] = slices + 1
        if len(self.observation_dist.batch_shape) > 1 and self.observation_dist.batch_shape[-2] > 1:
            found["dimension -2 of observation_dist.batch_shape"] = (
                self.observation_dist.batch_shape[-2]
            )
        if len(set(found.values())) > 1:
            raise ValueError(
                "expected one number of time steps, got "
                + ", ".join(f"{size} from {name}" for name, size in found.items())
                + _SLIP
            )
        steps = next(iter(found.values()), None)
        if self.lengths is not None:
            ops.check_lengths(self.lengths, steps)
        return steps

    def _broadcast_batches(self) -> torch.Size:
        shapes = {
            "initial": self._initial.shape[:-1],
            "transition": self._transition.shape[:-3],
            "observation_dist": self.observation_dist.batch_shape[:-2],
            "lengths": torch.Size() if self.lengths is None else self.lengths.shape,
        }
        try:
            return torch.broadcast_shapes(*shapes.values())
        except RuntimeError as error:
            listed = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
            raise ValueError(f"expected batch shapes that broadcast, got {listed}{_SLIP}") from error

    @property
    def _initial(self) -> Tensor:
        return self.__dict__.get("initial_logits", self.__dict__.get("initial_probs"))

    @property
    def _transition(self) -> Tensor:
        return self.__dict__.get("transition_logits", self.__dict__.get("transition_probs"))

    @lazy_property
    def initial_logits(self) -> Tensor:
        """Normalised log initial probabilities, ``(..., K)``."""
        return _safe_log(self.initial_probs)

    @lazy_property
    def transition_logits(self) -> Tensor:
        """Normalised log transition probabilities, ``(..., 1 or T-1, K, K)``."""
        return _safe_log(self.transition_probs)

    @lazy_property
    def initial_probs(self) -> Tensor:
        """Initial probabilities, ``(..., K)``."""
        return self.initial_logits.exp()

    @lazy_property
    def transition_probs(self) -> Tensor:
        """Transition probabilities, ``(..., 1 or T-1, K, K)``."""
        return self.transition_logits.exp()

    @property
    def state_dim(self) -> int:
        """K, the number of hidden states."""
        return self.observation_dist.batch_shape[-1]

    @property
    def duration(self) -> int | None:
        """T, or None where it is not known before the data come."""
        return self._duration

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """That of ``observation_dist``, at every time."""
        return constraints.independent(self.observation_dist.support, 1)

    def expand(self, batch_shape: torch.Size, _instance: RegimeHMM | None = None) -> RegimeHMM:
        """The same distribution over a larger batch; arguments are shared, not copied."""
        new = self._get_checked_instance(RegimeHMM, _instance)
        batch_shape = torch.Size(batch_shape)
        try:
            torch.empty(self.batch_shape).expand(batch_shape)
        except RuntimeError as error:
            raise ValueError(
                f"expected a batch shape that {tuple(self.batch_shape)} expands to, got "
                f"{tuple(batch_shape)}"
            ) from error
        new.__dict__.update(self.__dict__)
        super(RegimeHMM, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        r"""The log-likelihood :math:`\log p(x)`, summed over all paths of states.

        Its gradient is the E-step (Fisher's identity); derivatives of any order are right.

        :param value: ``(..., T) + observation_dist.event_shape``.
        :return: ``(...)``; -inf, with gradient 0, for a sequence of probability zero.
        :raises ValueError: if the value's shape, length or support does not fit.
        """
        return ops.log_likelihood(*self._chain(value))

    def filter(self, value: Tensor) -> Categorical:
        r"""The last state given the data, :math:`p(q_T \mid x_1, \dots, x_T)`.

        With ``lengths``, the state at each sequence's last observation. Unlike with Pyro's
        ``DiscreteHMM``, feeding its logits back as ``initial_logits`` for the data that follow is
        off by one transition here: the initial state emits, so make the transition first.

        :return: a Categorical of batch shape ``(...)``.
        """
        return Categorical(logits=ops.filter_logits(*self._chain(value))[..., -1, :])

    def posterior(self, value: Tensor) -> Posterior:
        """Filtered, predicted and smoothed state probabilities and expected transitions.

        :return: a :class:`.Posterior`; differentiable in the arguments.
        """
        chain = self._chain(value)
        initial_logits, transition_logits, _, lengths = chain
        expected = ops.expectations(*chain)
        filtered = ops.filter_logits(*chain).exp()
        predicted = ops.predict_probs(initial_logits, transition_logits, filtered)
        if lengths is not None:
            time = torch.arange(filtered.shape[-2], device=lengths.device)
            padding = (time >= lengths.unsqueeze(-1)).unsqueeze(-1)
            filtered = filtered.masked_fill(padding, 0.0)
            predicted = predicted.masked_fill(padding, 0.0)
        return Posterior(
            expected.log_likelihood,
            filtered,
            predicted,
            expected.smoothed_probs,
            expected.expected_transitions,
        )

    def viterbi(self, value: Tensor) -> Tensor:
        """The most likely path of states.

        :return: LongTensor ``(..., T)``; -1 on padding and for a sequence of probability zero.
        """
        return ops.viterbi(*self._chain(value))

    def sample_posterior(
        self,
        value: Tensor,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008 (immutable)
    ) -> Tensor:
        r"""Paths drawn from :math:`p(q \mid x)` by filtering forwards and sampling backwards.

        :return: LongTensor ``sample_shape + (..., T)``; -1 on padding and for a sequence of
            probability zero.
        """
        return ops.sample_posterior(*self._chain(value), sample_shape=torch.Size(sample_shape))

    def forecast(self, value: Tensor, num_steps: int) -> MixtureSameFamily:
        r"""The marginal predictive distribution of each of the next observations.

        .. math:: p(x_{T+h} \mid x_1, \dots, x_T) =
            \sum_k \left(p(q_T \mid x) A^h\right)_k b_k(x_{T+h}), \qquad h = 1, \dots, n.

        :param num_steps: n, at least 1.
        :return: a mixture of batch shape ``(..., n)``; the regime probabilities are its
            ``mixture_distribution.probs``, ``(..., n, K)``.
        :raises ValueError: where transitions or observations vary in time, whose future is not
            known, or ``num_steps`` is not a positive integer.
        """
        if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(f"expected num_steps to be a positive integer, got {num_steps!r}")
        time_sizes = self._transition.shape[-3:-2] + self.observation_dist.batch_shape[-2:-1]
        if any(size != 1 for size in time_sizes):
            raise ValueError(
                "expected transitions and observations that are constant in time, got "
                f"transitions of shape {tuple(self._transition.shape)} and observation_dist of "
                f"batch shape {tuple(self.observation_dist.batch_shape)}: what they are after "
                "the data is not known"
            )
        probs = self.filter(value).probs.unsqueeze(-2)  # (..., 1, K)
        future = []
        for _ in range(num_steps):
            probs = probs @ self.transition_probs.squeeze(-3)
            future.append(probs)
        weights = torch.cat(future, -2)  # (..., n, K)
        return MixtureSameFamily(Categorical(weights), self.observation_dist.expand(weights.shape))

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw whole sequences, ``sample_shape + batch_shape + event_shape``.

        :raises ValueError: where T is not known; give ``duration``.
        """
        if self.duration is None:
            raise ValueError("expected duration to be given: sampling needs the number of steps")
        shape = torch.Size(sample_shape) + self.batch_shape
        states = ops.sample_prior(
            self.initial_logits, self.transition_logits, self.duration, shape
        )
        each = self.observation_dist.expand(self.batch_shape + (self.duration, self.state_dim))
        drawn = each.sample(torch.Size(sample_shape))  # (..., T, K) + observation event
        event_shape = self.observation_dist.event_shape
        index = states.reshape(states.shape + (1,) * (1 + len(event_shape)))
        index = index.expand(states.shape + (1,) + event_shape)
        state_axis = states.dim()
        return drawn.gather(state_axis, index).squeeze(state_axis)

    def _chain(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The kernels' arguments for one value, checked."""
        value = self._trim(value)
        if self._validate_args:
            self._validate_sample(value)
        observation_logits = self.observation_dist.log_prob(self._beside_states(value))
        shape = torch.broadcast_shapes(self.batch_shape, observation_logits.shape[:-2])
        observation_logits = observation_logits.expand(shape + observation_logits.shape[-2:])
        return self.initial_logits, self.transition_logits, observation_logits, self.lengths

    def _trim(self, value: Tensor) -> Tensor:
        """Check the value's shape, and replace padding by each sequence's first observation.

        Padding must not reach ``observation_dist``: the gradient of a log density at NaN is NaN,
        and stays so however small the weight that it is multiplied with.
        """
        event_shape = self.observation_dist.event_shape
        if value.dim() < self.event_dim:
            raise ValueError(
                f"expected value to have shape (..., T) + {tuple(event_shape)}, got shape "
                f"{tuple(value.shape)}"
            )
        num_steps = value.shape[-self.event_dim]
        if value.shape[value.dim() - len(event_shape) :] != event_shape:
            raise ValueError(
                f"expected value to end in {tuple(event_shape)} after time, got shape "
                f"{tuple(value.shape)}"
            )
        if num_steps < 1 or self.duration not in (None, num_steps):
            expected = "at least one" if self.duration is None else self.duration
            raise ValueError(
                f"expected value to have {expected} time steps at dimension -{self.event_dim}, got "
                f"shape {tuple(value.shape)}{'' if self.duration is None else _SLIP}"
            )
        try:
            torch.broadcast_shapes(self.batch_shape, value.shape[: -self.event_dim])
        except RuntimeError as error:
            raise ValueError(
                f"expected value to have a batch shape that broadcasts with "
                f"{tuple(self.batch_shape)}, got shape {tuple(value.shape)}{_SLIP}"
            ) from error
        if self.lengths is None:
            return value
        ops.check_lengths(self.lengths, num_steps)
        time = torch.arange(num_steps, device=self.lengths.device)
        valid = time < self.lengths.unsqueeze(-1)
        valid = valid.reshape(valid.shape + (1,) * len(event_shape))
        return torch.where(valid, value, value.narrow(-self.event_dim, 0, 1))

    def _validate_sample(self, value: Tensor) -> None:
        """Refuse an observation that is outside the support of every state."""
        support = self.observation_dist.support
        inside = support.check(self._beside_states(value))  # (..., T, 1 or K)
        if not inside.any(-1).all():
            raise ValueError(
                f"expected value to lie in the support {support} of observation_dist at every "
                f"step, got {value[~inside.any(-1)].flatten()[:3].tolist()} at "
                f"{int((~inside.any(-1)).sum())} steps of value of shape {tuple(value.shape)}"
            )

    def _beside_states(self, value: Tensor) -> Tensor:
        """``(..., T, 1) + event``: to be measured against the K components."""
        return value.unsqueeze(-self.event_dim)


_SLIP = (
    "; dimension -3 of the transitions and dimension -2 of observation_dist.batch_shape are always "
    "time: for a batch that does not vary in time use .unsqueeze(-3) and .unsqueeze(-2)"
)


def _one_of(
    name: str, logits: Tensor | None, probs: Tensor | None, event_shape: tuple[int, ...]
) -> tuple[str, Tensor]:
    """The one of logits and probs that was given, with its name."""
    if (logits is None) == (probs is None):
        came = "neither" if logits is None else "both"
        raise ValueError(f"expected exactly one of {name}_logits and {name}_probs, got {came}")
    chosen, value = (f"{name}_logits", logits) if probs is None else (f"{name}_probs", probs)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        came = f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"expected {chosen} to be a floating point tensor, got {came}")
    if value.shape[-len(event_shape) :] != event_shape:
        raise ValueError(
            f"expected {chosen} to end in {event_shape}, as observation_dist has "
            f"{event_shape[0]} states, got shape {tuple(value.shape)}"
        )
    return chosen, value


def _safe_log(probs: Tensor) -> Tensor:
    """log, with -inf at 0 and there a derivative of 0 instead of a division by it."""
    impossible = probs == 0
    return probs.masked_fill(impossible, 1.0).log().masked_fill(impossible, -torch.inf)
