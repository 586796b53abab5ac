"""``python -m pyro_regimes``, the same as the command ``pyro-regimes``."""

from pyro_regimes.cli import program

program()
