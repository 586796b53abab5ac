"""Hidden Markov models in Pyro: a distribution, EM, and an estimator of market regimes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_regimes.distributions import Posterior, RegimeHMM
from pyro_regimes.infer import EM, EMResult, infer_regimes
from pyro_regimes.version import __version__

if TYPE_CHECKING:
    from pyro_regimes.estimator import RegimeModel

__all__ = [
    "EM",
    "EMResult",
    "Posterior",
    "RegimeHMM",
    "RegimeModel",
    "infer_regimes",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import the estimator when it is first used: scikit-learn takes as long to load as Pyro."""
    if name == "RegimeModel":
        from pyro_regimes.estimator import RegimeModel

        globals()[name] = RegimeModel
        return RegimeModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
