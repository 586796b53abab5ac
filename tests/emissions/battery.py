"""The table of families of counts, categories and waiting times for ``test_battery``.

A family joins with one entry.
"""

from __future__ import annotations

import math
from typing import Any, Callable, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy import stats
from torch import Tensor
from torch.distributions import Distribution, transform_to
from torch.distributions.constraints import Constraint

from pyro_regimes.distributions import Columns, ZeroInflatedContinuous
from tests import seeds

K, D, N, T = 2, 3, 4, 40
INF = math.inf

Params = dict[str, Tensor]
Map = Callable[[Tensor], Tensor]


class Held(NamedTuple):
    """Another way to hold an argument: a link of its parameter."""

    link: str
    of: Map  #: from the parameter to the argument
    to: Map  #: the inverse
    constraint: Constraint = constraints.real


class Case(NamedTuple):
    """One family with one way to give its arguments."""

    build: Callable[..., Any]
    constraints: dict[str, Constraint]  #: by parameter
    density: Callable[..., Any]  #: ``(value, arguments) -> log density``, by scipy
    #: arguments, a value and its log density, at bounds of the support and at huge values
    extremes: list[tuple[dict[str, Any], Any, float]]
    own: tuple[int, ...] = ()  #: dims of one block, as of a row of probabilities
    event: tuple[int, ...] = ()  #: dims of one observation of the distribution itself
    is_real: bool = False  #: whether a value is a real number, with a derivative
    links: dict[str, list[Held]] = {}
    priors: list[tuple[str, Held | None, Any]] = []  #: parameter, link, prior of its value
    #: parameters whose update is one step, not the maximiser
    stepwise: tuple[str, ...] = ()
    known: dict[str, Any] = {}  #: further arguments of ``build``, which EM does not set
    center: float = 0.0  #: of random unconstrained parameters

    def start(self, shapes: dict[str, tuple[int, ...]] | None = None, seed: int = 0) -> Params:
        """Random parameters: by default of each state, of scalar observations."""
        found = {}
        for index, (name, constraint) in enumerate(self.constraints.items()):
            shape = (K,) if shapes is None else shapes[name]
            free = draw(*shape, *self.own, seed=100 * seed + index)
            found[name] = transform_to(constraint)(0.7 * free + self.center)
        return found

    def distribution(self, params: Params, event: tuple[int, ...] = ()) -> Distribution:
        """The observation distribution, of ``event`` independent series."""
        base = self.build(**params, **self.known)
        shape = torch.broadcast_shapes(base.batch_shape, (K,) + event)
        return base.expand(shape).to_event(len(event))

    def sample(self, *event: int, seed: int = 0, num_sequences: int = N) -> Tensor:
        """Data ``(N, T, *event)`` of two regimes in turn."""
        params = self.start({name: (K,) + event for name in self.constraints}, seed=50 + seed)
        torch.manual_seed(seed)
        found = self.distribution(params, event).sample((num_sequences, T))
        state = torch.arange(T) // 10 % K
        return found[:, torch.arange(T), state]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=seeds.fixed(seed), dtype=torch.float64)


LOG = Held("log of rate", torch.exp, torch.log)
RECIPROCAL = Held(
    "reciprocal of rate", torch.reciprocal, torch.reciprocal, constraints.positive
)
SOFTPLUS = Held(
    "inverse softplus of rate", torch.nn.functional.softplus, lambda x: x.expm1().log()
)

LOGIT = Held("logits", torch.sigmoid, torch.logit)
PROBABILITY = Held("", torch.logit, torch.sigmoid, constraints.unit_interval)
COMPLEMENT = Held("complement", lambda x: 1 - x, lambda x: 1 - x, constraints.unit_interval)
LOG_PROBABILITY = Held(
    "log of probability", torch.exp, torch.log, constraints.less_than(0.0)
)
BETA = dist.Beta(torch.tensor(3.0).double(), 2.0)


def trials(build: Callable[..., Any], density: Callable[..., Any], **others: Any) -> Case:
    """A family with a probability of success."""
    return Case(
        build,
        {"probs": constraints.unit_interval},
        density,
        links={"probs": [LOGIT, COMPLEMENT, LOG_PROBABILITY]},
        priors=[("probs", None, BETA), ("probs", COMPLEMENT, BETA)],
        **others,
    )


