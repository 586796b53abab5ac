"""Information criteria of a fitted model, from its likelihood and its entropy."""

from __future__ import annotations

import math
from typing import NamedTuple


class Criteria(NamedTuple):
    r"""Information criteria; lower is better.

    With the log-likelihood :math:`\log p(x)`, p free parameters, n observed rows and the entropy H
    of the path of regimes given the data:

    .. math::
        \mathrm{AIC} &= -2 \log p(x) + 2p \\
        \mathrm{AICc} &= \mathrm{AIC} + 2p(p+1) / (n-p-1) \\
        \mathrm{BIC} &= -2 \log p(x) + p \log n \\
        \mathrm{ICL} &= \mathrm{BIC} + 2H

    AICc is that of Hurvich and Tsai (1989), and infinite where n is not larger than p + 1. ICL is
    the criterion of Biernacki, Celeux and Govaert (2000) with the expectation of the complete-data
    log-likelihood, :math:`\mathrm{E}[\log p(x, q) \mid x] = \log p(x) - H`. That of McLachlan and
    Peel (2000) for mixtures is its special case without a chain.
    """

    aic: float
    aicc: float
    bic: float
    icl: float


def information_criteria(
    log_likelihood: float, num_parameters: int, num_rows: float, entropy: float
) -> Criteria:
    """All criteria.

    :param num_rows: n, of rows with some value.
    :param entropy: H, in nats.
    """
    aic = -2 * log_likelihood + 2 * num_parameters
    left = num_rows - num_parameters - 1
    correction = 2 * num_parameters * (num_parameters + 1) / left if left > 0 else math.inf
    bic = -2 * log_likelihood + num_parameters * math.log(num_rows)
    return Criteria(aic, aic + correction, bic, bic + 2 * entropy)
