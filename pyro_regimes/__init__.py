"""Hidden Markov models in Pyro: a distribution, EM, and an estimator of market regimes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyro_regimes.version import __version__

if TYPE_CHECKING:
    from pyro_regimes.distributions import Posterior, RegimeHMM, stationary_probs
    from pyro_regimes.estimator import (
        OnlineFilter,
        RegimeAutoregression,
        RegimeModel,
        RegimeRegression,
        select,
    )
    from pyro_regimes.estimator.walk_forward import walk_forward
    from pyro_regimes.infer import EM, EMResult, infer_regimes, standard_errors
    from pyro_regimes.reading.chunks import Chunks

__all__ = [
    "Chunks",
    "EM",
    "EMResult",
    "OnlineFilter",
    "Posterior",
    "RegimeAutoregression",
    "RegimeHMM",
    "RegimeModel",
    "RegimeRegression",
    "infer_regimes",
    "select",
    "standard_errors",
    "stationary_probs",
    "walk_forward",
    "__version__",
]

# Each name is imported when it is first used, because Pyro takes more than a second to load, and
# scikit-learn another.
_PLACES = {
    "Chunks": "reading.chunks",
    "EM": "infer",
    "EMResult": "infer",
    "OnlineFilter": "estimator",
    "Posterior": "distributions",
    "RegimeAutoregression": "estimator",
    "RegimeHMM": "distributions",
    "RegimeModel": "estimator",
    "RegimeRegression": "estimator",
    "infer_regimes": "infer",
    "select": "estimator",
    "standard_errors": "infer",
    "stationary_probs": "distributions",
    "walk_forward": "estimator",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
