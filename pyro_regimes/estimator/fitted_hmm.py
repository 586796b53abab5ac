"""Computations with a fitted model: likelihoods, probabilities, paths and forecasts."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily

from pyro_regimes.distributions import RegimeHMM, values
from pyro_regimes.distributions.imputation import impute
from pyro_regimes.estimator.annotations import Annotations
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.pyro_model import PyroModel, pyro_model, regime_hmm, to_arguments
from pyro_regimes.estimator.report import Imputation
from pyro_regimes.estimator.sequences import first_rows, pack
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.infer.isolation import plain_torch
from pyro_regimes.kernels import ops

#: The arguments of the kernels.
Chain = tuple[Tensor, Tensor, Tensor, Any]


class FittedHMM(NamedTuple):
    """Fitted parameters with a dtype and a device.

    Data are ``(T, D)``, NaN where entries are missing, with sequence lengths.
    """

    parameters: Parameters
    spec: Spec
    dtype: torch.dtype
    device: torch.device
    initial: str = "free"  #: what the initial distribution of the Pyro model is
    first_probs: Array | None = None  #: of the data's first regimes, ``(K,)`` or ``(N, K)``
    annotations: Annotations = Annotations()  #: what is known of the data

    def log_likelihood(self, data: Array, sizes: list[int]) -> float:
        """The log-likelihood of all sequences."""
        with self._computing():
            chain, offset = self._chain(data, sizes)
            return self._total(ops.log_likelihood, chain, sizes) - offset

    def posterior(self, data: Array, sizes: list[int], kind: str) -> tuple[float, Array]:
        """The log-likelihood and the "filtered" or "smoothed" probabilities ``(T, K)``."""
        with self._computing():
            chain, offset = self._chain(data, sizes)
            run = ops.expectations if kind == "smoothed" else ops.filter_probs
            log_likelihood, probs, *_ = run(*chain)
            total = self._total(lambda *chain: log_likelihood, chain, sizes)
            return total - offset, probs.cpu().double().numpy()

    def path_entropy(self, data: Array, sizes: list[int]) -> float:
        r"""The entropy of the path of regimes given all data, in nats; weights do not count.

        .. math:: H = -\sum_q p(q \mid x) \log p(q \mid x)
            = \log p(x) - \mathrm{E}[\log p(x, q) \mid x]
        """
        with self._computing():
            initial, transition, logits, lengths = self._chain(data, sizes)[0]
            log_likelihood, probs, transitions = ops.expectations(
                initial, transition, logits, lengths
            )
            firsts = probs[_firsts(sizes).to(self.device)].sum(0)
            parts = [(firsts, initial), (transitions, transition), (probs, logits)]
            joint = sum(
                torch.where(weight > 0, weight.double() * value, 0.0).sum()
                for weight, value in parts
            )
            return max(float(log_likelihood - joint), 0.0)

    def score_samples(self, data: Array, sizes: list[int]) -> Array:
        r"""The log-density of each row given the rows before it, ``(T,)``.

        .. math:: \log p(x_t \mid x_1, ..., x_{t-1})
            = \log \sum_k p(q_t = k \mid x_1, ..., x_{t-1})\, b_k(x_t)
        """
        with self._computing():
            scores = _row_scores(self._chain(data, sizes)[0], sizes)
            return scores - self.spec.units_of(self.parameters.emission).log_jacobians(data)

    def log_weights(self, data: Array, sizes: list[int], kind: str) -> Array:
        r"""The log-probability of each regime given other rows, ``(T, K)``, up to a constant.

        "forecast" is :math:`\log p(q_t \mid x_1, ..., x_{t-1})`, "ordinary" is
        :math:`\log p(q_t \mid x_1, ..., x_{t-1}, x_{t+1}, ..., x_T)`. The second is the sum of the
        first and of :math:`\log \beta_t = \log p(x_{t+1}, ..., x_T \mid q_t)`. As
        :math:`b_t \beta_t` is filtered backwards in time, with :math:`A^\top` in the place of A,
        both terms are predictions by the same function.
        """
        with self._computing():
            (initial, transition, logits, lengths), _ = self._chain(data, sizes)
            weights = _predicted_logits((initial, transition, logits, lengths), sizes)
            if self.first_probs is not None and self.first_probs.ndim == 2:
                first = torch.tensor(self.first_probs, dtype=self.dtype, device=self.device)
                weights[_firsts(sizes)] = first.log()
            if kind == "ordinary":
                backwards = transition.transpose(-1, -2).flip(-3)
                if isinstance(lengths, ops.Packing):
                    lengths = ops.Packing(lengths.lengths.flip(0))
                chain = torch.zeros_like(initial), backwards, logits.flip(-2), lengths
                weights = weights + _predicted_logits(chain, sizes[::-1]).flip(-2)
            found: Array = weights.cpu().double().numpy()
            return found

    def log_densities(self, data: Array) -> Array:
        r"""The log-density of each row in each regime, :math:`\log b_k(x_t)`, ``(T, K)``.

        That of a row does not depend on what other rows hold, to the bit: rows with missing entries
        are computed one by one, and others in a batch whose size does not depend on these.
        """
        spec, emission = self.spec, self.parameters.emission
        incomplete = np.flatnonzero(np.isnan(data).any(-1))
        filled = data.copy()
        if len(incomplete):
            state = np.zeros(1, dtype=np.int64)
            filled[incomplete] = spec.draw(emission, state, np.random.RandomState(0))
        with self._computing():
            found = self._row_logits(filled)
            for row in incomplete:
                found[row] = self._row_logits(data[row : row + 1])[0]
        return found

    def _row_logits(self, data: Array) -> Array:
        hmm, x, _ = self._replace(first_probs=None)._scaled(data, [len(data)])
        logits: Array = hmm.chain(x)[2].cpu().double().numpy()
        units = self.spec.units_of(self.parameters.emission)
        return logits - units.log_jacobians(data)[:, np.newaxis]

    def decode(
        self, data: Array, sizes: list[int], algorithm: str
    ) -> tuple[float, npt.NDArray[np.int64]]:
        """The path by "viterbi" or "smoothing", and its log-probability with the data."""
        with self._computing():
            chain, offset = self._chain(data, sizes)
            if algorithm == "viterbi":
                path = ops.viterbi(*chain)
            else:
                path = ops.expectations(*chain).smoothed_probs.argmax(-1)
            initial, transition, logits, lengths = chain
            log_prob = ops.complete_log_likelihood(
                initial, transition, logits, path.clamp(min=0), lengths
            )
            return float(log_prob) - offset, path.cpu().numpy()

    def lasting_path(
        self, data: Array, sizes: list[int], min_duration: int, jump_penalty: float
    ) -> npt.NDArray[np.int64]:
        """The most likely path ``(T,)`` of stays of at least so many rows, less c a change."""
        with self._computing():
            initial, transition, logits, lengths = self._chain(data, sizes)[0]
            if jump_penalty:
                # Beside a large penalty, float32 would lose what tells changes from each other.
                chain = (initial, transition, logits)
                initial, transition, logits = (each.double() for each in chain)
                own = torch.eye(logits.shape[-1], dtype=torch.bool, device=self.device)
                transition = torch.where(own, transition, transition - jump_penalty)
            if min_duration == 1:
                return ops.viterbi(initial, transition, logits, lengths).cpu().numpy()
            paths, first = [], 0
            for size in sizes:
                rows, moves = slice(first, first + size), slice(first, first + size - 1)
                own_moves = transition if len(transition) == 1 else transition[moves]
                path = ops.min_duration_viterbi(initial, own_moves, logits[rows], min_duration)
                paths.append(path.cpu().numpy())
                first += size
            return np.concatenate(paths)

    def impute(self, data: Array, sizes: list[int]) -> Imputation:
        """The mean and the variance of each entry given all that are observed."""
        with self._computing():
            missing = np.isnan(data)
            if not missing.any():
                return Imputation(data.copy(), np.zeros_like(data))
            hmm, x, _ = self._scaled(data, sizes)
            probs = ops.expectations(*self._chain(data, sizes)[0]).smoothed_probs
            filled = values.fill_missing(x, hmm.observation_dist, hmm.missing)
            found = impute(hmm.observation_dist, x, *filled, probs)
            mean, variance = (each.cpu().double().numpy() for each in found)
        units = self.spec.units_of(self.parameters.emission)
        return Imputation(
            np.where(missing, units.unscale(mean), data),
            np.where(missing, units.unit**2 * variance, 0.0),
        )

    def mixture(self, probs: Array) -> MixtureSameFamily:
        """Mixtures of the observation distributions of the regimes, with weights ``(n, K)``."""
        with self._computing():
            weights = Categorical(torch.tensor(probs, dtype=self.dtype, device=self.device))
            density = self.spec.observation_dist(self._arguments(self.parameters))
            return MixtureSameFamily(weights, density.expand(weights.probs.shape))

    def pyro_model(self) -> PyroModel:
        """A Pyro model function that starts from these parameters."""
        return pyro_model(self._arguments(self.parameters), self.spec, initial=self.initial)

    def _computing(self) -> AbstractContextManager[None]:
        """A context in which torch computes without the caller's modes."""
        return plain_torch(self.device)

    def _arguments(self, parameters: Parameters) -> dict[str, Tensor]:
        where: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        return to_arguments(parameters, self.spec, **where)

    def _total(self, run: Callable[..., Tensor], chain: Chain, sizes: list[int]) -> float:
        """The log-likelihood of all sequences, by their weights.

        :param run: computes it without weights.
        """
        if self.annotations.weights is None:
            return float(run(*chain))
        return float(self.annotations.sum(_row_scores(chain, sizes), sizes))

    def _chain(self, data: Array, sizes: list[int]) -> tuple[Chain, float]:
        """The arguments of the kernels for scaled data z, and log p(z) - log p(x)."""
        hmm, x, offset = self._scaled(data, sizes)
        initial, transition, logits, lengths = hmm.chain(x)
        if self.first_probs is not None and self.first_probs.ndim == 2:
            # Each sequence has its own: they count with its first observation.
            first = torch.tensor(self.first_probs, dtype=self.dtype, device=self.device).log()
            logits = logits.index_add(-2, _firsts(sizes).to(self.device), first)
            initial = torch.zeros_like(initial)
        return (initial, transition, logits, lengths), offset

    def _scaled(self, data: Array, sizes: list[int]) -> tuple[RegimeHMM, Tensor, float]:
        """Scale the model and the data to units that suit any dtype.

        :return: the distribution, the scaled data z, and log p(z) - log p(x).
        """
        emission = self.parameters.emission
        units = self.spec.units_of(emission)
        x, lengths = pack(units.scale(data), sizes, dtype=self.dtype, device=self.device)
        scaled = self.parameters._replace(emission=self.spec.scale(emission, units))
        arguments = self._arguments(scaled)
        if self.first_probs is not None and self.first_probs.ndim == 1:
            arguments["initial_probs"] = torch.tensor(
                self.first_probs, dtype=self.dtype, device=self.device
            )
        beside: dict[str, Any] = dict(self.annotations.of_distribution(self.device))
        hmm = regime_hmm(arguments, self.spec, packed_lengths=lengths, **beside)
        return hmm, x, self.annotations.log_jacobian(units, data, sizes)


def _row_scores(chain: Chain, sizes: list[int]) -> Array:
    """The log-density of each row given the rows before it."""
    predicted = _predicted_logits(chain, sizes)
    scores: Array = (predicted + chain[2]).logsumexp(-1).cpu().double().numpy()
    return scores


def _predicted_logits(chain: Chain, sizes: list[int]) -> Tensor:
    """The log-probabilities of the regimes of each row given the rows before it, ``(T, K)``."""
    initial, transition, logits, lengths = chain
    filtered = ops.filter_logits(initial, transition, logits, lengths)
    later = (filtered[:-1].unsqueeze(-1) + transition).logsumexp(-2)
    predicted = torch.cat([initial.unsqueeze(0), later])
    predicted[_firsts(sizes)] = initial
    return predicted


def _firsts(sizes: list[int]) -> Tensor:
    """The first row of each sequence."""
    return torch.from_numpy(first_rows(sizes))
