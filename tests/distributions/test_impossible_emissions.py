"""An emission probability of exactly 0 is 0, in every method and under every wrapper."""

import copy
import itertools
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import distributions as torch_dist
from torch.autograd import gradcheck

from pyro_regimes.distributions import RegimeHMM

INF = math.inf
INITIAL = torch.tensor([0.7, 0.3], dtype=torch.float64)
TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
# A path that leaves state 0 is less likely than one through torch's clamped probabilities.
STIFF_INITIAL = torch.tensor([1.0, 1e-25], dtype=torch.float64)
STIFF_TRANSITION = torch.tensor([[1.0, 1e-25], [1e-25, 1.0]], dtype=torch.float64)


def _binomial(count):
    return lambda p, x: math.comb(count, int(x)) * p**x * (1 - p) ** (count - x)


def _negative_binomial(p, x):
    return math.comb(int(x) + 2, int(x)) * p**x * (1 - p) ** 3


def _categorical(p, x):
    return p[int(x)]


def _one_hot(p, x):
    return p[x.index(1.0)]


def _multinomial(p, x):
    found = math.factorial(int(sum(x)))
    for each, count in zip(p, x):
        found *= each**count / math.factorial(int(count))
    return found


def _poisson(p, x):
    return math.exp(-p) * p**x / math.factorial(int(x))


def _independent(of):
    return lambda p, x: math.prod(of(*each) for each in zip(p, x))


def _bernoulli(p, x):
    return p if x else 1 - p


def _zero_inflated(of):
    return lambda p, x: p * (x == 0) + (1 - p) * of(x)


def _mixture(p, x):
    return sum(each * _poisson(rate, x) for each, rate in zip(p, (0.5, 2.0, 4.0)))


ROWS = [[0.6, 0.4, 0.0], [0.0, 0.3, 0.7]]
UNIT = [0.0, 0.4]
ONES = [1.0, 0.4]
MATRIX = [[0.0, 1.0, 0.5], [0.5, 0.0, 1.0]]

