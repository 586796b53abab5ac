"""EM whose parameters are not in the caller's parameter store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

from pyro.params.param_store import ParamStoreDict
from torch import Tensor

from pyro_regimes.infer import EM
from pyro_regimes.infer.isolation import isolated


class IsolatedEM(EM):
    """EM with a parameter store of its own, which takes the place of Pyro's while a model runs.

    The caller's handlers do not reach the model, and the caller's parameters stay as they are.
    Several threads may run one each at the same time: between two runs of the model nothing is
    shared.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None = None,
        min_eigenvalue: float = 0.0,
    ) -> None:
        super().__init__(model, guide, min_eigenvalue=min_eigenvalue)
        self._store = ParamStoreDict()

    @contextmanager
    def _pyro(self) -> Iterator[None]:
        with isolated(self._store), super()._pyro():
            yield

    def values(self) -> dict[str, Tensor]:
        """The parameters, constrained."""
        return {name: value.detach() for name, value in self._store.items()}
