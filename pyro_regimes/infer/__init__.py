"""Inference for Pyro models with RegimeHMM sites."""

from pyro_regimes.infer.draws import point_values
from pyro_regimes.infer.em.em import EM, EMResult
from pyro_regimes.infer.pieces import log_prob_of_pieces
from pyro_regimes.infer.regimes import infer_regimes, record_regimes
from pyro_regimes.infer.uncertainty import Derived, StandardErrors, standard_errors

__all__ = [
    "Derived",
    "EM",
    "EMResult",
    "StandardErrors",
    "infer_regimes",
    "log_prob_of_pieces",
    "point_values",
    "record_regimes",
    "standard_errors",
]
