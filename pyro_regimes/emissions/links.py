r"""Parametrisations of an argument: the identity, or another known bijection of a parameter.

A standard deviation may be parametrised as such, by a variance, by a precision, or by the logarithm
of one of the three; a covariance as such, by its Cholesky factor or by a precision; rates and
concentrations as such, by their logarithm, reciprocal or inverse softplus; probabilities as such or
by logits. The maximiser is computed in the argument's coordinates and written back
through the inverse, because a maximum of the likelihood does not depend on coordinates. (The
maximum of a posterior density does: see :mod:`.conjugate`.)
"""

from __future__ import annotations

from functools import partial
from typing import Callable, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus

Map = Callable[[Tensor], Tensor]


class Link(NamedTuple):
    """A bijection from a parameter's cells to the blocks of an argument."""

    name: str  #: name of the quantity that the parameter holds
    forward: Map
    inverse: Map
    is_lower: bool = False  #: whether the parameter is a lower triangular matrix
    #: Constraints that the parameter satisfies wherever the argument is valid.
    inside: tuple[Constraint, ...] = ()

    @property
    def is_identity(self) -> bool:
        """Whether the parameter equals the argument."""
        return self.forward is _itself


def noise(link: Link, cells: Tensor, held: Tensor) -> Tensor:
    """Relative error of a matrix argument from rounding of its cells: ``(cells,)``.

        A model may compute the argument in another way and differ by this much.

    :param held: ``link.forward(cells)``.
    """
    eps = torch.finfo(cells.dtype).eps
    index = torch.arange(1, cells.shape[-1] + 1, dtype=cells.dtype, device=cells.device)
    worst = torch.zeros_like(held[..., 0, 0])
    for turn in (3.0, 5.0, 7.0):  # the link may not amplify errors in a single direction
        signs = (turn * index.unsqueeze(-1) * index).sin()  # symmetric, and otherwise arbitrary
        error = (link.forward(cells * (1 + 4 * eps * signs)) - held).abs()
        worst = torch.maximum(worst, error.amax((-2, -1)))
    return worst / held.abs().amax((-2, -1))


def _itself(value: Tensor) -> Tensor:
    return value


def _gram(factor: Tensor) -> Tensor:
    factor = factor.tril()
    return factor @ factor.mT


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def _cholesky(matrix: Tensor) -> Tensor:
    """The Cholesky factor; NaN if the matrix is not positive definite, or NaN."""
    factor, info = torch.linalg.cholesky_ex(_symmetric(matrix))
    return factor.masked_fill((info != 0)[..., None, None], torch.nan)


def _inverse(matrix: Tensor) -> Tensor:
    return torch.cholesky_inverse(_cholesky(matrix))


def _inverse_gram(factor: Tensor) -> Tensor:
    return torch.cholesky_inverse(factor.tril())


def _cholesky_of_inverse(matrix: Tensor) -> Tensor:
    return _cholesky(_inverse(matrix))


# Only functions that can be imported by name, so that a plan can be pickled.


def _power(value: Tensor, exponent: float) -> Tensor:
    return value**exponent


def _exp_of(value: Tensor, factor: float) -> Tensor:
    return (factor * value).exp()


def _log_over(value: Tensor, factor: float) -> Tensor:
    return value.log() / factor


def _logarithm(name: str, factor: float) -> Link:
    """The link of a parameter that holds the logarithm, divided by a factor."""
    return Link(name, partial(_exp_of, factor=factor), partial(_log_over, factor=factor))


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + (-(-value).expm1()).log()


def _root_of_softplus(value: Tensor) -> Tensor:
    return softplus(value).sqrt()


def _inverse_softplus_of_square(value: Tensor) -> Tensor:
    return _inverse_softplus(value.square())


def _complement(value: Tensor) -> Tensor:
    return 1 - value


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def _log_of_probs(probs: Tensor) -> Tensor:
    """The logarithm of probabilities, with derivative 0 at a probability of 0."""
    known = probs > 0
    return torch.where(known, torch.where(known, probs, 1.0).log(), -torch.inf)


def identity(name: str) -> Link:
    """The link of a parameter that equals the argument."""
    return Link(name, _itself, _itself)


def forward(link: Link, cells: Tensor) -> Tensor:
    """The value of an argument whose parameter has these cells."""
    return link.forward(cells)


# The links of each kind of argument; the identity comes first.

PROBABILITIES = (
    identity("probabilities"),
    # Links of probabilities, to which a model's rows are converted before they are compared.
    Link("logits", _softmax, _log_of_probs),
)

LOCATION = (identity("location"),)

_POSITIVE = (constraints.positive, constraints.nonnegative)

_UNIT = (constraints.unit_interval, *_POSITIVE)


def _positive(name: str) -> tuple[Link, ...]:
    """The links of a positive number."""
    return (
        identity(name),
        _logarithm(f"log of {name}", 1.0),
        Link(f"reciprocal of {name}", torch.reciprocal, torch.reciprocal, inside=_POSITIVE),
        Link(f"inverse softplus of {name}", softplus, _inverse_softplus),
    )


RATE = _positive("rate")

MEAN = _positive("mean")

CONCENTRATION = _positive("concentration")

SCALE = _positive("scale")

TOTAL_COUNT = _positive("total_count")

PROBABILITY = (
    identity("probability"),
    Link("logits", torch.sigmoid, torch.logit),
    Link("complement", _complement, _complement, inside=_UNIT),
    _logarithm("log of probability", 1.0),
)

STANDARD_DEVIATION = (
    identity("standard deviation"),
    Link("variance", torch.sqrt, torch.square, inside=_POSITIVE),
    Link(
        "precision",
        partial(_power, exponent=-0.5),
        partial(_power, exponent=-2.0),
        inside=_POSITIVE,
    ),
    _logarithm("log of standard deviation", 1.0),
    _logarithm("log of variance", 0.5),
    _logarithm("log of precision", -0.5),
    Link("inverse softplus of standard deviation", softplus, _inverse_softplus),
    Link("inverse softplus of variance", _root_of_softplus, _inverse_softplus_of_square),
)

COVARIANCE = (
    identity("covariance"),
    Link("Cholesky factor", _gram, _cholesky, True),
    Link("precision matrix", _inverse, _inverse),
)

CHOLESKY_FACTOR = (
    identity("Cholesky factor"),
    Link("covariance", _cholesky, _gram),
    Link("precision matrix", _cholesky_of_inverse, _inverse_gram),
)

PRECISION_MATRIX = (
    identity("precision matrix"),
    Link("covariance", _inverse, _inverse),
    Link("Cholesky factor", _inverse_gram, _cholesky_of_inverse, True),
)
