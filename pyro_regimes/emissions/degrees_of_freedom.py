r"""The argument ``df`` of the Student-t families, set by ECME.

The degrees of freedom are updated by **ECME** (Liu and Rubin 1994): they maximise the likelihood
itself given the states, at the new location and scale,

.. math::
    \sum_t \gamma_t \Big[ \log \frac{\Gamma((\nu + D) / 2)}{\Gamma(\nu / 2)}
        - \frac{D}{2} \log \nu - \frac{\nu + D}{2} \log(1 + d_t / \nu) \Big].

The data enter through :math:`\sum_t \gamma_t \log(1 + d_t / \nu)` as a function of :math:`\nu`.
About the current :math:`\nu_0`, with :math:`q_t = d_t / (\nu_0 + d_t)`, with :math:`T_j` the
polynomials of Chebyshev, and with :math:`z = -\tanh(\tfrac14 \log(\nu / \nu_0))`,

.. math::
    \log(1 + d_t / \nu) = \log(1 + d_t / \nu_0)
        + 2 \sum_{j \ge 1} \frac{z^j}{j} \big( 1 - T_j(1 - 2 q_t) \big).

So the statistics are the sums of the logarithms at :math:`\nu_0` and of the first powers of
:math:`q_t`, which are additive. Within a factor of two, :math:`|z| < 0.172`: ten terms give ten
digits, and all digits near :math:`\nu_0`, where a run converges. A step therefore changes the
degrees of freedom by a factor of two at most.

D is the number of entries of a row that are observed. Where it differs between rows, the
statistics hold the weight of the rows of each D, and the sums above also with the weights
:math:`\gamma_t D_t`.
"""

from __future__ import annotations

import math
from typing import Callable, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_regimes.emissions import draws, links
from pyro_regimes.emissions.arithmetic import divide_where_known
from pyro_regimes.emissions.base import Argument, Arguments, Natural
from pyro_regimes.emissions.charts import Chart
from pyro_regimes.emissions.latent_scale import TERMS, Stats
from pyro_regimes.emissions.links import Link
from pyro_regimes.emissions.positive import is_positive, stretch
from pyro_regimes.emissions.special import log_gamma_ratio

#: Bounds of the degrees of freedom. Near 0, the likelihood of a few observations has no maximum in
#: the scale. At the most, a Student-t is nearly a Gaussian: the excess of its kurtosis is 6e-4.
#: Degrees of freedom of Gaussian data rise to it.
LEAST, MOST = 0.1, 1e4

#: The largest change of the logarithm of the degrees of freedom in one step.
_REACH = math.log(2.0)

_MOST_ITERATIONS = 60

#: A step of Newton's method that leaves an error of about its square.
_CLOSE = 1e-7


class Freedom(NamedTuple):
    """Pooled statistics of degrees of freedom, float64; the fields as in :class:`.Stats`."""

    weight: Tensor  #: n
    center: Tensor
    logs: Tensor
    powers: Tensor
    sizes: Tensor  #: the weight of 1, 2, ... observed entries
    sized_logs: Tensor
    sized_powers: Tensor


def pool_freedom(stats: Stats) -> Freedom:
    """The pooled statistics of each block, of numbers or of vectors."""
    assert stats.center is not None and stats.logs is not None and stats.powers is not None
    weight, logs, powers = stats.weight.double(), stats.logs, stats.powers
    if stats.sizes is None or stats.sized_logs is None or stats.sized_powers is None:
        return Freedom(weight, stats.center, logs, powers, weight.unsqueeze(-1), logs, powers)
    sized = (stats.sizes, stats.sized_logs, stats.sized_powers)
    return Freedom(weight, stats.center, logs, powers, *sized)


def _complements() -> list[list[float]]:
    r"""The coefficients of :math:`2 (1 - T_j(1 - 2 q))`, j = 1, 2, ..., in :math:`q, q^2, ...`"""
    before, now = [0.0] * (TERMS + 1), [0.0, 2.0] + [0.0] * (TERMS - 1)
    found = [now]
    for _ in range(TERMS - 1):
        shifted = [0.0] + now[:-1]
        after = [2 * a - 4 * b - c for a, b, c in zip(now, shifted, before)]
        after[1] += 4.0
        before, now = now, after
        found.append(now)
    return [[2 * each for each in row[1:]] for row in found]


