"""A handler that gives a running model one tensor per parameter."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Callable

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


class HandOut(Messenger):
    """Return one shared leaf tensor per parameter name from every ``pyro.param`` statement.

    Pyro computes a new constrained tensor at each read, so two reads of one parameter could not be
    distinguished from two parameters.

    A module reads its ``nn.Parameter`` directly, not through the ``pyro.param`` that registers it.
    While the model runs, every torch operation on the parameter uses the leaf instead.

    :param values: constrained values to return; other parameters come from the store.
    :param connected: whether the latter keep the graph to the store's unconstrained tensors.
    """

    def __init__(
        self, values: dict[str, Tensor] | None = None, connected: bool = False
    ) -> None:
        super().__init__()
        self.values = dict(values or {})
        self._connected = connected
        self._leaves: dict[int, tuple[Tensor, Tensor]] = {}  # by id of a module's parameter

    def __call__(self, model: Callable[..., Any]) -> Callable[..., Any]:
        handed = super().__call__(model)

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.substitution():
                return handed(*args, **kwargs)

        return run

    def substitution(self) -> AbstractContextManager[Any]:
        """A context in which modules' parameters are replaced by their leaves."""
        leaves = (leaf for _, leaf in pyro.get_param_store().named_parameters())
        if any(isinstance(leaf, Parameter) for leaf in leaves):
            return Substitute(self._leaves)
        return nullcontext()

    def resolve(self, value: Tensor) -> Tensor:
        """The leaf that replaces a module's parameter; other tensors are returned unchanged."""
        return self._leaves.get(id(value), (value, value))[1]

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        store = pyro.get_param_store()
        if name in self.values:
            leaf = store._params.get(name)
            value: Any = self.values[name]
            if _registers_module(msg) and leaf is not None:
                self._leaves[id(leaf)] = leaf, value
                msg["value"] = leaf  # a module compares it with its own
            else:
                msg["value"] = value
                if leaf is not None and not hasattr(value, "unconstrained"):
                    value.unconstrained = partial(_itself, leaf)  # asked for in a subsampled plate
            msg["done"] = True
        elif name not in store and len(msg["args"]) > 1 and not _registers_module(msg):
            # The store would share the memory of the caller's start, and EM writes in place. It
            # has to share a module's weights, so that the module sees what is learned.
            name, start, *rest = msg["args"]
            start = start() if callable(start) else start
            if isinstance(start, Tensor):
                start = start.detach().clone()
            msg["args"] = (name, start, *rest)

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        if msg["name"] not in self.values:
            given = msg["value"]
            # A copy: an unconstrained value is the store's leaf itself, which EM will overwrite.
            if self._connected:
                value = given.clone()
            else:
                value = given.detach().clone().requires_grad_(torch.is_grad_enabled())
            # A module that has just made the parameter asks for it.
            value.unconstrained = getattr(given, "unconstrained", None)
            self.values[msg["name"]] = value
            if _registers_module(msg):
                self._leaves[id(given)] = given, value
            else:
                msg["value"] = value


def _itself(leaf: Tensor) -> Tensor:
    return leaf


def _registers_module(msg: dict[str, Any]) -> bool:
    """Whether a ``pyro.param`` statement registers a parameter that its module reads directly."""
    return len(msg["args"]) > 1 and isinstance(msg["args"][1], Parameter)


#: Properties that are read from the parameter itself: ``pyro.module`` warns where it requires no
#: gradient.
_OF_THE_LEAF = tuple(getattr(Tensor, name).__get__ for name in ("requires_grad", "grad", "is_leaf"))

_PAST_AUTOGRAD = (Tensor.data.__get__, Tensor.data.__set__)  # type: ignore[attr-defined]


class Substitute(TorchFunctionMode):
    """Replace some tensors in every torch operation.

    :param leaves: by id of a tensor, that tensor and its replacement.
    """

    def __init__(self, leaves: dict[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._leaves = leaves

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _PAST_AUTOGRAD and any(id(each) in self._leaves for each in args):
            raise ValueError(
                "expected a model that reads and changes its module's parameters where autograd "
                "sees it, got one that uses .data of one: use .detach() to read it, or constrain "
                "it by a function of it"
            )
        if self._leaves and func not in _OF_THE_LEAF:
            args, kwargs = tree_map_only(Tensor, self._replace, (args, kwargs))
        return func(*args, **(kwargs or {}))

    def _replace(self, tensor: Tensor) -> Tensor:
        return self._leaves.get(id(tensor), (tensor, tensor))[1]
