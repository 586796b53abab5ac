"""Standard errors of Pyro models, against finite differences and published numbers."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta
from torch import Tensor
from torch.testing import assert_close

from pyro_regimes import EM, RegimeHMM, stationary_probs
from pyro_regimes.infer import standard_errors
from tests import seeds
from tests.infer.test_published_regimes import column

MATRIX = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
T = 150
START = torch.tensor([0.4, 0.6]).double()


def chain(stationary: bool = False) -> dict[str, Tensor]:
    matrix = pyro.param("matrix", MATRIX.clone(), constraint=constraints.simplex)
    if stationary:
        return {"transition_probs": matrix, "initial_probs": stationary_probs(matrix)}
    start = pyro.param("start", START.clone(), constraint=constraints.simplex)
    return {"transition_probs": matrix, "initial_probs": start}


def tied(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor([[0.0, 1.0], [3.0, -1.0]]).double())
    start = torch.tensor([[1.0, 0.3], [0.3, 2.0]]).double()
    covariance = pyro.param("covariance", start, constraint=constraints.positive_definite)
    density = dist.MultivariateNormal(loc, covariance_matrix=covariance)
    with pyro.plate("series", len(x)):
        pyro.sample("x", RegimeHMM(duration=T, **chain(), observation_dist=density), obs=x)


def counts(x: Tensor) -> None:
    start = torch.tensor([2.0, 9.0]).double()
    rate = pyro.param("rate", start, constraint=constraints.positive)
    hmm = RegimeHMM(duration=T, **chain(stationary=True), observation_dist=dist.Poisson(rate))
    with pyro.plate("series", len(x)):
        pyro.sample("x", hmm, obs=x)


def factors(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor([[0.0, 1.0], [3.0, -1.0]]).double())
    start = torch.tensor([[[1.0, 0.0], [0.3, 2.0]], [[0.7, 0.0], [-0.3, 1.0]]]).double()
    factor = pyro.param("factor", start, constraint=constraints.lower_cholesky)
    density = dist.MultivariateNormal(loc, scale_tril=factor)
    with pyro.plate("series", len(x)):
        pyro.sample("x", RegimeHMM(duration=T, **chain(), observation_dist=density), obs=x)


def categories(x: Tensor) -> None:
    start = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]).double()
    probs = pyro.param("probs", start, constraint=constraints.simplex)
    hmm = RegimeHMM(duration=T, **chain(stationary=True), observation_dist=dist.Categorical(probs))
    with pyro.plate("series", len(x)):
        pyro.sample("x", hmm, obs=x)


def with_prior(x: Tensor) -> None:
    concentration = torch.tensor([[8.0, 2.0], [2.0, 6.0]]).double()
    matrix = pyro.sample("matrix", dist.Dirichlet(concentration).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2).double(), 3.0).to_event(1))
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0).double(), 1.0))
    hmm = RegimeHMM(
        initial_probs=START, transition_probs=matrix, duration=T,
        observation_dist=dist.Normal(loc, rate**-0.5),
    )  # fmt: skip
    with pyro.plate("series", len(x)):
        pyro.sample("x", hmm, obs=x)


#: A point of the latent sites of ``with_prior``.
PLACES = {
    "matrix": MATRIX,
    "loc": torch.tensor([0.0, 2.0]).double(),
    "rate": torch.tensor(1.5).double(),
}


def draws(model: Callable[..., None]) -> Tensor:
    """Data from the model at its first parameters, or at PLACES: three series."""
    torch.manual_seed(seeds.seed(0))
    blank = torch.zeros(3, T, *([2] if model in (tied, factors) else [])).double()
    placed = pyro.poutine.condition(pyro.poutine.uncondition(model), PLACES)
    found = pyro.poutine.trace(placed).get_trace(blank)
    value: Tensor = found.nodes["x"]["value"].detach()
    pyro.clear_param_store()
    return value


def begin(model: Callable[..., None], *args: Any) -> None:
    """Put the parameters of the model into the store."""
    pyro.poutine.trace(model).get_trace(*args)


def hessian(function: Callable[[np.ndarray], float], scale: np.ndarray) -> np.ndarray:
    """Central differences with three steps of Richardson's extrapolation, at 0.

    :param scale: the unit of each coordinate.
    """
    size = len(scale)

    def once(h: float) -> np.ndarray:
        found, steps = np.empty((size, size)), h * np.diag(scale)
        for i in range(size):
            for j in range(i + 1):
                corners = [
                    a * b * function(a * steps[i] + b * steps[j]) for a in (1, -1) for b in (1, -1)
                ]
                found[i, j] = found[j, i] = sum(corners) / (4 * h * h * scale[i] * scale[j])
        return found

    table = [once(h) for h in (0.08, 0.04, 0.02)]
    first = [(4 * fine - coarse) / 3 for coarse, fine in zip(table, table[1:])]
    found: np.ndarray = (16 * first[1] - first[0]) / 15
    return found


def log_joint(model: Callable[..., Any], values: dict[str, Tensor], x: Tensor) -> float:
    """By Pyro alone: parameters and latent sites at these values."""
    with torch.no_grad():
        put = pyro.poutine.condition if model is with_prior else pyro.poutine.substitute
        held = put(model, values)
        return float(pyro.poutine.trace(held).get_trace(x).log_prob_sum())


def moved(values: dict[str, Tensor], names: list[str], u: np.ndarray) -> dict[str, Tensor]:
    """The parameters with entries moved by u; the largest of a row of probabilities gives way."""
    found = {name: value.clone() for name, value in values.items()}
    for label, step in zip(names, u):
        name, _, place = label.partition("[")
        index = tuple(int(i) for i in place.rstrip("]").split(",")) if place else ()
        found[name][index] += step
        if name in ("matrix", "start", "probs"):
            largest = (*index[:-1], int(values[name][index[:-1]].argmax()))
            found[name][largest] -= step
        elif name == "covariance" and index[0] != index[1]:
            found[name][index[::-1]] += step
    return found


@pytest.mark.parametrize("model", [tied, counts, factors, categories, with_prior])
def test_the_information_is_the_hessian_of_the_log_joint(model):
    x = draws(model)
    guide = None
    if model is with_prior:
        guide = AutoDelta(model, init_loc_fn=lambda site: PLACES[site["name"]].clone())
        guide(x)
    else:
        begin(model, x)
    found = standard_errors(model, guide, x)
    names = [name.removeprefix("AutoDelta.") for name in found.names]
    values = {name.removeprefix("AutoDelta."): each for name, each in found.estimates.items()}
    scale = found.information.diagonal().abs().rsqrt().numpy()
    expected = -hessian(lambda u: log_joint(model, moved(values, names, u), x), scale)
    relative = np.outer(scale, scale)
    np.testing.assert_allclose(
        found.information.numpy() * relative, expected * relative, rtol=0, atol=1e-6
    )


def test_standard_errors_follow_from_the_information():
    x = draws(tied)
    begin(tied, x)
    found = standard_errors(tied, None, x)
    inverse = found.information.inverse()
    assert_close(found.covariance, inverse)
    assert found.names[0] == "loc[0, 0]"
    errors = dict(zip(found.names, inverse.diagonal().sqrt().tolist()))
    got = found.standard_errors
    # A probability and 1 less it have the same error.
    assert got["matrix"][0].tolist() == pytest.approx([errors["matrix[0, 1]"]] * 2)
    assert got["covariance"][0, 1] == got["covariance"][1, 0]
    assert float(got["covariance"][0, 1]) == pytest.approx(errors["covariance[1, 0]"])
    assert found.notes == [] or "not at a maximum" in found.notes[0]


def federal_funds(x: Tensor) -> None:
    start = torch.tensor([[0.95, 0.05], [0.05, 0.95]]).double()
    matrix = pyro.param("matrix", start, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([4.0, 9.0]).double())
    scale = pyro.param("scale", torch.tensor(2.0).double(), constraint=constraints.positive)
    hmm = RegimeHMM(
        initial_probs=stationary_probs(matrix), transition_probs=matrix,
        observation_dist=dist.Normal(loc, scale),
    )  # fmt: skip
    pyro.sample("x", hmm, obs=x)


def test_the_printed_standard_errors_of_the_federal_funds_model():
    x = column("fedfunds.csv", "fedfunds")
    result = EM(federal_funds).run(x, num_steps=2000, tol=1e-9)
    assert -result.history[-1] == pytest.approx(-508.63592, abs=1e-5)
    found = standard_errors(federal_funds, None, x)
    assert found.notes == []
    assert found.gain < 1e-6
    errors = found.standard_errors
    assert errors["matrix"][:, 0].tolist() == pytest.approx([0.0104002, 0.0268434], rel=1e-4)
    assert errors["loc"].tolist() == pytest.approx([0.1767083, 0.2999889], rel=1e-4)
    durations = found.delta(lambda p: 1 / (1 - p["matrix"].diagonal()))
    expected = durations.value**2 * errors["matrix"].diagonal()
    assert_close(durations.standard_errors, expected)


def row_scores(model: Callable[..., None], x: Tensor, found: Any) -> Tensor:
    """Derivatives of the log-likelihood of the first t rows, less those of the first t - 1."""
    sums = []
    for stop in range(1, x.shape[-1] + 1):
        u = torch.zeros(len(found.names)).double().requires_grad_()
        values = found.at(u)
        held = pyro.poutine.substitute(model, values)
        total = pyro.poutine.trace(held).get_trace(x[..., :stop]).log_prob_sum()
        sums.append(torch.autograd.grad(total, u)[0])
    return torch.stack(sums).diff(dim=0, prepend=torch.zeros_like(sums[:1][0]).unsqueeze(0))


def test_the_sandwich_of_one_series_is_that_of_its_rows():
    x = column("fedfunds.csv", "fedfunds")
    EM(federal_funds).run(x, num_steps=2000, tol=1e-9)
    found = standard_errors(federal_funds, None, x, method="sandwich")
    assert found.method == "sandwich, by row"
    scores = row_scores(federal_funds, x, found)
    inverse = found.information.inverse()
    assert_close(found.covariance, inverse @ scores.mT @ scores @ inverse)


LENGTHS = [7, 12, 9, 15, 11, 8, 13, 10, 14]


def several(x: Tensor, lengths: Tensor, packed: bool) -> None:
    loc = pyro.param("loc", torch.tensor([0.0, 2.0]).double())
    how = {"packed_lengths": lengths} if packed else {"lengths": lengths}
    hmm = RegimeHMM(**chain(), observation_dist=dist.Normal(loc, 1.0), **how)
    if packed:
        pyro.sample("x", hmm, obs=x)
    else:
        with pyro.plate("series", len(x)):
            pyro.sample("x", hmm, obs=x)


@pytest.mark.parametrize("packed", [False, True])
def test_the_sandwich_of_sequences_is_that_of_their_scores(packed):
    generator = seeds.generator(3)
    lengths = torch.tensor(LENGTHS)
    parts = [torch.randn(n, generator=generator).double() * 2 + 1 for n in LENGTHS]
    x = torch.cat(parts) if packed else torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    begin(several, x, lengths, packed)
    found = standard_errors(several, None, x, lengths, packed, method="sandwich")
    assert found.method == "sandwich, by sequence"
    scores = []
    for part in parts:
        u = torch.zeros(len(found.names)).double().requires_grad_()
        values = found.at(u)
        hmm = RegimeHMM(
            initial_probs=values["start"], transition_probs=values["matrix"],
            observation_dist=dist.Normal(values["loc"], 1.0),
        )  # fmt: skip
        scores.append(torch.autograd.grad(hmm.log_prob(part), u)[0])
    rows = torch.stack(scores)
    expected = found.information.inverse() @ rows.mT @ rows @ found.information.inverse()
    known = ~found.covariance.isnan()
    assert_close(found.covariance[known], expected[known])


def test_rows_of_too_few_sequences_begin_anew():
    """Padded and packed sequences have the same rows, though fewer sequences than parameters."""
    generator = seeds.generator(4)
    parts = [torch.randn(n, generator=generator).double() * 2 + 1 for n in (30, 21, 25)]
    lengths = torch.tensor([30, 21, 25])
    padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    begin(several, padded, lengths, False)
    one = standard_errors(several, None, padded, lengths, False, method="sandwich")
    two = standard_errors(several, None, torch.cat(parts), lengths, True, method="sandwich")
    assert one.method == two.method == "sandwich, by row"
    assert_close(one.covariance, two.covariance, equal_nan=True)


def test_a_sandwich_of_too_few_rows_is_refused():
    x = torch.tensor([[0.1, 2.0, 1.0]]).double()
    begin(several, x, torch.tensor([3]), False)
    with pytest.raises(ValueError, match="more rows than the 5 free parameters"):
        standard_errors(several, None, x, torch.tensor([3]), False, method="sandwich")


def test_parameters_on_a_bound_are_named_and_have_no_standard_error():
    def model(x: Tensor) -> None:
        start = torch.tensor([1.0, 0.0]).double()
        first = pyro.param("first", start, constraint=constraints.simplex)
        near = torch.tensor([[0.9, 0.1 - 1e-9, 1e-9], [0.3, 0.5, 0.2], [0.0, 0.0, 1.0]]).double()
        matrix = pyro.param("matrix", near, constraint=constraints.simplex)
        start = torch.tensor([0.0, 3.0, 8.0]).double()
        rate = pyro.param("rate", start, constraint=constraints.nonnegative)
        hmm = RegimeHMM(
            initial_probs=torch.nn.functional.pad(first, (0, 1)), transition_probs=matrix,
            observation_dist=dist.Poisson(rate),
        )  # fmt: skip
        pyro.sample("x", hmm, obs=x)

    x = torch.tensor([0, 0, 0, 0, 0, 0, 2, 4, 0, 0, 3, 2, 7, 9, 8, 11, 6, 8]).double()
    begin(model, x)
    found = standard_errors(model, None, x)
    held = {
        "first[0]", "first[1]", "matrix[0, 2]", "matrix[2, 0]", "matrix[2, 1]", "matrix[2, 2]",
        "rate[0]",
    }  # fmt: skip
    (note,) = [note for note in found.notes if "on a bound" in note]
    for name in held:
        assert name in note
        key, _, place = name.partition("[")
        index = tuple(int(i) for i in place.rstrip("]").split(","))
        assert found.standard_errors[key][index].isnan()
    assert found.standard_errors["matrix"][0, :2].isfinite().all()
    assert found.standard_errors["matrix"][1].isfinite().all()
    assert found.standard_errors["rate"][1:].isfinite().all()
    assert set(found.names).isdisjoint(held)


def test_singular_directions_are_named():
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([0.0, 3.0]).double())
        shift = pyro.param("shift", torch.tensor(0.5).double())
        scale = pyro.param("scale", torch.tensor(1.0).double(), constraint=constraints.positive)
        density = dist.Normal(loc + shift, scale)
        pyro.sample("x", RegimeHMM(**chain(stationary=True), observation_dist=density), obs=x)

    torch.manual_seed(seeds.seed(5))
    x = torch.cat([torch.randn(60), 3 + torch.randn(60)]).double() + 0.5
    begin(model, x)
    found = standard_errors(model, None, x)
    (note,) = [note for note in found.notes if "singular" in note]
    assert "loc[0], loc[1], shift" in note
    assert found.standard_errors["loc"].isnan().all()
    assert found.standard_errors["shift"].isnan()
    assert found.standard_errors["scale"].isfinite()
    assert found.standard_errors["matrix"].isfinite().all()
    # What does not move along the direction has an error.
    means = found.delta(lambda p: p["loc"] + p["shift"])
    assert means.standard_errors.isnan().all()
    with pytest.raises(ValueError, match=r"got none for \['loc\[0\]'"):
        found.draw(2)


def test_draws_are_admissible_and_have_the_covariance():
    x = draws(tied)
    EM(tied).run(x, num_steps=200, tol=1e-8)
    found = standard_errors(tied, None, x)
    if found.notes:  # a first probability may be on a bound
        assert "on a bound" in found.notes[0]
    drawn = found.draw(4000, seed=seeds.seed(6))
    for name, domain in (
        ("matrix", constraints.simplex), ("covariance", constraints.positive_definite),
    ):  # fmt: skip
        assert domain.check(torch.stack([each[name] for each in drawn])).all()
    loc = torch.stack([each["loc"] for each in drawn])
    ones = torch.ones(2, 2).double()
    assert_close(loc.std(0) / found.standard_errors["loc"], ones, rtol=0, atol=0.08)
    spread = torch.stack([each["covariance"] for each in drawn]).std(0)
    assert_close(spread / found.standard_errors["covariance"], ones, rtol=0, atol=0.1)


def test_nothing_of_the_callers_changes():
    x = draws(with_prior)
    guide = AutoDelta(with_prior)
    guide(x)
    store = pyro.get_param_store()
    before = {name: (leaf, leaf.detach().clone()) for name, leaf in store.named_parameters()}
    state = torch.get_rng_state()
    seen = []

    class Watch(pyro.poutine.messenger.Messenger):
        def _process_message(self, msg):
            seen.append(msg["name"])

    with Watch(), torch.no_grad():
        standard_errors(with_prior, guide, x)
        assert not torch.is_grad_enabled()
    assert seen == []
    assert torch.equal(torch.get_rng_state(), state)
    after = dict(store.named_parameters())
    assert list(after) == list(before)
    for name, (leaf, value) in before.items():
        assert after[name] is leaf and leaf.grad is None
        assert torch.equal(leaf, value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"method": "bootstrap"}, "expected method to be one of"),
        ({"guide": 3}, "expected guide to be a function or None, got int"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    x = draws(counts)
    begin(counts, x)
    guide = change.pop("guide", None)
    with pytest.raises(ValueError, match=message):
        standard_errors(counts, guide, x, **change)


def test_a_model_that_is_not_fitted_is_refused():
    x = draws(counts)
    with pytest.raises(ValueError, match=r"got none for \['rate', 'matrix'\]"):
        standard_errors(counts, None, x)
    assert list(pyro.get_param_store()) == []


def test_a_latent_site_without_a_point_is_refused():
    x = draws(with_prior)
    pyro.param("other", torch.ones(1))
    with pytest.raises(ValueError, match="expected every latent site to have a point"):
        standard_errors(with_prior, None, x)


def test_a_subsampled_plate_is_refused():
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([0.0, 2.0]))
        with pyro.plate("series", len(x), subsample_size=2) as index:
            hmm = RegimeHMM(
                initial_probs=START.float(), transition_probs=MATRIX.float(),
                observation_dist=dist.Normal(loc, 1.0),
            )  # fmt: skip
            pyro.sample("x", hmm, obs=x[index])

    x = torch.randn(4, 10)
    begin(model, x)
    with pytest.raises(ValueError, match="subsampled plate"):
        standard_errors(model, None, x)


def test_the_parameters_of_a_module_and_float32():
    module = torch.nn.Linear(1, 1)

    def model(x: Tensor, of: Tensor) -> None:
        pyro.module("net", module)
        loc = torch.cat([module(of), module(of) + 3.0], -1).unsqueeze(-3).squeeze(0)
        hmm = RegimeHMM(
            initial_probs=START.float(), transition_probs=MATRIX.float(),
            observation_dist=dist.Normal(loc, 1.0),
        )  # fmt: skip
        pyro.sample("x", hmm, obs=x)

    of = torch.linspace(-1, 1, 50).unsqueeze(-1)
    x = torch.randn(50)
    begin(model, x, of)
    found = standard_errors(model, None, x, of)
    assert found.names == ["net$$$weight[0, 0]", "net$$$bias[0]"]

    def value(weight: Tensor, bias: Tensor) -> Tensor:
        first = of.double() * weight + bias
        hmm = RegimeHMM(
            initial_probs=START, transition_probs=MATRIX,
            observation_dist=dist.Normal(torch.cat([first, first + 3.0], -1), 1.0),
        )  # fmt: skip
        return hmm.log_prob(x.double())

    at = (module.weight.double().squeeze(), module.bias.double().squeeze())
    expected = -torch.tensor(torch.autograd.functional.hessian(value, at))
    # float32 rounds products of 50 rows
    assert_close(found.information, expected, rtol=1e-4, atol=1e-3)
