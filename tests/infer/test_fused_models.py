"""Every kind of model that the fused engine serves, against the iterations step by step."""

from __future__ import annotations

from typing import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.infer.em.engines.fused_gaussian import FusedEngine
from tests.infer.fused import both_engines, spy
from tests.infer.models import COVARIANCES, INITIAL, LENGTHS, LOCS, TRANSITION, YS, X, Y

pytestmark = pytest.mark.usefixtures("filled_buffers")

SCALES = torch.tensor([[0.9, 1.0, 1.1], [1.3, 1.5, 1.2]]).double()  # (K, D)
SHIFTS = torch.tensor([0.0, 0.4, -0.3]).double()  # of the locations of restarts

Hold = Callable[..., Tensor]
Chain = Callable[[Hold], dict[str, Tensor]]
Spread = Callable[[Hold, Tensor], dist.TorchDistribution]


def _normal(spread: Callable[[Hold], Tensor]) -> Spread:
    return lambda hold, loc: dist.Normal(loc, spread(hold)).to_event(1)


SPREADS: dict[str, Spread] = {
    "full": lambda hold, loc: dist.MultivariateNormal(
        loc, hold("covariance", COVARIANCES, constraints.positive_definite)
    ),
    "tied": lambda hold, loc: dist.MultivariateNormal(
        loc, hold("covariance", COVARIANCES[:1], constraints.positive_definite)
    ),
    "tied factor": lambda hold, loc: dist.MultivariateNormal(
        loc, scale_tril=hold("factor", COVARIANCES[:1], constraints.lower_cholesky)
    ),
    "known covariances": lambda hold, loc: dist.MultivariateNormal(loc, COVARIANCES),
    "diagonal": _normal(lambda hold: hold("scale", SCALES, constraints.positive)),
    "spherical": _normal(lambda hold: hold("scale", SCALES[:, :1], constraints.positive)),
    "tied diagonal": _normal(lambda hold: hold("scale", SCALES[:1], constraints.positive)),
    "one scale": _normal(lambda hold: hold("scale", SCALES[:1, :1], constraints.positive)),
    "known scales": _normal(lambda hold: SCALES),
    "variances": _normal(lambda hold: hold("variance", SCALES, constraints.positive).sqrt()),
    "precisions": _normal(lambda hold: hold("precision", SCALES, constraints.positive) ** -0.5),
    "log variances": _normal(lambda hold: (0.5 * hold("log", SCALES, constraints.real)).exp()),
    "one of two scales known": _normal(
        lambda hold: torch.cat(
            [
                hold("scale", SCALES[:1], constraints.positive),
                torch.ones_like(hold("scale", SCALES[:1], constraints.positive)),
            ],
            -2,
        )
    ),
}


def _probs(hold: Hold) -> dict[str, Tensor]:
    simplex = constraints.simplex
    return {
        "initial_probs": hold("initial", INITIAL, simplex, time=False),
        "transition_probs": hold("transition", TRANSITION, simplex),
    }


def _logits(hold: Hold) -> dict[str, Tensor]:
    return {
        "initial_logits": hold("initial", INITIAL.log(), constraints.real, time=False),
        "transition_logits": hold("transition", TRANSITION.log() + 0.7, constraints.real),
    }


CHAINS: dict[str, Chain] = {
    "probabilities": _probs,
    "logits": _logits,
    "probabilities of logits": lambda hold: {
        name.replace("logits", "probs"): value.softmax(-1) for name, value in _logits(hold).items()
    },
    "logits of probabilities": lambda hold: {
        name.replace("probs", "logits"): value.log() for name, value in _probs(hold).items()
    },
    "known": lambda hold: {"initial_probs": INITIAL, "transition_probs": TRANSITION},
    "known initial": lambda hold: _probs(hold) | {"initial_probs": INITIAL},
    "known transitions": lambda hold: _probs(hold) | {"transition_probs": TRANSITION},
    "known logits": lambda hold: {
        "initial_probs": _probs(hold)["initial_probs"],
        "transition_logits": TRANSITION.log() + 1.3,
    },
    "one row known": lambda hold: {
        "initial_probs": _probs(hold)["initial_probs"],
        "transition_probs": torch.cat(
            [
                hold("row", TRANSITION[:1], constraints.simplex),
                torch.full_like(hold("row", TRANSITION[:1], constraints.simplex), 0.5),
            ],
            -2,
        ),
    },
    "impossible transition": lambda hold: {
        "initial_probs": _probs(hold)["initial_probs"],
        "transition_probs": hold(
            "absorbing", torch.tensor([[0.8, 0.2], [0.0, 1.0]]).double(), constraints.real
        ),
    },
    "logits of -inf": lambda hold: {
        "initial_logits": hold("initial", INITIAL.log(), constraints.real, time=False),
        "transition_logits": hold(
            "absorbing", torch.tensor([[0.8, 0.2], [0.0, 1.0]]).double().log(), constraints.real
        ),
    },
}


