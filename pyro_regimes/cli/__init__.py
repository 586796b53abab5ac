"""The command ``pyro-regimes``: fit regimes to a table of returns, use them, compare methods."""

from pyro_regimes.cli.entry import main, program

__all__ = ["main", "program"]
