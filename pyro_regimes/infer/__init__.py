"""Inference over Pyro models that hold a regime HMM."""

from pyro_regimes.infer.em import EM, EMResult

__all__ = ["EM", "EMResult"]