def gaussian_model(
    chain: Chain = _probs,
    spread: Spread = SPREADS["diagonal"],
    data: Tensor = Y,
    lengths: Tensor | None = None,
    restarts: int = 0,
    known_loc: bool = False,
    missing: str = "refuse",
) -> Callable[[], None]:
    """A model of three series, of one or many sequences, or a batch of restarts."""

    def hold(
        name: str, start: Tensor, constraint: constraints.Constraint, time: bool = True
    ) -> Tensor:
        lead = () if not restarts else (restarts, 1) if time else (restarts,)
        value = start.to(data.dtype).expand(lead + start.shape).clone()
        return pyro.param(name, value, constraint=constraint)

    def model() -> None:
        loc = LOCS
        if not known_loc:
            apart = SHIFTS[:restarts, None, None, None] if restarts else torch.zeros(())
            start = (LOCS + apart).to(data.dtype)
            loc = pyro.param("loc", start)
        emission = spread(hold, loc.to(data.dtype))
        hmm = RegimeHMM(
            observation_dist=emission, lengths=lengths, missing=missing, **chain(hold)
        )
        size = restarts or (len(data) if data.dim() == 3 else 0)
        if size:
            with pyro.plate("batch", size):
                pyro.sample("x", hmm, obs=data)
        else:
            pyro.sample("x", hmm, obs=data)

    return model


def run(model: Callable[[], None], **settings: object):
    return lambda: EM(model, **settings).run(num_steps=20, tol=None)


@pytest.mark.parametrize("restarts", [0, 3], ids=["one", "restarts"])
@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS.keys())
def test_spreads(spread, restarts):
    both_engines(run(gaussian_model(spread=spread, restarts=restarts)))


@pytest.mark.parametrize("restarts", [0, 3], ids=["one", "restarts"])
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_chains(chain, restarts):
    both_engines(run(gaussian_model(chain=chain, restarts=restarts)))


@pytest.mark.parametrize("spread", ["full", "tied", "diagonal", "spherical"])
def test_sequences_with_lengths_and_a_floor(spread):
    model = gaussian_model(spread=SPREADS[spread], data=YS, lengths=LENGTHS)
    both_engines(run(model, min_eigenvalue=0.9))


@pytest.mark.parametrize("spread", ["full", "tied", "diagonal", "spherical", "known scales"])
def test_known_locations(spread):
    chain = CHAINS["known"] if spread != "known scales" else _probs
    both_engines(run(gaussian_model(chain=chain, spread=SPREADS[spread], known_loc=True)))


@pytest.mark.parametrize("spread", ["full", "tied", "diagonal", "spherical"])
def test_float32(spread):
    model = gaussian_model(spread=SPREADS[spread], data=Y.float())
    # The fused engine iterates on float64 and stores densities in float32; the other iterates on
    # float32. Their losses differ by a few units in the last place.
    fast, _ = both_engines(run(model), history=2e-6, values=2e-4)
    assert all(value.dtype == torch.float32 for value in pyro.get_param_store().values())


def test_one_series_without_an_event_dim():
    def model() -> None:
        loc = pyro.param("loc", torch.tensor([-0.6, 0.9]).double())
        scale = pyro.param("scale", SCALES[:, 0].clone(), constraint=constraints.positive)
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.Normal(loc, scale),
        )
        pyro.sample("x", hmm, obs=X)

    both_engines(run(model))


def test_parameters_of_their_own_for_every_state():
    def model() -> None:
        rows, locs, scales = [], [], []
        for k in range(2):
            row = pyro.param(f"row{k}", TRANSITION[k].clone(), constraint=constraints.simplex)
            rows.append(row)
            locs.append(pyro.param(f"loc{k}", LOCS[k].clone()))
            scale = pyro.param(f"scale{k}", SCALES[k].clone(), constraint=constraints.positive)
            scales.append(scale)
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=torch.stack(rows),
            observation_dist=dist.Normal(torch.stack(locs), torch.stack(scales)).to_event(1),
        )
        pyro.sample("x", hmm, obs=Y)

    both_engines(run(model))


def test_cells_that_no_argument_holds_keep_their_values():
    def model() -> None:
        more = torch.cat([LOCS, LOCS[:1] + 7.0])
        loc = pyro.param("loc", more.clone())[:2]
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.Normal(loc, SCALES).to_event(1),
        )
        pyro.sample("x", hmm, obs=Y)

    both_engines(run(model))
    assert_close(pyro.param("loc")[2], LOCS[0] + 7.0, rtol=0, atol=0)