#: name: (observation_dist of a tensor, the tensor, a possible and an impossible value of two
#: steps, the probability of one observation by hand)
CASES = {
    "Categorical": (dist.Categorical, ROWS, [0, 2, 1], [0, 2], _categorical),
    "OneHotCategorical": (
        dist.OneHotCategorical,
        ROWS,
        [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]],
        None,
        _one_hot,
    ),
    "OneHotCategoricalStraightThrough": (
        dist.OneHotCategoricalStraightThrough,
        ROWS,
        [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]],
        None,
        _one_hot,
    ),
    "Multinomial": (
        lambda p: dist.Multinomial(3, p),
        ROWS,
        [[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 0.0]],
        [1.0, 1.0, 1.0],
        _multinomial,
    ),
    "Bernoulli, 0": (dist.Bernoulli, UNIT, [1.0, 0.0, 1.0], None, _bernoulli),
    "Bernoulli, 1": (dist.Bernoulli, ONES, [1.0, 0.0, 1.0], None, _bernoulli),
    "Binomial, 0": (lambda p: dist.Binomial(4, p), UNIT, [0.0, 3.0, 4.0], None, _binomial(4)),
    "Binomial, 1": (lambda p: dist.Binomial(4, p), ONES, [0.0, 3.0, 4.0], None, _binomial(4)),
    "Geometric": (dist.Geometric, ONES, [0.0, 2.0, 1.0], None, lambda p, x: p * (1 - p) ** x),
    "NegativeBinomial": (
        lambda p: dist.NegativeBinomial(3.0, p),
        UNIT,
        [0.0, 2.0, 1.0],
        None,
        _negative_binomial,
    ),
    "Poisson": (
        lambda p: dist.Poisson(p, validate_args=False),
        [0.0, 1.4],
        [0.0, 2.0, 0.0],
        None,
        _poisson,
    ),
    "Poisson, sparse": (
        lambda p: dist.Poisson(p, is_sparse=True, validate_args=False),
        [0.0, 1.4],
        [0.0, 2.0, 0.0],
        None,
        _poisson,
    ),
    "to_event": (
        lambda p: dist.Bernoulli(p).to_event(1),
        MATRIX,
        [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]],
        [1.0, 0.0, 0.0],
        _independent(_bernoulli),
    ),
    "Independent of Independent": (
        lambda p: dist.Independent(dist.Independent(dist.Bernoulli(p.unsqueeze(-1)), 1), 1),
        MATRIX,
        [[[0.0], [1.0], [1.0]], [[1.0], [0.0], [1.0]], [[0.0], [1.0], [0.0]]],
        [[1.0], [0.0], [0.0]],
        lambda p, x: _independent(_bernoulli)(p, [each for (each,) in x]),
    ),
    "expand": (
        lambda p: dist.Categorical(p).expand([1, 2]),
        ROWS,
        [0, 2, 1],
        None,
        _categorical,
    ),
    "expand after a look at the logits": (
        lambda p: _looked_at(dist.Categorical(p)).expand([1, 2]),
        ROWS,
        [0, 2, 1],
        None,
        _categorical,
    ),
    "Bernoulli, a look at the logits": (
        lambda p: _looked_at(dist.Bernoulli(p)),
        ONES,
        [1.0, 0.0, 1.0],
        None,
        _bernoulli,
    ),
    "Geometric, a look at the logits": (
        lambda p: _looked_at(dist.Geometric(p)),
        ONES,
        [0.0, 2.0, 1.0],
        None,
        lambda p, x: p * (1 - p) ** x,
    ),
    "ExpandedDistribution": (
        lambda p: dist.ExpandedDistribution(dist.Bernoulli(p), (1, 2)),
        UNIT,
        [1.0, 0.0, 1.0],
        None,
        _bernoulli,
    ),
    "mask": (
        lambda p: dist.Categorical(p).mask(torch.tensor([True, True])),
        ROWS,
        [0, 2, 1],
        None,
        _categorical,
    ),
    "MixtureSameFamily, a weight": (
        lambda p: dist.MixtureSameFamily(
            dist.Categorical(p), dist.Poisson(p.new_tensor([0.5, 2.0, 4.0]).expand(2, 3))
        ),
        ROWS,
        [0.0, 25.0, 2.0],
        None,
        _mixture,
    ),
    "MixtureSameFamily, components": (
        lambda p: dist.MixtureSameFamily(
            dist.Categorical(torch.ones_like(p)), dist.Bernoulli(p)
        ),
        [[0.0, 0.0, 0.0], [0.0, 0.5, 1.0]],
        [1.0, 0.0, 1.0],
        None,
        lambda p, x: _bernoulli(sum(p) / 3, x),
    ),
    "ZeroInflatedDistribution": (
        lambda p: dist.ZeroInflatedDistribution(dist.Geometric(p.new_tensor(0.3)), gate=p),
        ONES,
        [0.0, 2.0, 1.0],
        None,
        _zero_inflated(lambda x: 0.3 * 0.7**x),
    ),
    "ZeroInflatedPoisson": (
        lambda p: dist.ZeroInflatedPoisson(p.new_tensor(1.4), gate=p),
        ONES,
        [0.0, 2.0, 1.0],
        None,
        _zero_inflated(lambda x: _poisson(1.4, x)),
    ),
    "ZeroInflatedNegativeBinomial": (
        lambda p: dist.ZeroInflatedNegativeBinomial(
            p.new_tensor(3.0), probs=p.new_tensor(0.4), gate=p
        ),
        UNIT,
        [0.0, 2.0, 1.0],
        None,
        _zero_inflated(lambda x: _negative_binomial(0.4, x)),
    ),
    "MaskedMixture": (
        lambda p: dist.MaskedMixture(
            torch.tensor([True, False]),
            dist.Bernoulli(p),
            dist.Bernoulli(p),
        ),
        ONES,
        [1.0, 0.0, 1.0],
        None,
        _bernoulli,
    ),
    "torch's Categorical": (torch_dist.Categorical, ROWS, [0, 2, 1], None, _categorical),
    "torch's Bernoulli": (torch_dist.Bernoulli, UNIT, [1.0, 0.0, 1.0], None, _bernoulli),
    "torch's Independent": (
        lambda p: torch_dist.Independent(torch_dist.Bernoulli(p), 1),
        MATRIX,
        [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]],
        [1.0, 0.0, 0.0],
        _independent(_bernoulli),
    ),
    "torch's Binomial": (
        lambda p: torch_dist.Binomial(4, p),
        ONES,
        [0.0, 3.0, 4.0],
        None,
        _binomial(4),
    ),
    "torch's MixtureSameFamily": (
        lambda p: torch_dist.MixtureSameFamily(
            torch_dist.Categorical(p),
            torch_dist.Poisson(p.new_tensor([0.5, 2.0, 4.0]).expand(2, 3)),
        ),
        ROWS,
        [0.0, 25.0, 2.0],
        None,
        _mixture,
    ),
}


