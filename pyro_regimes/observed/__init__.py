"""Distributions of observations that torch and Pyro lack; :mod:`.distributions` exports them."""