def by_logits(case: Case) -> Case:
    """The same family with logits."""
    density = case.density

    def of_logits(value: Any, *arguments: Any) -> Any:
        *known, logits = arguments
        return density(value, *known, 1 / (1 + np.exp(-logits)))

    return case._replace(
        constraints={"logits": constraints.real},
        density=of_logits,
        extremes=[
            (each | {"logits": float(np.log(p) - np.log1p(-p))}, value, expected)
            for given, value, expected in case.extremes
            for p in [given["probs"]]
            for each in [{name: other for name, other in given.items() if name != "probs"}]
            if 0 < p < 1
        ],
        links={"logits": [PROBABILITY, COMPLEMENT_OF_LOGITS]},
        priors=[("logits", PROBABILITY, BETA)],
    )


COMPLEMENT_OF_LOGITS = Held(
    "complement",
    lambda x: torch.logit(1 - x),
    lambda x: torch.sigmoid(-x),
    constraints.unit_interval,
)

BERNOULLI = trials(
    dist.Bernoulli,
    stats.bernoulli.logpmf,
    extremes=[
        ({"probs": 0.0}, 0.0, 0.0),
        ({"probs": 0.0}, 1.0, -INF),
        ({"probs": 1.0}, 1.0, 0.0),
        ({"probs": 1.0}, 0.0, -INF),
        ({"probs": 1e-30}, 1.0, -30 * math.log(10.0)),
        ({"probs": 0.5}, 2.0, -INF),
        ({"probs": 0.5}, 0.5, -INF),
        ({"probs": 0.5}, -1.0, -INF),
    ],
)

GEOMETRIC = trials(
    dist.Geometric,
    lambda value, probs: stats.geom.logpmf(value + 1, probs),
    extremes=[
        ({"probs": 1.0}, 0.0, 0.0),
        ({"probs": 1.0}, 3.0, -INF),
        ({"probs": 1e-30}, 0.0, -30 * math.log(10.0)),
        ({"probs": 0.5}, INF, -INF),
        ({"probs": 2.0**-20}, 2.0**20, -20 * math.log(2.0) + 2**20 * math.log1p(-(2.0**-20))),
        ({"probs": 0.5}, 0.5, -INF),
        ({"probs": 0.5}, -1.0, -INF),
    ],
)

#: The most likely of 2^21 tosses, by Stirling's formula.
HALF = -0.5 * math.log(math.pi * 2.0**20) - 2.0**-20 / 8

BINOMIAL = trials(
    dist.Binomial,
    stats.binom.logpmf,
    known={"total_count": 5},
    extremes=[
        ({"probs": 0.0}, 0.0, 0.0),
        ({"probs": 0.0}, 1.0, -INF),
        ({"probs": 1.0}, 5.0, 0.0),
        ({"probs": 1.0}, 4.0, -INF),
        ({"probs": 0.5}, 6.0, -INF),
        ({"probs": 0.5}, 2.5, -INF),
        ({"probs": 0.5}, -1.0, -INF),
        ({"probs": 0.5, "total_count": 0}, 0.0, 0.0),
        ({"probs": 1e-30}, 5.0, -150 * math.log(10.0)),
        ({"probs": 0.5, "total_count": 2**21}, 2.0**20, HALF),
    ],
)

ROW_LOGITS = Held("logits", lambda x: x.softmax(-1), torch.log)
ROW = Held("", torch.log, lambda x: x.softmax(-1), constraints.simplex)
DIRICHLET = dist.Dirichlet(torch.tensor([2.0, 3.0, 1.5, 1.0]).double())
LAST_IS_ZERO = [0.2, 0.3, 0.5, 0.0]
UNEVEN = [2.0**-40, 0.25, 0.25, 0.5 - 2.0**-40]


def rows(build: Callable[..., Any], density: Callable[..., Any], **others: Any) -> Case:
    """A family with probabilities of four categories."""
    return Case(
        build,
        {"probs": constraints.simplex},
        density,
        own=(4,),
        links={"probs": [ROW_LOGITS]},
        priors=[("probs", None, DIRICHLET)],
        **others,
    )


