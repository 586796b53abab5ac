"""Inference for Pyro models with RegimeHMM sites."""

from pyro_regimes.infer.em.em import EM, EMResult
from pyro_regimes.infer.regimes import infer_regimes, point_values, record_regimes

__all__ = ["EM", "EMResult", "infer_regimes", "point_values", "record_regimes"]
