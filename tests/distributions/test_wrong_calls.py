"""What each wrong call of RegimeHMM says, and what the validation switches do."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import Distribution

from pyro_regimes.distributions import RegimeHMM

INF, NAN = math.inf, math.nan
K = 3

GOOD = {
    "initial_logits": torch.zeros(K),
    "transition_logits": torch.zeros(K, K),
    "observation_dist": dist.Normal(torch.zeros(K), 1.0),
}
GOOD_PROBS = {
    "initial_probs": torch.full((K,), 1 / K),
    "transition_probs": torch.full((K, K), 1 / K),
    "observation_dist": dist.Normal(torch.zeros(K), 1.0),
}
VALUE = torch.zeros(5)
SKEW = torch.ones(K, K) - torch.eye(K)


def build(**changes):
    return lambda: RegimeHMM(**{**GOOD, **changes})


def from_probs(**changes):
    return lambda: RegimeHMM(**{**GOOD_PROBS, **changes})


def call(method, *args, **changes):
    return lambda: getattr(RegimeHMM(**{**GOOD, **changes}), method)(*args)


VECTORS = dist.Normal(torch.zeros(K, 2), 1.0).to_event(1)

WRONG_CALLS = {
    # what is not there, or twice
    "no observation_dist": (
        build(observation_dist=None),
        "expected observation_dist to be a distribution, got NoneType",
    ),
    "a tensor as observation_dist": (
        build(observation_dist=torch.zeros(K)),
        "expected observation_dist to be a distribution, got Tensor",
    ),
    "a class as observation_dist": (
        build(observation_dist=dist.Normal),
        "expected observation_dist to be a distribution, got DistributionMeta",
    ),
    "no start": (
        build(initial_logits=None),
        "expected exactly one of initial_logits and initial_probs, got neither",
    ),
    "two starts": (
        build(initial_probs=GOOD_PROBS["initial_probs"]),
        "expected exactly one of initial_logits and initial_probs, got both",
    ),
    "no transitions": (
        build(transition_logits=None),
        "expected exactly one of transition_logits and transition_probs, got neither",
    ),
    "two transitions": (
        build(transition_probs=GOOD_PROBS["transition_probs"]),
        "expected exactly one of transition_logits and transition_probs, got both",
    ),
    # sizes
    "a scalar observation_dist": (
        build(observation_dist=dist.Normal(0.0, 1.0)),
        r"expected observation_dist to have a batch shape that ends in .* got batch shape \(\)",
    ),
    "a vector taken for the states": (
        build(observation_dist=dist.Normal(torch.zeros(K), 1.0).to_event(1)),
        r"expected observation_dist to have a batch shape .* got batch shape \(\)",
    ),
    "no states": (
        build(observation_dist=dist.Normal(torch.zeros(0), 1.0)),
        r"expected observation_dist to have a batch shape .* got batch shape \(0,\)",
    ),
    "no time steps": (
        build(observation_dist=dist.Normal(torch.zeros(0, K), 1.0)),
        r"expected observation_dist to have a batch shape .* got batch shape \(0, 3\)",
    ),
    "a start of another size": (
        build(initial_logits=torch.zeros(4)),
        r"expected initial_logits to end in \(3,\), .* 3 states, got shape \(4,\)",
    ),
    "a scalar start": (
        build(initial_logits=torch.tensor(0.0)),
        r"expected initial_logits to end in \(3,\), .* 3 states, got shape \(\)",
    ),
    "transitions that are not square": (
        build(transition_logits=torch.zeros(3, 4)),
        r"expected transition_logits to end in \(3, 3\), .* 3 states, got shape \(3, 4\)",
    ),
    "one row of transitions": (
        from_probs(transition_probs=torch.full((K,), 1 / K)),
        r"expected transition_probs to end in \(3, 3\), .* 3 states, got shape \(3,\)",
    ),
    "a batch of matrices taken for time": (
        build(transition_logits=torch.zeros(5, K, K), duration=8),
        r"expected equal numbers of time steps, got 8 from duration, 6 from .*\.unsqueeze\(-3\)",
    ),
    # types
    "a list as start": (
        build(initial_logits=[0.0] * K),
        "expected initial_logits to be a floating point tensor, got list",
    ),
    "a NumPy array as transitions": (
        build(transition_logits=np.zeros((K, K))),
        "expected transition_logits to be a floating point tensor, got ndarray",
    ),
    "integer logits": (
        build(initial_logits=torch.zeros(K, dtype=torch.long)),
        "expected initial_logits to be a floating point tensor, got dtype torch.int64",
    ),
    "complex logits": (
        build(initial_logits=torch.zeros(K, dtype=torch.complex64)),
        "expected initial_logits to be a floating point tensor, got dtype torch.complex64",
    ),
    # entries
    "NaN logits": (
        build(initial_logits=torch.tensor([0.0, NAN, 0.0])),
        r"rows of initial_logits to hold a finite entry, and no NaN or inf, got \[0.0, nan, 0.0\]",
    ),
    "inf logits": (
        build(transition_logits=torch.zeros(K, K).fill_diagonal_(INF)),
        r"rows of transition_logits to hold a finite .* got \[inf, 0.0, 0.0\]",
    ),
    "a row without a state to go to": (
        build(transition_logits=SKEW.tril().log()),
        r"rows of transition_logits to hold a finite .* got \[-inf, -inf, -inf\]",
    ),
    "probabilities above 1": (
        from_probs(initial_probs=torch.tensor([0.5, 0.75, 0.0])),
        r"rows of initial_probs to be .* sum to 1, got \[0.5, 0.75, 0.0\] of sum 1.25",
    ),
    "counts as probabilities": (
        from_probs(transition_probs=torch.ones(K, K)),
        r"rows of transition_probs to .* sum to 1, got \[1.0, 1.0, 1.0\] of sum 3",
    ),
    "probabilities of columns": (
        from_probs(transition_probs=SKEW.triu(1) / 2 + torch.eye(K) / 2),
        r"rows of transition_probs to be non-negative and sum to 1, got \[0.5, 0.5, 0.5\]",
    ),
    "negative probabilities": (
        from_probs(initial_probs=torch.tensor([-0.5, 0.5, 1.0])),
        r"rows of initial_probs to be non-negative and sum to 1, got \[-0.5, 0.5, 1.0\]",
    ),
    "NaN probabilities": (
        from_probs(initial_probs=torch.full((K,), NAN)),
        "rows of initial_probs to be non-negative and sum to 1, got .nan, nan, nan. of sum nan",
    ),
    "all zero": (
        from_probs(initial_probs=torch.zeros(K)),
        r"rows of initial_probs to be non-negative .* got \[0.0, 0.0, 0.0\] of sum 0",
    ),
    # duration and lengths
    "duration 0": (
        build(duration=0),
        "expected duration to be a positive integer, got 0",
    ),
    "duration 2.0": (
        build(duration=2.0),
        "expected duration to be a positive integer, got 2.0",
    ),
    "validate_args in the place of duration": (
        build(duration=True),
        "expected duration to be a positive integer, got True",
    ),
    "a list of lengths": (
        build(lengths=[1, 2]),
        "expected lengths to be an integer tensor, got list",
    ),
    "lengths that are not integers": (
        build(lengths=torch.tensor([1.0, 2.0])),
        "expected lengths to be an integer tensor, got dtype torch.float32",
    ),
    "a mask as lengths": (
        build(lengths=torch.tensor([True, False])),
        "expected lengths to be an integer tensor, got dtype torch.bool",
    ),
    "length 0": (
        build(lengths=torch.tensor([0, 2])),
        "expected lengths from 1, got from 0 to 2",
    ),
    "lengths above duration": (
        build(lengths=torch.tensor([2, 6]), duration=5),
        "expected lengths from 1 to the 5 time steps of the data, got from 2 to 6",
    ),
    "lengths above the value's": (
        call("log_prob", torch.zeros(2, 5), lengths=torch.tensor([2, 6])),
        "expected lengths from 1 to the 5 time steps of the data, got from 2 to 6",
    ),
    "lengths of another batch": (
        build(lengths=torch.tensor([2, 2]), initial_logits=torch.zeros(5, K)),
        r"expected batch shapes that broadcast, got initial \(5,\), .*lengths \(2,\)",
    ),
    "lengths without arithmetic": (
        build(lengths=torch.tensor([1, 2]).to(torch.uint16)),
        r"expected lengths of uint8 or signed integers, got dtype torch.uint16.*lengths.long\(\)",
    ),
    "an integer of 400 digits as lengths": (
        build(lengths=10**400),
        "expected lengths to be an integer tensor, got int",
    ),
    "a duration of 400 digits": (
        build(duration=10**400),
        "expected duration to be .* at most 9223372036854775807, got too large an integer",
    ),
    "a duration of minus 5000 digits": (
        build(duration=-(10**5000)),
        "expected duration to be a positive integer, got a negative integer of 16610 bits",
    ),
    "a forecast of 400 digits": (
        call("forecast", VALUE, 10**400),
        "expected num_steps to be .* at most 9223372036854775807, got too large an integer",
    ),
    # tensors without values, and of dtypes without operations
    "a start on meta": (
        build(initial_logits=torch.zeros(K, device="meta")),
        r"expected initial_logits to hold values, got a tensor of shape \(3,\) on the device meta",
    ),
    "transitions on meta": (
        from_probs(transition_probs=torch.zeros(K, K, device="meta")),
        "expected transition_probs to hold values, .* on the device meta, which has none",
    ),
    "an observation_dist on meta": (
        build(observation_dist=dist.Normal(torch.zeros(K, device="meta"), 1, validate_args=False)),
        "expected the loc of observation_dist to hold values, .* on the device meta",
    ),
    "an observation_dist of vectors on meta": (
        build(
            observation_dist=dist.Normal(
                torch.zeros(K, 2, device="meta"), 1, validate_args=False
            ).to_event(1)
        ),
        "expected the loc of observation_dist to hold values, .* on the device meta",
    ),
    "lengths on meta": (
        build(lengths=torch.ones(2, dtype=torch.long, device="meta")),
        r"expected lengths to hold values, got a tensor of shape \(2,\) on the device meta",
    ),
    "a duration on meta": (
        build(duration=torch.tensor(5, device="meta")),
        "expected duration to be a positive integer, got tensor",
    ),
    "a value on meta": (
        call("log_prob", VALUE.to("meta")),
        r"expected value on the device of the arguments, cpu, .* on meta; use value.to\('cpu'\)",
    ),
    "logits of 8 bits": (
        build(initial_logits=torch.zeros(K).to(torch.float8_e4m3fn)),
        r"expected initial_logits to hold float16.* got dtype torch.float8_e4m3fn; use .float\(\)",
    ),
    "a value of 8 bits": (
        call("viterbi", VALUE.to(torch.float8_e5m2)),
        r"expected value to hold float16, .* got dtype torch.float8_e5m2; use .float\(\)",
    ),
    # values
    "a list as value": (
        call("log_prob", [0.0, 1.0]),
        r"expected value to be a tensor, got list: use torch.as_tensor\(value\)",
    ),
    "a NumPy array as value": (
        call("posterior", np.zeros(5)),
        r"expected value to be a tensor, got ndarray: use torch.as_tensor\(value\)",
    ),
    "a scalar value": (
        call("viterbi", torch.tensor(0.0)),
        r"expected value to have shape \(..., T\) \+ \(\), got shape \(\)",
    ),
    "a vector where T vectors are expected": (
        call("log_prob", torch.zeros(2), observation_dist=VECTORS),
        r"expected value to have shape \(..., T\) \+ \(2,\), got shape \(2,\)",
    ),
    "observations of another size": (
        call("posterior", torch.zeros(5, 3), observation_dist=VECTORS),
        r"expected value to have shape \(..., T\) \+ \(2,\), got shape \(5, 3\)",
    ),
    "an empty value": (
        call("log_prob", torch.zeros(0)),
        r"expected value to have one or more time steps at dimension -1, got shape \(0,\)",
    ),
    "a value of another duration": (
        call("filter", VALUE, duration=4),
        r"expected value to have 4 time steps at dimension -1, got shape \(5,\)",
    ),
    "a value of another batch": (
        call("log_prob", torch.zeros(4, 5), initial_logits=torch.zeros(2, K)),
        r"value to have a batch shape that broadcasts with \(2,\), got shape \(4, 5\)",
    ),
    "NaN in the value": (
        call("log_prob", torch.tensor([0.0, NAN, 0.0, NAN])),
        r"expected value to lie in the support Real\(\) .* got \[nan, nan\] at 2 steps",
    ),
    "a value outside the support": (
        call(
            "sample_posterior", torch.tensor([1, -2]), observation_dist=dist.Poisson(torch.ones(K))
        ),
        r"expected value to lie in the support .* got \[-2\] at 1 steps of value of shape \(2,\)",
    ),
    "a forecast of 0 steps": (
        call("forecast", VALUE, 0),
        "expected num_steps to be a positive integer, got 0",
    ),
    "a forecast of half a step": (
        call("forecast", VALUE, 0.5),
        "expected num_steps to be a positive integer, got 0.5",
    ),
    "a forecast where transitions vary": (
        call("forecast", VALUE, 2, transition_logits=torch.zeros(4, K, K)),
        r"constant in time, got transitions of shape \(4, 3, 3\)",
    ),
    "a forecast where observations vary": (
        call("forecast", VALUE, 2, observation_dist=dist.Normal(torch.zeros(5, K), 1.0)),
        r"constant in time, .* observation_dist of batch shape \(5, 3\)",
    ),
    "a draw without duration": (
        call("sample"),
        "expected duration, the number of steps to sample, got None",
    ),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_calls(name):
    wrong, message = WRONG_CALLS[name]
    with pytest.raises(ValueError, match=f"expected .*{message.removeprefix('expected ')}"):
        wrong()


def test_numpy_integers_will_do():
    hmm = RegimeHMM(**GOOD, duration=np.int64(5))
    assert type(hmm.duration) is int
    assert hmm.forecast(VALUE, np.int32(2)).batch_shape == (2,)


class TestValidation:
    wrong_rows = {**GOOD_PROBS, "initial_probs": torch.tensor([1.0, 2.0, 1.0])}

    def test_off_skips_the_arguments(self):
        hmm = RegimeHMM(**self.wrong_rows, validate_args=False)
        assert hmm.initial_probs.tolist() == [0.25, 0.5, 0.25]
        nan = {**GOOD, "initial_logits": torch.full((K,), NAN)}
        assert RegimeHMM(**nan, validate_args=False).log_prob(VALUE).isnan()

    def test_off_skips_the_value(self):
        observed = dist.Uniform(torch.zeros(K), 1.0, validate_args=False)
        value = torch.tensor([0.5, 2.0])
        arguments = {**GOOD, "observation_dist": observed}
        assert RegimeHMM(**arguments, validate_args=False).log_prob(value) == -INF
        with pytest.raises(ValueError, match="to lie in the support"):
            RegimeHMM(**arguments, validate_args=True).log_prob(value)

    def test_pyros_switch_is_honoured_and_left_alone(self):
        before = Distribution._validate_args
        with pyro.validation_enabled(False):
            hmm = RegimeHMM(**self.wrong_rows)
            hmm.expand((2,)).log_prob(VALUE)
            with pytest.raises(ValueError, match="sum to 1"):
                RegimeHMM(**self.wrong_rows, validate_args=True)
            assert Distribution._validate_args is False
        with pyro.validation_enabled(True):
            with pytest.raises(ValueError, match="sum to 1"):
                RegimeHMM(**self.wrong_rows)
            RegimeHMM(**self.wrong_rows, validate_args=False)
            assert Distribution._validate_args is True
        assert Distribution._validate_args is before

    def test_expand_keeps_it(self):
        nan = torch.full((5,), NAN)
        observed = dist.Normal(torch.zeros(K), 1.0, validate_args=False)
        lax = RegimeHMM(**{**GOOD, "observation_dist": observed}, validate_args=False)
        assert lax.expand((2,)).log_prob(nan).isnan().all()
        strict = RegimeHMM(**{**GOOD, "observation_dist": observed}, validate_args=True)
        with pytest.raises(ValueError, match="to lie in the support"):
            strict.expand((2,)).log_prob(nan)

    def test_a_value_need_be_possible_in_one_state_only(self):
        observed = dist.Uniform(torch.zeros(2), torch.tensor([1.0, 2.0]), validate_args=False)
        hmm = RegimeHMM(torch.zeros(2), torch.zeros(2, 2), observed)
        torch.testing.assert_close(
            hmm.log_prob(torch.tensor([1.5])).exp(), torch.tensor(0.25), rtol=1e-6, atol=0.0
        )

    def test_the_states_may_have_a_batch_that_the_value_lacks(self):
        low = torch.zeros(2, 1, K)
        low[1] = 3.0
        observed = dist.Uniform(low, low + 1.0, validate_args=False)
        hmm = RegimeHMM(torch.zeros(K), torch.zeros(K, K), observed)
        with pytest.raises(ValueError, match=r"(?s)to lie in the support .* got \[0.5, 0.5\] at 2"):
            hmm.log_prob(torch.tensor([0.5, 0.5]))

    def test_an_observation_dist_without_a_support(self):
        class Shy(dist.TorchDistribution):
            """One whose author did not say where its values lie."""

            arg_constraints = {}

            def __init__(self):
                super().__init__(torch.Size([K]))

            def log_prob(self, value):
                return -((value - torch.arange(3.0)) ** 2)

            def sample(self, sample_shape=()):
                return torch.arange(3.0).expand(torch.Size(sample_shape) + (K,))

        hmm = RegimeHMM(torch.zeros(K), torch.zeros(K, K), Shy(), duration=4)
        value = hmm.sample((2,))
        assert value.shape == (2, 4)
        assert hmm.log_prob(value).isfinite().all()


def rows_of_probs(requires_grad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    initial, transition = GOOD_PROBS["initial_probs"], torch.eye(K) * 0.7 + 0.1
    return initial.clone().requires_grad_(requires_grad), transition.requires_grad_(requires_grad)


class TestProbabilitiesGivenAsLogits:
    message = "are read as logits.*initial_probs=..., transition_probs=..."

    @pytest.mark.parametrize("requires_grad", [False, True])
    def test_warns_at_the_line_that_makes_it(self, requires_grad):
        arguments = rows_of_probs(requires_grad)
        with pytest.warns(UserWarning, match=self.message) as caught:
            RegimeHMM(*arguments, GOOD["observation_dist"])
        assert [each.filename for each in caught] == [__file__]

    def test_warns_of_parameters_with_a_simplex_constraint(self):
        pyro.clear_param_store()

        def model():
            parts = zip(("initial", "transition"), rows_of_probs(), strict=True)
            logits = [pyro.param(name, part, dist.constraints.simplex) for name, part in parts]
            pyro.sample("x", RegimeHMM(*logits, GOOD["observation_dist"]), obs=VALUE)

        svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        with pytest.warns(UserWarning, match=self.message) as caught:
            svi.step()
        assert caught[0].filename == __file__

    def test_once_for_each_line(self):
        def make():
            return RegimeHMM(*rows_of_probs(), GOOD["observation_dist"])

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for _ in range(3):
                make()
            RegimeHMM(*rows_of_probs(), GOOD["observation_dist"])
        assert len(caught) == 2

    def test_of_a_batch_and_of_time(self):
        initial, transition = rows_of_probs()
        with pytest.warns(UserWarning, match=self.message):
            RegimeHMM(initial.expand(5, K), transition.expand(5, 4, K, K), GOOD["observation_dist"])

    @pytest.mark.parametrize("num_states", [1, 2, 3, 7])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_says_nothing_of_logits(self, num_states, dtype):
        """Warnings are errors in this suite."""
        observed = dist.Normal(torch.zeros(num_states), 1.0)
        uniform = torch.full((num_states,), 1 / num_states, dtype=dtype)
        eye = torch.eye(num_states, dtype=dtype)
        for initial, transition in (
            (uniform.log(), eye.log()),
            (torch.zeros_like(uniform), eye * 2),
            (torch.zeros_like(uniform), eye),
            (uniform, 2 * eye),
            (eye[0], eye - 1),
            (torch.ones_like(uniform), torch.ones_like(eye)),
        ):
            RegimeHMM(initial, transition, observed)
        RegimeHMM(initial_probs=uniform, transition_logits=eye, observation_dist=observed)
        last = torch.stack([uniform, 2 * uniform])  # its first row alone is one of probabilities
        RegimeHMM(last, eye, observed)

    def test_says_nothing_without_validation(self):
        RegimeHMM(*rows_of_probs(), GOOD["observation_dist"], validate_args=False)

    def test_says_nothing_of_one_state(self):
        RegimeHMM(torch.ones(1), torch.ones(1, 1), dist.Normal(torch.zeros(1), 1.0))