_COMPLEMENTS = _complements()


class _Objective:
    """The expected log-likelihood as a function of x, the change of the logarithm of df."""

    def __init__(self, pooled: Freedom, df: Tensor) -> None:
        self.df = df
        self.logs = torch.stack([pooled.logs, pooled.sized_logs])
        coefficients = torch.tensor(_COMPLEMENTS, dtype=df.dtype, device=df.device)
        self.order = torch.arange(1, TERMS + 1, dtype=df.dtype, device=df.device)
        powers = torch.stack([pooled.powers, pooled.sized_powers])
        self.terms = powers @ coefficients.mT  # (2, ..., terms)
        self.sizes, self.counts = _occurring(pooled.sizes)

    def _logs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sums of log(1 + d / df), and of D times it, and their first two derivatives."""
        z = -(x / 4).tanh()
        inner = (1 - z * z) / 4  # the derivative of -z
        powers = z.unsqueeze(-1) ** (self.order - 1)
        extra = (1,) * (x.dim() + 2 - self.terms.dim())
        terms = self.terms.reshape((2,) + extra + self.terms.shape[1:])
        each = powers * terms
        value = z * (each / self.order).sum(-1)
        first = -each.sum(-1)
        second = (powers[..., :-1] * terms[..., 1:] * self.order[:-1]).sum(-1)
        logs = self.logs.reshape(terms.shape[:-1])
        return logs + value, first * inner, inner * (inner * second + 0.5 * z * first)

    def value(self, x: Tensor) -> Tensor:
        """At x, less a constant."""
        own = self.df * x.exp() / 2
        ratio = log_gamma_ratio(own.unsqueeze(-1), self.sizes / 2)
        logs, sized = self._logs(x)[0]
        return _sum(self.counts * ratio) - own * logs - sized / 2

    def slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first two derivatives at x."""
        own = self.df * x.exp() / 2
        both = torch.cat([own.unsqueeze(-1), own.unsqueeze(-1) + self.sizes / 2], -1)
        digamma, trigamma = both.digamma(), both.polygamma(1)
        rise = own.unsqueeze(-1) * (digamma[..., 1:] - digamma[..., :1])
        bend = own.unsqueeze(-1) ** 2 * (trigamma[..., 1:] - trigamma[..., :1])
        (logs, _), (first, sized_first), (second, sized_second) = self._logs(x)
        slope = _sum(self.counts * (rise - self.sizes / 2))
        slope = slope - own * (logs + first) - sized_first / 2
        curvature = _sum(self.counts * (rise + bend))
        curvature = curvature - own * (logs + 2 * first + second) - sized_second / 2
        return slope, curvature


