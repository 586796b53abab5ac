"""EM with a private parameter store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import torch
from pyro.params.param_store import ParamStoreDict
from torch import Tensor

from pyro_regimes.infer import EM
from pyro_regimes.infer.em import m_step
from pyro_regimes.infer.em.e_step import Expected, read_site, take_expectations
from pyro_regimes.infer.em.on_chunks import ChunkCalls, OnChunks
from pyro_regimes.infer.em.problem import Problem, TensorState
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.infer.isolation import isolated
from pyro_regimes.infer.undisturbed import Undisturbed
from pyro_regimes.reading.chunks import Chunks


class IsolatedEM(EM):
    """EM with a private parameter store, which replaces Pyro's while a model runs.

    The caller's handlers do not apply to the model, and the caller's parameters do not change.
    Several threads may each run an instance at the same time, because they share nothing between
    two runs of the model.
    """

    _shows_parameters = False  # they are not in the caller's store
    _joins_ranks = False  # without a process_group it fits the data of this process

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

    def read(self, *args: Any) -> tuple[Problem, TensorState]:
        """One run of the model: its plan and data, and the E-step at its parameters."""
        undisturbed = Undisturbed()
        with undisturbed, undisturbed, torch.no_grad():
            problem, state, _ = self._session.read(self._call(args, {}))
        return problem, state

    def expect(self, *args: Any) -> Expected:
        """The E-step at the parameters of a model with one site, without a plan for an M-step."""
        undisturbed = Undisturbed()
        with undisturbed, undisturbed, torch.no_grad():
            (site,) = self._session.run(self._call(args, {})).sites.values()
            return take_expectations(read_site(site))

    def expect_chunks(self, chunks: Chunks, ranks: Ranks | None = None) -> TensorState:
        """The E-step over all chunks at the parameters of a model.

        :param ranks: over which the losses are added; statistics are those of this rank.
        """
        undisturbed = Undisturbed()
        with undisturbed, undisturbed, torch.no_grad(), self._session.on_ranks(ranks):
            calls = ChunkCalls(self.model, self.guide, chunks, (), {})
            return OnChunks(self._session, calls).expect()

    def maximise(self, probs: Tensor, num_steps: int, *args: Any) -> dict[str, Tensor]:
        """The parameters after M-steps that take these probabilities of the states.

        Latent variables of a family, such as the components of a mixture, have expectations of
        their own, which are taken anew before each step.

        :param probs: in the place of the smoothed probabilities, ``(T, K)``.
        :param args: of the model, which observes one RegimeHMM.
        """
        with torch.no_grad():
            problem, state = self.read(*args)
            ((name, site),) = state.expected.items()
            site = site._replace(expectations=site.expectations._replace(smoothed_probs=probs))
            params = state.params
            for _ in range(num_steps):
                found = m_step.maximise(
                    problem.plan,
                    {name: site},
                    params,
                    state.leaves,
                    problem.min_eigenvalue,
                    problem.pseudo,
                    problem.groups,
                    _new,
                )
                params, site = found.values, site._replace(arguments=found.arguments[name])
        return params

    def values(self) -> dict[str, Tensor]:
        """The constrained parameters."""
        return {name: value.detach() for name, value in self._store.items()}


def _new(name: str, old: Tensor, new: Tensor) -> Tensor:
    return new
