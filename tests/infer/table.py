"""The models of the table: what EM takes in closed form, what it leaves to an optimiser.

Each is a whole Pyro model, some with a guide. ``closed`` and ``moved`` say the plan.
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
    closed: frozenset[str]
    moved: frozenset[str]
    values: dict[str, Tensor] | None  #: of latent sites: a guide is wanted
    guide: Model | None


ENTRIES: list[Entry] = []


def entry(
    *closed: str,
    moved: tuple[str, ...] = (),
    values: dict[str, Tensor] | None = None,
    guide: Model | None = None,
) -> Callable[[Model], Model]:
    def add(model: Model) -> Model:
        name = model.__name__.strip("_")
        ENTRIES.append(Entry(name, model, frozenset(closed), frozenset(moved), values, guide))
        return model

    return add


def make_guide(each: Entry) -> Model | None:
    """A new one: its parameters are made at its first call."""
    if each.guide is not None or each.values is None:
        return each.guide
    # The guide keeps the very tensors that it is given, and moves them.
    values = {name: value.clone() for name, value in each.values.items()}
    return AutoDelta(each.model, init_loc_fn=init_to_value(values=values))


# The chain, in the ways it can be said.


@entry("initial", "transition", "loc", "scale")
def by_probs() -> None:
    observe(loc=loc(), scale=scale(), **chain())


@entry("transition", "loc", "scale")
def by_logits() -> None:
    transition = real("transition", TRANSITION.log())
    observe(loc=loc(), scale=scale(), transition_logits=transition)


@entry("transition", "loc")
def unnormalised() -> None:
    observe(loc=loc(), transition_logits=positive("transition", 5 * TRANSITION).log())


class _Module(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.transition = PyroParam(TRANSITION.clone(), constraints.simplex)
        self.loc = PyroParam(LOC.clone())
        self.scale = PyroParam(SCALE.clone(), constraints.positive)

    def forward(self) -> None:
        observe(loc=self.loc, scale=self.scale, transition_probs=self.transition)


@entry("transition", "loc", "scale")
def pyro_module() -> None:
    _Module()()


@entry("transition", "loc")
def fixed_zeros_in_a() -> None:
    locs = real("loc", torch.tensor([-1.0, 0.1, 1.2]))
    hmm = RegimeHMM(
        initial_probs=torch.ones(3).double() / 3,
        transition_probs=probs("transition", LEFT_TO_RIGHT),
        observation_dist=dist.Normal(locs, torch.ones(3).double()),
    )
    pyro.sample("x", hmm, obs=X)


# Spreads.


@entry("loc", "covariance")
def full() -> None:
    observe(observation_dist=dist.MultivariateNormal(real("loc", LOCS), covariance()), obs=Y)


@entry("loc", "covariance")
def tied() -> None:
    tied_covariance = covariance(COVARIANCES[0])
    normal = dist.MultivariateNormal(real("loc", LOCS), tied_covariance)
    observe(observation_dist=normal, obs=Y)


@entry("loc", "scale")
def spherical() -> None:
    normal = dist.Normal(real("loc", LOCS), positive("scale", SCALE.unsqueeze(-1)))
    observe(observation_dist=normal.to_event(1), obs=Y)


@entry("loc", "log_scale")
def log_scales() -> None:
    observe(loc=loc(), scale=real("log_scale", SCALE.log()).exp())


@entry("mean", "scale")
def location_shared_by_the_regimes() -> None:
    observe(loc=real("mean", torch.tensor([0.1])).expand(2), scale=scale())


# Affine locations.


@entry("base", "difference", "scale")
def differences_from_a_base_regime() -> None:
    base, difference = real("base", LOCS[0]), real("difference", LOCS[1] - LOCS[0])
    locs = torch.stack([base, base + difference])
    spread = positive("scale", torch.ones(2, 3))
    observe(observation_dist=dist.Normal(locs, spread).to_event(1), obs=Y)


_FACTORS = torch.stack([torch.ones(64), torch.linspace(-1, 1, 64)], -1).double()  # (T, F)


@entry("loadings", "covariance")
def loadings_times_known_factors() -> None:
    loadings = real("loadings", torch.stack([LOCS, 0.1 * LOCS], -1))  # (K, D, F)
    locs = torch.einsum("tf,kdf->tkd", _FACTORS, loadings)
    normal = dist.MultivariateNormal(locs, covariance())
    observe(observation_dist=normal, obs=Y)


@entry("overall", "effect", "scale")
def regime_and_sequence_effects() -> None:
    overall, effect = real("overall", LOC), real("effect", torch.zeros(4))
    locs = overall + effect[:, None, None]  # (N, 1, K)
    with pyro.plate("sequences", 4):
        observe(observation_dist=dist.Normal(locs, scale()), obs=XS)


# Structure.


@entry("loc", "scale", "transition")
def two_sites() -> None:
    held = probs("transition", TRANSITION)
    observe(loc=loc(), scale=scale(), transition_probs=held)
    observe(name="y", loc=loc(), scale=scale(), transition_probs=held, obs=X.flip(0))


@entry("loc", "transition")
def plate_over_sequences() -> None:
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=probs("transition", TRANSITION),
        observation_dist=dist.Normal(loc(), SCALE),
    )
    with pyro.plate("sequences", 4):
        pyro.sample("x", hmm, obs=XS)


@entry("loc", "transition")
def per_sequence_locations() -> None:
    locs = real("loc", LOC.expand(4, 1, 2))
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=probs("transition", TRANSITION),
        observation_dist=dist.Normal(locs, SCALE),
    )
    with pyro.plate("sequences", 4):
        pyro.sample("x", hmm, obs=XS)


@entry("loc", "transition")
def nested_plates() -> None:
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=probs("transition", TRANSITION),
        observation_dist=dist.Normal(real("loc", LOC.expand(2, 1, 1, 2)), SCALE),
    )
    with pyro.plate("groups", 2, dim=-2), pyro.plate("members", 2, dim=-1):
        pyro.sample("x", hmm, obs=XS.reshape(2, 2, 32))


@entry("loc", "transition")
def padded_sequences() -> None:
    hmm = RegimeHMM(
        initial_probs=INITIAL,
        transition_probs=probs("transition", TRANSITION),
        observation_dist=dist.Normal(loc(), SCALE),
        lengths=LENGTHS,
    )
    with pyro.plate("sequences", 4):
        pyro.sample("x", hmm, obs=XS)


@entry("loc", "covariance")
def masked_and_scaled() -> None:
    normal = dist.MultivariateNormal(real("loc", LOCS), covariance(COVARIANCES[0]))
    hmm = RegimeHMM(
        initial_probs=INITIAL, transition_probs=TRANSITION, observation_dist=normal
    )
    with pyro.plate("sequences", 4), poutine.scale(scale=0.5):
        with poutine.mask(mask=torch.tensor([True, True, False, True])):
            pyro.sample("x", hmm, obs=YS)


@entry("scale")
def blocked() -> None:
    with poutine.block(hide=["loc"]):
        held = loc()
    observe(loc=held.detach(), scale=scale())


# The log joint, through a guide.

_ROWS = torch.tensor([[8.0, 2.0], [3.0, 7.0]]).double()


@entry(
    "AutoDelta.initial",
    "AutoDelta.transition",
    "loc",
    values={"initial": INITIAL, "transition": TRANSITION},
)
def dirichlet() -> None:
    initial = pyro.sample("initial", dist.Dirichlet(torch.tensor([2.0, 3.0]).double()))
    with pyro.plate("states", 2):
        transition = pyro.sample("transition", dist.Dirichlet(_ROWS))
    observe(loc=loc(), initial_probs=initial, transition_probs=transition)


@entry("AutoDelta.transition", "loc", values={"transition": TRANSITION})
def sticky_dirichlet() -> None:
    sticky = dist.Dirichlet(1.0 + 20.0 * torch.eye(2).double()).to_event(1)
    observe(loc=loc(), transition_probs=pyro.sample("transition", sticky))


@entry("AutoDelta.loc", "scale", values={"loc": LOC})
def normal_prior() -> None:
    with pyro.plate("states", 2):
        held = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 2.0]).double(), 0.3))
    observe(loc=held, scale=scale())


@entry("AutoDelta.loc", "covariance", values={"loc": LOCS})
def normal_prior_on_correlated_series() -> None:
    held = pyro.sample("loc", dist.Normal(LOCS.new_zeros(2, 3), 0.2).to_event(2))
    observe(observation_dist=dist.MultivariateNormal(held, covariance()), obs=Y)


@entry("AutoDelta.loc", "covariance", values={"loc": LOCS})
def multivariate_normal_prior() -> None:
    prior = dist.MultivariateNormal(LOCS.new_zeros(3), 0.05 * COVARIANCES[1])
    with pyro.plate("states", 2):
        held = pyro.sample("loc", prior)
    observe(observation_dist=dist.MultivariateNormal(held, covariance()), obs=Y)


@entry("loc", "AutoDelta.variance", values={"variance": SCALE**2})
def inverse_gamma() -> None:
    prior = dist.InverseGamma(torch.tensor(3.0).double(), torch.tensor(2.0).double())
    variance = pyro.sample("variance", prior.expand([2]).to_event(1))
    observe(loc=loc(), scale=variance.sqrt())


@entry("loc", "AutoDelta.precision", values={"precision": SCALE**-2})
def gamma() -> None:
    prior = dist.Gamma(torch.tensor(3.0).double(), torch.tensor(2.0).double())
    precision = pyro.sample("precision", prior.expand([2]).to_event(1))
    observe(loc=loc(), scale=precision.rsqrt())


@entry("loc", "AutoDelta.precision", values={"precision": torch.linalg.inv(COVARIANCES)})
def wishart() -> None:
    prior = dist.Wishart(torch.tensor(6.0).double(), covariance_matrix=0.3 * COVARIANCES[0])
    with pyro.plate("states", 2):
        precision = pyro.sample("precision", prior)
    normal = dist.MultivariateNormal(real("loc", LOCS), precision_matrix=precision)
    observe(observation_dist=normal, obs=Y)


@entry(
    "AutoDelta.difference", "base", values={"difference": torch.tensor([0.5]).double()}
)
def prior_on_a_difference() -> None:
    base = real("base", LOC[:1])
    difference = pyro.sample("difference", dist.Normal(LOC.new_zeros(1), 0.5).to_event(1))
    observe(loc=torch.cat([base, base + difference]))


def _point() -> None:
    pyro.sample("loc", dist.Delta(real("point", LOC)).to_event(1))


@entry("point", guide=_point)
def a_guide_by_hand() -> None:
    observe(loc=pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 1.0).to_event(1)))


def _conditioned() -> None:
    held = pyro.sample("loc", dist.Normal(LOC.new_zeros(2), 1.0).to_event(1))
    observe(loc=held, scale=scale())


entry("scale")(poutine.condition(_conditioned, data={"loc": LOC}))


# What has no closed form.


@entry("loc", moved=("p",))
def one_minus_p() -> None:
    p = pyro.param("p", torch.tensor(0.7).double(), constraint=constraints.unit_interval)
    stay = torch.stack([p, 1 - p])
    observe(loc=loc(), transition_probs=torch.stack([stay, stay.flip(0)]))


@entry("first", "scale", moved=("log_gap",))
def ordered_means() -> None:
    first, log_gap = real("first", LOC[:1]), real("log_gap", torch.zeros(1))
    observe(loc=torch.cat([first, first + log_gap.exp()]), scale=scale())


@entry("scale", moved=("loc",))
def a_second_likelihood() -> None:
    held = loc()
    observe(loc=held, scale=scale())
    pyro.sample("y", dist.Normal(held, 1.0).to_event(1), obs=torch.zeros(2).double())


@entry("scale", moved=("AutoDelta.loc",), values={"loc": LOC})
def a_prior_that_is_not_conjugate() -> None:
    held = pyro.sample("loc", dist.StudentT(4.0, LOC.new_zeros(2), 1.0).to_event(1))
    observe(loc=held, scale=scale())


@entry("AutoDelta.loc", "scale", moved=("center",), values={"loc": LOC})
def a_population_mean() -> None:
    center = real("center", torch.tensor(0.3))
    held = pyro.sample("loc", dist.Normal(center, 0.5).expand([2]).to_event(1))
    observe(loc=held, scale=scale())


torch.manual_seed(seeds.seed(3))
_NETWORK = nn.Linear(1, 4).double()
_COVARIATE = torch.linspace(-1, 1, 63).double().unsqueeze(-1)


@entry("loc", "scale", moved=("network$$$weight", "network$$$bias"))
def neural_transitions() -> None:
    network = pyro.module("network", _NETWORK)
    logits = network(_COVARIATE).reshape(63, 2, 2)
    observe(loc=loc(), scale=scale(), transition_logits=logits)
