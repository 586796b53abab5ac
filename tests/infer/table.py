"""The models of the table: what EM takes in closed form, what it leaves to an optimiser.

Each is a whole Pyro model without arguments, some with a guide. ``@entry`` says the plan: which
parameters have a closed form, and how many cells each has, which is how far it was shared (0 for
those in which locations are affine: they are solved for together); which ones an optimiser moves;
how many independent restarts there are; and whether the fixed point is checked for a vanishing
gradient.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, init_to_value
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from pyro_regimes import RegimeHMM
from tests import seeds
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

Model = Callable[..., Any]


class Entry(NamedTuple):
    """A model, how EM should treat its parameters, and where its guide starts."""

    name: str
    model: Model
    cells: dict[str, int]  #: of every parameter with a closed form; 0: affine, solved with others
    moved: frozenset[str]
    restarts: int
    smooth: bool
    values: dict[str, Tensor] | None  #: of latent sites: a guide is wanted
    guide: Model | None


ENTRIES: list[Entry] = []


def entry(
    *,
    moved: tuple[str, ...] = (),
    restarts: int = 1,
    smooth: bool = False,
    values: dict[str, Tensor] | None = None,
    guide: Model | None = None,
    **cells: int,
) -> Callable[[Model], Model]:
    """Put a model into the table.

    :param cells: of the parameters with a closed form. Those of the latent sites in ``values`` are
        parameters of an ``AutoDelta``, whose name stands before theirs.
    """
    for name in values or {}:
        if name in cells:
            cells[f"AutoDelta.{name}"] = cells.pop(name)

    def add(model: Model) -> Model:
        name = model.__name__.strip("_")
        ENTRIES.append(
            Entry(name, model, cells, frozenset(moved), restarts, smooth, values, guide)
        )
        return model

    return add


def make_guide(each: Entry) -> Model | None:
    """A new one: its parameters are made at its first call."""
    if each.guide is not None or each.values is None:
        return each.guide
    # The guide keeps the very tensors that it is given, and moves them.
    values = {name: value.clone() for name, value in each.values.items()}
    return AutoDelta(each.model, init_loc_fn=init_to_value(values=values))


# The hidden chain.


@entry(initial=1, transition=2, loc=2, scale=2)
def everything_by_probs() -> None:
    observe(loc=loc(), scale=scale(), **chain())


@entry(initial=1, transition=2)
def probs_without_a_constraint() -> None:
    observe(initial_probs=real("initial", INITIAL), transition_probs=real("transition", TRANSITION))


@entry(transition=2, loc=2, scale=2, smooth=True)
def fixed_initial() -> None:
    observe(loc=loc(), scale=scale(), transition_probs=probs("transition", TRANSITION))


@entry(initial=1, transition=2)
def logits() -> None:
    observe(
        initial_logits=real("initial", INITIAL.log()),
        transition_logits=real("transition", TRANSITION.log()),
    )


@entry(initial=1, transition=2)
def logs_of_probs() -> None:
    arguments = {name.replace("probs", "logits"): value.log() for name, value in chain().items()}
    observe(**arguments)


@entry(transition=2)
def softmax_of_logits() -> None:
    observe(transition_probs=real("transition", TRANSITION.log()).softmax(-1))


@entry(transition=2)
def log_softmax_of_logits() -> None:
    observe(transition_logits=real("transition", TRANSITION.log()).log_softmax(-1))


@entry(transition=2)
def normalised_by_the_model() -> None:
    weights = positive("transition", 5 * TRANSITION)
    observe(transition_probs=weights / weights.sum(-1, keepdim=True))


@entry(transition=2)
def log_of_unnormalised() -> None:
    observe(transition_logits=positive("transition", 5 * TRANSITION).log())


@entry(row0=1, row1=1)
def rows_apart() -> None:
    rows = [probs(f"row{k}", TRANSITION[k]) for k in range(2)]
    observe(transition_probs=torch.stack(rows))


@entry(row=1)
def one_row_for_all_states() -> None:
    observe(transition_probs=probs("row", TRANSITION[0]).expand(2, 2))


@entry(row=1)
def one_row_parameter_the_other_fixed() -> None:
    row = torch.tensor([0.9, 0.1])  # far from the data, which change the state every eighth step
    observe(transition_probs=torch.stack([TRANSITION[0], probs("row", row)]))


@entry(transition=126, smooth=False)
def transitions_that_vary_in_time() -> None:
    observe(transition_probs=probs("transition", TRANSITION.expand(63, 2, 2)))


@entry(transition=4)
def transitions_that_switch_by_season() -> None:
    season = torch.arange(63) // 4 % 2
    observe(transition_probs=probs("transition", TRANSITION.expand(2, 2, 2))[season])


@entry(transition=3, loc=3)
def left_to_right() -> None:
    observation_dist = dist.Normal(real("loc", torch.tensor([-1.0, 0.0, 1.0])), 1.0)
    observe(
        initial_probs=torch.full((3,), 1 / 3).double(),
        transition_probs=probs("transition", LEFT_TO_RIGHT),
        observation_dist=observation_dist,
    )


class _Module(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.transition = PyroParam(TRANSITION.clone(), constraints.simplex)
        self.loc = PyroParam(LOC.clone())
        self.scale = PyroParam(SCALE.clone(), constraints.positive)

    def forward(self) -> None:
        observe(loc=self.loc, scale=self.scale, transition_probs=self.transition)


@entry(transition=2, loc=2, scale=2)
def pyro_module() -> None:
    _Module()()


# Locations and scales.


@entry(loc0=1, loc1=1, scale0=1, scale1=1, smooth=True)
def stacked() -> None:
    observe(
        loc=torch.stack([real(f"loc{k}", LOC[k]) for k in range(2)]),
        scale=torch.stack([positive(f"scale{k}", SCALE[k]) for k in range(2)]),
    )


@entry(low=1, high=1)
def concatenated() -> None:
    observe(loc=torch.cat([real("low", LOC[:1]), real("high", LOC[1:])]))


@entry(loc=2, scale=2)
def indexed() -> None:
    observe(loc=loc()[torch.tensor([1, 0])], scale=scale().flip(0))


@entry(loc=2)
def gathered() -> None:
    observe(loc=loc().gather(0, torch.tensor([1, 0])))


@entry(loc=2, scale=1)
def expanded() -> None:
    observe(loc=loc().expand(1, 2), scale=positive("scale", torch.tensor(1.2)).expand(2))


@entry(loc=2, smooth=True)
def read_twice() -> None:
    observe(loc=torch.stack([loc()[0], loc()[1]]))


@entry(loc=2)
def one_of_its_cells_at_two_places() -> None:
    observe(loc=loc()[torch.tensor([0, 1])] + 0.0)


@entry(loc=1, scale=2, smooth=True)
def location_shared_over_states() -> None:
    observe(loc=real("loc", torch.tensor([0.3])).expand(2), scale=scale())


@entry(loc=6, scale=6, smooth=True)
def diagonal() -> None:
    scales = positive("scale", torch.ones(2, 3))
    observe(observation_dist=dist.Normal(real("loc", LOCS), scales).to_event(1), obs=Y)


@entry(loc=6, scale=2, smooth=True)
def spherical() -> None:
    scales = positive("scale", torch.ones(2, 1))
    observe(observation_dist=dist.Normal(real("loc", LOCS), scales).to_event(1), obs=Y)


@entry(loc=6, scale=3)
def diagonal_tied() -> None:
    scales = positive("scale", torch.ones(3))
    observe(observation_dist=dist.Normal(real("loc", LOCS), scales).to_event(1), obs=Y)


@entry(loc=6, scale=1)
def one_scale_for_all() -> None:
    scales = positive("scale", torch.tensor(1.0))
    observe(observation_dist=dist.Normal(real("loc", LOCS), scales).to_event(1), obs=Y)


@entry(loc=3, scale=2, smooth=True)
def location_shared_over_different_scales() -> None:
    scales = positive("scale", torch.tensor([[0.5], [2.0]]))
    observe(observation_dist=dist.Normal(real("loc", torch.zeros(3)), scales).to_event(1), obs=Y)


@entry(loc=2, scale=1)
def location_shared_over_series() -> None:
    observation_dist = dist.Normal(real("loc", LOCS[:, :1]), positive("scale", torch.tensor(1.0)))
    observe(observation_dist=observation_dist.expand((2, 3)).to_event(1), obs=Y)


@entry(scale=2)
def scale_alone() -> None:
    observe(scale=scale())


# Covariances.


@entry(loc=2, covariance=2, smooth=True)
def full() -> None:
    observation_dist = dist.MultivariateNormal(real("loc", LOCS), covariance_matrix=covariance())
    observe(observation_dist=observation_dist, obs=Y)


@entry(loc=2, covariance=1)
def tied() -> None:
    matrix = covariance(COVARIANCES[0])
    observe(observation_dist=dist.MultivariateNormal(real("loc", LOCS), matrix), obs=Y)


@entry(loc=2, covariance=2)
def transposed() -> None:
    matrix = covariance().mT
    observe(observation_dist=dist.MultivariateNormal(real("loc", LOCS), matrix), obs=Y)


@entry(loc=2, factor=2, smooth=True)
def cholesky_factor() -> None:
    factor = pyro.param(
        "factor", torch.linalg.cholesky(COVARIANCES), constraint=constraints.lower_cholesky
    )
    observation_dist = dist.MultivariateNormal(real("loc", LOCS), scale_tril=factor)
    observe(observation_dist=observation_dist, obs=Y)


@entry(loc=2, precision=2, smooth=True)
def precision() -> None:
    matrix = pyro.param(
        "precision", COVARIANCES.inverse(), constraint=constraints.positive_definite
    )
    observation_dist = dist.MultivariateNormal(real("loc", LOCS), precision_matrix=matrix)
    observe(observation_dist=observation_dist, obs=Y)


@entry(loc=1, covariance=2, smooth=True)
def location_shared_over_covariances() -> None:
    observation_dist = dist.MultivariateNormal(real("loc", torch.zeros(3)), covariance())
    observe(observation_dist=observation_dist, obs=Y)


@entry(loc=1, precision=2)
def location_shared_over_precisions() -> None:
    matrix = pyro.param(
        "precision", COVARIANCES.inverse(), constraint=constraints.positive_definite
    )
    observation_dist = dist.MultivariateNormal(
        real("loc", torch.zeros(3)), precision_matrix=matrix
    )
    observe(observation_dist=observation_dist, obs=Y)


@entry(loc=1, covariance=1)
def everything_shared_over_states() -> None:
    observation_dist = dist.MultivariateNormal(
        real("loc", torch.zeros(3)), covariance(COVARIANCES[0])
    )
    observe(
        observation_dist=observation_dist.expand((2,)),
        obs=Y,
        transition_probs=TRANSITION,
    )


@entry(loc=128)
def locations_of_every_time() -> None:
    observe(loc=real("loc", LOC.expand(64, 2)))


@entry(low=2, high=2)
def locations_that_switch_by_season() -> None:
    season = (torch.arange(64) // 4 % 2 == 0).unsqueeze(-1)
    observe(loc=torch.where(season, real("low", LOC), real("high", LOC + 0.1)))


# Several sequences, and several models at once.


@entry(initial=1, transition=2, loc=2, scale=2)
def sequences_in_a_plate() -> None:
    with pyro.plate("sequences", 4):
        observe(loc=loc(), scale=scale(), obs=XS, **chain())


@entry(transition=2, loc=2, covariance=2, smooth=True)
def matrices_in_a_plate() -> None:
    observation_dist = dist.MultivariateNormal(real("loc", LOCS), covariance())
    with pyro.plate("sequences", 4):
        observe(
            transition_probs=probs("transition", TRANSITION),
            observation_dist=observation_dist,
            obs=YS,
        )


@entry(initial=1, transition=2, loc=8, scale=2)
def own_location_for_each_sequence() -> None:
    with pyro.plate("sequences", 4):
        means = real("loc", LOC + torch.zeros(4, 1, 2))
        observe(loc=means, scale=scale(), obs=XS, **chain())


@entry(transition=2, loc=4)
def nested_plates() -> None:
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=probs("transition", TRANSITION),
        observation_dist=dist.Normal(real("loc", LOC.expand(2, 1, 1, 2)), SCALE),
    )
    with pyro.plate("groups", 2, dim=-2), pyro.plate("members", 2, dim=-1):
        pyro.sample("x", hmm, obs=XS.reshape(2, 2, 32))


@entry(initial=1, transition=2, loc=2, scale=2)
def padded_sequences() -> None:
    padded = XS.masked_fill(torch.arange(32) >= LENGTHS.unsqueeze(-1), torch.nan)
    with pyro.plate("sequences", 4):
        observe(loc=loc(), scale=scale(), obs=padded, lengths=LENGTHS, **chain())


@entry(restarts=3, initial=3, transition=6, loc=6, scale=6)
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


@entry(restarts=2, loc=4, covariance=2)
def restarts_with_tied_covariances() -> None:
    observation_dist = dist.MultivariateNormal(
        real("loc", torch.stack([LOCS, LOCS * 0.3]).unsqueeze(1)),
        covariance(COVARIANCES[:, None, None]),
    )
    with pyro.plate("restarts", 2):
        observe(observation_dist=observation_dist, obs=Y)


@entry(restarts=2, loc=4, scale=4)
def restarts_over_sequences() -> None:
    means = real("loc", torch.stack([LOC, 0.3 * LOC])[:, None, None])
    scales = positive("scale", SCALE.expand(2, 1, 1, 2))
    with pyro.plate("restarts", 2, dim=-2), pyro.plate("sequences", 4, dim=-1):
        observe(loc=means, scale=scales, obs=XS)


@entry(restarts=2, a=2, b=2)
def two_sites_apart() -> None:
    observe(loc=real("a", 2 * LOC))
    observe(loc=real("b", 2 * LOC), obs=XS[0], name="second")


@entry(transition=2, loc=2, scale=2, smooth=True)
def two_sites_that_share() -> None:
    held = probs("transition", TRANSITION)
    observe(loc=loc(), scale=scale(), transition_probs=held)
    observe(name="y", loc=loc(), scale=scale(), transition_probs=held, obs=X.flip(0))


# Weights.


@entry(loc=2, scale=2)
def masked_observations() -> None:
    seen = (torch.arange(64) % 5 > 0).unsqueeze(-1)
    data = X.masked_fill(~seen.squeeze(-1), 1e6)
    observe(observation_dist=dist.Normal(loc(), scale()).mask(seen), obs=data)


@entry(loc=6, scale=6)
def masked_vectors() -> None:
    seen = (torch.arange(64) % 5 > 0).unsqueeze(-1)
    base = dist.Normal(real("loc", LOCS), positive("scale", torch.ones(2, 3))).to_event(1)
    observe(observation_dist=base.mask(seen), obs=Y)


@entry(loc=2, scale=2)
def masked_sequences() -> None:
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.Normal(loc(), scale()),
    )
    with pyro.plate("sequences", 4):
        pyro.sample("x", hmm.mask(torch.tensor([True, True, False, True])), obs=XS)


@entry(loc=2, scale=2)
def masked_by_a_handler() -> None:
    with pyro.plate("sequences", 4), poutine.mask(mask=torch.tensor([True, False, True, True])):
        observe(loc=loc(), scale=scale(), obs=XS)


@entry(initial=1, transition=2, loc=2, scale=2)
def scaled_by_a_number() -> None:
    with poutine.scale(scale=2.5):
        observe(loc=loc(), scale=scale(), **chain())


@entry(loc=2, covariance=1)
def masked_and_scaled() -> None:
    normal = dist.MultivariateNormal(real("loc", LOCS), covariance(COVARIANCES[0]))
    hmm = RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=normal
    )
    with pyro.plate("sequences", 4), poutine.scale(scale=0.5):
        with poutine.mask(mask=torch.tensor([True, True, False, True])):
            pyro.sample("x", hmm, obs=YS)


@entry(loc=2)
def beside_a_constant_factor() -> None:
    observe(loc=loc())
    pyro.factor("constant", torch.tensor(3.0))


@entry(loc=2)
def to_event_of_the_hmm() -> None:
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=TRANSITION,
        observation_dist=dist.Normal(loc(), 1.0),
    )
    pyro.sample("x", hmm.expand([4]).to_event(1), obs=XS)


# Known bijections between a parameter and an argument.


@entry(log_scale=2, smooth=True)
def log_of_scale() -> None:
    observe(scale=real("log_scale", SCALE.log()).exp())


@entry(log_variance=2)
def log_of_variance() -> None:
    observe(scale=(0.5 * real("log_variance", 2 * SCALE.log())).exp())


@entry(variance=2, loc=2, smooth=True)
def variance() -> None:
    observe(loc=loc(), scale=positive("variance", SCALE**2).sqrt())


@entry(precision=2)
def precision_of_a_series() -> None:
    observe(scale=positive("precision", SCALE**-2).rsqrt())


@entry(precision=1)
def one_precision_for_all_states() -> None:
    observe(scale=positive("precision", torch.tensor([0.1])).rsqrt().expand(2))


@entry(covariance=2)
def factor_of_a_covariance() -> None:
    factor = torch.linalg.cholesky(covariance())
    observe(observation_dist=dist.MultivariateNormal(LOCS, scale_tril=factor), obs=Y)


@entry(root=2)
def covariance_from_its_factor() -> None:
    start = torch.linalg.cholesky(COVARIANCES)
    root = pyro.param("root", start, constraint=constraints.lower_cholesky)
    observe(observation_dist=dist.MultivariateNormal(LOCS, root @ root.mT), obs=Y)


@entry(precision=2)
def covariance_from_a_precision_matrix() -> None:
    start = torch.linalg.inv(COVARIANCES)
    precision = pyro.param("precision", start, constraint=constraints.positive_definite)
    observe(observation_dist=dist.MultivariateNormal(LOCS, torch.linalg.inv(precision)), obs=Y)


# Affine locations.


@entry(base=0, difference=0, scale=6)
def differences_from_a_base_regime() -> None:
    base, difference = real("base", LOCS[0]), real("difference", LOCS[1] - LOCS[0])
    locs = torch.stack([base, base + difference])
    spread = positive("scale", torch.ones(2, 3))
    observe(observation_dist=dist.Normal(locs, spread).to_event(1), obs=Y)


_FACTORS = torch.stack([torch.ones(64), torch.linspace(-1, 1, 64)], -1).double()  # (T, F)


@entry(loadings=0, covariance=2)
def loadings_times_known_factors() -> None:
    loadings = real("loadings", torch.stack([LOCS, 0.1 * LOCS], -1))  # (K, D, F)
    locs = torch.einsum("tf,kdf->tkd", _FACTORS, loadings)
    normal = dist.MultivariateNormal(locs, covariance())
    observe(observation_dist=normal, obs=Y)


@entry(overall=0, effect=0, scale=2)
def regime_and_sequence_effects() -> None:
    overall, effect = real("overall", LOC), real("effect", torch.zeros(4))
    locs = overall + effect[:, None, None]  # (N, 1, K)
    with pyro.plate("sequences", 4):
        observe(observation_dist=dist.Normal(locs, scale()), obs=XS)


# The log joint, through a guide or handlers.


@entry(scale=2)
def blocked() -> None:
    with poutine.block(hide=["loc"]):
        held = loc()
    observe(loc=held.detach(), scale=scale())


_ROWS = torch.tensor([[8.0, 2.0], [3.0, 7.0]]).double()


@entry(initial=1, transition=2, loc=2, values={"initial": INITIAL, "transition": TRANSITION})
def dirichlet() -> None:
    initial = pyro.sample("initial", dist.Dirichlet(torch.tensor([2.0, 3.0]).double()))
    with pyro.plate("states", 2):
        transition = pyro.sample("transition", dist.Dirichlet(_ROWS))
    observe(loc=loc(), initial_probs=initial, transition_probs=transition)


@entry(transition=2, loc=2, values={"transition": TRANSITION})
def sticky_dirichlet() -> None:
    sticky = dist.Dirichlet(1.0 + 20.0 * torch.eye(2).double()).to_event(1)
    observe(loc=loc(), transition_probs=pyro.sample("transition", sticky))


@entry(loc=2, scale=2, values={"loc": LOC})
def normal_prior() -> None:
    with pyro.plate("states", 2):
        held = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 2.0]).double(), 0.3))
    observe(loc=held, scale=scale())


@entry(loc=2, covariance=2, values={"loc": LOCS})
def normal_prior_on_correlated_series() -> None:
    held = pyro.sample("loc", dist.Normal(LOCS.new_zeros(2, 3), 0.2).to_event(2))
    observe(observation_dist=dist.MultivariateNormal(held, covariance()), obs=Y)


@entry(loc=2, covariance=2, values={"loc": LOCS})
def multivariate_normal_prior() -> None:
    prior = dist.MultivariateNormal(LOCS.new_zeros(3), 0.05 * COVARIANCES[1])
    with pyro.plate("states", 2):
        held = pyro.sample("loc", prior)
    observe(observation_dist=dist.MultivariateNormal(held, covariance()), obs=Y)


@entry(loc=0, scale=2, values={"loc": LOC})
def multivariate_normal_prior_across_states() -> None:
    prior = dist.MultivariateNormal(LOC.new_zeros(2), torch.eye(2).double() + 0.5)
    observe(loc=pyro.sample("loc", prior), scale=scale())


@entry(loc=2, variance=2, values={"variance": SCALE**2})
def inverse_gamma() -> None:
    prior = dist.InverseGamma(torch.tensor(3.0).double(), torch.tensor(2.0).double())
    variance = pyro.sample("variance", prior.expand([2]).to_event(1))
    observe(loc=loc(), scale=variance.sqrt())


@entry(loc=2, precision=2, values={"precision": SCALE**-2})
def gamma() -> None:
    prior = dist.Gamma(torch.tensor(3.0).double(), torch.tensor(2.0).double())
    precision = pyro.sample("precision", prior.expand([2]).to_event(1))
    observe(loc=loc(), scale=precision.rsqrt())


@entry(loc=2, precision=2, values={"precision": torch.linalg.inv(COVARIANCES)})
def wishart() -> None:
    prior = dist.Wishart(torch.tensor(6.0).double(), covariance_matrix=0.3 * COVARIANCES[0])
    with pyro.plate("states", 2):
        precision = pyro.sample("precision", prior)
    normal = dist.MultivariateNormal(real("loc", LOCS), precision_matrix=precision)
    observe(observation_dist=normal, obs=Y)


@entry(difference=0, base=0, values={"difference": torch.tensor([0.5]).double()})
def prior_on_a_difference() -> None:
    base = real("base", LOC[:1])
    difference = pyro.sample("difference", dist.Normal(LOC.new_zeros(1), 0.5).to_event(1))
    observe(loc=torch.cat([base, base + difference]))


def _point() -> None:
    pyro.sample("loc", dist.Delta(real("point", LOC)).to_event(1))


@entry(point=2, guide=_point)
def a_guide_by_hand() -> None:
    observe(loc=pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 1.0).to_event(1)))


def _conditioned() -> None:
    held = pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 1.0).to_event(1))
    observe(loc=held, scale=scale())


entry(scale=2)(poutine.condition(_conditioned, data={"loc": LOC}))


@entry(loc=2, p=1)
def one_minus_p() -> None:
    p = pyro.param("p", torch.tensor(0.7).double(), constraint=constraints.unit_interval)
    stay = torch.stack([p, 1 - p])
    observe(loc=loc(), transition_probs=torch.stack([stay, stay.flip(0)]))


# What has no closed form.


@entry(first=0, scale=2, moved=("log_gap",))
def ordered_means() -> None:
    first, log_gap = real("first", LOC[:1]), real("log_gap", torch.zeros(1))
    observe(loc=torch.cat([first, first + log_gap.exp()]), scale=scale())


@entry(loc=2, scale=2)
def a_second_likelihood() -> None:
    held = loc()
    observe(loc=held, scale=scale())
    pyro.sample("y", dist.Normal(held, 1.0).to_event(1), obs=torch.zeros(2).double())


@entry(scale=2, moved=("AutoDelta.loc",), values={"loc": LOC})
def a_prior_that_is_not_conjugate() -> None:
    held = pyro.sample("loc", dist.StudentT(4.0, LOC.new_zeros(2), 1.0).to_event(1))
    observe(loc=held, scale=scale())


@entry(loc=2, scale=2, center=1, values={"loc": LOC})
def a_population_mean() -> None:
    center = real("center", torch.tensor(0.3))
    held = pyro.sample("loc", dist.Normal(center, 0.5).expand([2]).to_event(1))
    observe(loc=held, scale=scale())


torch.manual_seed(seeds.seed(3))
NETWORK = nn.Linear(1, 4).double()  # its weights are the parameters that EM moves
_COVARIATE = torch.linspace(-1, 1, 63).double().unsqueeze(-1)


@entry(loc=2, scale=2, moved=("network$$$weight", "network$$$bias"))
def neural_transitions() -> None:
    network = pyro.module("network", NETWORK)
    logits = network(_COVARIATE).reshape(63, 2, 2)
    pyro.factor("penalty", -0.5 * sum(each.square().sum() for each in network.parameters()))
    observe(loc=loc(), scale=scale(), transition_logits=logits)


@entry(loc=2, scale=2, slope=0, level=0)
def transitions_of_a_covariate() -> None:
    slope = real("slope", torch.zeros(2, 2))
    logits = real("level", TRANSITION.log()) + slope * _COVARIATE[:, None]
    observe(loc=loc(), scale=scale(), transition_logits=logits)


@entry(slope=0, level=0)
def poisson_regression() -> None:
    covariate = torch.cat([_COVARIATE, _COVARIATE[:1]])
    eta = real("level", LOC) + real("slope", torch.tensor([0.1, 0.2])) * covariate
    observe(observation_dist=dist.Poisson(eta.exp()), obs=X.abs().round())