def rows_by_logits(case: Case) -> Case:
    """The same family with logits."""
    density = case.density

    def of_logits(value: Any, *arguments: Any) -> Any:
        *known, logits = arguments
        return density(value, *known, np.exp(logits) / np.exp(logits).sum())

    return case._replace(
        constraints={"logits": constraints.real},
        density=of_logits,
        extremes=[
            ({"logits": [math.log(p) if p else -INF for p in given["probs"]]}, value, expected)
            for given, value, expected in case.extremes
            if len(given) == 1
        ],
        links={"logits": [ROW]},
        priors=[("logits", ROW, DIRICHLET)],
    )


CATEGORICAL = rows(
    dist.Categorical,
    lambda value, probs: np.log(probs)[value.astype(int)],
    extremes=[
        ({"probs": LAST_IS_ZERO}, 3.0, -INF),
        ({"probs": LAST_IS_ZERO}, 0.0, math.log(0.2)),
        ({"probs": UNEVEN}, 0.0, -40 * math.log(2.0)),
        ({"probs": UNEVEN}, 4.0, -INF),
        ({"probs": UNEVEN}, -1.0, -INF),
        ({"probs": UNEVEN}, 1.5, -INF),
    ],
)

ONE_HOT = rows(
    dist.OneHotCategorical,
    lambda value, probs: (value * np.log(probs)).sum(-1),
    event=(4,),
    extremes=[
        ({"probs": LAST_IS_ZERO}, [0.0, 0.0, 0.0, 1.0], -INF),
        ({"probs": LAST_IS_ZERO}, [1.0, 0.0, 0.0, 0.0], math.log(0.2)),
        ({"probs": UNEVEN}, [1.0, 0.0, 0.0, 0.0], -40 * math.log(2.0)),
        ({"probs": UNEVEN}, [1.0, 1.0, 0.0, 0.0], -INF),
        ({"probs": UNEVEN}, [0.0, 0.0, 0.0, 0.0], -INF),
        ({"probs": UNEVEN}, [0.0, 0.5, 0.5, 0.0], -INF),
        ({"probs": UNEVEN}, [0.0, 2.0, -1.0, 0.0], -INF),
    ],
)

MULTINOMIAL = rows(
    dist.Multinomial,
    lambda value, n, probs: stats.multinomial.logpmf(value, int(n), probs / probs.sum()),
    event=(4,),
    known={"total_count": 6},
    extremes=[
        ({"probs": LAST_IS_ZERO}, [3.0, 0.0, 2.0, 1.0], -INF),
        ({"probs": LAST_IS_ZERO}, [6.0, 0.0, 0.0, 0.0], 6 * math.log(0.2)),
        ({"probs": UNEVEN}, [6.0, 0.0, 0.0, 0.0], -240 * math.log(2.0)),
        ({"probs": UNEVEN}, [1.0, 1.0, 1.0, 1.0], -INF),
        ({"probs": UNEVEN}, [7.0, 0.0, 0.0, 0.0], -INF),
        ({"probs": UNEVEN}, [7.0, 0.0, 0.0, -1.0], -INF),
        ({"probs": UNEVEN}, [5.5, 0.5, 0.0, 0.0], -INF),
        (
            {"probs": [0.5, 0.5, 0.0, 0.0], "total_count": 2**21},
            [2.0**20, 2.0**20, 0.0, 0.0],
            HALF,
        ),
    ],
)

COUNT_LINKS = [
    link._replace(link=link.link.replace("rate", "total_count"))
    for link in (LOG, RECIPROCAL, SOFTPLUS)
]