@pytest.mark.parametrize("weight", [1.0, 0.5], ids=["whole", "scaled"])
@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_dirichlet_priors(kind, weight):
    """The losses are those of the log joint; the constants of the priors are in them."""
    sticky = torch.tensor([[9.0, 2.0], [1.0, 4.0]]).double()

    def model() -> None:
        with pyro.poutine.scale(scale=weight):
            initial = pyro.sample("initial", dist.Dirichlet(torch.tensor([3.0, 1.0]).double()))
            transition = pyro.sample("transition", dist.Dirichlet(sticky).to_event(1))
        loc = pyro.param("loc", LOCS.clone())

        def hold(name: str, start: Tensor, constraint: constraints.Constraint) -> Tensor:
            return pyro.param(name, start.clone(), constraint=constraint)

        hmm = RegimeHMM(
            initial_probs=initial,
            transition_probs=transition,
            observation_dist=SPREADS[kind](hold, loc),
        )
        pyro.sample("x", hmm, obs=Y)

    start = {"initial": INITIAL.clone(), "transition": TRANSITION.clone()}

    def fit():
        guide = AutoDelta(model, init_loc_fn=init_to_value(values=start))
        em = EM(model, guide)
        result = em.run(num_steps=20, tol=None)
        assert result.history[-1] == pytest.approx(em.evaluate_loss(), rel=1e-12)
        return result

    both_engines(fit)


def test_flat_dirichlet_priors_allow_zeros():
    def model() -> None:
        transition = pyro.sample(
            "transition", dist.Dirichlet(torch.ones(2, 2).double()).to_event(1)
        )
        loc = pyro.param("loc", LOCS.clone())
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=transition,
            observation_dist=dist.Normal(loc, SCALES).to_event(1),
        )
        pyro.sample("x", hmm, obs=Y)

    start = {"transition": torch.tensor([[0.8, 0.2], [0.0, 1.0]]).double()}

    def fit():
        guide = AutoDelta(model, init_loc_fn=init_to_value(values=start))
        return EM(model, guide).run(num_steps=10, tol=None)

    both_engines(fit)


def test_a_prior_of_another_parameter_is_left_alone(monkeypatch):
    def model() -> None:
        prior = dist.Normal(torch.zeros(2, 3).double(), 1.0).to_event(2)
        hmm = RegimeHMM(
            initial_probs=INITIAL,
            transition_probs=TRANSITION,
            observation_dist=dist.Normal(pyro.sample("loc", prior), SCALES).to_event(1),
        )
        pyro.sample("x", hmm, obs=Y)

    found = spy(monkeypatch)
    EM(model, AutoDelta(model)).run(num_steps=2, tol=None)
    assert found == ["it serves priors of probabilities only"]


def test_two_states_that_share_a_covariance_and_one_of_its_own():
    starts = torch.stack([COVARIANCES[0], COVARIANCES[1]])
    locs = torch.cat([LOCS, LOCS[:1] - 0.7])
    transition = torch.full((3, 3), 0.1).double() + 0.7 * torch.eye(3).double()

    def model() -> None:
        own = pyro.param("covariance", starts.clone(), constraint=constraints.positive_definite)
        loc = pyro.param("loc", locs.clone())
        hmm = RegimeHMM(
            initial_probs=torch.full((3,), 1 / 3).double(),
            transition_probs=transition,
            observation_dist=dist.MultivariateNormal(loc, own[[0, 1, 0]]),
        )
        pyro.sample("x", hmm, obs=Y)

    both_engines(run(model))


@pytest.mark.parametrize("kind", ["tied", "diagonal", "spherical"])
def test_a_spread_that_collapses_is_left_to_the_steps(kind):
    """Half of the data are one point: a variance falls without bound, to the floor."""
    data = Y.clone()
    data[::2] = data[0]
    model = gaussian_model(spread=SPREADS[kind], data=data)
    fast, slow = both_engines(run(model, min_eigenvalue=1e-2), values=1e-6)
    assert (torch.diff(fast.restart_history.squeeze(-1)) <= 1e-9).all()


def test_every_kind_is_found_for_regime_models(monkeypatch):
    from pyro_regimes import RegimeModel

    for kind in ("full", "tied", "diag", "spherical"):
        found = spy(monkeypatch)
        RegimeModel(2, kind, n_init=3, random_state=0, tol=1.0).fit(Y.numpy())
        assert [type(each) for each in found] == [FusedEngine]