ON_SIMPLEX = [name for name, case in CASES.items() if case[1] is ROWS]


def _looked_at(distribution):
    distribution.logits  # torch keeps what it computes here
    return distribution


def make_hmm(observation_dist, **changes):
    arguments = {"initial_probs": INITIAL, "transition_probs": TRANSITION, **changes}
    return RegimeHMM(observation_dist=observation_dist, **arguments)


def as_value(value, dtype):
    found = torch.tensor(value)
    return found.to(dtype) if found.is_floating_point() else found


def by_hand(probs, value, of, initial=INITIAL, transition=TRANSITION):
    """log p(x), and the joint probability of each path of two states."""
    initial, transition = initial.tolist(), transition.tolist()
    joint = {}
    for path in itertools.product(range(2), repeat=len(value)):
        joint[path] = initial[path[0]]
        for old, new in zip(path, path[1:]):
            joint[path] *= transition[old][new]
        for state, x in zip(path, value):
            joint[path] *= of(probs[state], x)
    total = sum(joint.values())
    return math.log(total) if total else -INF, joint


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("stiff", [False, True], ids=["", "stiff"])
@pytest.mark.parametrize("name", CASES)
def test_every_method_agrees_with_enumeration(name, stiff, dtype):
    make, probs, value, _, of = CASES[name]
    given = torch.tensor(probs, dtype=dtype)
    initial, transition = INITIAL, TRANSITION
    if stiff:
        initial, transition = STIFF_INITIAL, STIFF_TRANSITION
    hmm = make_hmm(make(given), initial_probs=initial, transition_probs=transition)
    x = as_value(value, dtype)
    expected, joint = by_hand(given.double().tolist(), value, of, initial, transition)
    rtol = 1e-12 if dtype == torch.float64 else 2e-6  # of logs of single precision
    close = {"rtol": rtol, "atol": rtol}
    assert hmm.log_prob(x).item() == pytest.approx(expected, rel=rtol)
    best = max(joint, key=joint.get)
    assert hmm.viterbi(x).tolist() == list(best)
    total = math.exp(expected)
    smoothed = torch.zeros(len(value), 2, dtype=torch.float64)
    for path, weight in joint.items():
        smoothed[range(len(value)), list(path)] += weight / total
    posterior = hmm.posterior(x)
    torch.testing.assert_close(posterior.smoothed_probs.double(), smoothed, **close)
    torch.testing.assert_close(hmm.filter(x).probs.double(), smoothed[-1], **close)
    paths = hmm.sample_posterior(x, torch.Size([50])).tolist()
    assert all(joint[tuple(path)] > 0 for path in paths)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_right_and_zero_at_zero(name):
    make, probs, value, _, of = CASES[name]
    given = torch.tensor(probs, dtype=torch.float64)
    x = as_value(value, torch.float64)
    edge = (given == 0) | ((given == 1) & (not name.startswith("Poisson")))
    leaf = given.clone().requires_grad_()
    hmm = make_hmm(make(leaf))
    (found,) = torch.autograd.grad(hmm.log_prob(x), leaf, create_graph=True)
    assert found.isfinite().all()
    (second,) = torch.autograd.grad(found.sum(), leaf)
    assert second.isfinite().all()
    for index in itertools.product(*map(range, given.shape)):
        if edge[index]:
            continue
        step = 1e-6
        sides = []
        for sign in (1, -1):
            moved = given.clone()
            moved[index] += sign * step
            if name in ON_SIMPLEX:
                moved = moved / moved.sum(-1, keepdim=True)
            sides.append(by_hand(moved.tolist(), value, of)[0])
        numeric = (sides[0] - sides[1]) / (2 * step)
        assert found[index].item() == pytest.approx(numeric, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck_where_probabilities_are_positive(name):
    make, probs, value, *_ = CASES[name]
    given = torch.tensor(probs, dtype=torch.float64).clamp(0.1, 0.8)
    x = as_value(value, torch.float64)

    def log_prob(p):
        if name in ON_SIMPLEX:
            p = p / p.sum(-1, keepdim=True)
        return make_hmm(make(p)).log_prob(x)

    assert gradcheck(log_prob, given.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[3] is not None])
