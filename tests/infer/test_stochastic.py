"""Stochastic EM on minibatches: exact moments, the full data's optimum, and its cost."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM
from pyro_regimes.emissions.base import Observed, add
from pyro_regimes.emissions.multivariate_normal import MULTIVARIATE_NORMAL
from pyro_regimes.emissions.normal import NORMAL
from pyro_regimes.infer.em.engines import stochastic
from pyro_regimes.infer.em.engines.stochastic import default_schedule
from tests import seeds

K, D, T = 3, 2, 30
TRUTH = {
    "initial": torch.tensor([0.5, 0.3, 0.2]).double(),
    "transition": torch.tensor([[0.9, 0.06, 0.04], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]]).double(),
    "loc": torch.tensor([[1.5, 0.0], [-1.0, 1.5], [-1.0, -2.0]]).double(),
    "scale_tril": torch.tensor([[1.0, 0.0], [0.4, 0.8]]).double().expand(K, D, D).contiguous(),
}


def build(initial: Tensor, transition: Tensor, loc: Tensor, scale_tril: Tensor) -> RegimeHMM:
    return RegimeHMM(
        initial_probs=initial,
        transition_probs=transition,
        observation_dist=dist.MultivariateNormal(loc, scale_tril=scale_tril),
        duration=T,
    )


def draw(count: int, seed: int) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seeds.seed(seed))
        return build(**TRUTH).sample((count,))


def parameters() -> dict[str, Tensor]:
    """Started away from the truth."""
    simplex, lower = constraints.simplex, constraints.lower_cholesky
    sticky = 0.6 * torch.eye(K).double() + 0.4 / K
    return {
        "initial": pyro.param("initial", torch.ones(K).double() / K, constraint=simplex),
        "transition": pyro.param("transition", sticky, constraint=simplex),
        "loc": pyro.param("loc", 0.5 * TRUTH["loc"]),
        "scale_tril": pyro.param(
            "scale_tril", 1.5 * torch.eye(D).double().expand(K, D, D), constraint=lower
        ),
    }


def model(x: Tensor, batch: int | None = None) -> None:
    hmm = build(**parameters())
    with pyro.plate("sequences", len(x), subsample_size=batch) as index:
        pyro.sample("x", hmm, obs=x if batch is None else x[index])


def held_out(x: Tensor) -> float:
    with torch.no_grad():
        return float(build(**parameters()).log_prob(x).sum())


@pytest.mark.parametrize("varies", [False, True])
@pytest.mark.parametrize("event_shape", [(), (2,), (2, 3)])
@pytest.mark.parametrize("full", [False, True])
def test_totals_are_the_sums_over_all_sequences(event_shape, varies, full) -> None:
    """Of two minibatches, about the origin of the first: the moments of both together."""
    if full and len(event_shape) != 1:
        pytest.skip("vectors alone have a covariance")
    family = MULTIVARIATE_NORMAL if full else NORMAL
    names = frozenset({"loc", "covariance_matrix" if full else "scale"})
    generator = seeds.generator(0)
    value = 100 + torch.randn((4, 20, 1) + event_shape, generator=generator).double()
    weights = torch.rand((4, 20, K), generator=generator).double()
    loc = 100 + torch.randn((20 if varies else 1, K) + event_shape, generator=generator).double()
    like, totals = None, []
    for batch in (slice(0, 1), slice(1, 4)):
        observed = Observed(value[batch], weights[batch], varies)
        stats = family.statistics(observed, {"loc": loc}, names)
        totals.append(family.total(stats, 1, like))
        like = totals[0]
    assert torch.equal(totals[0].origin, totals[1].origin)
    both = add(totals[0], totals[1])
    w = weights.reshape(weights.shape + (1,) * len(event_shape))
    deviation = value - totals[0].origin
    square = deviation**2
    if full:
        w, square = w.unsqueeze(-1), deviation.unsqueeze(-1) * deviation.unsqueeze(-2)
    second = (w * square).sum(0) if varies else (w * square).sum((0, 1)).unsqueeze(0)
    w = weights.reshape(weights.shape + (1,) * len(event_shape))
    first = (w * deviation).sum(0) if varies else (w * deviation).sum((0, 1)).unsqueeze(0)
    weight = w.sum(0) if varies else w.sum((0, 1)).unsqueeze(0)
    assert_close(both.weight, weight.unsqueeze(0), rtol=1e-12, atol=0.0)
    assert_close(both.first, first.unsqueeze(0), rtol=0.0, atol=1e-10)
    assert_close(both.second, second.unsqueeze(0), rtol=0.0, atol=1e-10)


def test_whole_batches_are_ordinary_em() -> None:
    """With every sequence in the batch and a step size of 1 nothing is left of the averages."""
    x = draw(12, seed=1)
    stochastic = EM(lambda x: model(x, 11), step_size=lambda step: 1.0)
    torch.manual_seed(seeds.seed(0))
    index = torch.randperm(12)[:11]
    torch.manual_seed(seeds.seed(0))
    loss = stochastic.step(x)
    found = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()
    ordinary = EM(model)
    assert loss == pytest.approx(ordinary.step(x[index]) * 12 / 11, rel=1e-12)
    for name, value in pyro.get_param_store().items():
        assert_close(found[name], value.detach(), rtol=1e-9, atol=1e-10)


TREND = torch.stack([torch.ones(T), torch.linspace(-1, 1, T)], -1).double()


def of_each_time() -> Tensor:
    return pyro.param("locs", (0.5 * TRUTH["loc"]).expand(T, K, D))


def trends() -> Tensor:
    start = torch.stack([0.5 * TRUTH["loc"], 0.1 * TRUTH["loc"]], -1)
    return torch.einsum("tf,kdf->tkd", TREND, pyro.param("loadings", start))


@pytest.mark.parametrize("locations", [of_each_time, trends])
def test_distributions_that_vary_in_time(locations) -> None:
    """A whole batch makes an ordinary step; minibatches come near the optimum."""

    def varying(x: Tensor, index: Tensor | None = None, total: int | None = None) -> None:
        held = parameters()
        hmm = build(held["initial"], held["transition"], locations(), held["scale_tril"])
        with pyro.plate("sequences", total or len(x), subsample=index):
            pyro.sample("x", hmm, obs=x)

    x = draw(12, seed=1)
    em = EM(varying, step_size=lambda step: 1.0)
    loss = em.step(x, torch.arange(12), 24)
    assert em.plan.is_subsampled and not em.plan.gradient
    found = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()
    assert loss == pytest.approx(2 * EM(varying).step(x), rel=1e-12)
    for name, value in pyro.get_param_store().items():
        assert_close(found[name], value.detach(), rtol=1e-8, atol=1e-9)

    many = draw(200, seed=2)
    pyro.clear_param_store()
    em = EM(varying)
    for batch in many.split(20) * 6:
        em.step(batch, torch.arange(20), 200)
    ours = em.evaluate_loss(many)
    # The averages are of about as many sequences as there are. Estimates that are each off by a
    # standard error would cost half a nat a parameter (seen: 0.03 and 0.016; after one batch 9).
    count = sum(leaf.numel() for _, leaf in pyro.get_param_store().named_parameters())
    best = EM(varying).run(many, num_steps=200, tol=1e-6).history[-1]
    assert best - 1e-6 <= ours < best + 0.04 * count


def test_reaches_the_full_data_in_five_passes() -> None:
    x, fresh = draw(2000, seed=2), draw(500, seed=3)
    EM(model).run(x, num_steps=200, tol=1e-5)
    full = held_out(fresh)
    pyro.clear_param_store()
    torch.manual_seed(seeds.seed(0))
    em = EM(lambda x: model(x, 50))
    em.run(x, num_steps=5 * 2000 // 50)
    # Seen: up to 6 nats of 46,600. By the statistics of the last minibatch alone it is some 80.
    assert abs(held_out(fresh) - full) < 2.5e-4 * abs(full)
    assert set(em.plan.names) == set(TRUTH)


@pytest.mark.slow
def test_with_priors_and_an_optimiser() -> None:
    """MAP, and a parameter without a closed form, in the same steps."""
    x = draw(400, seed=4)[..., 0]

    def mixed(x: Tensor, batch: int | None) -> None:
        with pyro.plate("states", K):
            loc = pyro.sample("loc", dist.Normal(TRUTH["loc"][:, 0], 1.0))
        log_scale = pyro.param("log_scale", torch.zeros(K).double())
        hmm = RegimeHMM(
            initial_probs=TRUTH["initial"],
            transition_probs=TRUTH["transition"],
            observation_dist=dist.Normal(loc, 0.1 + log_scale.exp()),
        )
        with pyro.plate("sequences", len(x), subsample_size=batch) as index:
            pyro.sample("x", hmm, obs=x if batch is None else x[index])

    guide = pyro.infer.autoguide.AutoDelta(
        lambda x, batch: mixed(x, batch),
        init_loc_fn=pyro.infer.autoguide.init_to_value(values={"loc": TRUTH["loc"][:, 0]}),
    )
    adam = pyro.optim.Adam({"lr": 0.01})
    em = EM(mixed, guide, adam)
    torch.manual_seed(seeds.seed(0))
    em.run(x, 40, num_steps=200)
    assert em.plan.names == ["AutoDelta.loc"] and set(em.plan.gradient) == {"log_scale"}
    found = em.evaluate_loss(x, None)
    best = EM(mixed, guide, adam)
    best.run(x, None, num_steps=300)
    # Seen: 2 nats of 19,857. By the statistics of the last minibatch alone it would be some 30.
    assert found - best.evaluate_loss(x, None) < 2.5e-4 * found


def test_a_value_for_each_sequence_has_no_closed_form() -> None:
    x = draw(6, seed=5)[..., 0]

    def own(x: Tensor, size: int = 2) -> None:
        with pyro.plate("sequences", len(x), subsample_size=size) as index:
            loc = pyro.param("loc", torch.zeros(6, 1, K).double() + TRUTH["loc"][:, 0])
            hmm = RegimeHMM(
                initial_probs=TRUTH["initial"],
                transition_probs=TRUTH["transition"],
                observation_dist=dist.Normal(loc[index], 1.0),
            )
            pyro.sample("x", hmm, obs=x[index])

    with pytest.raises(ValueError, match="for each sequence of a subsampled plate"):
        EM(own).step(x)
    pyro.clear_param_store()
    em = EM(own, optim=pyro.optim.Adam({"lr": 0.05}))
    start = em.evaluate_loss(x, 6)
    for _ in range(100):
        em.step(x)
    assert em.evaluate_loss(x, 6) < start
    assert set(em.plan.gradient) == {"loc"}


def test_making_the_plan_leaves_the_random_numbers() -> None:
    """A step draws what it needs, as an SVI step does, and no more."""
    x = draw(20, seed=6)
    em = EM(lambda x: model(x, 5))
    torch.manual_seed(seeds.seed(3))
    em.step(x)
    after_plan = torch.rand(1)
    torch.manual_seed(seeds.seed(3))
    em.step(x)
    assert torch.equal(torch.rand(1), after_plan)


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_step_sizes_that_are_none(share) -> None:
    em = EM(lambda x: model(x, 5), step_size=lambda step: share)
    with pytest.raises(ValueError, match="step_size to lie above 0 and up to 1"):
        em.step(draw(20, seed=7))


def test_default_schedule() -> None:
    assert default_schedule(1) == 1.0
    assert default_schedule(32) == pytest.approx(32**-0.6)


def batches_of(x: Tensor, size: int, seed: int) -> list[Tensor]:
    order = torch.randperm(len(x), generator=seeds.generator(seed))
    return list(order.split(size))


def model_of_batch(
    x: Tensor, total: int, subsample: object = None, size: int | None = None
) -> None:
    """The data of one minibatch, as a DataLoader gives them."""
    hmm = build(**parameters())
    with pyro.plate("sequences", total, subsample_size=size, subsample=subsample):
        pyro.sample("x", hmm, obs=x)


def nested(x: Tensor, total: int, subsample: Tensor, size: int | None = None) -> None:
    """A subsampled plate of groups, around a whole one of sequences."""
    hmm = build(**parameters())
    with pyro.plate("groups", total // 2, subsample=subsample[::2] // 2, dim=-2):
        with pyro.plate("sequences", 2, dim=-1):
            pyro.sample("x", hmm, obs=x.reshape(-1, 2, T, D))


def sequential(x: Tensor, total: int, subsample: Tensor, size: int | None = None) -> None:
    for place, _ in enumerate(pyro.plate("sequences", total, subsample=subsample)):
        pyro.sample(f"x{place}", build(**parameters()), obs=x[place])


def two_plates(x: Tensor, total: int, subsample: Tensor, size: int | None = None) -> None:
    """One after the other, each over its half."""
    hmm, half = build(**parameters()), len(x) // 2
    for part, name in enumerate(["first", "second"]):
        chosen = subsample[part * half : (part + 1) * half] // 2
        with pyro.plate(name, total // 2, subsample=chosen):
            pyro.sample(f"x_{name}", hmm, obs=x[part * half : (part + 1) * half])


@pytest.mark.parametrize("way", ["subsample", "list", "both", "data"])
def test_minibatches_that_a_caller_draws(way) -> None:
    """The same steps as those of a plate that draws them."""
    x = draw(12, seed=8)
    batches = batches_of(x, 4, seed=0)
    expected = []
    em = EM(lambda x, index: model_of_batch(x[index], 12, index, 4))
    for index in batches:
        expected.append(em.step(x, index))
    values = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    assert em.plan.is_subsampled
    pyro.clear_param_store()
    em = EM(model_of_batch)
    for index, loss in zip(batches, expected, strict=True):
        given = {"subsample": index, "list": index.tolist(), "both": index, "data": x[index]}[way]
        found = em.step(x[index], 12, given, 4 if way == "both" else None)
        assert found == pytest.approx(loss, rel=1e-12)
    assert em.plan.is_subsampled
    for name, value in pyro.get_param_store().items():
        assert_close(value.detach(), values[name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", [nested, sequential, two_plates])
def test_minibatches_of_other_plates(kind) -> None:
    """Averages over minibatches, and not EM on the last one: pairs of neighbours stay together."""
    x = draw(12, seed=8)
    pairs = torch.arange(12).reshape(6, 2)
    batches = [pairs[index].flatten() for index in batches_of(pairs, 2, seed=1)]
    em, reference = EM(kind), EM(model_of_batch)
    for index in batches:
        em.step(x[index], 12, index)
    assert em.plan.is_subsampled
    found = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()
    for index in batches:
        reference.step(x[index], 12, index)
    for name, value in pyro.get_param_store().items():
        assert_close(found[name], value.detach(), rtol=1e-9, atol=1e-10)


def test_a_permutation_is_everything() -> None:
    x = draw(8, seed=9)
    order = torch.randperm(8, generator=seeds.generator(0))
    loss = [EM(model_of_batch).run(x[order], 8, order, num_steps=3, tol=None).history]
    pyro.clear_param_store()
    em = EM(model)
    loss.append(em.run(x, num_steps=3, tol=None).history)
    assert loss[0] == pytest.approx(loss[1], rel=1e-12)
    assert not em.plan.is_subsampled
    pyro.clear_param_store()
    em = EM(model_of_batch)
    em.step(x, 8, torch.tensor([0, 1, 2, 3, 4, 5, 6, 6]))  # drawn with replacement
    assert em.plan.is_subsampled


def test_the_first_batch_is_everything() -> None:
    """A plan that was made on the whole data is no plan for a minibatch."""
    x = draw(8, seed=9)
    em = EM(model_of_batch)
    em.step(x, 8, torch.arange(8))
    em.step(x[:2], 8, torch.arange(2))
    assert em.plan.is_subsampled and em._session.averages.num_batches == 1


def test_sites_named_by_their_index_are_refused() -> None:
    def by_index(x: Tensor, subsample: Tensor) -> None:
        for index in pyro.plate("sequences", len(x), subsample=subsample):
            pyro.sample(f"x{index}", build(**parameters()), obs=x[index])

    x, em = draw(6, seed=9), EM(by_index)
    em.step(x, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"same sites at every step, got \['x0', 'x1'\] and then"):
        em.step(x, torch.tensor([2, 3]))


def fit_batches(em: EM, x: Tensor) -> dict[str, Tensor]:
    for index in batches_of(x, 5, seed=3):
        em.step(x[index], len(x), index)
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, value in one.items():
        assert_close(other[name], value, rtol=1e-9, atol=1e-12)


def test_averages_are_of_the_parameters_in_the_store() -> None:
    x, other = draw(20, seed=10), draw(20, seed=11)
    alone = fit_batches(EM(model_of_batch), other)
    pyro.clear_param_store()
    em = EM(model_of_batch)
    fit_batches(em, x)
    pyro.clear_param_store()
    same(fit_batches(em, other), alone)
    state = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    with pyro.get_param_store().scope():
        same(fit_batches(em, other), alone)
    same(state, {name: value.detach() for name, value in pyro.get_param_store().items()})


def test_another_number_of_sequences_is_another_data_set() -> None:
    x, other = draw(20, seed=10), draw(25, seed=11)
    fit_batches(EM(model_of_batch), x)
    alone = fit_batches(EM(model_of_batch), other)
    pyro.clear_param_store()
    em = EM(model_of_batch)
    fit_batches(em, x)
    same(fit_batches(em, other), alone)


def test_reset_forgets_everything_but_the_store() -> None:
    x, other = draw(20, seed=10), draw(20, seed=11)
    fit_batches(EM(model_of_batch), x)
    alone = fit_batches(EM(model_of_batch), other)
    pyro.clear_param_store()
    em = EM(model_of_batch)
    before = fit_batches(em, x)
    em.reset()
    assert em.plan is None
    same({name: value.detach() for name, value in pyro.get_param_store().items()}, before)
    same(fit_batches(em, other), alone)


@pytest.mark.parametrize("size", [1, 2])
def test_constants_of_each_sequence_are_refused(size: int) -> None:
    """Of one sequence a minibatch as well, whose arguments have nothing to differ from."""
    generator = seeds.generator(3)
    centers = 10.0 * torch.arange(6).double()
    x = centers.unsqueeze(-1) + torch.randn((6, T), generator=generator).double()

    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.ones(K).double(), constraint=constraints.positive)
        with pyro.plate("sequences", 6, subsample_size=size) as index:
            hmm = RegimeHMM(
                initial_probs=TRUTH["initial"],
                transition_probs=TRUTH["transition"],
                observation_dist=dist.Normal(centers[index].reshape(-1, 1, 1), scale),
            )
            pyro.sample("x", hmm, obs=x[index])

    torch.manual_seed(seeds.seed(0))
    with pytest.raises(ValueError, match="x.loc to be the same|each sequence of a subsampled"):
        EM(model).run(x, num_steps=30, tol=None)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("far, spread", [(1e3, 1e-6), (1e5, 1e-3), (1e6, 1e-3)])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_states_far_apart_keep_their_spread(far: float, spread: float, full: bool, offset) -> None:
    """A minibatch of half the data, of which the other half is a copy, makes the steps of EM."""
    noise = spread * torch.randn((4, 40, 1 + full), generator=seeds.generator(5)).double()
    half = noise + far * (2 * (torch.arange(40) // 5 % 2).double() - 1).unsqueeze(-1)
    x = torch.cat([half, half])

    def two_states(index: Tensor | None) -> None:
        start = far * torch.tensor([[-1.0], [1.0]]).double() + offset * spread
        loc = pyro.param("loc", start.expand(2, 1 + full).clone())
        if full:
            eye = spread**2 * torch.eye(2).double().repeat(2, 1, 1)
            cov = pyro.param("spread", eye, constraint=constraints.positive_definite)
            emission = dist.MultivariateNormal(loc, cov)
        else:
            width = torch.full((2, 1), spread).double()
            width = pyro.param("spread", width, constraint=constraints.positive)
            emission = dist.Normal(loc, width).to_event(1)
        sticky = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).double()
        hmm = RegimeHMM(
            initial_probs=torch.full((2,), 0.5).double(),
            transition_probs=pyro.param("transition", sticky, constraint=constraints.simplex),
            observation_dist=emission,
        )
        with pyro.plate("sequences", len(x), subsample=index) as chosen:
            pyro.sample("x", hmm, obs=x[chosen])

    def fitted(index: Tensor | None) -> tuple[Tensor, Tensor]:
        pyro.clear_param_store()
        EM(two_states, step_size=lambda n: 1.0).run(index, num_steps=4, tol=None)
        return pyro.param("loc").detach(), pyro.param("spread").detach()

    found, expected = fitted(torch.arange(4)), fitted(None)
    rounding = 4 * torch.finfo(torch.float64).eps * far / spread
    assert_close(found[0], expected[0], rtol=1e-15, atol=1e-3 * spread)
    assert_close(found[1] / expected[1], torch.ones_like(expected[1]), rtol=0, atol=rounding)


def test_averages_follow_a_location_that_moves() -> None:
    """Expressed about another origin, they are those of all minibatches weighted by hand."""
    steps = [torch.randn((2, 30, 1, 2), generator=seeds.generator(i)).double() for i in range(4)]
    weights = torch.rand((2, 30, K), generator=seeds.generator(9)).double()
    averages, raw = None, None
    for number, noise in enumerate(steps):
        value = 1e-4 * noise + 1e4 * number
        share = default_schedule(number + 1)
        observed = Observed(value, weights, False)
        given = {"loc": value.mean((0, 1, 2)).expand(K, 2)}
        taken = NORMAL.statistics(observed, given, frozenset({"loc", "scale"}))
        averages = stochastic.mix(NORMAL, averages, taken, 1, share)
        scaled = (share * weights, value)
        raw = [scaled] if raw is None else [((1 - share) * w, x) for w, x in raw] + [scaled]
    n = sum(w.sum((0, 1)) for w, _ in raw).unsqueeze(-1)
    mean = sum((w.unsqueeze(-1) * x).sum((0, 1)) for w, x in raw) / n
    scatter = sum((w.unsqueeze(-1) * (x - mean) ** 2).sum((0, 1)) for w, x in raw)
    assert_close(averages.weight[0, 0], n)
    assert_close(averages.origin[0] + (averages.first / averages.weight)[0, 0], mean)
    assert_close(averages.second[0, 0], scatter, rtol=1e-9, atol=0.0)
    assert bool((averages.first.abs() <= 1e-6 * n * scatter.div(n).sqrt()).all())


def test_a_parameter_without_a_maximum_is_reported() -> None:
    """One observation in a state bounds no variance; a state without any keeps its value."""
    x = torch.cat([torch.zeros(4, 1), torch.randn(4, 9, generator=seeds.generator(3)) + 900], 1)

    def collapsing(index: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([0.0, 900.0, -9e9]).double())
        start = torch.tensor([1e-3, 1.0, 1.0]).double()
        width = pyro.param("spread", start, constraint=constraints.positive)
        hmm = RegimeHMM(
            initial_probs=torch.full((3,), 1 / 3).double(),
            transition_probs=torch.full((3, 3), 1 / 3).double(),
            observation_dist=dist.Normal(loc, width),
        )
        with pyro.plate("sequences", len(x), subsample=index) as chosen:
            pyro.sample("x", hmm, obs=x[chosen].double())

    em = EM(collapsing)
    with pytest.warns(RuntimeWarning, match="parameter 'spread' has no maximum"):
        result = em.run(torch.arange(2), num_steps=2)
    assert sorted(result.idle) == ["loc", "spread"]
    with pytest.warns(RuntimeWarning, match="parameter 'spread' has no maximum"):
        EM(collapsing).step(torch.arange(2))