def _occurring(counts: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of observed entries that occur, and their weights; special functions are slow."""
    sizes = torch.arange(1, counts.shape[-1] + 1, dtype=counts.dtype, device=counts.device)
    if len(sizes) == 1:
        return sizes, counts
    used = (counts > 0).flatten(0, -2).any(0) | (sizes == 1)
    return sizes[used], counts[..., used]


def _sum(terms: Tensor) -> Tensor:
    """The sum over the last dim, one by one: further terms of 0 do not change how it rounds."""
    return terms[..., 0] if terms.shape[-1] == 1 else terms.cumsum(-1)[..., -1]


def _maximise(pooled: Freedom, now: Tensor, floor: float) -> Tensor:
    """The maximiser within reach of the current value; never below the likelihood there."""
    center = pooled.center / pooled.weight
    objective = _Objective(pooled, center.exp())
    low = (math.log(LEAST) - center).clamp(-_REACH, 0.0)
    high = (math.log(MOST) - center).clamp(0.0, _REACH)
    x = _climb(objective, low, high)
    there, here = objective.value(torch.stack([x, torch.zeros_like(x)]))
    x = torch.where(there >= here, x, 0.0)
    return (center + x).exp()


def _climb(objective: _Objective, low: Tensor, high: Tensor) -> Tensor:
    """Uphill from 0 to where the slope vanishes, or to a bound: Newton's method, or bisection.

    A cell that has converged stays as it is, so that no cell depends on the others.
    """
    x = torch.zeros_like(low)
    left, right = low, high
    done = known_left = known_right = torch.zeros_like(low, dtype=torch.bool)
    for _ in range(_MOST_ITERATIONS):
        slope, curvature = objective.slope(x)
        up = slope > 0
        left, right = torch.where(up, x, left), torch.where(up, right, x)
        known_left, known_right = known_left | up, known_right | ~up
        concave, newton = curvature < 0, x - slope / curvature
        close = concave & ((newton - x).abs() <= _CLOSE)
        new = torch.where(concave, newton, torch.where(up, right, left))
        # A bound is tried once. A step to where the slope is known already becomes a bisection.
        beyond = (new <= left) & known_left | (new >= right) & known_right
        new = torch.where(beyond & ~close, (left + right) / 2, new.maximum(left).minimum(right))
        still = ~((new - x).abs() > _CLOSE)
        x = torch.where(done, x, new)
        done = done | still
        if bool(done.all()):
            break
    return x


def _score(pooled: Freedom, df: Tensor) -> Tensor:
    known = pooled.weight > 0
    center = pooled.center / torch.where(known, pooled.weight, 1.0)
    at = torch.where(known, df.log() - center, 0.0)
    slope, _ = _Objective(pooled, torch.where(known, center.exp(), 1.0)).slope(at)
    return torch.where(known, slope, 0.0)


def information(df: Tensor, size: Tensor | float) -> Tensor:
    """The Fisher information in the logarithm of the degrees of freedom, of one observation.

    Of the likelihood given the location and scale (Lange, Little and Taylor 1989).
    """
    curvature = ((df / 2).polygamma(1) - ((df + size) / 2).polygamma(1)) * (df / 2) ** 2
    both = (df + size) * (df + size + 2)
    return curvature - df * size * (df + size + 4) / (2 * both)


def _gain(score: Tensor, pooled: Freedom, df: Tensor, floor: float) -> Tensor:
    blocked = (df >= MOST * (1 - 1e-6)) & (score > 0) | (df <= LEAST * (1 + 1e-6)) & (score < 0)
    order = torch.arange(1, pooled.sizes.shape[-1] + 1, dtype=df.dtype, device=df.device)
    size = (pooled.sizes @ order) / pooled.weight.clamp(min=torch.finfo(df.dtype).tiny)
    rounding = 64 * torch.finfo(torch.float64).eps * df
    known = pooled.weight * information(df, size).clamp(min=rounding)
    return divide_where_known(0.5 * score**2, known).masked_fill(blocked, 0.0)


def _within_bounds(df: Tensor, after: Tensor) -> Tensor:
    return df.clamp(LEAST, MOST)


FREEDOM_LINKS = (
    links.identity("degrees of freedom"),
    Link("log of degrees of freedom", torch.exp, torch.log),
    Link(
        "reciprocal of degrees of freedom",
        torch.reciprocal,
        torch.reciprocal,
        inside=(constraints.positive, constraints.nonnegative),
    ),
)


def freedom(
    kind: str, elementwise: bool, reduce: Callable[[Stats, Arguments, bool], Freedom]
) -> Argument:
    """The argument ``df`` of a family."""
    return Argument(
        name="df",
        kind=kind,
        event_dim=0,
        elementwise=elementwise,
        what=f"maximum of the likelihood from {LEAST:g} to {MOST:g} (ECME)",
        links=FREEDOM_LINKS,
        inside=(constraints.positive, constraints.nonnegative),
        draw=draws.positive,
        reduce=reduce,
        maximise=_maximise,
        sound=is_positive,
        natural=Natural(stretch, _score, _gain),
        chart=Chart(torch.log, torch.exp, within=_within_bounds),
        sweep=True,
    )