NEGATIVE_BINOMIAL = Case(
    dist.NegativeBinomial,
    {"total_count": constraints.positive, "probs": constraints.unit_interval},
    lambda value, count, probs: stats.nbinom.logpmf(value, count, 1 - probs),
    [
        ({"total_count": 3.0, "probs": 0.0}, 0.0, 0.0),
        ({"total_count": 3.0, "probs": 0.0}, 1.0, -INF),
        ({"total_count": 0.0, "probs": 0.5}, 0.0, 0.0),
        ({"total_count": 0.0, "probs": 0.5}, 1.0, -INF),
        ({"total_count": 3.0, "probs": 0.5}, -1.0, -INF),
        ({"total_count": 3.0, "probs": 0.5}, 0.5, -INF),
        ({"total_count": 3.0, "probs": 0.5}, INF, -INF),
        ({"total_count": 1.0, "probs": 0.5}, 1e6, -(1e6 + 1) * math.log(2.0)),
        # Almost a Poisson of rate 2.
        ({"total_count": 2.0**80, "probs": 2.0**-79}, 3.0, 3 * math.log(2.0) - 2 - math.log(6.0)),
        ({"total_count": 2.0**20 + 1.0, "probs": 0.5}, 2.0**20, HALF - math.log(2.0)),
    ],
    links={"total_count": COUNT_LINKS, "probs": [LOGIT, COMPLEMENT]},
    priors=[
        ("probs", None, BETA),
        ("total_count", None, dist.Gamma(4.0, torch.tensor(2.0).double())),
    ],
    stepwise=("total_count",),
    center=0.7,
)


def _zero_inflated(value: Any, rate: Any, gate: Any) -> Any:
    density = np.log1p(-gate) + stats.poisson.logpmf(value, rate)
    return np.where(value == 0, np.logaddexp(np.log(gate), density), density)


ZERO_INFLATED = Case(
    dist.ZeroInflatedPoisson,
    {"rate": constraints.positive, "gate": constraints.unit_interval},
    _zero_inflated,
    [
        ({"rate": 3.0, "gate": 1.0}, 0.0, 0.0),
        ({"rate": 3.0, "gate": 1.0}, 1.0, -INF),
        ({"rate": 3.0, "gate": 0.0}, 0.0, -3.0),
        ({"rate": 3.0, "gate": 0.25}, -1.0, -INF),
        ({"rate": 3.0, "gate": 0.25}, 0.5, -INF),
        ({"rate": 3.0, "gate": 0.25}, INF, -INF),
        ({"rate": 1e4, "gate": 0.25}, 0.0, math.log(0.25)),
        ({"rate": 1e-30, "gate": 0.25}, 1.0, math.log(0.75) - 30 * math.log(10.0)),
    ],
    links={"rate": [LOG], "gate": [LOGIT, COMPLEMENT]},
    priors=[("gate", None, BETA), ("rate", None, dist.Gamma(4.0, torch.tensor(2.0).double()))],
    stepwise=("rate", "gate"),
    center=0.5,
)

GAMMA = dist.Gamma(4.0, torch.tensor(2.0).double())


def columns_of(parts: Callable[..., Any], case: Case) -> Case:
    """Two parts of one column each, whose parameters are named as the arguments are."""

    def build(validate_args: bool | None = None, **given: Any) -> Columns:
        return Columns(parts(*(given[name] for name in case.constraints)), validate_args)

    return case._replace(build=build, event=(2,))


COUNTS = columns_of(
    lambda rate, probs: [(dist.Bernoulli(probs), 0), (dist.Poisson(rate), 1)],
    Case(
        dist.Poisson,
        {"parts.1.rate": constraints.positive, "parts.0.probs": constraints.unit_interval},
        lambda value, rate, probs: (
            stats.bernoulli.logpmf(value[..., 0], probs)
            + stats.poisson.logpmf(value[..., 1], rate)
        ),
        [
            ({"parts.1.rate": 3.0, "parts.0.probs": 0.0}, [0.0, 0.0], -3.0),
            ({"parts.1.rate": 3.0, "parts.0.probs": 0.0}, [1.0, 0.0], -INF),
            ({"parts.1.rate": 0.0, "parts.0.probs": 1.0}, [1.0, 0.0], 0.0),
            ({"parts.1.rate": 3.0, "parts.0.probs": 0.5}, [0.5, 1.0], -INF),
            ({"parts.1.rate": 3.0, "parts.0.probs": 0.5}, [1.0, -1.0], -INF),
        ],
        links={"parts.1.rate": [LOG, RECIPROCAL, SOFTPLUS], "parts.0.probs": [LOGIT, COMPLEMENT]},
        priors=[("parts.1.rate", None, GAMMA), ("parts.0.probs", None, BETA)],
    ),
)