def test_an_impossible_sequence(name, dtype):
    make, probs, value, never, _ = CASES[name]
    given = torch.tensor(probs, dtype=dtype)
    sequence = as_value([value[0], never] if name != "Categorical" else [0, 0, 2], dtype)
    if name == "Categorical":
        given = torch.tensor([[0.6, 0.4, 0.0], [0.7, 0.3, 0.0]], dtype=dtype)
    leaf = given.requires_grad_()
    hmm = make_hmm(make(leaf))
    log_prob = hmm.log_prob(sequence)
    assert log_prob.item() == -INF
    (gradient,) = torch.autograd.grad(log_prob, leaf)
    assert (gradient == 0).all()
    assert hmm.viterbi(sequence).tolist() == [-1] * len(sequence)
    assert (hmm.sample_posterior(sequence) == -1).all()
    posterior = hmm.posterior(sequence)
    assert posterior.log_likelihood.item() == -INF
    assert (posterior.smoothed_probs == 0).all()
    with pytest.raises(ValueError, match="positive probability"):
        hmm.filter(sequence)


TINY = {
    "Categorical": (lambda p: dist.Categorical(torch.stack([p, 1 - p], -1)), 0, lambda p: p),
    "OneHotCategorical": (
        lambda p: dist.OneHotCategorical(torch.stack([p, 1 - p], -1)),
        [1.0, 0.0],
        lambda p: p,
    ),
    "Multinomial": (
        lambda p: dist.Multinomial(2, torch.stack([p, 1 - p], -1)),
        [1.0, 1.0],
        lambda p: 2 * p,
    ),
    "Bernoulli": (dist.Bernoulli, 1.0, lambda p: p),
    "Binomial": (lambda p: dist.Binomial(3, p), 1.0, lambda p: 3 * p),
    "Geometric": (dist.Geometric, 0.0, lambda p: p),
    "NegativeBinomial": (lambda p: dist.NegativeBinomial(2.0, p), 1.0, lambda p: 2 * p),
    "MixtureSameFamily": (
        lambda p: dist.MixtureSameFamily(
            dist.Categorical(torch.stack([p, 1 - p], -1)),
            dist.Bernoulli(p.new_tensor([1.0, 0.0]).expand(2, 2)),
        ),
        1.0,
        lambda p: p,
    ),
    "ZeroInflatedPoisson": (
        lambda p: dist.ZeroInflatedPoisson(p.new_tensor(200.0), gate=p),
        0.0,
        lambda p: p + math.exp(-200),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TINY)
def test_a_probability_below_the_spacing_of_numbers_counts(name, dtype):
    make, x, of = TINY[name]
    probs = torch.tensor([1e-30, 1e-20], dtype=dtype)
    hmm = make_hmm(make(probs), initial_probs=torch.tensor([1.0, 0.0]))
    found = hmm.log_prob(as_value([x], dtype))
    assert found.item() == pytest.approx(math.log(of(1e-30)), rel=1e-6)


BY_LOGITS = {
    "Categorical": (lambda z: dist.Categorical(logits=z), [0, 2, 1]),
    "Multinomial": (lambda z: dist.Multinomial(3, logits=z), [[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]]),
    "Bernoulli": (lambda z: dist.Bernoulli(logits=z[:, 0]), [1.0, 0.0]),
    "Binomial": (lambda z: dist.Binomial(4, logits=z[:, 0]), [1.0, 4.0]),
    "Geometric": (lambda z: dist.Geometric(logits=z[:, 0]), [1.0, 0.0]),
    "torch's Geometric": (lambda z: torch_dist.Geometric(logits=z[:, 0]), [1.0, 0.0]),
    "NegativeBinomial": (lambda z: dist.NegativeBinomial(2.5, logits=z[:, 0]), [1.0, 0.0]),
    "ZeroInflatedPoisson": (
        lambda z: dist.ZeroInflatedPoisson(z[:, 1].exp(), gate_logits=z[:, 0]),
        [1.0, 0.0],
    ),
    "MixtureSameFamily": (
        lambda z: dist.MixtureSameFamily(
            dist.Categorical(logits=z), dist.Normal(z.new_tensor([0.0, 1.0, 2.0]).expand(2, 3), 1.0)
        ),
        [0.3, 1.9],
    ),
}


@pytest.mark.parametrize("looked_at", [False, True], ids=["", "probs looked at"])
@pytest.mark.parametrize("name", BY_LOGITS)
def test_logits_agree_with_the_distributions_own_density(name, looked_at):
    make, value = BY_LOGITS[name]
    logits = torch.tensor([[0.4, -30.0, 1.1], [-2.0, 0.3, 45.0]], dtype=torch.float64)
    if name == "ZeroInflatedPoisson":
        logits = logits.clamp(-3.0, 3.0)
    logits.requires_grad_()
    x = as_value(value, torch.float64)
    observation_dist = make(logits)
    if looked_at:
        getattr(observation_dist, "probs", None)
    hmm = make_hmm(observation_dist)
    own = observation_dist.log_prob(x.unsqueeze(-1 - len(observation_dist.event_shape)))
    found = hmm.chain(x)[2]
    torch.testing.assert_close(found, own, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(own.sum(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in BY_LOGITS if "Geometric" not in name])
def test_infinite_logits(name):
    make, value = BY_LOGITS[name]
    logits = torch.tensor([[-INF, 0.0, 0.0], [0.5, 0.3, -INF]], dtype=torch.float64)
    if name == "ZeroInflatedPoisson":
        logits[1, 2] = 0.0
    logits.requires_grad_()
    hmm = make_hmm(make(logits))
    log_prob = hmm.log_prob(as_value(value, torch.float64))
    assert log_prob.isfinite()
    (gradient,) = torch.autograd.grad(log_prob, logits)
    assert gradient.isfinite().all()
    assert (gradient[logits == -INF] == 0).all()


def test_a_mixture_of_diagonal_normals():
    logits = torch.tensor([[0.0, -INF], [0.0, 0.0]], requires_grad=True)
    locs = torch.tensor([[[0.0], [9.0]], [[0.0], [1.0]]])
    hmm = make_hmm(
        dist.MixtureOfDiagNormals(locs, torch.ones(2, 2, 1), logits),
        initial_probs=torch.tensor([1.0, 0.0]),
    )
    x = torch.tensor([[9.0]])
    log_prob = hmm.log_prob(x)
    assert log_prob.item() == pytest.approx(-40.5 - 0.5 * math.log(2 * math.pi), rel=1e-6)
    (gradient,) = torch.autograd.grad(log_prob, logits)
    assert gradient.isfinite().all()


def test_a_count_of_zero_trials():
    total_count = torch.tensor([0.0, 2.0], dtype=torch.float64, requires_grad=True)
    probs = torch.tensor([0.3, 0.4], dtype=torch.float64)
    hmm = make_hmm(dist.NegativeBinomial(total_count, probs))
    log_prob = hmm.log_prob(torch.tensor([0.0, 1.0], dtype=torch.float64))
    # state 0 emits only 0: paths (0, 1) and (1, 1)
    first = 0.7 * 1.0 * 0.1 + 0.3 * 0.6**2 * 0.8
    assert log_prob.item() == pytest.approx(math.log(first * 2 * 0.4 * 0.6**2))
    (gradient,) = torch.autograd.grad(log_prob, total_count)
    assert gradient.isfinite().all()


def test_a_mask_still_hides_what_is_impossible():
    mask = torch.tensor([[True], [False], [True]]).expand(3, 2)
    observation_dist = dist.Categorical(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    hmm = make_hmm(observation_dist.expand([3, 2]).mask(mask))
    assert hmm.log_prob(torch.tensor([0, 1, 0])).item() == pytest.approx(0.0, abs=1e-6)
    assert hmm.log_prob(torch.tensor([0, 0, 1])).item() == -INF


class Softened(dist.Bernoulli):
    """With a density of its own."""

    def log_prob(self, value):
        return super().log_prob(value) / 2


def test_a_subclass_keeps_its_own_density():
    probs = torch.tensor([0.0, 0.4])
    x = torch.tensor([1.0, 0.0])
    hmm = make_hmm(Softened(probs))
    own = Softened(probs).log_prob(x.unsqueeze(-1))
    torch.testing.assert_close(hmm.chain(x)[2], own)


def test_validation_is_as_it_was():
    probs = torch.tensor([0.0, 0.4])
    for inner, outer in ((True, None), (None, True), (True, False)):
        hmm = make_hmm(dist.Bernoulli(probs, validate_args=inner), validate_args=outer)
        with pytest.raises(ValueError):
            hmm.log_prob(torch.tensor([0.5, 1.0]))
    unchecked = make_hmm(dist.Bernoulli(probs, validate_args=False), validate_args=False)
    assert not unchecked.log_prob(torch.tensor([0.5, 1.0])).isnan()


@pytest.mark.parametrize("validate_args", [True, False])
def test_the_callers_distribution_keeps_its_settings(validate_args):
    base = dist.Bernoulli(torch.tensor(MATRIX))
    before = base._validate_args
    hmm = make_hmm(base.to_event(1), validate_args=validate_args)
    hmm.log_prob(torch.ones(2, 3))
    assert base._validate_args is before
    assert type(base) is dist.Bernoulli
    assert "logits" not in vars(base)


def test_a_forecast_knows_what_is_impossible():
    hmm = RegimeHMM(
        initial_probs=torch.tensor([1.0, 0.0]),
        transition_probs=torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
        observation_dist=dist.Categorical(torch.tensor([[1.0, 0.0], [0.25, 0.75]])),
    )
    mixture = hmm.forecast(torch.tensor([0]), 2)
    expected = torch.tensor([[0.25, 1.0], [0.75, 0.0]]).log()
    found = torch.stack([mixture.log_prob(torch.full((2,), x)) for x in (0, 1)])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        mixture.expand((3, 2)).log_prob(torch.tensor([1, 1])), expected[1].expand(3, 2)
    )
    for duplicate in (copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))):
        torch.testing.assert_close(duplicate(mixture).log_prob(torch.tensor([1, 1])), expected[1])
    assert isinstance(mixture, dist.MixtureSameFamily)


