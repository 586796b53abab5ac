r"""How a parameter may stand for an argument: as itself, or through a known bijection.

A standard deviation may be held as such, or as a variance, a precision, or the logarithm of one of
the three; a covariance as itself, as its Cholesky factor or as a precision; probabilities as such
or as logits. Such a parameter is maximised in the argument's own coordinates, and written back
through the inverse: a maximum of the likelihood does not depend on coordinates. (That of a
posterior density does: see :mod:`.conjugate`.)
"""

from __future__ import annotations

from functools import partial
from typing import Callable, NamedTuple

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


class Link(NamedTuple):
    """A bijection from a parameter's cells to the blocks of an argument."""

    name: str  #: what the parameter holds
    forward: Map
    inverse: Map
    is_lower: bool = False  #: whether the parameter is a lower triangle, and nothing above it

    @property
    def is_identity(self) -> bool:
        """Whether the parameter is the argument itself."""
        return self.forward is _itself


def noise(link: Link, cells: Tensor, held: Tensor) -> Tensor:
    """How far rounding of its cells moves what a link makes of matrices: ``(cells,)``, relative.

    A model computes it in a way of its own, and may differ by as much.

    :param held: ``link.forward(cells)``.
    """
    eps = torch.finfo(cells.dtype).eps
    index = torch.arange(1, cells.shape[-1] + 1, dtype=cells.dtype, device=cells.device)
    worst = torch.zeros_like(held[..., 0, 0])
    for turn in (3.0, 5.0, 7.0):  # one direction may be one that the link does not amplify
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
    """NaN where it is not positive definite, as a maximiser's own NaN is."""
    factor, info = torch.linalg.cholesky_ex(_symmetric(matrix))
    return factor.masked_fill((info != 0)[..., None, None], torch.nan)


def _inverse(matrix: Tensor) -> Tensor:
    return torch.cholesky_inverse(_cholesky(matrix))


def _inverse_gram(factor: Tensor) -> Tensor:
    return torch.cholesky_inverse(factor.tril())


def _cholesky_of_inverse(matrix: Tensor) -> Tensor:
    return _cholesky(_inverse(matrix))


# Of functions that a module can be asked for by name, so that a plan can be pickled.


def _power(value: Tensor, exponent: float) -> Tensor:
    return value**exponent


def _exp_of(value: Tensor, factor: float) -> Tensor:
    return (factor * value).exp()


def _log_over(value: Tensor, factor: float) -> Tensor:
    return value.log() / factor


def _logarithm(name: str, factor: float) -> Link:
    """The link of a parameter that holds the logarithm, divided by a factor."""
    return Link(name, partial(_exp_of, factor=factor), partial(_log_over, factor=factor))


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def _log_of_probs(probs: Tensor) -> Tensor:
    """With a derivative of 0, and none that is infinite, where a probability is 0."""
    known = probs > 0
    return torch.where(known, torch.where(known, probs, 1.0).log(), -torch.inf)


def identity(name: str) -> Link:
    """A parameter that is the argument itself."""
    return Link(name, _itself, _itself)


def forward(link: Link, cells: Tensor) -> Tensor:
    """The value of an argument whose parameter has these cells."""
    return link.forward(cells)


# What a parameter may be, by what the argument is: the argument itself first.

PROBABILITIES = (
    identity("probabilities"),
    # Of a probability, which a model's rows become before they are compared.
    Link("logits", _softmax, _log_of_probs),
)

LOCATION = (identity("location"),)

STANDARD_DEVIATION = (
    identity("standard deviation"),
    Link("variance", torch.sqrt, torch.square),
    Link("precision", partial(_power, exponent=-0.5), partial(_power, exponent=-2.0)),
    _logarithm("log of standard deviation", 1.0),
    _logarithm("log of variance", 0.5),
    _logarithm("log of precision", -0.5),
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
