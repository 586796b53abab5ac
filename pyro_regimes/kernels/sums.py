r"""Sums of logits without rounding errors, in tensor code, for the reference.

The sum of a logit of -1e16 and one of :math:`\log 0.3` in float64 loses the second. If later data
cancel the first, the second decides. So a :class:`Sum` represents a number by several float64
tensors, the *parts*. Each part holds the rounding error of the part before it.

For autograd the parts are constants. Derivatives propagate through ``live``, a tensor of zeros.
"""

from __future__ import annotations

import math
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from pyro_regimes.kernels import transforms

#: Where numbers cannot be looked at, under a transform or in a graph: about 159 bits.
_PARTS_UNSEEN = 3


class Sum(NamedTuple):
    """The number ``sum(parts) + live``."""

    parts: tuple[Tensor, ...]
    live: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Sum:
        """The same change of shape for all tensors."""
        return Sum(tuple(map(function, self.parts)), function(self.live))

    def plus(self, other: Sum) -> Sum:
        """The sum of two."""
        parts = self.parts
        for part in other.parts:
            parts = _add(parts, part)
        return Sum(_settle(parts), self.live + other.live)

    def estimate(self) -> Tensor:
        """The parts, added up in float64."""
        total = self.parts[0]
        for part in self.parts[1:]:
            total = total + part
        return total


def parts_needed(*chain: Tensor) -> int:
    """How many parts hold every sum along a path to 2^-64.

    :param chain: initial, transition and observation logits.
    """
    if not transforms.can_be_seen(*chain):
        return _PARTS_UNSEEN
    return parts_for_sizes(sizes_of(*chain), chain[2].shape[-2])


def sizes_of(*logits: Tensor) -> list[float]:
    """The largest finite absolute value of each tensor that is not empty, looked at once."""
    largest = [
        each.detach().abs().nan_to_num(0.0, 0.0, 0.0).max() for each in logits if each.numel()
    ]
    sizes: list[float] = torch.stack(largest).tolist() if largest else []
    return sizes


def parts_for_sizes(sizes: list[float], num_steps: int) -> int:
    """:func:`parts_needed` for logits of these sizes."""
    bits = math.log2(sum(sizes, 1.0)) + math.log2(2 * num_steps)
    return max(2, math.ceil((bits + 64) / 53))


def exact(logits: Tensor) -> Sum:
    """Convert logits to a number of one part; the derivative at -inf is 0."""
    return Sum((logits.detach(),), live(logits))


def widen(number: Sum, num_parts: int) -> Sum:
    """The same number with more parts, as room for additions."""
    nothing = torch.zeros_like(number.parts[0])
    return Sum(number.parts + (nothing,) * (num_parts - len(number.parts)), number.live)


def live(value: Tensor) -> Tensor:
    """Zero, with the derivative of ``value``; none where that is infinite."""
    finite = value.masked_fill(value.isinf(), 0.0)
    return finite - finite.detach()


def _add(parts: tuple[Tensor, ...], term: Tensor) -> tuple[Tensor, ...]:
    """Add to the first part, the rounding error of that to the second, and so on."""
    added = []
    for part in parts:
        total = part + term
        back = total - part
        rest = (part - (total - back)) + (term - back)
        added.append(total)
        term = torch.where(total.isfinite(), rest, 0.0)
    return tuple(added)


def _settle(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Sort the parts, largest first, so that parts that cancel do not use up the room."""
    total, rests = parts[-1], []
    for part in reversed(parts[:-1]):
        larger = part + total
        back = larger - part
        rest = (part - (larger - back)) + (total - back)
        rests.append(torch.where(larger.isfinite(), rest, 0.0))
        total = larger
    return (total, *reversed(rests))


def from_largest(terms: Sum, dim: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Each term minus the largest of them along ``dim``, as a float64 tensor; -inf stays.

    :return: the differences, and the largest one's parts without ``dim``; 0 where all are -inf.
    """
    parts, peak = terms.parts, tuple(torch.zeros_like(part.select(dim, 0)) for part in terms.parts)
    # One pass leaves what the parts hold below the first one's rounding; the next takes that.
    for _ in parts[1:]:
        top = Sum(parts, terms.live).estimate().amax(dim)
        top = torch.where(top == -math.inf, 0.0, top)
        parts, peak = _settle(_add(parts, -top.unsqueeze(dim))), _settle(_add(peak, top))
    return Sum(parts, terms.live).estimate(), peak


def logsumexp(terms: Sum, dim: int) -> Sum:
    r""":math:`\log \sum \exp` along ``dim``; -inf, with derivative 0, where every term is -inf."""
    gaps, peak = from_largest(terms, dim)
    none = (gaps == -math.inf).all(dim)
    gaps = (gaps + terms.live).masked_fill(none.unsqueeze(dim), 0.0)
    size = gaps.exp().sum(dim).log().masked_fill(none, 0.0)  # the largest gap is about 0
    parts = _add(peak, size.detach())
    return Sum((parts[0].masked_fill(none, -math.inf),) + parts[1:], live(size))


def log_shares(terms: Sum, dim: int) -> Tensor:
    """Logarithms of the shares in the sum along ``dim``; -inf where every term is -inf."""
    gaps, _ = from_largest(terms, dim)
    none = (gaps == -math.inf).all(dim, keepdim=True)
    gaps = (gaps + terms.live).masked_fill(none, 0.0)
    return (gaps - gaps.exp().sum(dim, keepdim=True).log()).masked_fill(none, -math.inf)


def where(condition: Tensor, one: Sum, other: Sum) -> Sum:
    """``torch.where`` for each tensor."""
    pairs = zip(one.parts, other.parts, strict=True)
    return Sum(
        tuple(torch.where(condition, *pair) for pair in pairs),
        torch.where(condition, one.live, other.live),
    )


def stack(terms: list[Sum], dim: int) -> Sum:
    """``torch.stack`` for each tensor."""
    columns = zip(*(term.parts for term in terms), strict=True)
    return Sum(
        tuple(torch.stack(column, dim) for column in columns),
        torch.stack([term.live for term in terms], dim),
    )


def cat(terms: list[Sum], dim: int) -> Sum:
    """``torch.cat`` for each tensor."""
    columns = zip(*(term.parts for term in terms), strict=True)
    return Sum(
        tuple(torch.cat(column, dim) for column in columns),
        torch.cat([term.live for term in terms], dim),
    )
