"""What the tests of the fused engines share."""

from __future__ import annotations

from types import ModuleType
from typing import Callable

import pyro
import pytest
from torch.testing import assert_close

from pyro_regimes.infer.em.engines import fused_gaussian
from pyro_regimes.infer.em.engines.fused_gaussian import FusedEngine
from pyro_regimes.infer.em.result import EMResult


def spy(
    monkeypatch: pytest.MonkeyPatch, allowed: bool = True, module: ModuleType = fused_gaussian
) -> list:
    """What a module has found, which can be forbidden."""
    found: list = []
    find = module.find

    def remember(*args: object) -> object:
        found.append(find(*args) if allowed else "forbidden")
        return found[-1]

    monkeypatch.setattr(module, "find", remember)
    return found


def both_engines(
    run: Callable[[], EMResult],
    history: float = 1e-10,
    values: float = 1e-7,
    module: ModuleType = fused_gaussian,
) -> tuple[EMResult, EMResult]:
    """Run EM by the fused engine, which must serve it, and without; compare all they return.

    :param history: relative tolerance of the losses.
    :param values: relative tolerance of the parameters.
    :param module: the one that finds the fused engine.
    """
    with pytest.MonkeyPatch.context() as patch:
        found = spy(patch, module=module)
        fast = run()
        assert isinstance(found[0], FusedEngine), found
    kept = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()
    with pytest.MonkeyPatch.context() as patch:
        spy(patch, allowed=False, module=module)
        slow = run()
    assert_close(fast.restart_history, slow.restart_history, rtol=history, atol=0.0)
    for name, value in pyro.get_param_store().items():
        assert_close(kept[name], value.detach(), rtol=values, atol=1e-2 * values)
    return fast, slow
