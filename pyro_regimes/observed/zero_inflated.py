"""Continuous observations with a probability of being exactly 0."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import (
    ExpandedDistribution,
    MaskedDistribution,
    TorchDistribution,
    constraints,
)
from torch import Tensor
from torch.distributions import Distribution, Independent, TransformedDistribution, transform_to
from torch.distributions.utils import lazy_property
from torch.nn.functional import logsigmoid
from torch.types import _size

from pyro_regimes.observed.columns import expanded

_USUAL = 0.5  # in the support of the usual continuous distributions


class ZeroInflatedContinuous(TorchDistribution):
    r"""A continuous distribution with a point mass at 0, such as rainfall or step lengths.

    .. math::
        p(x) = \begin{cases} \pi & x = 0 \\ (1 - \pi) \, p_0(x) & x \ne 0 \end{cases}

    with the gate :math:`\pi`, a density with respect to the sum of a point mass at 0 and Lebesgue's
    measure. With a Gamma as :math:`p_0` it is also called zero-inflated gamma, delta-gamma or
    hurdle gamma. (Pyro's :class:`~pyro.distributions.ZeroInflatedDistribution` is for counts: its
    :math:`p(0)` has the term :math:`(1 - \pi) \, p_0(0)` in addition, which for a density is no
    probability.)

    :param Distribution base_dist: :math:`p_0`, a continuous distribution of numbers.
    :param Tensor gate: the probability of a 0. It broadcasts with the batch shape of ``base_dist``.
    :param Tensor gate_logits: alternative to ``gate``.
    :param bool validate_args: whether to check arguments and values.
    :raises ValueError: if arguments do not match.

    >>> import pyro.distributions as dist
    >>> rain = ZeroInflatedContinuous(dist.Gamma(2.0, 0.5), gate=torch.tensor(0.7))
    >>> rain.log_prob(torch.tensor([0.0, 3.0])).exp()
    tensor([0.7000, 0.0502])
    """

    arg_constraints = {"gate": constraints.unit_interval, "gate_logits": constraints.real}

    def __init__(
        self,
        base_dist: Distribution,
        *,
        gate: Tensor | None = None,
        gate_logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(base_dist, Distribution) or base_dist.event_shape:
            came = type(base_dist).__name__
            if isinstance(base_dist, Distribution):
                came += f" of event shape {tuple(base_dist.event_shape)}"
            raise ValueError(
                f"expected base_dist to be a distribution of numbers, got {came}; for several "
                "columns use ZeroInflatedContinuous(...).to_event(1)"
            )
        if _is_discrete(base_dist):
            raise ValueError(
                f"expected base_dist to be a continuous distribution, got {base_dist}; for counts "
                "use pyro.distributions.ZeroInflatedDistribution"
            )
        if (gate is None) == (gate_logits is None):
            came = "neither" if gate is None else "both"
            raise ValueError(f"expected exactly one of gate and gate_logits, got {came}")
        given = torch.as_tensor(gate if gate is not None else gate_logits)
        try:
            batch_shape = torch.broadcast_shapes(given.shape, base_dist.batch_shape)
        except RuntimeError as error:
            raise ValueError(
                f"expected a gate that broadcasts with the batch shape "
                f"{tuple(base_dist.batch_shape)} of base_dist, got shape {tuple(given.shape)}"
            ) from error
        self.base_dist = base_dist
        if gate is not None:
            self.gate = given
        else:
            self.gate_logits = given
        super().__init__(batch_shape, torch.Size(), validate_args=validate_args)

    @lazy_property
    def gate(self) -> Tensor:
        """The probability of a 0."""
        return self.gate_logits.sigmoid()

    @lazy_property
    def gate_logits(self) -> Tensor:
        """Its logits."""
        return self.gate.logit()

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The support of ``base_dist``, and 0."""
        base: Any = self.base_dist.support
        return _OrZero(base)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        if self._validate_args:
            self._validate_sample(value)
        if "gate" in vars(self):
            log_gate, log_rest = self.gate.log(), (-self.gate).log1p()
        else:
            log_gate, log_rest = logsigmoid(self.gate_logits), logsigmoid(-self.gate_logits)
        zero = value == 0
        base = type(self.base_dist).__new__(type(self.base_dist))
        base.__dict__.update(vars(self.base_dist))
        base._validate_args = False  # the value is checked above
        inside = torch.where(zero, stand_in(self.base_dist, value), value)
        density: Tensor = log_rest + base.log_prob(inside)
        density = torch.where(zero, log_gate, density)
        return density.expand(torch.broadcast_shapes(density.shape, self.batch_shape))

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008 (immutable)
        """Draw samples, ``sample_shape + batch_shape``."""
        with torch.no_grad():
            gate = self._probability.expand(self._extended_shape(sample_shape))
            zero = torch.bernoulli(gate).bool()
            drawn = expanded(self.base_dist, self.batch_shape).sample(torch.Size(sample_shape))
            return drawn.masked_fill(zero, 0.0)

    @property
    def mean(self) -> Tensor:
        """The mean, with the zeros."""
        return (1 - self._probability) * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """The variance, with the zeros."""
        mean, gate = self.base_dist.mean, self._probability
        return (1 - gate) * (self.base_dist.variance + gate * mean**2)

    @property
    def _probability(self) -> Tensor:
        """The gate, without keeping it beside the logits that were given."""
        known = vars(self)
        found: Tensor = known["gate"] if "gate" in known else known["gate_logits"].sigmoid()
        return found

    def expand(
        self, batch_shape: _size, _instance: ZeroInflatedContinuous | None = None
    ) -> ZeroInflatedContinuous:
        """Expand the distribution to a larger batch."""
        new: ZeroInflatedContinuous = self._get_checked_instance(ZeroInflatedContinuous, _instance)
        shape = torch.Size(batch_shape)
        new.base_dist = expanded(self.base_dist, shape)
        for name in self.arg_constraints:
            if name in vars(self):
                setattr(new, name, vars(self)[name].expand(shape))
        super(ZeroInflatedContinuous, new).__init__(shape, torch.Size(), validate_args=False)
        new._validate_args = self._validate_args
        return new


@torch.no_grad()
def stand_in(base_dist: Distribution, like: Tensor) -> Tensor:
    """A value in the support of a continuous distribution, in the place of a zero.

    :param like: a tensor of whose dtype and device it is, if that is floating point.
    :return: of the batch shape of the distribution, or to be broadcast with it.
    """
    if isinstance(base_dist, (Independent, ExpandedDistribution, MaskedDistribution)):
        return stand_in(base_dist.base_dist, like)
    if isinstance(base_dist, TransformedDistribution):
        inside = stand_in(base_dist.base_dist, like)
        for transform in base_dist.transforms:
            inside = transform(inside)
        return inside.to(like.dtype) if like.is_floating_point() else inside
    zero = torch.zeros((), device=like.device)
    try:
        inside = transform_to(base_dist.support)(zero)
    except NotImplementedError:  # of some the support is not known
        inside = zero + _USUAL
    return inside.to(like.dtype) if like.is_floating_point() else inside


class _OrZero(constraints.Constraint):
    """Numbers that satisfy a constraint, and 0."""

    def __init__(self, base: constraints.Constraint) -> None:
        self.base = base
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each number is one of them."""
        return self.base.check(value) | (value == 0)

    def __repr__(self) -> str:
        return f"{self.base} or 0"


def _is_discrete(base_dist: Distribution) -> bool:
    """Whether a distribution says so; some have no support."""
    try:
        support: Any = base_dist.support
        return bool(support.is_discrete)
    except (AttributeError, NotImplementedError):
        return False
