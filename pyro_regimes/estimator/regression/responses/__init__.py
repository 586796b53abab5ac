"""The distributions that a response may have."""

from __future__ import annotations

from pyro_regimes.estimator import validation
from pyro_regimes.estimator.regression.responses.base import Response
from pyro_regimes.estimator.regression.responses.counts import Poisson
from pyro_regimes.estimator.regression.responses.gaussian import Gaussian
from pyro_regimes.estimator.regression.responses.positive import Exponential, Gamma
from pyro_regimes.estimator.regression.responses.successes import Bernoulli, Binomial

__all__ = ["RESPONSES", "Response", "response_of"]

#: By the names that ``family`` takes.
RESPONSES: dict[str, type[Response]] = {
    each.name: each for each in (Gaussian, Poisson, Bernoulli, Binomial, Exponential, Gamma)
}


def response_of(family: str, link: str | None) -> Response:
    """The family of this name with a link; None is the usual one.

    :raises ValueError: if there is none.
    """
    validation.one_of("family", family, tuple(RESPONSES))
    kind = RESPONSES[family]
    if link is not None:
        validation.one_of(f"link of family={family!r}", link, kind.links)
    return kind(link or kind.links[0])
