"""Hidden Markov models in Pyro: a distribution, EM beside SVI, and market regimes."""

__version__ = "0.1.0"
