"""EM with a private parameter store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

from pyro.params.param_store import ParamStoreDict
from torch import Tensor

from pyro_regimes.infer import EM
from pyro_regimes.infer.isolation import isolated


class IsolatedEM(EM):
    """EM with a private parameter store, which replaces Pyro's while a model runs.

    The caller's handlers do not apply to the model, and the caller's parameters do not change.
    Several threads may each run an instance at the same time, because they share nothing between
    two runs of the model.
    """

    _shows_parameters = False  # they are not in the caller's store

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
        """The constrained parameters."""
        return {name: value.detach() for name, value in self._store.items()}
