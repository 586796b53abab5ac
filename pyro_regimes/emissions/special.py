r"""Special functions without cancellation, and a safeguarded root finder, for inner solves.

They are vectorised and keep their digits where the plain formulas lose them: for shapes that are
large, so that :math:`\log a - \psi(a)` is a small difference, and for values close to their mean.
"""

from __future__ import annotations

import math
from typing import Callable

import torch
from torch import Tensor

#: From here on Stirling's series has all digits of float64.
_LARGE = 16.0

#: :math:`B_{2n} / (2n (2n - 1))`, of Stirling's series for n = 1, 2, ...
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)

#: :math:`|e|` up to which :func:`excess` is computed by its series.
_NEAR = 0.05

_MOST_STEPS = 100

#: After a Newton step of this relative size the error, about its square, is below the rounding.
_LAST_STEP = 1e-9

#: Newton steps below this size shrink to about their squares, or they are rounding.
_SMALL_STEP = 1e-5


def excess_near(e: Tensor) -> Tensor:
    r"""The series of :math:`e - \log(1 + e)`, for :math:`|e| \le 0.05`."""
    r = e / (2 + e)
    square = r * r
    series = 1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9 + square / 11)))
    return e * r - 2 * r * square * series


def excess(e: Tensor) -> Tensor:
    r""":math:`e - \log(1 + e)`, at least 0, for :math:`e > -1`."""
    near = e.abs() < _NEAR
    far = torch.where(near, 1.0, e)
    return torch.where(near, excess_near(torch.where(near, e, 0.0)), far - far.log1p())


def is_near(e: Tensor) -> Tensor:
    """Where :func:`excess_near` is accurate."""
    return e.abs() < _NEAR


def polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """The sum of the coefficients times the powers of x, the constant first."""
    total = torch.full_like(x, coefficients[-1])
    for each in coefficients[-2::-1]:
        total = total * x + each
    return total


def stirling_rest(a: Tensor) -> Tensor:
    r""":math:`\log\Gamma(a) - (a - \tfrac12) \log a + a - \tfrac12 \log 2 \pi`, at a > 0."""
    large = a >= _LARGE
    big = torch.where(large, a, _LARGE)
    small = torch.where(large, 1.0, a)
    plain = small.lgamma() - (small - 0.5) * small.log() + small - 0.5 * math.log(2 * math.pi)
    return torch.where(large, polynomial(_STIRLING, big**-2) / big, plain)


def log_gamma_ratio(a: Tensor, h: float | Tensor) -> Tensor:
    r""":math:`\log\Gamma(a + h) - \log\Gamma(a) - h \log a`, which is small for a large a > 0."""
    b = a + h
    return (b - 0.5) * (h / a).log1p() - h + stirling_rest(b) - stirling_rest(a)


def log_minus_digamma(a: Tensor) -> Tensor:
    r""":math:`\log a - \psi(a)`, decreasing from infinity to 0."""
    large = a >= _LARGE
    big = torch.where(large, a, _LARGE)
    series = polynomial(tuple((2 * n + 1) * c for n, c in enumerate(_STIRLING)), big**-2)
    small = torch.where(large, 1.0, a)
    return torch.where(large, (0.5 + series / big) / big, small.log() - small.digamma())


def stretched_slope(a: Tensor) -> Tensor:
    r""":math:`a \psi'(a) - 1`, minus the derivative of :func:`log_minus_digamma` in log a."""
    large = a >= _LARGE
    big = torch.where(large, a, _LARGE)
    weights = tuple((2 * n + 1) * (2 * n + 2) * c for n, c in enumerate(_STIRLING))
    series = polynomial(weights, big**-2)
    small = torch.where(large, 1.0, a)
    plain = small * torch.special.polygamma(1, small) - 1
    return torch.where(large, (0.5 + series / big) / big, plain)


def digamma(a: Tensor) -> Tensor:
    r""":math:`\psi(a)`."""
    return a.digamma()


def trigamma(a: Tensor) -> Tensor:
    r""":math:`\psi'(a)`."""
    return torch.special.polygamma(1, a)


def is_last(size: Tensor, before: Tensor) -> Tensor:
    """Whether no further step of Newton's method can come closer to the root.

    :param size: the relative size of the step.
    :param before: that of the step before it.
    """
    return (size <= _LAST_STEP) | (size <= _SMALL_STEP) & (size >= before / 2)


def find_root(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Roots of increasing functions, one for each element, by Newton steps within brackets.

    A step that leaves the bracket is a bisection, so that it never diverges.

    :param function: the values and the derivatives.
    :param start: NaN stays NaN.
    :param low: the root is not below.
    :param high: the root is not above.
    """
    x = start.maximum(low).minimum(high)
    low, high = low.expand_as(x).clone(), high.expand_as(x).clone()
    found = x.isnan()  # what is found stays, so that no element depends on the others
    size = torch.full_like(x, torch.inf)
    for _ in range(_MOST_STEPS):
        value, slope = function(x)
        high = torch.where(value > 0, x, high)
        low = torch.where(value < 0, x, low)
        new = x - value / slope
        inside = (new >= low) & (new <= high)
        new = torch.where(inside, new, (low + high) / 2)
        new = torch.where(found | (value == 0), x, new)
        before, size = size, (new - x).abs() / x.abs().clamp(min=1.0)
        found = found | (inside & is_last(size, before)) | (size <= torch.finfo(x.dtype).eps)
        x = new
        if bool(found.all()):
            break
    return x


def solve_shape(s: Tensor) -> Tensor:
    r"""The root of :math:`\log a - \psi(a) = s` for positive s; NaN otherwise.

    It is the shape of a gamma distribution with :math:`\log \bar x - \overline{\log x} = s`.
    """
    s = s.masked_fill(~(s > 0) | s.isinf(), torch.nan)
    # 1 / (2a) < log a - psi(a) < 1 / a.
    low, high = -(2 * s).log(), -s.log()
    start = ((3 - s + ((s - 3).square() + 24 * s).sqrt()) / (12 * s)).log()

    def function(log_a: Tensor) -> tuple[Tensor, Tensor]:
        a = log_a.exp()
        value = log_minus_digamma(a)
        # In logarithms it is nearly a straight line.
        return s.log() - value.log(), stretched_slope(a) / value

    return find_root(function, start, low - 1e-9, high + 1e-9).exp()


def inverse_digamma(t: Tensor) -> Tensor:
    r"""The root of :math:`\psi(a) = t`; NaN for what is not finite."""
    t = t.masked_fill(t.isinf(), torch.nan)
    # log(a) - 1 / a < psi(a) < log(a) - 1 / (2a): by the branches of Minka (2000).
    guess = torch.where(t > -2.22, t.clamp(min=-2.22).exp() + 0.5, -1 / (t - math.log(1.781)))
    start = guess.abs().log()

    def function(log_a: Tensor) -> tuple[Tensor, Tensor]:
        a = log_a.exp()
        return a.digamma() - t, a * torch.special.polygamma(1, a)

    return find_root(function, start, start - 3.0, start + 3.0).exp()
