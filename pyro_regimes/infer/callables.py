"""Checks of the callables that are passed to EM, before the first step."""

from __future__ import annotations

import inspect
from typing import Any

import pyro.optim
import torch

_OPTIM = 'a Pyro optimiser such as pyro.optim.Adam({"lr": 0.01})'


def check_callables(model: Any, guide: Any, optim: Any, step_size: Any) -> None:
    """Check that the callables can be called as EM calls them.

    :raises ValueError: if one cannot, with the remedy.
    """
    _check("model", model, "a function or a module", "an instance of it")
    if isinstance(guide, (pyro.optim.PyroOptim, torch.optim.Optimizer)):
        raise ValueError(
            "expected guide to be a function such as AutoDelta(model), got "
            f"{type(guide).__name__}, an optimiser: pass it by name, EM(model, optim=...)"
        )
    if guide is not None:
        _check("guide", guide, "a function such as AutoDelta(model)", "an instance of it")
    if step_size is not None:
        remedy = "a function of the minibatch's number, such as lambda n: n ** -0.6"
        _check("step_size", step_size, remedy, "a function")
    if optim is not None:
        _check_optim(optim)


def check_callback(callback: Any) -> None:
    """Refuse a callback that cannot be called.

    :raises ValueError: naming it, with the remedy.
    """
    if callback is not None:
        _check("callback", callback, "a function of a step's number and its loss", "a function")


def _check(name: str, given: Any, expected: str, instead: str) -> None:
    if isinstance(given, type):
        raise ValueError(
            f"expected {name} to be {expected}, got the class {given.__name__}: give {instead}"
        )
    if not callable(given):
        raise ValueError(f"expected {name} to be {expected}, got {type(given).__name__}")


def _check_optim(optim: Any) -> None:
    kind = type(optim).__name__
    if isinstance(optim, torch.optim.Optimizer):
        raise ValueError(
            f"expected optim to be {_OPTIM}, got torch.optim.{kind}, which holds parameters of its "
            f'own: wrap its class, as in pyro.optim.PyroOptim(torch.optim.{kind}, {{"lr": 0.01}})'
        )
    if isinstance(optim, type) and issubclass(optim, torch.optim.Optimizer):
        name = optim.__name__
        raise ValueError(
            f"expected optim to be {_OPTIM}, got the class {name} of torch: wrap it, as in "
            f'pyro.optim.PyroOptim({name}, {{"lr": 0.01}})'
        )
    if isinstance(optim, pyro.optim.multi.MultiOptimizer):
        raise ValueError(
            f"expected optim to be {_OPTIM}, got {kind}, which takes the loss and not gradients"
        )
    if _is_maker(optim):
        raise ValueError(
            f"expected optim to be {_OPTIM}, got {optim.__name__} itself: call it with its "
            "arguments"
        )
    _check("optim", optim, _OPTIM, "an instance of it")


def _is_maker(optim: Any) -> bool:
    """Whether it creates optimisers, as the function ``pyro.optim.Adam`` does."""
    return inspect.isfunction(optim) and (optim.__module__ or "").startswith("pyro.optim")