@pytest.mark.parametrize("name", CASES)
def test_vmap(name):
    make, probs, value, *_ = CASES[name]
    if "sparse" in name:
        pytest.skip("boolean indexing")
    given = torch.tensor(probs, dtype=torch.float64)
    x = as_value(value, torch.float64)

    def log_prob(p, x):
        return RegimeHMM(
            INITIAL.log(),
            TRANSITION.log(),
            make(p),
            validate_args=False,
        ).log_prob(x)

    both = torch.stack([given, given.flip(0)])
    with pyro.validation_enabled(False):
        found = torch.func.vmap(log_prob, in_dims=(0, None))(both, x)
        expected = torch.stack([log_prob(p, x) for p in both])
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["Categorical", "Bernoulli, 1", "Poisson", "ZeroInflatedPoisson"])
def test_jit_trace(name):
    make, probs, value, *_ = CASES[name]
    given = torch.tensor(probs, dtype=torch.float64)
    x = as_value(value, torch.float64)

    def log_prob(p):
        return make_hmm(make(p)).log_prob(x)

    with pyro.validation_enabled(False):
        traced = torch.jit.trace(log_prob, (given.clamp(0.1, 0.8),), check_trace=False)
        torch.testing.assert_close(traced(given), log_prob(given))


# All of them torch's own.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.slow
@pytest.mark.usefixtures("validation_as_it_was")
@pytest.mark.parametrize("name", ["Categorical", "Bernoulli, 1", "mask", "ZeroInflatedPoisson"])
def test_compiles_without_a_break(name):
    make, probs, value, *_ = CASES[name]
    given = torch.tensor(probs, dtype=torch.float64)
    x = as_value(value, torch.float64)

    def log_prob(p):
        logits = INITIAL.log(), TRANSITION.log()
        return RegimeHMM(*logits, make(p), validate_args=False).log_prob(x)

    torch.distributions.Distribution.set_default_validate_args(False)
    compiled = torch.compile(log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(given), log_prob(given))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["Categorical", "Bernoulli, 0", "Bernoulli, 1", "Geometric"])