TIMES = columns_of(
    lambda rate, scale: [(dist.HalfNormal(scale), 0), (dist.Exponential(rate), 1)],
    Case(
        dist.Exponential,
        {"parts.1.rate": constraints.positive, "parts.0.scale": constraints.positive},
        lambda value, rate, scale: (
            stats.halfnorm.logpdf(value[..., 0], scale=scale)
            + stats.expon.logpdf(value[..., 1], scale=1 / rate)
        ),
        [
            ({"parts.1.rate": 2.0, "parts.0.scale": 1.0}, [-1.0, 1.0], -INF),
            ({"parts.1.rate": 2.0, "parts.0.scale": 1.0}, [1.0, -1.0], -INF),
            (
                {"parts.1.rate": 2.0, "parts.0.scale": 1.0},
                [0.0, 0.0],
                1.5 * math.log(2.0) - 0.5 * math.log(math.pi),
            ),
        ],
        is_real=True,
        links={"parts.1.rate": [LOG, RECIPROCAL, SOFTPLUS]},
        priors=[("parts.1.rate", None, GAMMA)],
    ),
)


def _zero_or(density: Callable[..., Any]) -> Callable[..., Any]:
    """A point mass at 0 beside a density, by its log density."""

    def log_density(value: Any, *arguments: Any) -> Any:
        *own, gate = arguments
        inner = np.log1p(-gate) + density(np.where(value == 0, 0.5, value), *own)
        return np.where(value == 0, np.log(gate), inner)

    return log_density


ZERO_OR_EXPONENTIAL = Case(
    lambda rate, gate, **others: ZeroInflatedContinuous(
        dist.Exponential(rate), gate=gate, **others
    ),
    {"rate": constraints.positive, "gate": constraints.unit_interval},
    _zero_or(lambda value, rate: stats.expon.logpdf(value, scale=1 / rate)),
    [
        ({"rate": 2.0, "gate": 1.0}, 0.0, 0.0),
        ({"rate": 2.0, "gate": 1.0}, 1.0, -INF),
        ({"rate": 2.0, "gate": 0.0}, 0.0, -INF),
        ({"rate": 2.0, "gate": 0.0}, 1.0, math.log(2.0) - 2),
        ({"rate": 2.0, "gate": 0.5}, 0.0, -math.log(2.0)),
        ({"rate": 2.0, "gate": 0.5}, -1.0, -INF),
        ({"rate": 2.0, "gate": 0.5}, INF, -INF),
        ({"rate": 1e-30, "gate": 0.25}, 1e30, math.log(0.75) - 30 * math.log(10.0) - 1),
    ],
    is_real=True,
    links={"rate": [LOG, RECIPROCAL], "gate": [LOGIT, COMPLEMENT]},
    priors=[("rate", None, GAMMA), ("gate", None, BETA)],
)

ZERO_INFLATED_COUNTS = Case(
    lambda total_count, probs, gate, **others: dist.ZeroInflatedNegativeBinomial(
        total_count, probs=probs, gate=gate, **others
    ),
    NEGATIVE_BINOMIAL.constraints | {"gate": constraints.unit_interval},
    lambda value, count, probs, gate: np.where(
        value == 0,
        np.logaddexp(
            np.log(gate), np.log1p(-gate) + stats.nbinom.logpmf(value, count, 1 - probs)
        ),
        np.log1p(-gate) + stats.nbinom.logpmf(value, count, 1 - probs),
    ),
    [
        ({"total_count": 3.0, "probs": 0.0, "gate": 0.25}, 0.0, 0.0),
        ({"total_count": 3.0, "probs": 0.5, "gate": 1.0}, 0.0, 0.0),
        ({"total_count": 3.0, "probs": 0.5, "gate": 1.0}, 2.0, -INF),
        ({"total_count": 3.0, "probs": 0.5, "gate": 0.0}, 0.0, -3 * math.log(2.0)),
        ({"total_count": 3.0, "probs": 0.5, "gate": 0.5}, -1.0, -INF),
    ],
    links={"gate": [LOGIT, COMPLEMENT], "probs": [LOGIT]},
    priors=[("gate", None, BETA)],
    stepwise=("total_count", "probs", "gate"),
    center=0.7,
)

