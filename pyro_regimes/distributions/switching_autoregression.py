"""Hamilton's Markov-switching autoregression as a Pyro distribution."""

from __future__ import annotations

import torch
from pyro.distributions import Categorical, Normal, TorchDistribution, constraints
from torch import Tensor
from torch.types import _size

from pyro_regimes.distributions import autoregressive_arguments as arguments
from pyro_regimes.distributions.forecast import Forecast
from pyro_regimes.distributions.posterior import Posterior
from pyro_regimes.kernels import ops
from pyro_regimes.observed import lagged_normal


class SwitchingAutoregression(TorchDistribution):
    r"""Autoregression of order p in deviations from the mean of the regime (Hamilton 1989).

    .. math::
        x_t - \mu_{q_t} = \sum_{j=1}^p \phi_j (x_{t-j} - \mu_{q_{t-j}}) + \sigma e_t,
        \qquad e_t \sim N(0, 1)

    with the chain :math:`q_t` of K regimes. An observation depends on the current regime and on
    those of the p rows before, so the likelihood is that of a chain of :math:`K^{p+1}` tuples
    :math:`(q_{t-p}, \dots, q_t)`. It is exact, and costs :math:`T K^{p+1}` operations, as a tuple
    leads to K others only. The coefficients and :math:`\sigma` may depend on :math:`q_t`.

    The density is that of the rows after ``history``, given ``history``, as in Hamilton (1989)
    and statsmodels. ``initial_probs`` are the probabilities of the regime of the first row of
    ``history``, and the chain makes its transitions from there.

    Transitions may vary in time. Slice t of ``transition_probs`` leads from row t to row t + 1 of
    the p + T rows of ``history`` and the series, so there are p + T - 1, and the first p are those
    up to the first row after ``history``. (``exog_tvtp`` of statsmodels has p + T rows: row t
    drives the transition into row t, and the first regime has the stationary distribution of A of
    row 0.)

    The event is the series after ``history``: ``event_shape`` is ``(duration,)``, with 1 if
    ``duration`` is not given. Probabilities and paths are those of these T rows and of the K
    regimes.

    :param Tensor history: the p rows before the first one, ``(..., p)``, p at least 1.
    :param Tensor transition_probs: A, (old, new), ``(K, K)`` or ``(..., 1 or p+T-1, K, K)``:
        dimension -3 is always time. Rows sum to 1.
    :param Tensor loc: the means :math:`\mu`, ``(..., K)``.
    :param Tensor coefficients: :math:`\phi`, ``(p,)``, or ``(..., 1 or K, p)``.
    :param Tensor scale: :math:`\sigma`, a standard deviation, ``()`` or ``(..., 1 or K)``.
    :param Tensor initial_probs: ``(..., K)``; None is the stationary distribution of A, if A is
        constant.
    :param int duration: T, the number of rows of a sample; that of transitions that vary in time
        if None.
    :param bool validate_args: whether to check arguments and values.
    :raises ValueError: if arguments are invalid or do not match, or A has no single stationary
        distribution or varies in time and ``initial_probs`` is None.

    >>> x = torch.tensor([2.6, 2.2, 0.5, 1.0, -0.2, 1.4])
    >>> model = SwitchingAutoregression(
    ...     history=x[:1],
    ...     transition_probs=torch.tensor([[0.75, 0.25], [0.1, 0.9]]),
    ...     loc=torch.tensor([-0.4, 1.2]),
    ...     coefficients=torch.tensor([0.3]),
    ...     scale=torch.tensor(0.8),
    ... )
    >>> model.viterbi(x[1:])
    tensor([1, 1, 1, 1, 1])
    """

    arg_constraints = {
        "transition_probs": constraints.independent(constraints.simplex, 2),
        "loc": constraints.real_vector,
        "coefficients": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 1),
        "initial_probs": constraints.simplex,
        "history": constraints.real_vector,
    }
    support = constraints.real_vector

    def __init__(
        self,
        history: Tensor,
        transition_probs: Tensor,
        loc: Tensor,
        coefficients: Tensor,
        scale: Tensor,
        *,
        initial_probs: Tensor | None = None,
        duration: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        given = arguments.read(
            history, transition_probs, loc, coefficients, scale, initial_probs, duration
        )
        self.history, self.transition_probs, self.loc = given.history, given.transition, given.loc
        self.coefficients, self.scale = given.coefficients, given.scale
        self.initial_probs, self._duration = given.initial, given.duration
        super().__init__(
            given.batch_shape, torch.Size([given.duration or 1]), validate_args=validate_args
        )

    @property
    def state_dim(self) -> int:
        """K, the number of regimes."""
        return self.loc.shape[-1]

    @property
    def order(self) -> int:
        """p, the number of lags."""
        return self.history.shape[-1]

    def expand(
        self, batch_shape: _size, _instance: SwitchingAutoregression | None = None
    ) -> SwitchingAutoregression:
        """Expand the distribution to a larger batch; arguments are shared, not copied."""
        new = type(self).__new__(type(self)) if _instance is None else _instance
        batch_shape = torch.Size(batch_shape)
        new.__dict__.update(self.__dict__)
        torch.empty(self.batch_shape, device="meta").expand(batch_shape)
        super(SwitchingAutoregression, new).__init__(
            batch_shape, self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def _given(self, value: Tensor) -> tuple[tuple[Tensor, ...], torch.Size, torch.dtype]:
        """Arguments of the kernels, each with one batch dim, the batch shape, and the dtype."""
        value = arguments.check_value(value, self._duration, self._validate_args)
        series = arguments.series(self.history, value)
        given = (series, self.loc, self.coefficients, self.scale)
        matrices = arguments.log_of(self.transition_probs)
        initial = arguments.log_of(self.initial_probs)
        first = arguments.first_tuple(initial, matrices, self.order + 1)
        if matrices.shape[-3] > 1:
            matrices = matrices[..., self.order :, :, :]
        shape = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        dtype = ops.promoted_dtype(self.transition_probs, self.initial_probs, *given)
        parts = ((first, 1), (matrices, 3), *zip(given, (1, 1, 2, 1)))
        return tuple(arguments.flat(each, shape, own) for each, own in parts), shape, dtype

    def _chain(self, value: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], torch.Size]:
        """Initial, transition and observation logits of the tuples, flat, and the batch shape."""
        (initial, matrices, *given), shape, _ = self._given(value)
        density = ops.autoregression_log_densities(*(each.double() for each in given))
        return (initial, matrices, density.expand(shape.numel(), -1, -1)), shape

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the rows after ``history``.

        :param Tensor value: ``(..., T)``.
        :return: ``(...)``, in the dtype of the arguments.
        """
        given, shape, dtype = self._given(value)
        found = ops.autoregression_log_likelihood(*given)
        return found.expand(shape.numel()).reshape(shape).to(dtype)

    def posterior(self, value: Tensor) -> Posterior:
        """Log-likelihood, and probabilities of the K regimes at each of the T rows.

        ``expected_transitions`` counts the T - 1 transitions between these rows.

        :param Tensor value: ``(..., T)``.
        """
        given, shape, dtype = self._given(value)
        found = ops.autoregression_posterior(*given)
        first, matrices = given[0].exp(), given[1].exp()
        filtered = found[1]
        start = first.unflatten(-1, (-1, self.state_dim)).sum(-2).unsqueeze(-2)
        later = (filtered[:, :-1].unsqueeze(-2) @ matrices).squeeze(-2)
        predicted = torch.cat([start.expand(len(later), -1, -1), later], -2)
        moved = found[3] if matrices.shape[1] != 1 else found[3].squeeze(1)

        def batched(part: Tensor) -> Tensor:
            return part.expand((shape.numel(),) + part.shape[1:]).reshape(shape + part.shape[1:])

        return Posterior(
            batched(found[0]),
            *(batched(each).to(dtype) for each in (filtered, predicted, found[2], moved)),
        )

    def smoothed_probs(self, value: Tensor) -> Tensor:
        """:math:`p(q_t | x_1, ..., x_T)`, ``(..., T, K)``."""
        return self.posterior(value).smoothed_probs

    def filtered_probs(self, value: Tensor) -> Tensor:
        """:math:`p(q_t | x_1, ..., x_t)`, ``(..., T, K)``."""
        return self.posterior(value).filtered_probs

    def viterbi(self, value: Tensor) -> Tensor:
        """The most likely path of the regimes, LongTensor ``(..., T)``.

        The path of the regimes of ``history`` is part of the maximisation.
        """
        with torch.no_grad():
            chain, shape = self._chain(value)
            path = ops.lagged_viterbi(*chain) % self.state_dim
        return path.reshape(shape + path.shape[1:])

    def filter(self, value: Tensor) -> Categorical:
        """The distribution of the last regime, given all rows."""
        return Categorical(probs=self.filtered_probs(value)[..., -1, :])

    def forecast(self, value: Tensor, transition_probs: Tensor | None = None) -> Forecast:
        """The distribution of the next row, a mixture of :math:`K^{p+1}` normal distributions.

        :param Tensor value: ``(..., T)``.
        :param Tensor transition_probs: A of the step to the next row, ``(..., K, K)``, where A
            varies in time.
        :raises ValueError: if A varies in time, and that of the next step is not given.
        """
        chain, shape = self._chain(value)
        if transition_probs is None:
            if self.transition_probs.shape[-3] > 1:
                raise ValueError(
                    "expected transition_probs, those of the step to the next row, as they vary in "
                    "time, got None"
                )
            transition_probs = self.transition_probs.squeeze(-3)
        last = ops.lagged_filter_probs(*chain)[:, -1]
        weights = arguments.moved(transition_probs, last.reshape(shape + last.shape[1:]))
        latest = arguments.series(self.history, value)[..., -self.order :].flip(-1)
        ahead = (latest.unsqueeze(-2) @ self.coefficients.mT).squeeze(-2)  # (..., 1 or K)
        centre = lagged_normal.centre(self.loc, self.coefficients)
        mean = lagged_normal.per_tuple(ahead, self.state_dim, self.order) + centre
        wide = lagged_normal.per_tuple(self.scale, self.state_dim, self.order)
        mean, wide = torch.broadcast_tensors(mean, wide)
        size = mean.shape[-1:]
        return Forecast(
            Categorical(probs=weights.to(mean.dtype)),
            Normal(mean.expand(shape + size), wide.expand(shape + size)),
        )

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008 (immutable)
        """Draw the T rows after ``history``, whose regimes are drawn without regard to its values.

        :raises ValueError: if ``duration`` is not given.
        """
        if self._duration is None:
            raise ValueError("expected duration to be given for sample(), got None")
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            num_steps = self._duration + self.order
            path = arguments.draw_path(self.initial_probs, self.transition_probs, shape, num_steps)
            loc = self.loc.expand(shape + (-1,)).gather(-1, path)
            wide = self.coefficients.expand(shape + (self.state_dim, -1))
            scale = self.scale.expand(shape + (self.state_dim,)).gather(-1, path)
            rows = list((self.history - loc[..., : self.order]).unbind(-1))  # deviations
            for t in range(self.order, num_steps):
                index = path[..., t, None, None].expand(shape + (1, self.order))
                coefficients = wide.gather(-2, index).squeeze(-2)
                lags = torch.stack(rows[: -self.order - 1 : -1], -1)
                noise = torch.randn_like(scale[..., t])
                rows.append((coefficients * lags).sum(-1) + scale[..., t] * noise)
            return torch.stack(rows[self.order :], -1) + loc[..., self.order :]