def test_logits_that_torch_has_computed_differ_in_the_last_digit(name, dtype):
    """As the logarithms of one number may, where it lies elsewhere in memory."""
    make, probs, value, *_ = CASES[name]
    observation_dist = _looked_at(make(torch.tensor(probs, dtype=dtype)))
    logits = observation_dist.logits
    vars(observation_dist)["logits"] = torch.nextafter(logits, torch.zeros_like(logits))
    density = make_hmm(observation_dist).chain(as_value(value, dtype))[2]
    expected = make_hmm(make(torch.tensor(probs, dtype=dtype))).chain(as_value(value, dtype))[2]
    assert (expected == -INF).any()
    torch.testing.assert_close(density, expected)


@pytest.mark.parametrize("kind", [dist.Bernoulli, dist.Geometric, dist.Categorical])
def test_probs_computed_without_a_graph_do_not_hide_the_logits(kind: type) -> None:
    """torch keeps what somebody has looked at in inference mode."""
    x = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    shape = (2, 3) if kind is dist.Categorical else (2,)
    logits = torch.linspace(-0.7, 0.3, torch.Size(shape).numel()).double().reshape(shape)
    gradients = []
    for is_seen in (False, True):
        leaf = logits.clone().requires_grad_()
        observed = kind(logits=leaf)
        if is_seen:
            with torch.inference_mode():
                assert observed.probs is not None
        hmm = RegimeHMM(torch.zeros(2).double(), torch.eye(2).double(), observed)
        gradients += torch.autograd.grad(hmm.log_prob(x), leaf)
    assert gradients[0].abs().max() > 0.01
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)
