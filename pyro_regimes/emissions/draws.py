"""Random admissible values of a parameter, far from its current value.

EM runs the model at such values to check that an argument equals a parameter everywhere, not only
at its current value: ``tanh(loc)`` equals ``loc`` to first order at 0, and a clamp is the identity
inside its bounds. Draws with seeds below 1,000 and with other seeds have opposite signs and orders
of magnitude. Small arrays are NumPy's, whose operations take half the time of a tensor's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Callable, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyro_regimes.kernels import ops


class Draw(NamedTuple):
    """The current value, the constraint and the random numbers of a draw."""

    old: Tensor  #: the current value, float64 on the CPU
    constraint: constraints.Constraint
    dtype: torch.dtype  #: dtype of the parameter
    generator: torch.Generator
    seed: int
    mild: bool  #: whether to stay near the current value, if the model cannot run far away

    @property
    def sign(self) -> float:
        """The sign of the draw, or of the change of its order of magnitude."""
        return 1.0 if self.seed < 1_000 else -1.0

    def normal(self, shape: torch.Size | None = None) -> Tensor:
        """Standard normal numbers, in the shape of the value by default."""
        shape = self.old.shape if shape is None else shape
        return torch.randn(shape, generator=self.generator, dtype=torch.float64, device="cpu")

    def uniform(self, low: float, high: float, shape: torch.Size | None = None) -> Tensor:
        """Uniform numbers, in the shape of the value by default."""
        shape = self.old.shape if shape is None else shape
        drawn = torch.empty(shape, dtype=torch.float64, device="cpu")
        return drawn.uniform_(low, high, generator=self.generator)


def random_value(
    value: Tensor,
    draw_candidates: Callable[[Draw], Iterable[Tensor]] | None,
    constraint: constraints.Constraint,
    seed: int,
    mild: bool = False,
) -> Tensor:
    """Draw a random admissible value, far from the current one.

    :param draw_candidates: :attr:`.Argument.draw` of the argument that the parameter may represent.
        The first candidate that is finite and satisfies the constraint is used. None steps in
        unconstrained space.
    :param mild: whether to stay near the current value, if the model cannot run far away.
    """
    old = value.detach().cpu().double()
    generator = torch.Generator().manual_seed(seed)
    draw = Draw(old, constraint, value.dtype, generator, seed, mild)
    for candidate in draw_candidates(draw) if draw_candidates else []:
        drawn = candidate.to(value.dtype)
        if ops.is_finite(drawn) and _meets(constraint, drawn):
            return drawn.to(value)
    transform = transform_to(constraint)
    moved = transform.inv(old)
    shift = draw.normal(moved.shape)
    return transform(moved + (0.5 if mild else 3.0) * shift).to(value)


def _meets(constraint: constraints.Constraint, value: Tensor) -> bool:
    """Whether a finite value satisfies a constraint."""
    if constraint is constraints.real:
        return True
    if constraint is constraints.positive_definite and torch.equal(value, value.mT):
        # torch's check would spend most of its time on the symmetry.
        return not bool(torch.linalg.cholesky_ex(value).info.any())
    if constraint is constraints.simplex and value.numel():  # as torch does, in fewer operations
        off = (value.sum(-1) - 1).abs().max().item()
        return value.min().item() >= 0 and off < 1e-6
    return bool(constraint.check(value).all())


def rows(draw: Draw) -> list[Tensor]:
    """Rows of probabilities, or values that are normalised to rows."""
    logits = draw.normal() * (1.0 if draw.mild else 4.0)
    if draw.sign < 0 and not draw.mild and draw.old.dim() and draw.old.shape[-1] > 1:
        # Every row has an entry small enough to reach a floor, and large enough for rounding.
        low, high = logits.amin(-1, keepdim=True), logits.amax(-1, keepdim=True)
        logits = logits * (-0.4 * math.log(torch.finfo(draw.dtype).eps)) / (high - low)
    candidates = [logits.softmax(-1)]
    if draw.constraint is not constraints.simplex:
        candidates.insert(0, logits.exp())
    if draw.constraint is constraints.real:
        candidates.insert(0, logits)
    if draw.mild:  # probabilities without a constraint must be a row as well
        candidates.reverse()
    if draw.constraint is constraints.simplex:
        return candidates
    if is_unit(draw.constraint) and not _are_rows(draw.old):
        candidates.insert(0, _on_its_side(draw))
    return candidates


def is_unit(constraint: constraints.Constraint) -> bool:
    """Whether a constraint is an interval inside [0, 1]."""
    low, high = (getattr(constraint, f"{end}_bound", None) for end in ("lower", "upper"))
    return low is not None and high is not None and bool(low >= 0) and bool(high <= 1)


def _are_rows(value: Tensor) -> bool:
    """Whether each row sums to 1."""
    return value.dim() > 0 and bool(((value.sum(-1) - 1).abs() < 1e-6).all())


def _on_its_side(draw: Draw) -> Tensor:
    """Probabilities above 1/2 or below, by the sign of the draw."""
    most = -0.4 * math.log(torch.finfo(draw.dtype).eps)
    size = draw.uniform(0.5, 2.0) if draw.mild else draw.uniform(0.6 * most, most)
    return (draw.sign * size).sigmoid()


def location(draw: Draw) -> list[Tensor]:
    """Real numbers."""
    if draw.mild:
        return [draw.old + draw.normal()]
    sides = torch.Generator().manual_seed(draw.seed % 1_000)  # the same for both draws
    drawn = torch.rand(draw.old.shape, generator=sides, dtype=torch.float64, device="cpu")
    size = 10.0 ** draw.uniform(2, 4).numpy() * (1.0 + np.abs(draw.old.numpy()))
    moved = np.copysign(size, draw.sign * (drawn.numpy() - 0.5))
    return [torch.as_tensor(moved, device="cpu")]  # of a scalar NumPy makes no array


def positive(draw: Draw) -> list[Tensor]:
    """Positive numbers, if the constraint of the parameter allows only these."""
    ones = torch.ones_like(draw.old)
    if not bool(draw.constraint.check(ones).all()) or bool(draw.constraint.check(-ones).any()):
        return []
    size = draw.uniform(0, 0.5) if draw.mild else draw.uniform(2, 4)
    return [draw.old * torch.pow(10.0, draw.sign * size)]


def probability(draw: Draw) -> list[Tensor]:
    """Numbers between 0 and 1, or their logits."""
    logits = draw.normal() * (1.0 if draw.mild else 2.0) + draw.sign
    candidates = [logits.sigmoid()]
    if draw.constraint is constraints.real:
        candidates.insert(0, logits)
    if draw.mild:  # a probability without a constraint must be one as well
        candidates.reverse()
    return candidates


def matrices(draw: Draw, factor_first: bool = False) -> Iterator[Tensor]:
    """A positive definite matrix and its Cholesky factor, if the value is one of the two."""
    old = draw.old
    if old.dim() < 2 or old.shape[-1] != old.shape[-2] or not old.numel():
        return
    kinds = (constraints.positive_definite, constraints.lower_cholesky)
    known = any(draw.constraint is kind for kind in kinds)
    if not known and not any(_meets(kind, old) for kind in kinds):
        return
    vectors = torch.linalg.qr(draw.normal())[0].numpy()
    columns = old.shape[:-2] + (1, old.shape[-1])
    exponent = draw.sign * draw.uniform(0, 0.5 if draw.mild else 2.0, columns).numpy()
    spread = 10.0**exponent * np.abs(old.numpy()).max((-2, -1), keepdims=True)
    half = (vectors * spread) @ vectors.swapaxes(-2, -1) / 2
    matrix = torch.from_numpy(half + half.swapaxes(-2, -1))
    if not factor_first:
        yield matrix
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not bool(info.any()):
        yield factor
    if factor_first:
        yield matrix


def factors(draw: Draw) -> Iterator[Tensor]:
    """As :func:`matrices`, with the factor first."""
    return matrices(draw, factor_first=True)
