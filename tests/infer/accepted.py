"""Models whose every parameter has a closed form, each written in another way.

A model is a function without arguments; ``@case`` says how many cells each parameter has, which is
how far it was shared, how many independent restarts it holds, and whether the fixed point is
checked for a vanishing gradient.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints

from pyro_regimes import RegimeHMM
from tests.infer.models import (
    COVARIANCES,
    INITIAL,
    LEFT_TO_RIGHT,
    LENGTHS,
    LOC,
    LOCS,
    SCALE,
    TRANSITION,
    XS,
    YS,
    X,
    Y,
    chain,
    covariance,
    loc,
    observe,
    positive,
    probs,
    real,
    scale,
)


class Case(NamedTuple):
    """A model and what EM should find in it."""

    model: Callable[[], None]
    cells: dict[str, int]
    restarts: int
    smooth: bool


CASES: list[Case] = []


def case(restarts: int = 1, smooth: bool = False, **cells: int) -> Callable:
    def add(model: Callable[[], None]) -> Callable[[], None]:
        CASES.append(Case(model, cells, restarts, smooth))
        return model

    return add


# The hidden chain.


@case(initial=1, transition=2, loc=2, scale=2)
def everything_by_probs() -> None:
    observe(loc=loc(), scale=scale(), **chain())


@case(initial=1, transition=2)
def probs_without_a_constraint() -> None:
    observe(initial_probs=real("initial", INITIAL), transition_probs=real("transition", TRANSITION))


@case(transition=2, loc=2, scale=2, smooth=True)
def fixed_initial() -> None:
    observe(loc=loc(), scale=scale(), transition_probs=probs("transition", TRANSITION))


@case(initial=1, transition=2)
def logits() -> None:
    observe(
        initial_logits=real("initial", INITIAL.log()),
        transition_logits=real("transition", TRANSITION.log()),
    )


@case(initial=1, transition=2)
def logs_of_probs() -> None:
    arguments = {name.replace("probs", "logits"): value.log() for name, value in chain().items()}
    observe(**arguments)


@case(transition=2)
def softmax_of_logits() -> None:
    observe(transition_probs=real("transition", TRANSITION.log()).softmax(-1))


@case(transition=2)
def log_softmax_of_logits() -> None:
    observe(transition_logits=real("transition", TRANSITION.log()).log_softmax(-1))


@case(transition=2)
def normalised_by_the_model() -> None:
    weights = positive("transition", 5 * TRANSITION)
    observe(transition_probs=weights / weights.sum(-1, keepdim=True))


@case(transition=2)
def log_of_unnormalised() -> None:
    observe(transition_logits=positive("transition", 5 * TRANSITION).log())


@case(row0=1, row1=1)
def rows_apart() -> None:
    rows = [probs(f"row{k}", TRANSITION[k]) for k in range(2)]
    observe(transition_probs=torch.stack(rows))


@case(row=1)
def one_row_for_all_states() -> None:
    observe(transition_probs=probs("row", TRANSITION[0]).expand(2, 2))


@case(row=1)
def one_row_parameter_the_other_fixed() -> None:
    row = torch.tensor([0.9, 0.1])  # far from the data, which change the state every eighth step
    observe(transition_probs=torch.stack([TRANSITION[0], probs("row", row)]))


@case(transition=126, smooth=False)
def transitions_that_vary_in_time() -> None:
    observe(transition_probs=probs("transition", TRANSITION.expand(63, 2, 2)))


@case(transition=4)
def transitions_that_switch_by_season() -> None:
    season = torch.arange(63) // 4 % 2
    observe(transition_probs=probs("transition", TRANSITION.expand(2, 2, 2))[season])


@case(transition=3, loc=3)
def left_to_right() -> None:
    observation_dist = dist.Normal(real("loc", torch.tensor([-1.0, 0.0, 1.0])), 1.0)
    observe(
        initial_probs=torch.full((3,), 1 / 3).double(),
        transition_probs=probs("transition", LEFT_TO_RIGHT),
        observation_dist=observation_dist,
    )


# Locations and scales.


@case(loc0=1, loc1=1, scale0=1, scale1=1, smooth=True)
def stacked() -> None:
    observe(
        loc=torch.stack([real(f"loc{k}", LOC[k]) for k in range(2)]),
        scale=torch.stack([positive(f"scale{k}", SCALE[k]) for k in range(2)]),
    )


@case(low=1, high=1)
def concatenated() -> None:
    observe(loc=torch.cat([real("low", LOC[:1]), real("high", LOC[1:])]))


@case(loc=2, scale=2)
def indexed() -> None:
    observe(loc=loc()[torch.tensor([1, 0])], scale=scale().flip(0))


@case(loc=2)
def gathered() -> None:
    observe(loc=loc().gather(0, torch.tensor([1, 0])))


@case(loc=2, scale=1)
def expanded() -> None:
    observe(loc=loc().expand(1, 2), scale=positive("scale", torch.tensor(1.2)).expand(2))


@case(loc=2, smooth=True)
def read_twice() -> None:
    observe(loc=torch.stack([loc()[0], loc()[1]]))


@case(loc=2)
def one_of_its_cells_at_two_places() -> None:
    observe(loc=loc()[torch.tensor([0, 1])] + 0.0)


@case(loc=1, scale=2, smooth=True)
def location_shared_over_states() -> None:
    observe(loc=real("loc", torch.tensor([0.3])).expand(2), scale=scale())


@case(loc=6, scale=6, smooth=True)
def diagonal() -> None:
    scales = positive("scale", torch.ones(2, 3))
    observe(observation_dist=dist.Normal(real("loc", LOCS), scales).to_event(1), obs=Y)


@case(loc=6, scale=2, smooth=True)
def spherical() -> None:
    scales = positive("scale", torch.ones(2, 1))
    observe(observation_dist=dist.Normal(real("loc", LOCS), scales).to_event(1), obs=Y)


@case(loc=6, scale=3)
def diagonal_tied() -> None:
    scales = positive("scale", torch.ones(3))
    observe(observation_dist=dist.Normal(real("loc", LOCS), scales).to_event(1), obs=Y)


@case(loc=6, scale=1)
def one_scale_for_all() -> None:
    scales = positive("scale", torch.tensor(1.0))
    observe(observation_dist=dist.Normal(real("loc", LOCS), scales).to_event(1), obs=Y)


@case(loc=3, scale=2, smooth=True)
def location_shared_over_different_scales() -> None:
    scales = positive("scale", torch.tensor([[0.5], [2.0]]))
    observe(observation_dist=dist.Normal(real("loc", torch.zeros(3)), scales).to_event(1), obs=Y)


@case(loc=2, scale=1)
def location_shared_over_series() -> None:
    observation_dist = dist.Normal(real("loc", LOCS[:, :1]), positive("scale", torch.tensor(1.0)))
    observe(observation_dist=observation_dist.expand((2, 3)).to_event(1), obs=Y)


@case(scale=2)
def scale_alone() -> None:
    observe(scale=scale())


# Covariances.


@case(loc=2, covariance=2, smooth=True)
def full() -> None:
    observation_dist = dist.MultivariateNormal(real("loc", LOCS), covariance_matrix=covariance())
    observe(observation_dist=observation_dist, obs=Y)


@case(loc=2, covariance=1)
def tied() -> None:
    matrix = covariance(COVARIANCES[0])
    observe(observation_dist=dist.MultivariateNormal(real("loc", LOCS), matrix), obs=Y)


@case(loc=2, covariance=2)
def transposed() -> None:
    matrix = covariance().mT
    observe(observation_dist=dist.MultivariateNormal(real("loc", LOCS), matrix), obs=Y)


@case(loc=2, factor=2, smooth=True)
def cholesky_factor() -> None:
    factor = pyro.param(
        "factor", torch.linalg.cholesky(COVARIANCES), constraint=constraints.lower_cholesky
    )
    observation_dist = dist.MultivariateNormal(real("loc", LOCS), scale_tril=factor)
    observe(observation_dist=observation_dist, obs=Y)


@case(loc=2, precision=2, smooth=True)
def precision() -> None:
    matrix = pyro.param(
        "precision", COVARIANCES.inverse(), constraint=constraints.positive_definite
    )
    observation_dist = dist.MultivariateNormal(real("loc", LOCS), precision_matrix=matrix)
    observe(observation_dist=observation_dist, obs=Y)


@case(loc=1, covariance=2, smooth=True)
def location_shared_over_covariances() -> None:
    observation_dist = dist.MultivariateNormal(real("loc", torch.zeros(3)), covariance())
    observe(observation_dist=observation_dist, obs=Y)


@case(loc=1, precision=2)
def location_shared_over_precisions() -> None:
    matrix = pyro.param(
        "precision", COVARIANCES.inverse(), constraint=constraints.positive_definite
    )
    observation_dist = dist.MultivariateNormal(
        real("loc", torch.zeros(3)), precision_matrix=matrix
    )
    observe(observation_dist=observation_dist, obs=Y)


@case(loc=1, covariance=1)
def everything_shared_over_states() -> None:
    observation_dist = dist.MultivariateNormal(
        real("loc", torch.zeros(3)), covariance(COVARIANCES[0])
    )
    observe(
        observation_dist=observation_dist.expand((2,)),
        obs=Y,
        transition_probs=TRANSITION,
    )


@case(loc=128)
def locations_of_every_time() -> None:
    observe(loc=real("loc", LOC.expand(64, 2)))


@case(low=2, high=2)
def locations_that_switch_by_season() -> None:
    season = (torch.arange(64) // 4 % 2 == 0).unsqueeze(-1)
    observe(loc=torch.where(season, real("low", LOC), real("high", LOC + 0.1)))


# Several sequences, and several models at once.


@case(initial=1, transition=2, loc=2, scale=2)
def sequences_in_a_plate() -> None:
    with pyro.plate("sequences", 4):
        observe(loc=loc(), scale=scale(), obs=XS, **chain())


@case(transition=2, loc=2, covariance=2, smooth=True)
def matrices_in_a_plate() -> None:
    observation_dist = dist.MultivariateNormal(real("loc", LOCS), covariance())
    with pyro.plate("sequences", 4):
        observe(
            transition_probs=probs("transition", TRANSITION),
            observation_dist=observation_dist,
            obs=YS,
        )


@case(initial=1, transition=2, loc=8, scale=2)
def own_location_for_each_sequence() -> None:
    with pyro.plate("sequences", 4):
        means = real("loc", LOC + torch.zeros(4, 1, 2))
        observe(loc=means, scale=scale(), obs=XS, **chain())


@case(initial=1, transition=2, loc=2, scale=2)
def padded_sequences() -> None:
    padded = XS.masked_fill(torch.arange(32) >= LENGTHS.unsqueeze(-1), torch.nan)
    with pyro.plate("sequences", 4):
        observe(loc=loc(), scale=scale(), obs=padded, lengths=LENGTHS, **chain())


@case(restarts=3, initial=3, transition=6, loc=6, scale=6)
def restarts_of_normals() -> None:
    shift = torch.tensor([0.0, 0.5, -0.5]).double()[:, None, None]
    start = TRANSITION.expand(3, 1, 2, 2)
    with pyro.plate("restarts", 3):
        observe(
            initial_probs=probs("initial", INITIAL.expand(3, 2)),
            transition_probs=probs("transition", start),
            loc=real("loc", LOC + shift),
            scale=positive("scale", SCALE.expand(3, 1, 2)),
        )


@case(restarts=2, loc=4, covariance=2)
def restarts_with_tied_covariances() -> None:
    observation_dist = dist.MultivariateNormal(
        real("loc", torch.stack([LOCS, LOCS * 0.3]).unsqueeze(1)),
        covariance(COVARIANCES[:, None, None]),
    )
    with pyro.plate("restarts", 2):
        observe(observation_dist=observation_dist, obs=Y)


@case(restarts=2, loc=4, scale=4)
def restarts_over_sequences() -> None:
    means = real("loc", torch.stack([LOC, 0.3 * LOC])[:, None, None])
    scales = positive("scale", SCALE.expand(2, 1, 1, 2))
    with pyro.plate("restarts", 2, dim=-2), pyro.plate("sequences", 4, dim=-1):
        observe(loc=means, scale=scales, obs=XS)


@case(loc=2, scale=2, smooth=True)
def two_sites_that_share() -> None:
    means, scales = loc(), scale()
    observe(loc=means, scale=scales)
    observe(loc=means, scale=scales, obs=XS[0], name="second")


@case(restarts=2, a=2, b=2)
def two_sites_apart() -> None:
    observe(loc=real("a", 2 * LOC))
    observe(loc=real("b", 2 * LOC), obs=XS[0], name="second")


# Weights.


@case(loc=2, scale=2)
def masked_observations() -> None:
    seen = (torch.arange(64) % 5 > 0).unsqueeze(-1)
    data = X.masked_fill(~seen.squeeze(-1), 1e6)
    observe(observation_dist=dist.Normal(loc(), scale()).mask(seen), obs=data)


@case(loc=6, scale=6)
def masked_vectors() -> None:
    seen = (torch.arange(64) % 5 > 0).unsqueeze(-1)
    base = dist.Normal(real("loc", LOCS), positive("scale", torch.ones(2, 3))).to_event(1)
    observe(observation_dist=base.mask(seen), obs=Y)


@case(loc=2, scale=2)
def masked_sequences() -> None:
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.Normal(loc(), scale()),
    )
    with pyro.plate("sequences", 4):
        pyro.sample("x", hmm.mask(torch.tensor([True, True, False, True])), obs=XS)


@case(loc=2, scale=2)
def masked_by_a_handler() -> None:
    with pyro.plate("sequences", 4), poutine.mask(mask=torch.tensor([True, False, True, True])):
        observe(loc=loc(), scale=scale(), obs=XS)


@case(initial=1, transition=2, loc=2, scale=2)
def scaled_by_a_number() -> None:
    with poutine.scale(scale=2.5):
        observe(loc=loc(), scale=scale(), **chain())


@case(loc=2)
def beside_a_constant_factor() -> None:
    observe(loc=loc())
    pyro.factor("constant", torch.tensor(3.0))


@case(loc=2)
def to_event_of_the_hmm() -> None:
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.Normal(loc(), 1.0),
    )
    pyro.sample("x", hmm.expand([4]).to_event(1), obs=XS)


# Known bijections between a parameter and an argument.


@case(log_scale=2, smooth=True)
def log_of_scale() -> None:
    observe(scale=real("log_scale", SCALE.log()).exp())


@case(log_variance=2)
def log_of_variance() -> None:
    observe(scale=(0.5 * real("log_variance", 2 * SCALE.log())).exp())


@case(variance=2, loc=2, smooth=True)
def variance() -> None:
    observe(loc=loc(), scale=positive("variance", SCALE**2).sqrt())


@case(precision=2)
def precision_of_a_series() -> None:
    observe(scale=positive("precision", SCALE**-2).rsqrt())


@case(precision=1)
def one_precision_for_all_states() -> None:
    observe(scale=positive("precision", torch.tensor([0.1])).rsqrt().expand(2))


@case(covariance=2)
def factor_of_a_covariance() -> None:
    factor = torch.linalg.cholesky(covariance())
    observe(observation_dist=dist.MultivariateNormal(LOCS, scale_tril=factor), obs=Y)


@case(root=2)
def covariance_from_its_factor() -> None:
    start = torch.linalg.cholesky(COVARIANCES)
    root = pyro.param("root", start, constraint=constraints.lower_cholesky)
    observe(observation_dist=dist.MultivariateNormal(LOCS, root @ root.mT), obs=Y)


@case(precision=2)
def covariance_from_a_precision_matrix() -> None:
    start = torch.linalg.inv(COVARIANCES)
    precision = pyro.param("precision", start, constraint=constraints.positive_definite)
    observe(observation_dist=dist.MultivariateNormal(LOCS, torch.linalg.inv(precision)), obs=Y)
