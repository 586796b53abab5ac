"""Models as people write them, every parameter of which has a closed form.

Each is a whole Pyro model without arguments, with a start for the guide if it has latent sites.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor

from pyro_regimes import RegimeHMM, stationary_probs
from tests import seeds
from tests.infer.models import positive, probs, real

Model = Callable[[], None]


class Written(NamedTuple):
    """A model, and where its guide starts."""

    name: str
    model: Model
    values: dict[str, Tensor] | None  #: of latent sites: a guide is wanted


WRITTEN: list[Written] = []


def written(**values: Tensor) -> Callable[[Model], Model]:
    """Put a model into the table.

    :param values: starts of its latent sites.
    """

    def add(model: Model) -> Model:
        WRITTEN.append(Written(model.__name__.strip("_"), model, values or None))
        return model

    return add


def make_guide(each: Written) -> Callable[[], object] | None:
    """A new one: its parameters are made at its first call."""
    if each.values is None:
        return None
    values = {name: torch.as_tensor(value).clone() for name, value in each.values.items()}
    return AutoDelta(each.model, init_loc_fn=init_to_value(values=values))


def tensor(*values: object) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


_RANDOM = seeds.generator(31)
_STATES = torch.arange(240) // 12 % 4  # 0, 1, 2, 3 in runs of twelve steps
_CATEGORIES = torch.randint(0, 2, (240,), generator=_RANDOM) * 2 + _STATES % 2
_NOISE = torch.randn(240, 3, generator=_RANDOM, dtype=torch.float64)

LOCS = tensor([-6.0, -2.0, 2.0, 6.0])
XS = {size: LOCS[_STATES % size] + 0.6 * _NOISE[:, 0] for size in (2, 3, 4)}  # (T,)
Y = 3 * LOCS[_STATES % 2].unsqueeze(-1) + (1 + _STATES.unsqueeze(-1) % 2) * _NOISE  # (T, D)
UNITS = tensor(0.5, 1.0, 2.0)
CORRELATION = tensor([[1.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 1.0]])
Y = Y * UNITS
COUNTS = torch.poisson(
    torch.where(_STATES % 2 == 0, 2.0, 9.0).double(), generator=_RANDOM
)


def unit(name: str, start: object) -> Tensor:
    """A parameter between 0 and 1."""
    return pyro.param(name, tensor(start), constraint=constraints.unit_interval)


def uniform(size: int) -> Tensor:
    return torch.full((size,), 1 / size, dtype=torch.float64)


def sticky(size: int) -> Tensor:
    return 0.7 * torch.eye(size, dtype=torch.float64) + 0.3 / size


def observe(
    transition: Tensor | None = None,
    initial: Tensor | None = None,
    *,
    size: int = 2,
    observation_dist: dist.Distribution | None = None,
    obs: Tensor | None = None,
    name: str = "x",
) -> None:
    """A Gaussian chain with means and scales as parameters, and constants for what is not given."""
    transition = sticky(size) if transition is None else transition
    size = transition.shape[-1]
    if observation_dist is None:
        locs = real("loc", LOCS[:size] + 0.5)
        observation_dist = dist.Normal(locs, positive("scale", torch.ones(size)))
    hmm = RegimeHMM(
        initial_probs=uniform(size) if initial is None else initial,
        transition_probs=transition,
        observation_dist=observation_dist,
    )
    pyro.sample(name, hmm, obs=XS[size] if obs is None else obs)


def rows(*entries: tuple[Tensor, Tensor]) -> Tensor:
    return torch.stack([torch.stack(each) for each in entries])


# Probabilities that are products.


def hamiltons(p: Tensor, q: Tensor) -> Tensor:
    return rows((p, 1 - p), (1 - q, q))


@written()
def hamiltons_p_and_q() -> None:
    observe(hamiltons(unit("p", 0.9), unit("q", 0.8)))


@written()
def hamiltons_p_and_q_by_logits() -> None:
    p, q = real("logits", tensor(1.5, 1.0)).sigmoid()
    observe(hamiltons(p, q))


@written()
def hamiltons_p_and_q_with_a_stationary_start() -> None:
    """The initial law by its formula."""
    p, q = unit("p", 0.9), unit("q", 0.8)
    observe(hamiltons(p, q), torch.stack([1 - q, 1 - p]) / (2 - p - q))


@written()
def switching_and_its_direction_with_a_stationary_start() -> None:
    switch, up = unit("switch", 0.2), unit("up", 0.6)
    one, other, zero = up, 1 - up, torch.zeros_like(up)
    away = torch.stack(
        [torch.stack(each) for each in ((zero, one, other), (one, zero, other), (one, other, zero))]
    )
    matrix = torch.eye(3, dtype=torch.float64) * (1 - switch) + switch * away
    observe(matrix, stationary_probs(matrix))


@written()
def one_probability_of_switching() -> None:
    switch = unit("switch", 0.2)
    eye = torch.eye(3, dtype=torch.float64)
    observe(eye * (1 - switch) + (1 - eye) * switch / 2)


@written()
def left_to_right() -> None:
    stay = unit("stay", [0.8, 0.7, 0.6])
    last = torch.cat([stay, torch.ones(1).double()])
    matrix = torch.diag_embed(last) + torch.diag_embed(1 - stay, offset=1)
    observe(matrix, tensor(1.0, 0.0, 0.0, 0.0))


@written()
def around_a_circle() -> None:
    stay = unit("stay", [0.8, 0.7, 0.6])
    eye = torch.eye(3, dtype=torch.float64)
    observe(stay.unsqueeze(-1) * eye + (1 - stay).unsqueeze(-1) * eye.roll(1, -1))


@written()
def first_row_as_initial_law() -> None:
    matrix = probs("transition", sticky(3))
    observe(matrix, matrix[0])


@written()
def independent_in_time() -> None:
    weights = probs("weights", uniform(3))
    observe(weights.expand(3, 3), weights)


@written()
def two_chains_as_one() -> None:
    first, second = (probs(name, sticky(2)) for name in ("first", "second"))
    starts = [probs(f"{name}_start", uniform(2)) for name in ("first", "second")]
    observe(torch.kron(first, second), torch.kron(*starts))


@written()
def a_jump_chain() -> None:
    """The probability of staying, and where to otherwise."""
    stay, jump = unit("stay", [0.8, 0.7, 0.6]), probs("jump", tensor([[0.5, 0.5]] * 3))
    away = torch.zeros(3, 3, dtype=torch.float64)
    away[~torch.eye(3, dtype=torch.bool)] = jump.flatten()
    observe(torch.diag_embed(stay) + (1 - stay).unsqueeze(-1) * away)


@written()
def up_and_down() -> None:
    """Moves to neighbours, with one probability of moving and one of its direction."""
    move, up = unit("move", 0.3), unit("up", 0.6)
    inner = torch.stack([move * (1 - up), 1 - move, move * up])
    zero = torch.zeros(1, dtype=torch.float64)
    low = torch.cat([torch.stack([1 - move, move]), zero, zero])
    high = torch.cat([zero, zero, torch.stack([move, 1 - move])])
    middle = [torch.cat([inner, zero]), torch.cat([zero, inner])]
    observe(torch.stack([low, *middle, high]))


@written()
def genotypes() -> None:
    """The numbers of heads of two tosses: powers of 2, and a constant factor."""
    heads = unit("heads", 0.4)
    row = torch.stack([(1 - heads) ** 2, 2 * heads * (1 - heads), heads**2])
    observe(torch.stack([row, sticky(3)[1], row.flip(0)]), row)


@written()
def by_season() -> None:
    stay = unit("stay", [0.9, 0.8])
    seasons = stay[torch.arange(239) // 6 % 2]
    matrix = torch.stack([seasons, 1 - seasons], -1)
    observe(torch.stack([matrix, matrix.flip(-1)], -2))


@written()
def restarts_in_a_batch() -> None:
    stay = pyro.param("stay", tensor([0.9, 0.6, 0.7]), constraint=constraints.unit_interval)
    matrix = torch.stack([stay, 1 - stay], -1)
    matrix = torch.stack([matrix, matrix.flip(-1)], -2).unsqueeze(-3)
    locs = real("loc", tensor([[-7.0, -1.0], [-6.0, -2.5], [-5.5, -3.0]]).unsqueeze(-2))
    normal = dist.Normal(locs, 1.0)
    with pyro.plate("restarts", 3):
        observe(matrix, uniform(2), observation_dist=normal, obs=XS[2].expand(3, -1))


@written()
def one_probability_in_two_sites() -> None:
    p = unit("p", 0.7)
    observe(hamiltons(p, p))
    normal = dist.Normal(real("other", LOCS[:2]), 1.0)
    observe(hamiltons(p, unit("q", 0.9)), observation_dist=normal, name="y", obs=XS[2].flip(0))


@written(p=tensor(0.7), q=tensor(0.8))
def beta_priors() -> None:
    p = pyro.sample("p", dist.Beta(tensor(9.0), tensor(2.0)))
    q = pyro.sample("q", dist.Beta(tensor(8.0), tensor(3.0)))
    observe(hamiltons(p, q))


@written()
def categories_of_two_features() -> None:
    first, second = probs("first", sticky(2)), probs("second", sticky(2).flip(0))
    both = (first.unsqueeze(-1) * second.unsqueeze(-2)).flatten(-2)  # (K, 4)
    categorical = dist.Categorical(both)
    observe(probs("transition", sticky(2)), observation_dist=categorical, obs=_CATEGORIES)


# Spreads.


def series(loc: Tensor, **spread: Tensor) -> None:
    """A chain of three series with one of the three matrices."""
    observe(observation_dist=dist.MultivariateNormal(loc, **spread), obs=Y)


def locs() -> Tensor:
    return real("loc", 3 * LOCS[:2].unsqueeze(-1) * UNITS)


@written()
def annualised_volatility() -> None:
    scale = positive("volatility", tensor(15.0, 20.0)) * (1 / 252) ** 0.5
    observe(observation_dist=dist.Normal(real("loc", LOCS[:2] + 0.5), scale), obs=XS[2])


@written()
def softplus_of_a_number() -> None:
    scale = torch.nn.functional.softplus(real("raw", tensor(1.0, 2.0)))
    observe(observation_dist=dist.Normal(real("loc", LOCS[:2] + 0.5), scale), obs=XS[2])


@written()
def softplus_of_a_number_as_covariance() -> None:
    variance = torch.nn.functional.softplus(real("raw", torch.ones(2, 3)))
    series(locs(), covariance_matrix=torch.diag_embed(variance))


@written()
def variances_on_a_diagonal() -> None:
    series(locs(), covariance_matrix=torch.diag_embed(positive("variance", torch.ones(2, 3))))


@written()
def scales_on_a_diagonal() -> None:
    series(locs(), scale_tril=torch.diag_embed(positive("scale", torch.ones(2, 3))))


@written()
def precisions_on_a_diagonal() -> None:
    series(locs(), precision_matrix=torch.diag_embed(positive("precision", torch.ones(2, 3))))


@written()
def a_variance_times_the_identity() -> None:
    variance = positive("variance", tensor(1.0, 2.0))
    series(locs(), covariance_matrix=variance[:, None, None] * torch.eye(3).double())


@written()
def a_variance_times_known_correlations() -> None:
    variance = positive("variance", tensor(1.0, 2.0))
    series(locs(), covariance_matrix=variance[:, None, None] * CORRELATION)


@written()
def known_units_of_the_series() -> None:
    scale = positive("scale", tensor([[1.0], [2.0]])) * UNITS
    observe(observation_dist=dist.Normal(locs(), scale).to_event(1), obs=Y)


@written()
def a_scale_for_each_regime_times_a_common_base() -> None:
    """The level of the base is not identified, and EM keeps what the start says of it."""
    factor, base = positive("factor", tensor([[1.0], [2.0]])), positive("base", UNITS)
    observe(observation_dist=dist.Normal(locs(), factor * base).to_event(1), obs=Y)


@written()
def logs_of_scales_that_add() -> None:
    regime, series_of = real("regime", tensor([[0.0], [0.5]])), real("series", UNITS.log())
    scale = (regime + series_of).exp()
    observe(observation_dist=dist.Normal(locs(), scale).to_event(1), obs=Y)


@written()
def scales_times_known_correlations() -> None:
    scale = positive("scale", torch.ones(2, 3))
    factor = torch.linalg.cholesky(CORRELATION)
    series(locs(), scale_tril=scale.unsqueeze(-1) * factor)


@written()
def scales_times_correlations_as_covariance() -> None:
    scale = positive("scale", torch.ones(3))
    outer = scale.unsqueeze(-1) * scale
    level = tensor(1.0, 4.0)[:, None, None]
    series(locs(), covariance_matrix=level * outer * CORRELATION)


@written()
def known_volatility_over_time() -> None:
    """A factor of each regime times a volatility that another model has found."""
    known = 0.5 + torch.linspace(0, 1, 240, dtype=torch.float64)
    scale = positive("scale", tensor(1.0, 2.0)) * known.unsqueeze(-1)
    normal = dist.Normal(real("loc", LOCS[:2] + 0.5), scale)
    observe(observation_dist=normal, obs=XS[2])


@written()
def student_t_in_other_units() -> None:
    scale = positive("scale", tensor(10.0, 20.0)) / 16
    student = dist.StudentT(tensor(4.0), real("loc", LOCS[:2] + 0.5), scale)
    observe(observation_dist=student, obs=XS[2])


@written(variance=tensor(200.0, 300.0))
def annualised_variance_with_a_prior() -> None:
    variance = pyro.sample(
        "variance", dist.InverseGamma(tensor(3.0, 3.0), tensor(150.0, 150.0)).to_event(1)
    )
    scale = (variance / 252).sqrt()
    observe(observation_dist=dist.Normal(real("loc", LOCS[:2] + 0.5), scale), obs=XS[2])


@written()
def a_variance_for_each_regime_times_a_common_covariance() -> None:
    """The level of the two is not identified either."""
    level = positive("level", tensor(1.0, 2.0))
    start = torch.eye(3).double()
    matrix = pyro.param("covariance", start, constraint=constraints.positive_definite)
    series(locs(), covariance_matrix=level[:, None, None] * matrix)


@written()
def a_covariance_in_other_units() -> None:
    start = torch.eye(3).double().repeat(2, 1, 1)
    factor = pyro.param("factor", 16 * start, constraint=constraints.lower_cholesky)
    series(locs(), scale_tril=factor / 252**0.5)


# Priors.


@written(center=tensor(0.0), loc=LOCS[:2])
def a_population_mean_with_a_prior() -> None:
    center = pyro.sample("center", dist.Normal(tensor(0.0), tensor(10.0)))
    loc = pyro.sample("loc", dist.Normal(center, tensor(2.0)).expand([2]).to_event(1))
    gaussian(loc)


@written(spread=tensor(4.0), loc=LOCS[:2])
def a_population_variance_with_a_prior() -> None:
    spread = pyro.sample("spread", dist.InverseGamma(tensor(3.0), tensor(8.0)))
    loc = pyro.sample("loc", dist.Normal(tensor(-3.0), spread.sqrt()).expand([2]).to_event(1))
    gaussian(loc)


@written(center=tensor(0.0), spread=tensor(4.0), loc=LOCS[:2])
def a_population_mean_and_variance() -> None:
    center = pyro.sample("center", dist.Normal(tensor(0.0), tensor(10.0)))
    spread = pyro.sample("spread", dist.InverseGamma(tensor(3.0), tensor(8.0)))
    loc = pyro.sample("loc", dist.Normal(center, spread.sqrt()).expand([2]).to_event(1))
    gaussian(loc)


@written(loc=LOCS[:2])
def empirical_bayes() -> None:
    """The mean and the spread of the population are parameters."""
    center, spread = real("center", tensor(0.0)), positive("spread", tensor(3.0))
    loc = pyro.sample("loc", dist.Normal(center, spread).expand([2]).to_event(1))
    gaussian(loc)


@written(loc=LOCS[:2])
def a_masked_prior() -> None:
    with pyro.plate("states", 2), poutine.mask(mask=torch.tensor([True, False])):
        loc = pyro.sample("loc", dist.Normal(tensor(-5.0), tensor(0.3)))
    gaussian(loc)


@written(loc=LOCS[:2], scale=tensor(1.0, 2.0))
def uniform_priors() -> None:
    loc = pyro.sample("loc", dist.Uniform(tensor(-50.0), tensor(50.0)).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.Uniform(tensor(0.01), tensor(20.0)).expand([2]).to_event(1))
    observe(observation_dist=dist.Normal(loc, scale), obs=XS[2])


@written(precision=tensor(1.0, 0.5), loc=LOCS[:2])
def normal_gamma() -> None:
    shape = tensor(3.0, 3.0)
    precision = pyro.sample("precision", dist.Gamma(shape, tensor(2.0)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(-3.0, (0.1 * precision) ** -0.5).to_event(1))
    observe(observation_dist=dist.Normal(loc, precision**-0.5), obs=XS[2])


@written(precision=torch.eye(3).double().repeat(2, 1, 1), loc=3 * LOCS[:2].unsqueeze(-1) * UNITS)
def normal_wishart() -> None:
    prior = dist.Wishart(tensor(5.0, 5.0), torch.eye(3).double() / 5).to_event(1)
    precision = pyro.sample("precision", prior)
    center = torch.full((3,), -10.0).double()
    normal = dist.MultivariateNormal(center, precision_matrix=0.01 * precision)
    series(pyro.sample("loc", normal.to_event(1)), precision_matrix=precision)


@written()
def a_mean_with_other_measurements() -> None:
    """A second Gaussian likelihood has the same means."""
    loc = real("loc", LOCS[:2] + 0.5)
    gaussian(loc)
    measured = LOCS[:2] + 0.3 * _NOISE[:7, :2]
    with pyro.plate("measurements", 7):
        pyro.sample("y", dist.Normal(loc, 0.3).to_event(1), obs=measured)


@written()
def a_mean_and_covariance_with_other_measurements() -> None:
    loc = locs()
    start = torch.eye(3).double().repeat(2, 1, 1)
    matrix = pyro.param("covariance", start, constraint=constraints.positive_definite)
    series(loc, covariance_matrix=matrix)
    normal = dist.MultivariateNormal(loc[0], covariance_matrix=matrix[0])
    with pyro.plate("measurements", 9):
        pyro.sample("y", normal, obs=Y[:9] + 0.5)


def gaussian(loc: Tensor) -> None:
    normal = dist.Normal(loc, positive("scale", tensor(1.0, 2.0)))
    observe(observation_dist=normal, obs=XS[2])


# Rates.


@written()
def a_rate_of_each_regime_times_known_exposures() -> None:
    exposure = 0.5 + torch.arange(240).double() % 5
    rate = positive("rate", tensor(1.0, 4.0)) * exposure.unsqueeze(-1)
    observe(observation_dist=dist.Poisson(rate), obs=(COUNTS * exposure).round())


@written(rate=tensor(1.0, 4.0))
def exposures_and_a_gamma_prior() -> None:
    exposure = 0.5 + torch.arange(240).double() % 5
    rate = pyro.sample("rate", dist.Gamma(tensor(3.0, 9.0), tensor(2.0)).to_event(1))
    observe(observation_dist=dist.Poisson(rate * exposure.unsqueeze(-1)), obs=COUNTS)


@written()
def a_rate_of_each_regime_times_one_of_each_season() -> None:
    """The level of the seasons is not identified, and EM keeps what the start says of it."""
    season = positive("season", tensor(1.0, 1.2, 0.8))[torch.arange(240) % 3]
    rate = positive("rate", tensor(1.0, 4.0)) * season.unsqueeze(-1)
    observe(observation_dist=dist.Poisson(rate), obs=COUNTS)
