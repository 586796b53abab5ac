"""Nothing is compiled, or read from the cache of compiled kernels, while a method is timed."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A process of its own, in which no kernel has been used yet.
SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from numba.core.dispatcher import Dispatcher
from pyro_regimes.comparison import compare_on_returns
from pyro_regimes.comparison.methods import em, lbfgs, nuts, svi, variational

timed, compiled, before = [], [], [0]

def within(function):
    def run(*arguments, **keywords):
        timed.append(True)
        try:
            return function(*arguments, **keywords)
        finally:
            timed.pop()
    return run

def compile(dispatcher, signature, original=Dispatcher.compile):
    before[0] += not timed
    if timed:
        compiled.append(dispatcher.py_func.__name__)
    return original(dispatcher, signature)

Dispatcher.compile = compile

class Watch(nuts.Stopwatch):
    def __enter__(self):
        timed.append(True)
        super().__enter__()
    def __exit__(self, *error):
        super().__exit__(*error)
        timed.pop()

for module in (lbfgs, nuts, svi, variational):
    module.Stopwatch = Watch
# The last run of EM is the one that is timed.
ems = []
class Em(em.TimedEM):
    def run(self, *arguments, **keywords):
        compiled_here = len(compiled)
        found = within(super().run)(*arguments, **keywords)
        ems.append(compiled[compiled_here:])
        del compiled[compiled_here:]
        return found
em.TimedEM = Em

values = np.random.default_rng(0).normal(size=(80, int(sys.argv[3])))
if sys.argv[2] == "outlier":
    values[40], values[41] = 400, -400
compare_on_returns(
    values, n_regimes=int(sys.argv[4]), methods=sys.argv[1].split("/"), em_steps=20, svi_steps=12,
    nuts_steps=2, learning_rates=[1.0],
)
assert before[0] + len(compiled) + sum(map(len, ems)) > 0, "no kernel was seen to be compiled"
assert not ems or len(ems) == 2, ems
print(sorted(set(compiled + (ems[-1] if ems else []))))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, data, num_series, n_regimes",
    [
        ("EM", "outlier", 3, 3),  # which needs kernels in log space
        ("EM, SQUAREM", "outlier", 3, 3),
        ("Adam", "plain", 1, 1),
        ("L-BFGS", "outlier", 2, 3),
        ("AutoDelta", "outlier", 2, 3),
        ("NUTS", "plain", 1, 2),
    ],
)
def test_nothing_is_compiled_while_a_method_is_timed(method, data, num_series, n_regimes):
    arguments = [method, data, str(num_series), str(n_regimes)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
