"""A hidden Markov model as a Pyro distribution over whole observed sequences."""

from __future__ import annotations

import torch
from pyro.distributions import Categorical, TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.utils import lazy_property
from torch.types import _size

from pyro_regimes.distributions import checks, observation, provenance, stand_in, values
from pyro_regimes.distributions.forecast import Forecast
from pyro_regimes.distributions.gaps import Gaps, check_gaps
from pyro_regimes.distributions.imputation import Imputation, impute
from pyro_regimes.distributions.posterior import Posterior
from pyro_regimes.emissions import entries
from pyro_regimes.emissions.exact import exact_copy
from pyro_regimes.kernels import ops


class _lazy(lazy_property):
    """A cached property, computed with its graph even if first read without gradients."""

    def __get__(self, instance, obj_type=None):  # type: ignore[no-untyped-def]
        if torch.compiler.is_compiling():  # which does not support the question
            return super().__get__(instance, obj_type)
        if instance is not None and torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return super().__get__(instance, obj_type)
        return super().__get__(instance, obj_type)


class RegimeHMM(TorchDistribution):
    r"""Hidden Markov model with K discrete states and any observation distribution.

    .. math::
        \log p(x, q) = \log \pi_{q_1} + \sum_{t=2}^T \log A_{q_{t-1} q_t}
            + \sum_{t=1}^T \log b_{q_t}(x_t),

        \log p(x) = \log \sum_q \exp \log p(x, q).

    **The first observation is emitted by the initial state** (Rabiner 1989), as in hmmlearn,
    dynamax and the textbooks. Pyro's :class:`~pyro.distributions.DiscreteHMM` makes one
    transition *before* its first observation, so its log-probability differs for the same
    arguments. A ``DiscreteHMM`` with T transition slices, with ``initial_logits`` in every row of
    slice 0, agrees exactly.

    Dimension -3 of the transitions and dimension -2 of ``observation_dist.batch_shape`` are always
    time; size 1 means constant in time. Only the shapes ``(K, K)`` and ``(K,)`` are promoted. With
    T observations, transitions that vary in time have T - 1 slices. The event is a whole sequence:
    ``event_shape`` is T followed by that of ``observation_dist``, with 1 for T if T is not known
    in advance.

    :param Tensor initial_logits: unnormalised log initial probabilities, ``(..., K)``.
    :param Tensor transition_logits: unnormalised log transition probabilities, (old, new),
        ``(K, K)`` or ``(..., 1 or T-1, K, K)``.
    :param Distribution observation_dist: one component per state; batch shape ``(K,)`` or
        ``(..., 1 or T, K)``, any event shape. A discrete observation of probability 0 is
        impossible, unlike in torch, which clamps probabilities; the derivative of its logarithm
        is defined as 0. NaN raises an error, unless ``observation_dist`` treats it as missing, as
        Pyro's ``NanMaskedNormal`` does.
    :param bool validate_args: whether to check arguments and values.
    :param int duration: T, to fix it in advance. :meth:`sample` needs it unless transitions or
        observations vary in time.
    :param Tensor initial_probs: alternative to ``initial_logits``; rows sum to 1.
    :param Tensor transition_probs: alternative to ``transition_logits``; rows sum to 1. A zero is
        an impossible transition; the derivative of its logarithm is defined as 0.
    :param Tensor lengths: true lengths of padded sequences, integers from 1 to T, ``(...)``. Values
        after the length are ignored, including NaN. Samples have length T.
    :param Tensor packed_lengths: for several sequences without padding: the number of steps of
        each, ``(S,)``, in the order in which they follow one another along time; T is their sum.
        The first state of each has the initial distribution, whatever came before. The
        log-probability is the sum over the sequences, and results by time hold all of them. The
        last state, of :meth:`filter` and :meth:`forecast`, is that of the last sequence.
        Transitions that vary in time have a slice between two sequences, too, which is ignored.
    :param str missing: "refuse" raises an error for NaN in the data. "marginalise" takes NaN as
        missing, exactly, in the likelihood, its gradient and all probabilities: a whole observation
        of any distribution, and single entries of independent columns (``.to_event(1)``), of
        :class:`.Columns`, and of Gaussian and Student-t vectors. In a traced or compiled graph,
        single missing entries of other distributions give NaN instead of an error.
    :param Tensor allowed_states: the states that each time may have, bool, ``(..., 1 or T, K)`` or
        ``(K,)``; None allows all. A known state is a row with one True, a known end state a last
        row with one, and a left-to-right chain has zeros in ``transition_probs``. The
        log-probability is then that of the data *and* of such a path, and :meth:`sample` draws
        given that the path is allowed. What it holds after the ``lengths`` is ignored.
    :param Tensor gaps: the number of steps from each observation to the next, integers from 1,
        ``(..., T-1)``; None is 1. The transition over a gap of g steps is :math:`A^g`, as if g - 1
        missing observations lay between, whose expected transitions EM counts. Transitions must be
        constant in time. What it holds after the ``lengths``, and between two packed sequences, is
        ignored.
    :raises ValueError: if arguments are invalid or do not match.
    :warns UserWarning: if every row of ``initial_logits`` and of ``transition_logits`` is
        non-negative and sums to 1, as probabilities do; checked with ``validate_args`` on the CPU.

    >>> import pyro.distributions as dist
    >>> hmm = RegimeHMM(
    ...     initial_probs=torch.tensor([0.5, 0.5]),
    ...     transition_probs=torch.tensor([[0.7, 0.3], [0.3, 0.7]]),
    ...     observation_dist=dist.Bernoulli(torch.tensor([0.9, 0.2])),
    ... )
    >>> hmm.viterbi(torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0]))
    tensor([0, 0, 1, 0, 0])

    ``arguments`` holds the arguments as the caller passed them.
    """

    arg_constraints = {
        "initial_logits": constraints.real,
        "transition_logits": constraints.real,
        "initial_probs": constraints.simplex,
        "transition_probs": constraints.simplex,
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
        missing: str = "refuse",
        allowed_states: Tensor | None = None,
        packed_lengths: Tensor | None = None,
        gaps: Tensor | None = None,
    ) -> None:
        if not isinstance(observation_dist, Distribution):
            raise ValueError(
                "expected observation_dist to be a distribution, got "
                f"{type(observation_dist).__name__}"
            )
        sizes = observation_dist.batch_shape
        if not sizes or 0 in sizes[-2:]:
            raise ValueError(
                "expected observation_dist to have a batch shape that ends in the number of "
                f"states, or of time steps and states, got batch shape {tuple(sizes)}"
            )
        initial_name, initial = checks.one_of("initial", initial_logits, initial_probs, sizes[-1:])
        transition_name, transition = checks.one_of(
            "transition", transition_logits, transition_probs, sizes[-1:] * 2
        )
        self.arguments: dict[str, Tensor] = {initial_name: initial, transition_name: transition}
        self.observation_dist = observation_dist
        self.lengths, self.packed_lengths = lengths, packed_lengths
        self.packing = checks.packing(packed_lengths, lengths)
        if missing not in ("refuse", "marginalise"):
            raise ValueError(
                f"expected missing to be 'refuse' or 'marginalise', got {missing!r}"
            )
        self.missing = missing
        checking = self._validate_args if validate_args is None else validate_args
        if transition.dim() == 2:
            transition = transition.unsqueeze(-3)
        self._num_slices = transition.shape[-3]
        for name, value in ((initial_name, initial), (transition_name, transition)):
            normalised = _normalise(name, value)
            setattr(self, name, normalised)
            if checking:
                checks.rows(name, self.arguments[name], normalised)
        if checking:
            checks.parameters_have_values(observation_dist)
            if initial_logits is not None and transition_logits is not None:
                checks.logits_not_probs(initial_logits, transition_logits)

        allowed = torch.Size()
        if allowed_states is not None:
            allowed_states = checks.allowed_states(allowed_states, sizes[-1], lengths, checking)
            allowed = allowed_states.shape
        self.allowed_states = allowed_states
        spaced = check_gaps(gaps, transition.shape[-3], lengths, self.packing, checking)
        between = torch.Size() if spaced is None else spaced.shape
        self._duration = checks.agree_on_num_steps(
            duration,
            transition.shape[-3],
            sizes[-2:-1],
            allowed[-2:-1],
            between[-1:],
            None if self.packing is None else self.packing.num_steps,
        )
        self.gaps, self._gaps = gaps, Gaps.of(spaced)
        if lengths is not None:
            ops.check_lengths(lengths, self._duration)
        batch_shape = checks.broadcast_batches(
            initial=initial.shape[:-1],
            transition=transition.shape[:-3],
            observation_dist=sizes[:-2],
            lengths=torch.Size() if lengths is None else lengths.shape,
            allowed_states=allowed[:-2],
            gaps=between[:-1],
        )
        event_shape = torch.Size([self._duration or 1]) + observation_dist.event_shape
        super().__init__(batch_shape, event_shape, validate_args=False)  # already validated
        del self._validate_args  # the default of the class, unless the caller set it
        if validate_args is not None:
            self._validate_args = validate_args

    @_lazy
    def initial_logits(self) -> Tensor:
        """Normalised log initial probabilities, ``(..., K)``."""
        return ops.safe_log(self.initial_probs)

    @_lazy
    def transition_logits(self) -> Tensor:
        """Normalised log transition probabilities, ``(..., 1 or T-1, K, K)``."""
        return ops.safe_log(self.transition_probs)

    @_lazy
    def initial_probs(self) -> Tensor:
        """Initial probabilities, ``(..., K)``."""
        return self.initial_logits.exp()

    @_lazy
    def transition_probs(self) -> Tensor:
        """Transition probabilities, ``(..., 1 or T-1, K, K)``."""
        return self.transition_logits.exp()

    @_lazy
    def _row_logits(self) -> Tensor:
        """Log transition probabilities from each observation to the next."""
        if self._gaps is None:
            return self.transition_logits
        logits: Tensor = provenance.call(self._gaps.transition_logits, self.transition_logits)
        return logits

    @property
    def state_dim(self) -> int:
        """K, the number of hidden states."""
        return self.observation_dist.batch_shape[-1]

    @property
    def duration(self) -> int | None:
        """T, or None if it is not known in advance."""
        return self._duration

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The support of ``observation_dist`` at every time."""
        return constraints.independent(self.observation_dist.support, 1)

    def expand(self, batch_shape: _size, _instance: RegimeHMM | None = None) -> RegimeHMM:
        """Expand the distribution to a larger batch; arguments are shared, not copied."""
        # All attributes are copied, so that a subclass need not implement expand().
        new = type(self).__new__(type(self)) if _instance is None else _instance
        batch_shape = torch.Size(batch_shape)
        try:
            fits = torch.broadcast_shapes(self.batch_shape, batch_shape) == batch_shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"expected batch_shape to be one that {tuple(self.batch_shape)} expands to, got "
                f"{tuple(batch_shape)}"
            )
        new.__dict__.update(self.__dict__)
        super(RegimeHMM, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        r"""The log-likelihood :math:`\log p(x)`, summed over all paths of states.

        Its gradient is the E-step (Fisher's identity). It supports derivatives of any order, in
        reverse mode and in forward mode, with and without :mod:`torch.func`.

        :param value: ``(..., T) + observation_dist.event_shape``.
        :return: ``(...)``, in the dtype that the arguments and the value promote to; -inf, with
            gradient 0, for a sequence of probability zero, as one with an infinite observation is.
        :raises ValueError: if the value has a wrong shape or length, or lies outside the support.
        """
        log_likelihood, dtype = self._evaluate(value)
        return log_likelihood.to(dtype)

    def log_likelihood(self, value: Tensor) -> Tensor:
        """:meth:`log_prob` in float64, before rounding to the dtype of the arguments."""
        return self._evaluate(value)[0]

    def _evaluate(self, value: Tensor) -> tuple[Tensor, torch.dtype]:
        """The log-likelihood in float64, and the dtype of the result."""
        value, missing = self._check(value)
        found = None
        is_plain = self.allowed_states is None and missing is None and self.packing is None
        if is_plain and stand_in.infinite_rows(value, self.event_dim - 1) is None:
            found = observation.as_gaussian(self.observation_dist, value, self._validate_args)
        if found is None:
            chain = self._chain_of(value, missing)
            log_likelihood = provenance.call(ops.log_likelihood, *chain)
            return log_likelihood, ops.promoted_dtype(*chain[:3])
        given = (self.initial_logits, self._row_logits, *found)
        log_likelihood = provenance.call(ops.gaussian_log_likelihood, *given, self.lengths)
        shape = ops.broadcast(self.batch_shape, value.shape[: -self.event_dim])
        if log_likelihood.shape != shape:
            log_likelihood = log_likelihood.expand(shape)
        return log_likelihood, ops.promoted_dtype(*given)

    def filter(self, value: Tensor) -> Categorical:
        r"""The last state given the data, :math:`p(q_T \mid x_1, \dots, x_T)`.

        With ``lengths``, this is the state at each sequence's last observation. To filter the data
        that follow, multiply by the transition matrix before passing the result as the initial
        distribution, because the initial state emits. (Pyro's ``DiscreteHMM`` needs no such step.)

        :return: a Categorical of batch shape ``(...)``.
        :raises ValueError: for a sequence of probability zero; without validation its
            probabilities are NaN.
        """
        logits = provenance.call(ops.filter_logits, *self.chain(value))[..., -1, :]
        impossible = (logits == -torch.inf).all(-1)
        if self._validate_args and impossible.any():
            raise ValueError(
                "expected value to have positive probability, got probability 0 for "
                f"{int(impossible.sum())} of {impossible.numel()} sequences"
            )
        # torch's check does not support an empty batch.
        validate_args = self._validate_args and logits.numel() > 0
        return Categorical(logits=logits, validate_args=validate_args)

    def posterior(self, value: Tensor) -> Posterior:
        """Filtered, predicted and smoothed state probabilities and expected transitions.

        :return: a :class:`.Posterior`; differentiable in the arguments.
        """
        chain = self.chain(value)
        log_likelihood, filtered, smoothed, moved = provenance.call(ops.posterior, *chain)
        predicted = provenance.call(ops.predict_probs, *chain[:2], filtered, self.packing)
        if self.lengths is not None:
            time = torch.arange(filtered.shape[-2], device=self.lengths.device)
            padding = time >= self.lengths.unsqueeze(-1)
            predicted = predicted.masked_fill(padding.unsqueeze(-1), 0.0)
        return Posterior(log_likelihood, filtered, predicted, smoothed, moved)

    def smoothed_probs(self, value: Tensor) -> Tensor:
        r"""The smoothed probabilities of :meth:`posterior` alone.

        .. math:: \gamma_t(k) = p(q_t = k \mid x_1, \dots, x_T).

        :return: ``(..., T, K)``; 0 on padding and for a sequence of probability zero.
        """
        probs: Tensor = provenance.call(ops.expectations, *self.chain(value))[1]
        return probs

    def filtered_probs(self, value: Tensor) -> Tensor:
        r"""The filtered probabilities of :meth:`posterior` alone.

        .. math:: p(q_t = k \mid x_1, \dots, x_t).

        They do not depend on later observations, and need no backward recursion.

        :return: ``(..., T, K)``; 0 on padding and from the first impossible observation on.
        """
        probs: Tensor = provenance.call(ops.filter_probs, *self.chain(value))[1]
        return probs

    @torch.no_grad()
    def impute(self, value: Tensor) -> Imputation:
        r"""The mean and the variance of each missing entry given all observed entries.

        :param value: ``(..., T) + observation_dist.event_shape``, with NaN for missing entries,
            and ``missing="marginalise"``.
        :return: an :class:`pyro_regimes.distributions.Imputation` in the shape of the value,
            broadcast with ``batch_shape``. Observed entries, and padding, are as in the value, with
            variance 0. For a sequence of probability zero the mean and the variance are NaN.
        :raises ValueError: if the value is not valid, or if ``observation_dist`` has no mean or
            variance of missing entries.
        """
        filled, missing = self._check(value)
        shape = ops.broadcast(self.batch_shape, value.shape[: -self.event_dim])
        value = value.expand(shape + value.shape[-self.event_dim :])
        valid = values.without_padding(value, self.lengths, self.event_dim)[1]
        if missing is not None and valid is not None:
            missing = missing & valid.reshape(valid.shape + (1,) * (self.event_dim - 1))
        probs = self.smoothed_probs(value)
        return impute(self.observation_dist, value, filled, missing, probs)

    def viterbi(self, value: Tensor) -> Tensor:
        """The most likely path of states.

        :return: LongTensor ``(..., T)``; -1 on padding and for a sequence of probability zero.
        """
        return provenance.call(ops.viterbi, *self.chain(value))

    def sample_posterior(
        self,
        value: Tensor,
        sample_shape: _size = torch.Size(),  # noqa: B008 (immutable)
    ) -> Tensor:
        r"""Draw paths from :math:`p(q \mid x)` by forward filtering and backward sampling.

        :return: LongTensor ``sample_shape + (..., T)``; -1 on padding and for a sequence of
            probability zero.
        """
        return provenance.call(
            ops.sample_posterior, *self.chain(value), sample_shape=torch.Size(sample_shape)
        )

    def forecast(self, value: Tensor, num_steps: int) -> Forecast:
        r"""The marginal predictive distribution of each of the next observations.

        .. math:: p(x_{T+h} \mid x_1, \dots, x_T) =
            \sum_k \left(p(q_T \mid x) A^h\right)_k b_k(x_{T+h}), \qquad h = 1, \dots, n.

        :param num_steps: the number of steps n, at least 1.
        :return: a :class:`pyro_regimes.distributions.Forecast`, a mixture of batch shape
            ``(..., n)``; the regime probabilities are its ``mixture_distribution.probs``,
            ``(..., n, K)``.
        :raises ValueError: if transitions or observations vary in time, as their future values are
            unknown, or if ``num_steps`` is not a positive integer.
        """
        num_steps = checks.positive_integer("num_steps", num_steps)
        transition = self.transition_probs  # (..., 1, K, K)
        sizes = self.observation_dist.batch_shape
        if transition.shape[-3] != 1 or sizes[-2:-1] not in ((), (1,)):
            raise ValueError(
                "expected transitions and observations that are constant in time, got "
                f"transitions of shape {tuple(transition.shape)} and observation_dist of batch "
                f"shape {tuple(sizes)}; their values after the data are not known"
            )
        probs = self.filter(value).probs.unsqueeze(-2)  # (..., 1, K)
        transition = transition.squeeze(-3).to(probs.dtype)
        future = []
        with torch.autocast(probs.device.type, enabled=False):  # a probability has more digits
            for _ in range(num_steps):
                probs = probs @ transition
                future.append(probs)
        weights = torch.cat(future, -2)  # (..., n, K)
        validate_args = self._validate_args and weights.numel() > 0
        return Forecast(
            exact_copy(Categorical(weights, validate_args=validate_args)),
            # As in log_prob, a value may lie outside the support of some states.
            exact_copy(
                self.observation_dist, validate_args=False if self._validate_args else None
            ).expand(weights.shape),
            validate_args=validate_args,
        )

    @torch.no_grad()
    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008 (immutable)
        """Draw whole sequences, ``sample_shape + batch_shape + event_shape``.

        :raises ValueError: if T is not known; pass ``duration``.
        """
        if self.duration is None:
            raise ValueError(
                "expected duration, the number of steps to sample, got None; pass duration"
            )
        states = self._sample_states(torch.Size(sample_shape))
        each_state = self.batch_shape + (self.duration, self.state_dim)
        each = exact_copy(self.observation_dist).expand(each_state)
        drawn = each.sample(torch.Size(sample_shape))  # (..., T, K) + observation event
        event_shape = self.observation_dist.event_shape
        index = states.reshape(states.shape + (1,) * (1 + len(event_shape)))
        index = index.expand(states.shape + (1,) + event_shape)
        state_axis = states.dim()
        return drawn.gather(state_axis, index).squeeze(state_axis)

    def _sample_states(self, sample_shape: torch.Size) -> Tensor:
        """Draw paths without data, ``sample_shape + (..., T)``."""
        chain = self.initial_logits, self._row_logits
        if self.allowed_states is None:
            shape = sample_shape + self.batch_shape
            return provenance.call(ops.sample_prior, *chain, self.duration, shape, self.packing)
        nothing = chain[0].new_zeros(self.batch_shape + (self.duration or 1, self.state_dim))
        logits = observation.restrict(nothing, self.allowed_states)
        if self.lengths is not None:  # after them all states are allowed
            time = torch.arange(nothing.shape[-2], device=self.lengths.device)
            valid = (time < self.lengths.unsqueeze(-1)).unsqueeze(-1)
            logits = torch.where(valid, logits, nothing)
        states: Tensor = provenance.call(
            ops.sample_posterior, *chain, logits, self.packing, sample_shape=sample_shape
        )
        if bool((states < 0).any()):
            raise ValueError(
                "expected a chain that has an allowed path of states, got one whose paths all go "
                "through states that allowed_states excludes"
            )
        return states

    def chain(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | ops.Packing | None]:
        """The arguments of the functions of :mod:`.kernels.ops`, given a value, which is checked.

        The transitions are those from each observation to the next, over the ``gaps``.
        """
        return self._chain_of(*self._check(value))

    def _chain_of(
        self, value: Tensor, missing: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | ops.Packing | None]:
        logits = observation.log_prob(self.observation_dist, value, self._validate_args, missing)
        logits = observation.restrict(logits, self.allowed_states)
        shape = ops.broadcast(self.batch_shape, logits.shape[:-2])
        logits = logits.expand(shape + logits.shape[-2:])
        return self.initial_logits, self._row_logits, logits, self.sequences

    @property
    def sequences(self) -> Tensor | ops.Packing | None:
        """What tells the kernels where sequences begin and end; None for one of T steps."""
        return self.lengths if self.packing is None else self.packing

    def _check(self, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """Check a value, and replace its padding and missing entries, which are returned too."""
        values.check_shape(
            value,
            next(iter(self.arguments.values())).device,
            self.batch_shape,
            self.observation_dist.event_shape,
            self.duration,
            self._num_slices,
        )
        if not value.is_floating_point():
            value = value.long()  # bool has no subtraction, and 255 + 1 is 0 in uint8
        value, valid = values.without_padding(value, self.lengths, self.event_dim)
        value, missing = values.fill_missing(value, self.observation_dist, self.missing)
        if self._validate_args:
            if missing is not None:  # a missing observation has no value to check
                rows, _ = entries.parts_of(missing, self.event_dim - 1)
                valid = ~rows if valid is None else valid & ~rows
            values.check_support(value, self.observation_dist, valid)
        return value, missing

    def _validate_sample(self, value: Tensor) -> None:
        values.check_support(value, self.observation_dist)


def _normalise(name: str, value: Tensor) -> Tensor:
    return value / value.sum(-1, keepdim=True) if "probs" in name else value.log_softmax(-1)
