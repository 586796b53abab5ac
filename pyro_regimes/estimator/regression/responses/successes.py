r"""Successes in trials: logit or probit of the probability."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from scipy.special import expit, logit, ndtr, ndtri
from scipy.stats import bernoulli, binom
from torch import Tensor

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.estimator.regression.responses.base import Response, as_counts


class Bernoulli(Response):
    """``Bernoulli(logits=eta)``, or the normal distribution function of eta."""

    name = "bernoulli"
    links = ("logit", "probit")

    def check(self, y: Array, trials: Array | None) -> None:
        """Responses are 0 or 1."""
        wrong = ~(np.isnan(y) | (y == 0) | (y == 1))
        self._refuse(y, wrong, "0 or 1", "give counts of successes to family='binomial'")

    def working(self, y: Array, trials: Array | None) -> Array:
        """The link of the share, moved towards a half by half a trial."""
        number = 1.0 if trials is None else trials
        share = (y + 0.5) / (number + 1.0)
        found: Array = logit(share) if self.link == "logit" else ndtri(share)
        return found

    def distribution(self, eta: Tensor, scale: Any, trials: Any) -> Any:
        """A Bernoulli."""
        return dist.Bernoulli(**self._probs(eta))

    def mean(self, eta: Array) -> Array:
        """The probability."""
        found: Array = expit(eta) if self.link == "logit" else ndtr(eta)
        return found

    def marginal(self, eta: Array, scale: Array | None, trials: Array | None) -> Any:
        """A Bernoulli distribution."""
        return bernoulli(self.mean(eta))

    def _probs(self, eta: Tensor) -> dict[str, Any]:
        return {"logits": eta} if self.link == "logit" else {"probs": torch.special.ndtr(eta)}


class Binomial(Bernoulli):
    """The same of n trials."""

    name = "binomial"
    has_trials = True

    def check(self, y: Array, trials: Array | None) -> None:
        """Successes and failures are counts."""
        assert trials is not None
        for what, counts in (("successes", y), ("failures", trials - y)):
            wrong = as_counts(counts)
            self._refuse(counts, wrong, f"counts of {what}", "give numbers, and not shares")

    def distribution(self, eta: Tensor, scale: Any, trials: Any) -> Any:
        """A Binomial."""
        return dist.Binomial(trials, **self._probs(eta))

    def marginal(self, eta: Array, scale: Array | None, trials: Array | None) -> Any:
        """A binomial distribution."""
        return binom(1 if trials is None else trials, self.mean(eta))