CASES = {
    "ZeroInflatedContinuous": ZERO_OR_EXPONENTIAL,
    "ZeroInflatedContinuous by logits": ZERO_OR_EXPONENTIAL._replace(
        build=lambda rate, gate_logits, **others: ZeroInflatedContinuous(
            dist.Exponential(rate), gate_logits=gate_logits, **others
        ),
        constraints={"rate": constraints.positive, "gate_logits": constraints.real},
        density=lambda value, rate, logits: ZERO_OR_EXPONENTIAL.density(
            value, rate, 1 / (1 + np.exp(-logits))
        ),
        extremes=[],
        links={"gate_logits": [PROBABILITY]},
        priors=[("gate_logits", PROBABILITY, BETA)],
    ),
    "ZeroInflatedNegativeBinomial": ZERO_INFLATED_COUNTS,
    "Columns of counts": COUNTS,
    "Columns of times": TIMES,
    "Poisson": Case(
        dist.Poisson,
        {"rate": constraints.positive},
        stats.poisson.logpmf,
        [
            ({"rate": 0.0}, 0.0, 0.0),
            ({"rate": 0.0}, 2.0, -INF),
            ({"rate": 3.0}, -1.0, -INF),
            ({"rate": 3.0}, 1.5, -INF),
            ({"rate": 3.0}, INF, -INF),
            ({"rate": 1e-30}, 0.0, 0.0),
            ({"rate": 1e-30}, 1.0, -30 * math.log(10.0)),
            ({"rate": 2.0**20}, 2.0**20, -0.5 * math.log(math.pi * 2.0**21) - 2.0**-20 / 12),
        ],
        links={"rate": [LOG, RECIPROCAL, SOFTPLUS]},
        priors=[("rate", None, dist.Gamma(4.0, torch.tensor(2.0).double()))],
        center=1.0,
    ),
    "Bernoulli": BERNOULLI,
    "Bernoulli by logits": by_logits(BERNOULLI),
    "Binomial": BINOMIAL,
    "Binomial by logits": by_logits(BINOMIAL),
    "Geometric": GEOMETRIC,
    "Geometric by logits": by_logits(GEOMETRIC),
    "Categorical": CATEGORICAL,
    "Categorical by logits": rows_by_logits(CATEGORICAL),
    "OneHotCategorical": ONE_HOT,
    "OneHotCategorical by logits": rows_by_logits(ONE_HOT),
    "Multinomial": MULTINOMIAL,
    "Multinomial by logits": rows_by_logits(MULTINOMIAL),
    "Exponential": Case(
        dist.Exponential,
        {"rate": constraints.positive},
        lambda value, rate: stats.expon.logpdf(value, scale=1 / rate),
        [
            ({"rate": 2.0}, 0.0, math.log(2.0)),
            ({"rate": 2.0}, -1.0, -INF),
            ({"rate": 1e-30}, 1e30, -30 * math.log(10.0) - 1),
            ({"rate": 1e30}, 1e-30, 30 * math.log(10.0) - 1),
            ({"rate": 2.0}, INF, -INF),
        ],
        is_real=True,
        links={"rate": [LOG, RECIPROCAL, SOFTPLUS]},
        priors=[
            ("rate", None, dist.Gamma(4.0, torch.tensor(2.0).double())),
            ("rate", RECIPROCAL, dist.InverseGamma(4.0, torch.tensor(2.0).double())),
        ],
    ),
    "NegativeBinomial": NEGATIVE_BINOMIAL,
    "NegativeBinomial of known total_count": NEGATIVE_BINOMIAL._replace(
        constraints={"probs": constraints.unit_interval},
        known={"total_count": 2.5},
        extremes=[],
        links={"probs": [LOGIT, COMPLEMENT]},
        priors=[("probs", COMPLEMENT, BETA)],
        stepwise=(),
    ),
    "ZeroInflatedPoisson": ZERO_INFLATED,
    "ZeroInflatedPoisson by logits": ZERO_INFLATED._replace(
        build=lambda rate, gate_logits, **others: dist.ZeroInflatedPoisson(
            rate, gate_logits=gate_logits, **others
        ),
        constraints={"rate": constraints.positive, "gate_logits": constraints.real},
        density=lambda value, rate, gate: _zero_inflated(value, rate, 1 / (1 + np.exp(-gate))),
        extremes=[],
        links={"gate_logits": [PROBABILITY]},
        priors=[("gate_logits", PROBABILITY, BETA)],
        stepwise=("rate", "gate_logits"),
    ),
}
